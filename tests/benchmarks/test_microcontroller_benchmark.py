"""The benchmark of networks for microcontrollers: a row by hand, and one that is measured."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import microcontroller

ROOT = Path(__file__).resolve().parents[2]


def test_row_by_hand():
    operators = {"CONV_2D": 14, "PAD": 1, "SOFTMAX": 1}
    found = microcontroller.row(0.25, 48, 103_520, 294_656, 7_489_664, operators)
    assert found == [".25", "48", "103,520", "294,656", "7.49", "of the six, PAD"]
    assert len(microcontroller.HEADER) == len(microcontroller.REFERENCE) == len(found)


@pytest.mark.slow
def test_command_prints_a_row_beside_the_reference():
    pytest.importorskip("tflite_micro")
    command = [sys.executable, "-m", "benchmarks.microcontroller", "--widths=.1", "--sizes=32"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines()]
    header, _, (width, pixels, arena, file, million, operators), reference = rows
    assert (header, reference) == (microcontroller.HEADER, microcontroller.REFERENCE)
    assert (width, pixels, operators) == (".1", "32", "of the six")
    # The image itself lies in the arena, and a byte for every weight in the file.
    assert int(arena.replace(",", "")) > 32 * 32 * 3
    assert int(file.replace(",", "")) > 32_000
    assert 0 < float(million) < 1
