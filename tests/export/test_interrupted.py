"""Exports on a full disk, and killed at any moment: what stands there is whole, or is not there.

--fuzz-seconds says how long exports are killed, such as 3600.
"""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import commands
import pytest
import tensorflow as tf

from export import versions

pytestmark = pytest.mark.slow

MODULES = {"export.saved_model": "--export_dir", "export.tflite": "--output_dir"}


@pytest.fixture
def disk(tmp_path):
    """A file system of 300 kB, which no export fits."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("module", MODULES)
def test_full_disk_is_said_in_a_line_and_leaves_nothing(module, work_dir, disk):
    run = commands.run(module, f"--work_dir={work_dir}", f"{MODULES[module]}={disk}/out")
    assert run.returncode == 1
    assert "No space left on device" in run.stderr
    assert "Traceback" not in run.stderr
    assert versions.existing(disk / "out") == []
    assert list(disk.rglob("*.tflite")) == []


def test_exports_that_are_killed_leave_whole_versions(work_dir, tmp_path, pytestconfig):
    """Killed at a random moment, again and again; the next one goes through and tidies up."""
    dice = random.Random(pytestconfig.getoption("--fuzz-seed"))
    base = tmp_path / "exports"
    flags = (f"--work_dir={work_dir}", f"--export_dir={base}")
    outputs = [tmp_path / "stdout", tmp_path / "stderr"]
    started = time.monotonic()
    whole = commands.run("export.saved_model", *flags)
    takes = time.monotonic() - started
    assert whole.returncode == 0, whole.stderr
    end = time.monotonic() + pytestconfig.getoption("--fuzz-seconds")
    kills = 0
    while time.monotonic() < end or kills < 2:
        process = commands.start("export.saved_model", *flags, outputs=outputs, cwd=tmp_path)
        process.join(dice.uniform(0.2, 1.0) * takes)
        process.kill()
        process.join()
        kills += 1
        for version in versions.existing(base):
            _answers(base / str(version))
    last = commands.run("export.saved_model", *flags)
    assert last.returncode == 0, last.stderr
    assert not [path.name for path in base.iterdir() if path.name.startswith(".")]


def _answers(folder: Path) -> None:
    """Loads a version as a server does, which a half one does not survive."""
    loaded = tf.saved_model.load(str(folder))
    pixels = tf.io.encode_png(tf.zeros([8, 8, 3], tf.uint8))
    answer = loaded.signatures["serving_bytes"](image_bytes=pixels[tf.newaxis])
    assert answer["scores"].shape[0] == 1
    assert (folder / "model_card.md").is_file()
