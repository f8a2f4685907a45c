"""Two replicas take the steps that one device takes.

Expected values come from the same stage trained on one device. The batches are laid out so that
a replica on its own would see something else: that is asserted too.
"""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf.data import batches
from refilled_tf.data.task import Task
from refilled_tf.experiment import training
from refilled_tf.experiment.stage import TeacherCache
from refilled_tf.models.mobilenet import MobileNet
from refilled_tf.objectives import base
from refilled_tf.objectives.attention import AttentionTransfer
from refilled_tf.objectives.distillation import Distillation
from refilled_tf.objectives.fitnet import FitNet
from refilled_tf.objectives.joint import JointDistillation
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.nst import NeuronSelectivity
from refilled_tf.objectives.probe_distillation import ProbeDistillation
from refilled_tf.objectives.regression import EmbeddingRegression
from refilled_tf.objectives.relationship import RelationshipMatching
from refilled_tf.objectives.rkd import RelationalDistillation
from refilled_tf.objectives.similarity import SimilarityDistillation
from refilled_tf.objectives.similarity_preserving import SimilarityPreserving
from refilled_tf.objectives.vid import VariationalInformation

pytestmark = pytest.mark.slow

STEPS = 2  # an epoch; two epochs make four steps
# A batch of 8, half of it on either replica. All positive pairs lie across the replicas, and
# neither replica has all five classes.
CLASSES = (0, 1, 2, 3, 0, 1, 2, 4)
RECIPE = dataclasses.replace(tiny.RECIPE, batch_size=len(CLASSES))

TRIPLET = RelationshipMatching(weight=10.0, fallback="farthest")
# Their losses compare images with each other.
RELATIONAL = {
    "triplet": TRIPLET,
    "tuple": RelationshipMatching(relation="tuple", weight=10.0, margin=0.5),
    "local, batch centres": LocalDistillation(centers="batch"),
    "local, global centres": LocalDistillation(centers="global"),
    "rkd": RelationalDistillation(),
    "joint": JointDistillation(TRIPLET, LocalDistillation(), gamma=0.2),
    "sp, embeddings": Distillation(SimilarityPreserving(weight=10.0, layers=("embedding",))),
}
LAYERS = ("conv", "norm", "relu")  # of TinyNetwork
# They take unlabelled images, one beside each labelled one.
POOLED = {
    "local with a pool": LocalDistillation(centers="global"),
    "probe with a pool": ProbeDistillation(),
    "neighbours": RelationshipMatching(weight=10.0, neighbors=2),
    "similarities": SimilarityDistillation(bank=50, hidden=8),
    "regression": EmbeddingRegression(hidden=8),
}
# Lighter than by default, which at this learning rate would drive weights to tens and hundreds.
OBJECTIVES = RELATIONAL | {
    "fitnet": Distillation(FitNet(weight=1.0, layers=LAYERS)),
    "at": Distillation(AttentionTransfer(weight=10.0, layers=LAYERS)),
    "nst": Distillation(NeuronSelectivity(weight=1.0, layers=LAYERS)),
    "kd+vid": Distillation(VariationalInformation(layers=LAYERS), kd_weight=1.0),
    "sp": Distillation(SimilarityPreserving(weight=10.0, layers=LAYERS)),
}


@dataclasses.dataclass(frozen=True)
class _DoubleMobileNet(MobileNet):
    """MobileNet in double precision.

    At 8 images a step its 27 batch norms amplify single precision's rounding so much that noise
    of 1e-6 in the images moves fresh embeddings by 1e-3, on one device.
    """

    def build(self, image_size):
        before = tf.keras.mixed_precision.global_policy()
        tf.keras.mixed_precision.set_global_policy("float64")
        network = super().build(image_size)
        tf.keras.mixed_precision.set_global_policy(before)
        return network


def _order(labels, batch_size, seed, epoch, classes_per_batch=None):
    random = np.random.default_rng([seed, epoch])
    rows = [[random.choice(np.flatnonzero(labels == c)) for c in CLASSES] for _ in range(STEPS)]
    return np.array(rows, np.int32)


def _train(spec, work_dir, devices, finished):
    shutil.copytree(finished, work_dir)
    result = training.train(spec, tiny.run_in(work_dir, devices))
    return result["training"], tiny.saved_weights(work_dir, spec.name)


