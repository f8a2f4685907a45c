"""What the benchmark of unlabelled photos measures, on a few of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import unlabelled

ROOT = Path(unlabelled.__file__).resolve().parents[1]


def test_photos_are_all_different(tmp_path):
    unlabelled.write(tmp_path, 0, 4)
    unlabelled.write(tmp_path, 4, 6)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert [file.stem for file in files] == [f"{number:07}" for number in range(6)]
    assert len({file.read_bytes() for file in files}) == 6


@pytest.mark.slow
def test_command_prints_a_row_for_a_tenth_and_for_all():
    # Photos are few here, so that all are held in memory.
    command = [sys.executable, "-m", "benchmarks.unlabelled", "--files=200"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = [line.split("|")[1:4] for line in run.stdout.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["20", "200"]
    assert {row[1].strip() for row in rows} == {"once, into memory"}
