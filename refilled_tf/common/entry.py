"""How every command starts, and how it ends on bad input, a full disk, a lost machine or Ctrl-C."""

from __future__ import annotations

import errno
import logging as python_logging
import math
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags, logging

from refilled_tf import import_tensorflow
from refilled_tf.common import cluster, storage
from refilled_tf.common.errors import InputError, require

INTERRUPTED = 130  # the exit status that shells give to what Ctrl-C has ended
_TOGETHER = "; the same command, given again on all machines, goes on from the last checkpoint"
# What a machine may refuse, and what a person can do about it.
_REFUSALS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "take a disk that takes larger files",
    errno.EROFS: "take another folder",
    errno.EACCES: "allow it to this user, or take another folder",
    errno.EPERM: "allow it to this user, or take another folder",
    errno.EMFILE: "raise the limit by ulimit -n 4096",
    errno.EIO: "look after the disk",
}


def no_arguments(argv: list[str]) -> None:
    """Rejects positional arguments.

    Raises:
        InputError: naming it.
    """
    require(len(argv) == 1, f"unexpected argument {argv[1:]}; every option is a --flag")


def run_main(
    main: Callable[[list[str]], None],
    check: Callable[[list[str]], None] = no_arguments,
    goes_on: bool = False,
    notes: Callable[[], Path] | None = None,
) -> None:
    """Parses flags and runs an entry point.

    Bad input, and what the machine refuses, such as a write to a full disk, end in one line on
    stderr and exit status 1, without a traceback; Ctrl-C in a line and exit status 130; the loss of
    a machine that trains with this one in a line and `cluster.LOST`. Python's warnings, which are
    other libraries', are dropped unless Python is told what to do with them.

    Args:
        main: the entry point.
        check: of its options, as far as it takes no TensorFlow, whose import takes seconds.
        goes_on: whether the same command, given again, goes on where it ended.
        notes: says which file takes what a line has to shorten; None for a new temporary one.
    """
    again = "; the same command goes on from here" if goes_on else ""

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        python_logging.getLogger("tensorflow").setLevel("ERROR")
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        try:
            _require_finite_flags()
            check(argv)
            import_tensorflow()
            main(argv)
            return
        except KeyboardInterrupt:
            said, status = f"\nstopped{again}", INTERRUPTED
        except Exception as error:
            gone, refused = lost(error), refusal(error)
            # What reads files takes any error for theirs, so this comes before all others.
            if gone is not None:
                said, status = f"\nerror: {gone}{_TOGETHER}", cluster.LOST
            elif isinstance(error, InputError):
                said, status = f"error: {error}{_all_named(error, notes)}", 1
            elif refused is not None:
                said, status = f"error: {refused}{again}", 1
            else:
                raise
        # Not before the error is gone, and with it the progress bars of where it was raised.
        print(said, file=sys.stderr, flush=True)
        if status == cluster.LOST:
            # TensorFlow does not tidy up behind broken connections: it crashes, or waits for them.
            sys.stdout.flush()
            os._exit(status)
        sys.exit(status)

    app.run(guarded)


def _all_named(error: InputError, notes: Callable[[], Path] | None) -> str:
    """Writes all that an error is about to a file, and says so, where its line is too short."""
    if not error.details:
        return ""
    try:
        path = _temporary_file() if notes is None else notes()
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        lines = dict.fromkeys([*before, *error.details])
        storage.write_text(path, "".join(f"{line}\n" for line in lines if line))
    except OSError as refused:
        return f" (all of them cannot be written: {refused})"
    return f" ({path} names all)"


def _temporary_file() -> Path:
    handle, name = tempfile.mkstemp(prefix="refilled_tf-", suffix=".txt")
    os.close(handle)
    return Path(name)


def _require_finite_flags() -> None:
    """Rejects infinite numbers and NaN, which options take for floats, and which obey any bound.

    Raises:
        InputError: naming the first.
    """
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        for value in flag.value if isinstance(flag.value, list) else (flag.value,):
            require(
                not isinstance(value, float) or math.isfinite(value),
                f"--{name}={value} must be a finite number",
            )


def lost(error: BaseException) -> str | None:
    """Returns which machine is gone, if that is what an error comes from; see `cluster.lost`."""
    return next(filter(None, map(cluster.lost, _causes(error))), None)


def refusal(error: BaseException) -> str | None:
    """Returns what the machine has refused, if that is what an error comes from.

    Args:
        error: maybe TensorFlow's or HDF5's, which name the reason in their text alone.

    Returns:
        Such as "/data/model.keras: No space left on device; make room"; None of any other error.
    """
    for each in _causes(error):
        for number, advice in _REFUSALS.items():
            said = os.strerror(number)
            if getattr(each, "errno", None) == number or said in str(each):
                name = getattr(each, "filename", None)
                found = re.search(r"(?<![\w.])/[^\s;:'\"]+", str(each))
                where = name or (found[0] if found else type(each).__name__)
                return f"{where}: {said}; {advice}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def command_line(module: str) -> str:
    """Returns the command that runs this process, a program `python -m MODULE`."""
    return shlex.join([Path(sys.executable).name, "-m", module, *sys.argv[1:]])
