"""The commands that `pip install` puts on the path: each runs a module as `python -m` does."""

from __future__ import annotations

import os
import runpy
import sys
from functools import partial


def run(command: str) -> None:
    """Runs refilled_tf.COMMAND as the program, which finds modules in the folder where it runs."""
    sys.path.insert(0, os.getcwd())
    runpy.run_module(f"refilled_tf.{command}", run_name="__main__", alter_sys=True)


train = partial(run, "train")
evaluate = partial(run, "evaluate")
distill = partial(run, "distill")
probe = partial(run, "probe")
prepare = partial(run, "prepare")
reproduce = partial(run, "reproduce")
