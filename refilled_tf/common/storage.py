"""Files and folders that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from refilled_tf.common.errors import InputError, require


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it into place when all went well.

    The suffix stays, since writers choose the format by it. What writers that were killed have left
    of the same file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    temporary = temporary_beside(path)
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # or a power cut might leave the name without the content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing(folder: Path, instead: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `folder`, and renames it to that when all went well.

    Its name is hidden, and no number, which a server passes over. What writers that were killed
    have left of the same folder is removed.

    Args:
        folder: to be written.
        instead: whether it takes the place of one that is there, whatever that holds.

    Raises:
        InputError: the folder cannot be written, or is there by now and not empty.
    """
    temporary = temporary_beside(folder)
    try:
        remove_abandoned(folder.parent, folder.name)
        temporary.mkdir(parents=True)
        yield temporary
        if instead:
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)  # unlike os.replace of a file, not over one with content
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_beside(path: Path) -> Path:
    """Returns a hidden path beside `path` for what is under way.

    It says which process it is of; no other has the same path, on whatever machine it runs.
    """
    return path.with_name(f".{_host()}@{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes what processes of this machine that are dead by now have left under way.

    Args:
        folder: in which.
        name: of what they were to become; None for all there is.
    """
    for path in folder.glob(".*-*"):
        match = _TEMPORARY.fullmatch(path.name)
        if (
            match is None
            or name not in (None, match["name"])
            or match["host"] not in (None, _host())
        ):
            continue
        if not _runs(int(match["pid"])):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


# As `temporary_beside` names them; exports of earlier versions left ".PID-VERSION".
_TEMPORARY = re.compile(
    r"\.(?:(?P<host>[^@]*)@)?(?P<pid>\d+)-(?(host)[0-9a-f]{8}-)(?P<name>(?(host).+|\d+))"
)


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", platform.node())


def _runs(pid: int) -> bool:
    """Whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is the system's own, not what a person put there."""
    # macOS puts a folder of the latter name into its archives.
    return name.startswith((".", "__MACOSX"))


def nearest_existing(place: Path) -> Path:
    """Returns a place, or the nearest above it that is there."""
    # Path.exists raises where a folder above may not be entered.
    return next(path for path in (place, *place.parents) if os.path.exists(path))


def require_writable(option: str, folder: Path) -> None:
    """Raises InputError unless a folder is there, or can be made, to write into."""
    existing = nearest_existing(folder)
    require(
        existing.is_dir() and os.access(existing, os.W_OK),
        f"{option}={folder}: {existing} is not a folder that can be written",
    )


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yields what an open file holds, a megabyte at a time."""
    while block := file.read(1 << 20):
        yield block


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or not readable as JSON: {error}") from error
