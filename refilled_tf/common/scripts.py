"""The commands that `pip install` puts on the path: each runs a module as `python -m` does."""

from __future__ import annotations

import runpy
from functools import partial


def run(command: str) -> None:
    """Runs refilled_tf.COMMAND as the program."""
    runpy.run_module(f"refilled_tf.{command}", run_name="__main__", alter_sys=True)


train, evaluate, distill, probe, prepare, reproduce = (
    partial(run, command)
    for command in ("train", "evaluate", "distill", "probe", "prepare", "reproduce")
)
