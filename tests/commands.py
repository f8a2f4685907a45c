"""The project's commands, each in a process of its own.

Importing TensorFlow takes longer than most of what tests ask of a command, so these processes are
forked from one that has imported it, and nothing more.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["refilled_tf.experiment.config"])


def run(
    module: str,
    *flags: object,
    cwd: Path = ROOT,
    timeout: float = 300,
    **extra: str,
) -> subprocess.CompletedProcess[str]:
    """Does what `python -m MODULE FLAGS` does, which in addition knows tiny.TinyNetwork.

    Args:
        module: such as "refilled_tf.train".
        flags: of the command.
        cwd: the folder it is run in.
        timeout: seconds after which it is killed.
        extra: see `environment`.

    Returns:
        Its exit status, stdout and stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = start(module, *flags, outputs=outputs, cwd=cwd, **extra)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(module, timeout)
        texts = [path.read_text(encoding="utf-8") for path in outputs]
    return subprocess.CompletedProcess([module, *flags], process.exitcode, *texts)


def start(
    module: str, *flags: object, outputs: Sequence[Path], cwd: Path, **extra: str
) -> BaseProcess:
    """Starts what `run` runs; of `outputs`, the files of stdout and stderr, both may be one."""
    command = [module, *map(str, flags)]
    process = _CONTEXT.Process(target=_become, args=(command, outputs, cwd, environment(**extra)))
    process.start()
    return process


def environment(**extra: str) -> dict[str, str]:
    """Returns this process's environment with the project and tests on the path, and no GPU."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1", **extra}


def _become(command: list[str], outputs: Sequence[Path], cwd: Path, env: dict[str, str]) -> None:
    """Turns this process into the command."""
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path.insert(0, str(cwd))
    sys.argv = command
    # It registers its network and, being told so by the environment, forbids writing.
    import tiny  # noqa: F401

    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
