"""Figure 1: its gradients against formulas, its drawing of tasks, its verdict."""

from __future__ import annotations

import csv

import commands
import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf import figure1
from refilled_tf.data.task import load
from refilled_tf.experiment import loading
from refilled_tf.figure1 import Measurement
from refilled_tf.models import networks

RANDOM = np.random.default_rng(0)


def _softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_differences_are_the_gradients_by_hand():
    """KD's derivative by z is T²·(p - q)/T, LKD's p - q over the classes present, here 0 and 2."""
    features = RANDOM.normal(size=(6, 4))
    kernel = RANDOM.normal(size=(4, 3))
    labels = np.array([0, 0, 2, 2, 2, 0])
    teacher_logits, embedding = RANDOM.normal(size=(6, 3)), RANDOM.normal(size=(6, 5))
    logits, tau = features @ kernel, figure1.TEMPERATURE

    soft = tau * (_softmax(logits / tau) - _softmax(teacher_logits / tau))
    kd = np.linalg.norm(features.T @ soft / 6, axis=0).mean()

    centers = np.stack([embedding[labels == c].mean(axis=0) for c in (0, 2)])
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    local = np.zeros((6, 3))
    local[:, [0, 2]] = _softmax(logits[:, [0, 2]]) - _softmax(embedding @ centers.T / tau)
    lkd = np.linalg.norm(features.T @ local / 6, axis=0).mean()

    arrays = (features, kernel, teacher_logits, embedding)
    features, kernel, teacher_logits, embedding = (tf.constant(x, tf.float32) for x in arrays)
    got = figure1.norm_differences(features, kernel, tf.constant(labels), teacher_logits, embedding)
    assert got == pytest.approx((kd, lkd), rel=1e-5)


def _measurements(kd, lkd, noise):
    """Differences that fall to the shares `kd` and `lkd` of their first values."""
    return [
        Measurement(size, seed, tuple(10 * share * (1 + noise * seed) for share in shares))
        for size, shares in ((10, (1.0, 1.0)), (100, (kd, lkd)))
        for seed in range(3)
    ]


def test_curves_begin_at_one_for_every_seed():
    sizes, relative = figure1.curves(_measurements(0.2, 0.5, noise=0.3))
    assert sizes.tolist() == [10, 100]
    np.testing.assert_allclose(relative[0], 1)
    np.testing.assert_allclose(relative[1], [[0.2, 0.5]] * 3)


@pytest.mark.parametrize(
    ("kd", "lkd", "said"), [(0.2, 0.5, "holds"), (0.5, 0.2, "does not"), (0.3, 0.3, "does not")]
)
def test_verdict_follows_the_numbers(kd, lkd, said):
    text = figure1.verdict(_measurements(kd, lkd, noise=0.1))
    assert f"faster {said}" in text
    assert f"KD {100 * kd:.1f} %, LKD {100 * lkd:.1f} %" in text


def test_a_task_is_drawn_by_its_seed_and_its_size(run):
    stage = tiny.teacher()
    data = load(stage.task).train
    teacher = loading.load_network(stage, run)
    tf.keras.utils.set_random_seed(0)
    student = networks.embedding_network(stage.backbone, 8)
    first, again, other = (
        figure1.measure(teacher, student, data, 8, 3, seed, 20) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert min(first.differences) > 0


def test_command_writes_numbers_and_picture(tmp_path):
    """On a teacher of all ten digits."""
    (tmp_path / "a.gin").write_text(
        tiny.GIN + "Data.class_split = @SharedClasses()\nExperiment.rows = [@teacher/Stage()]\n",
        encoding="utf-8",
    )
    work_dir, output = tmp_path / "work", tmp_path / "out"
    flags = {
        "train": [f"--gin_file={tmp_path / 'a.gin'}"],
        "figure1": [f"--output_dir={output}", "--seeds=2", "--sizes=5", "--batch_size=32"],
    }
    for module, own in flags.items():
        run = commands.run(f"refilled_tf.{module}", f"--work_dir={work_dir}", *own)
        assert run.returncode == 0, run.stderr
    assert "The paper's claim" in run.stdout
    with (output / "figure1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["classes"]) for row in rows] == [2, 2, 4, 4, 6, 6, 8, 8, 10, 10]
    assert (output / "figure1.png").stat().st_size > 5000
