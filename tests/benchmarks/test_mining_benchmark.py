"""The mining benchmark at tiny sizes: it measures, and it reports what it could not measure."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from benchmarks import mining

ADDONS = importlib.util.find_spec("tensorflow_addons") is not None
needs_addons = pytest.mark.skipif(not ADDONS, reason="tensorflow-addons ends with Python 3.11")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(mining.__file__)))


@needs_addons
@pytest.mark.slow
def test_command_prints_a_row_for_each_size():
    command = [sys.executable, "-m", "benchmarks.mining", "--sizes=16", "--repeats=1"]
    done = subprocess.run(
        [*command, "--width=4", "--classes=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    header, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert header == mining.HEADER
    assert row[0] == "16"
    # All are figures, and a ratio is theirs over ours up to the digits printed.
    ours_ms, theirs_ms, ratio = float(row[1]), float(row[2]), float(row[3].rstrip("x"))
    assert ours_ms > 0
    assert ratio == pytest.approx(theirs_ms / ours_ms, abs=0.05 + 0.1 * (1 + ratio) / ours_ms)
    assert float(row[4]) > 0
    assert "TensorFlow Addons" not in done.stdout + done.stderr


def test_too_slow_is_reported():
    # No process imports TensorFlow within a hundredth of a second.
    assert mining.measure_apart("tfa", 16, 0.01, []) == {"failure": "over 0.01 s"}


@needs_addons
@pytest.mark.slow
def test_out_of_memory_is_reported():
    # Theirs holds B^3 floats: 1024^3 * 4 bytes = 4 GB, against an allowance of 1 GB.
    result = mining.measure_apart("tfa", 1024, 120, ["--memory_limit_gb=1", "--width=4"])
    assert result == {"failure": "out of memory"}


def test_other_failures_are_reported():
    result = mining.measure_apart("ours", 16, 60, ["--width=-3"])
    assert result["failure"].startswith("failed:")
    assert mining._failure("", -9) == "killed by signal 9"
    assert mining._failure("", 3) == "failed: exit code 3"


@pytest.mark.skipif(ADDONS, reason="tensorflow-addons is installed")
def test_missing_addons_are_reported():
    assert mining.measure_apart("tfa", 16, 60, ["--width=4"]) == {"failure": "not installed"}


def test_row_by_hand():
    both = {"ours": {"ms": 2.0, "mb": 10.0}, "tfa": {"ms": 5.0, "mb": 12345.0}}
    assert mining.row(8, both) == ["8", "2.0", "5.0", "2.5x", "10", "12,345", "1234.5x"]
    failed = {"ours": {"ms": 2.0, "mb": 10.0}, "tfa": {"failure": "out of memory"}}
    expected = ["8", "2.0", "out of memory", "-", "10", "out of memory", "-"]
    assert mining.row(8, failed) == expected