@pytest.mark.parametrize("name", POOLED)
def test_two_replicas_are_one_device_with_unlabelled_images(
    name, tmp_path, finished, monkeypatch, built
):
    monkeypatch.setattr(batches, "epoch_order", _order)
    recipe = dataclasses.replace(RECIPE, batch_size=2 * len(CLASSES), unlabelled_share=0.5)
    task = Task(tiny.DATA, "student", unlabelled=(Task(tiny.DATA, "teacher"),))
    spec = tiny.first(objective=POOLED[name], recipe=recipe, task=task)
    assert spec.task.unlabelled
    logs, weights = _train(spec, tmp_path / "one", 1, finished)
    two_logs, two_weights = _train(spec, tmp_path / "two", 2, finished)
    assert tiny.largest_difference(weights, two_weights) < 1e-5
    one, two = (learner.adapter for learner, _ in built)
    if one is not None:
        assert tiny.largest_difference(one.get_weights(), two.get_weights()) < 1e-5
    assert two_logs == pytest.approx(logs, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_replicas_are_one_device(name, tmp_path, finished, monkeypatch, built):
    monkeypatch.setattr(batches, "epoch_order", _order)
    objective = OBJECTIVES[name]
    task = Task(tiny.DATA, "teacher" if objective.shares_classes else "student")
    spec = tiny.first(objective=objective, recipe=RECIPE, task=task)
    logs, weights = _train(spec, tmp_path / "one", 1, finished)
    two_logs, two_weights = _train(spec, tmp_path / "two", 2, finished)
    assert tiny.largest_difference(weights, two_weights) < 1e-5
    one, two = (learner.adapter for learner, _ in built)
    if one is not None:
        assert tiny.largest_difference(one.get_weights(), two.get_weights()) < 1e-5
    assert two_logs == pytest.approx(logs, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_two_replicas_are_one_device_with_a_teacher_cache(tmp_path, finished, monkeypatch, jitter):
    monkeypatch.setattr(batches, "epoch_order", _order)
    objective, cache = OBJECTIVES["joint"], TeacherCache(views=3, jitter=jitter)
    spec = tiny.first(objective=objective, recipe=RECIPE, teacher_cache=cache)
    logs, weights = _train(spec, tmp_path / "one", 1, finished)
    two_logs, two_weights = _train(spec, tmp_path / "two", 2, finished)
    assert tiny.largest_difference(weights, two_weights) < 1e-5
    # The mean KL of so few triplets is a small difference of logarithms of order 1.
    assert two_logs == pytest.approx(logs, rel=1e-5, abs=1e-5)


def test_without_gathering_the_weights_would_be_others(tmp_path, finished, monkeypatch):
    monkeypatch.setattr(batches, "epoch_order", _order)
    spec = tiny.first(objective=OBJECTIVES["joint"], recipe=RECIPE)
    _, weights = _train(spec, tmp_path / "one", 1, finished)
    monkeypatch.setattr(base, "_gather", lambda x: x)
    _, apart = _train(spec, tmp_path / "apart", 2, finished)
    assert tiny.largest_difference(weights, apart) > 1e-3


@pytest.mark.parametrize("name", RELATIONAL)
def test_halves_of_these_batches_have_another_gradient(name):
    # The batches of the tests above can tell a global loss from the mean of two local ones.
    random, count = np.random.default_rng(0), len(CLASSES)
    student, teacher = random.normal(size=(2, count, 6)).astype(np.float32)
    top = random.normal(size=(6, 5)).astype(np.float32)
    labels = np.array(CLASSES, np.int32)
    centers = tf.math.l2_normalize(tf.constant(random.normal(size=(5, 6)), tf.float32), axis=1)

    def gradient(rows):
        embedding = tf.Variable(student[rows])
        with tf.GradientTape() as tape:
            outputs = {"embedding": embedding, "logits": embedding @ top}
            batch = base.GlobalBatch(
                tf.constant(labels[rows]),
                outputs,
                {"embedding": tf.constant(teacher[rows])},
                {"centers": centers} if "global" in name else {},
                tf.constant(0.0),
            )
            loss, _ = RELATIONAL[name](batch)
        return tape.gradient(loss, embedding).numpy()

    halves = [gradient(slice(0, count // 2)), gradient(slice(count // 2, count))]
    assert tiny.largest_difference([gradient(slice(None))], [np.concatenate(halves) / 2]) > 1e-3


def test_two_replicas_are_one_device_for_mobilenet(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "epoch_order", _order)
    data = dataclasses.replace(tiny.DATA, image_size=32, load_size=32, pad=4, train_fraction=0.95)
    teacher = tiny.teacher(task=Task(data, "teacher", 10))
    training.train(teacher, tiny.run_in(tmp_path / "teacher"))
    spec = tiny.first(
        task=Task(data, "student", 10),
        teacher=teacher,
        backbone=_DoubleMobileNet(width=0.25),
        objective=TRIPLET,
        recipe=RECIPE,
    )
    logs, weights = _train(spec, tmp_path / "one", 1, tmp_path / "teacher")
    two_logs, two_weights = _train(spec, tmp_path / "two", 2, tmp_path / "teacher")
    assert tiny.largest_difference(weights, two_weights) < 1e-5
    assert two_logs == pytest.approx(logs, rel=1e-5, abs=1e-6)
