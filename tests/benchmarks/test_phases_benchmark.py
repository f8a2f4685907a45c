"""benchmarks/phases.py: frames of known files, and a command that sleeps."""

import re
from types import SimpleNamespace

import commands
import pytest

from benchmarks import phases


def stack(*calls):
    """Returns the innermost frame of functions with these (file, name)s that call each other."""
    frame = None
    for path, name in calls:
        code = SimpleNamespace(co_filename=path, co_name=name)
        frame = SimpleNamespace(f_code=code, f_back=frame)
    return frame


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("/x/keras/src/engine/training.py", "fit")], "steps"),
        ([("/x/keras/src/engine/training.py", "fit"), ("/x/refilled_tf/data/a.py", "f")], "data"),
        ([("/x/refilled_tf/data/a.py", "f"), ("<frozen importlib._bootstrap>", "f")], "imports"),
        # Whatever a trace calls belongs to it.
        (
            [("/x/t.py", "_create_concrete_function"), ("/x/refilled_tf/data/a.py", "f")],
            "tracing",
        ),
        ([("/x/unknown.py", "f")], "other"),
    ],
)
def test_phase(calls, expected):
    assert phases.phase(stack(*calls)) == expected


def test_command():
    done = commands.run(
        "benchmarks.phases", "timeit", "-n", "1", "-r", "1", "-s", "import time", "time.sleep(0.5)"
    )
    assert done.returncode == 0, done.stderr
    assert "1 loop" in done.stdout  # the module has run, as with its own arguments
    assert float(re.search(r"\| all \| ([\d.]+) \|", done.stdout)[1]) >= 0.5
    assert commands.run("benchmarks.phases").returncode == 1
