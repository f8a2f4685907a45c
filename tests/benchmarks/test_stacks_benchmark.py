"""The benchmark of several Pythons: what it compares, and what it refuses."""

from __future__ import annotations

import io
import subprocess
import sys

import commands
import pytest
import tensorflow as tf

from benchmarks import blocks, stacks
from refilled_tf.common.errors import InputError


def test_cells_by_hand():
    # Turn by turn the second is 1, 2 and 4 times as fast; its median block takes half a second.
    seconds = {"a": [1.0, 1.0, 1.0], "b": [1.0, 0.5, 0.25]}
    assert stacks.cells(seconds, images=500) == ["500", "1,000 (2.00, 1.00 to 4.00)"]


def test_versions_are_those_of_each_python():
    assert stacks.tensorflow(sys.executable) == tf.__version__


@pytest.mark.parametrize("python", ["no/such/python", "true"])
def test_what_is_no_python_with_tensorflow_is_named(python):
    with pytest.raises(InputError, match=f"--pythons: {python} is no Python with what req"):
        stacks.tensorflow(python)


def table(*flags):
    """Runs the command with this Python; returns the cells of its header and of its one row."""
    run = commands.run("benchmarks.stacks", f"--pythons={sys.executable}", *flags, cwd=blocks.ROOT)
    assert run.returncode == 0, run.stderr
    header, _, row = (line for line in run.stdout.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, row)]


@pytest.mark.slow
def test_command_times_every_precision():
    header, row = table(
        "--precisions=float32,mixed_bfloat16",
        *("--networks=mobilenet_25", "--steps=stage 2"),
        *("--batch_size=8", "--block=1", "--repeats=2", "--threads=1"),
    )
    version = tf.__version__
    assert header == ["network", "step", f"{version} float32", f"{version} mixed_bfloat16"]
    name, step, first, second = row
    assert (name, step) == ("mobilenet_25", "stage 2")
    assert float(first) > 0
    assert float(second.split(" (")[0]) > 0


@pytest.mark.slow
def test_command_times_levers():
    header, row = table(
        "--levers=none,lone_operations,ten_steps_a_call",
        *("--networks=mobilenet_25", "--steps=student"),
        *("--batch_size=4", "--block=10", "--repeats=1", "--threads=2"),
    )
    name = f"{tf.__version__} float32"
    variants = [name, f"{name} lone_operations", f"{name} ten_steps_a_call"]
    assert header == ["network", "step", *variants]
    assert all(float(cell.split(" (")[0]) > 0 for cell in row[2:])
    assert len(row) == len(header)


def test_blocks_count_steps_not_calls(monkeypatch):
    calls = []
    monkeypatch.setattr(sys, "stdin", io.StringIO("20\n10\n"))
    blocks.serve(lambda: calls.append(1) or 0.0, parameters=1, steps_a_call=10)
    assert len(calls) == 3  # of ten steps each


def test_unknown_step_is_named():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.stacks", "--pythons=python", "--steps=KDD"],
        cwd=blocks.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: --steps: KDD; there are student, ")
