"""How commands end: bad input, what the machine refuses, Ctrl-C."""

from __future__ import annotations

import errno
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
import tensorflow as tf

from refilled_tf.common import cluster, entry

PROGRAM = """
import sys, warnings
from pathlib import Path
from absl import flags
from refilled_tf.common.entry import run_main
from refilled_tf.common.errors import InputError

flags.DEFINE_float("ratio", 0.5, "", 0.0)
flags.DEFINE_multi_float("rates", [0.5], "")

def main(argv):
    warnings.warn("of some library")
    {body}

run_main(main, goes_on=True, notes={notes})
"""


def _run(body, options=(), notes=None, **extra):
    command = [sys.executable, "-c", PROGRAM.format(body=body, notes=notes), *options]
    return subprocess.run(
        command,
        env=commands.environment(**extra),
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("raise InputError('--x=1 is wrong')", 1, "error: --x=1 is wrong"),
        ("raise KeyboardInterrupt", 130, "stopped; the same command goes on from here"),
        (
            "raise OSError(28, 'No space left on device', '/data/model.keras')",
            1,
            "error: /data/model.keras: No space left on device; make room; the same command goes "
            "on from here",
        ),
    ],
)
def test_ends_in_a_line(body, status, said):
    """And nothing of warnings, which Python's own filter would let through."""
    done = _run(body)
    assert done.returncode == status
    assert done.stderr.strip() == said


NUMBERS = "[str(number) for number in range(13)]"


def test_what_the_line_shortens_is_in_a_file_that_it_names():
    done = _run(f"raise InputError('13 are wrong: 0, 1, …', {NUMBERS})")
    assert done.returncode == 1
    found = re.fullmatch(r"error: 13 are wrong: 0, 1, … \((\S+) names all\)", done.stderr.strip())
    file = Path(found[1])
    # Each a line, in their order.
    assert file.read_text() == "".join(f"{number}\n" for number in range(13))
    file.unlink()


def test_what_the_line_shortens_is_added_to_a_command_s_own_file(tmp_path):
    """Once, however often the command is given."""
    notes = tmp_path / "out/notes.txt"
    notes.parent.mkdir()
    notes.write_text("of before\n")
    for _ in range(2):
        body = f"raise InputError('13 are wrong', {NUMBERS})"
        done = _run(body, notes=f"lambda: Path({str(notes)!r})")
        assert done.stderr.strip() == f"error: 13 are wrong ({notes} names all)"
    assert notes.read_text().split() == ["of", "before", *map(str, range(13))]


@pytest.mark.parametrize(
    ("option", "value"), [("ratio", "nan"), ("ratio", "inf"), ("rates", "-inf"), ("rates", "1e999")]
)
def test_numbers_that_are_not_finite_are_refused(option, value):
    """Which absl takes for floats; NaN obeys any bound."""
    done = _run("pass", (f"--{option}={value}",))
    assert done.returncode == 1
    shown = float(value)
    assert done.stderr.strip() == f"error: --{option}={shown} must be a finite number"


def test_a_fault_of_ours_keeps_its_traceback():
    done = _run("raise ValueError('ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ours" in done.stderr


LOST = """
    import atexit, tensorflow, threading
    atexit.register(print, "tidied up")
    threading.Thread(target=threading.Event().wait).start()
    print("a row of a table", end="")
    text = "Collective ops is aborted by: Socket closed, remote target /job:worker/task:1"
    error = tensorflow.errors.UnavailableError(None, None, text)
    {how}
"""


@pytest.mark.parametrize("how", ["raise error", "raise InputError('unreadable') from error"])
def test_a_lost_worker_ends_in_a_line_without_waiting_for_tensorflow(how):
    config = '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}'
    done = _run(LOST.format(how=how), TF_CONFIG=config)
    assert done.returncode == cluster.LOST
    assert done.stderr.strip() == (
        "error: worker 1 (b:2) is gone, so worker 0 (a:1) has stopped; the same command, given "
        "again on all machines, goes on from the last checkpoint"
    )
    assert done.stdout == "a row of a table"


def _from(cause):
    """An error that another one has led to, as Keras and TensorFlow raise them."""
    try:
        try:
            raise cause
        except Exception as error:
            raise RuntimeError("saving failed") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/d/1.jpg"), "/d/1.jpg: Permission"),
        (_from(OSError(errno.ENOSPC, "No space left on device", "/d/x")), "/d/x: No space left"),
        (
            tf.errors.ResourceExhaustedError(None, None, "/d/e/x.data; No space left on device"),
            "/d/e/x.data: No space left on device; make room",
        ),
        # As h5py says it.
        (OSError("Can't write data (errno = 28, error message = 'No space left on device')"), "No"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/d"), None),
        (ValueError("wrong shape"), None),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), None),
    ],
)
def test_what_the_machine_refuses_is_told_from_faults(error, said):
    found = entry.refusal(error)
    assert found is None if said is None else said in found


def test_command_line_can_be_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--gin_param=Data.on_corrupt = 'skip'"])
    assert entry.command_line("refilled_tf.train").endswith(
        """ -m refilled_tf.train '--gin_param=Data.on_corrupt = '"'"'skip'"'"''"""
    )


@pytest.mark.slow
def test_ctrl_c_in_a_training_ends_in_a_line_and_the_same_command_goes_on(tmp_path):
    flags = [
        "--gin_file=digits_halves.gin",
        f"--work_dir={tmp_path}/run",
        "--gin_param=Experiment.rows = [@student/Stage()]",
        "--gin_param=Recipe.epochs = 400",
    ]
    command = [sys.executable, "-m", "refilled_tf.train", *flags]
    process = subprocess.Popen(
        command,
        env=commands.environment(),
        cwd=commands.ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has what it starts in the background ignore Ctrl-C, and so what that starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    history = tmp_path / "run/stages/student/history.csv"
    while process.poll() is None and not history.exists():
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "\nstopped; the same command goes on from here\n" in said
    assert "Traceback" not in said


def _tmpfs(folder, size):
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["16k", "300k"])
def test_full_disk_ends_in_a_line(tmp_path, size):
    """While the settings are written, and while a training saves its state."""
    disk = tmp_path / "disk"
    _tmpfs(disk, size)
    try:
        done = commands.run(
            "refilled_tf.train", "--gin_file=digits_halves.gin", f"--work_dir={disk}/run"
        )
        assert done.returncode == 1
        assert "No space left on device; make room; the same command goes on" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(disk.rglob(".*@*"))
    finally:
        subprocess.run(["umount", disk], check=True)
