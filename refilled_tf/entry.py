"""How every command starts and how it ends on bad input."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
from absl import app, flags, logging

from refilled_tf.errors import InputError


def run_main(main: Callable[[list[str]], None]) -> None:
    """Parses flags and runs an entry point.

    Bad input ends in one line on stderr and exit status 1, without a traceback.
    """

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        tf.get_logger().setLevel("ERROR")
        try:
            main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded)


def command_line(module: str) -> str:
    """Returns the command that runs this process, a program `python -m MODULE`."""
    return shlex.join([Path(sys.executable).name, "-m", module, *sys.argv[1:]])
