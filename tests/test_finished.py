"""A training that an older version has finished, in which modules lay elsewhere, is still one.

finished/ is the work_dir; finished.gin says how it was made.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.slow

FINISHED = Path(__file__).resolve().parent / "finished"
RESULTS = json.loads((FINISHED / "results.json").read_text())
REFILLED = next(row for row in RESULTS["rows"] if row["stage"] == "refilled")
# TensorFlow's versions round differently, which may turn an image over.
ONE_IMAGE = 1 / REFILLED["images"] + 1e-4


@pytest.fixture
def work_dir(tmp_path):
    return shutil.copytree(FINISHED, tmp_path / "work")


def _files(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_same_command_trains_nothing(work_dir):
    before = _files(work_dir / "stages")
    flags = ["--gin_file=tests/finished.gin", f"--work_dir={work_dir}"]
    run = commands.run("refilled_tf.train", *flags)
    assert run.returncode == 0, run.stderr
    assert "epoch" not in run.stderr  # as a bar of progress counts

    after = _files(work_dir / "stages")
    assert {path: after[path] for path in after if path.suffix != ".lock"} == before
    rows = json.loads((work_dir / "results.json").read_text())["rows"]
    assert [row | {"command": RESULTS["command"]} for row in rows] == RESULTS["rows"]


def test_evaluate_finds_the_accuracy_of_then(work_dir):
    run = commands.run("refilled_tf.evaluate", f"--work_dir={work_dir}", "--stage=refilled")
    assert run.returncode == 0, run.stderr
    (accuracy,) = re.findall(r"^accuracy ([\d.]+)$", run.stdout, re.M)
    assert float(accuracy) / 100 == pytest.approx(REFILLED["accuracy"], abs=ONE_IMAGE)


def test_export_serves_the_network_of_then(work_dir, tmp_path):
    flags = [f"--work_dir={work_dir}", f"--export_dir={tmp_path / 'exports'}"]
    run = commands.run("export.saved_model", *flags)
    assert run.returncode == 0, run.stderr
    (version,) = (path for path in (tmp_path / "exports").iterdir() if path.name.isdecimal())
    assert "refilled" in run.stdout

    images = np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)).astype(np.float32)
    network = tf.keras.models.load_model(work_dir / "stages/refilled/model.keras", compile=False)
    wanted = tf.nn.softmax(network(images)["logits"]).numpy()
    served = tf.saved_model.load(str(version)).signatures["serving_tensor"]
    np.testing.assert_allclose(served(images=images)["probabilities"], wanted, atol=1e-5)
