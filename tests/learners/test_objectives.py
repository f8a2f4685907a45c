"""What every objective adds up, and what a train step does with it.

The losses themselves are tested in tests/losses; here they are the parts, put together by hand.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf.learners.base import GlobalBatch, Learner, Objective
from refilled_tf.learners.cross_entropy import CrossEntropy
from refilled_tf.learners.joint import JointDistillation
from refilled_tf.learners.local import LocalDistillation
from refilled_tf.learners.relationship import RelationshipMatching
from refilled_tf.learners.rkd import RelationalDistillation
from refilled_tf.losses.local import local_kl
from refilled_tf.losses.rkd import rkd_angle, rkd_distance
from refilled_tf.losses.triplets import triplet_kl
from refilled_tf.losses.tuples import tuple_kl
from refilled_tf.models import networks

EPOCH = 3
LABELS = np.array([0, 1, 2, 0, 1, 2, 4, 4], np.int32)
RANDOM = np.random.default_rng(0)
STUDENT = RANDOM.normal(size=(8, 6)).astype(np.float32)
TEACHER = RANDOM.normal(size=(8, 7)).astype(np.float32)
LOGITS = RANDOM.normal(size=(8, 5)).astype(np.float32)
CENTERS = RANDOM.normal(size=(5, 7)).astype(np.float32)


@pytest.fixture(autouse=True)
def _float32():
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


def _evaluate(objective, centers=None):
    student = {"embedding": tf.constant(STUDENT)}
    if objective.classifies:
        student["logits"] = tf.constant(LOGITS)
    teacher = {"embedding": tf.constant(TEACHER)} if objective.needs_teacher else None
    epoch = tf.constant(float(EPOCH))
    loss, parts = objective(GlobalBatch(tf.constant(LABELS), student, teacher, centers, epoch))
    assert tuple(parts) == objective.parts
    return float(loss), {name: float(value) for name, value in parts.items()}


def _numpy_cross_entropy():
    logits = LOGITS.astype(np.float64)
    log_sums = [np.log(sum(np.exp(x) for x in row)) for row in logits]
    return np.mean([s - row[y] for s, row, y in zip(log_sums, logits, LABELS, strict=True)])


ACCURACY = np.mean([max(range(5), key=row.__getitem__) for row in LOGITS] == LABELS)


def test_cross_entropy():
    loss, parts = _evaluate(CrossEntropy())
    assert loss == pytest.approx(_numpy_cross_entropy(), rel=1e-6)
    assert parts["train_accuracy"] == pytest.approx(ACCURACY)


@pytest.mark.parametrize("fallback", ["skip", "farthest"])
def test_triplets(fallback):
    kl, count = triplet_kl(
        STUDENT, TEACHER, LABELS, tau_teacher=3.0, tau_student=1.5, fallback=fallback
    )
    loss, parts = _evaluate(
        RelationshipMatching(weight=7.0, tau_teacher=3.0, tau_student=1.5, fallback=fallback)
    )
    assert loss == pytest.approx(7 * float(kl), rel=1e-6)
    assert parts == pytest.approx({"relation_kl": float(kl), "num_relations": float(count)})
    assert loss > 0


def test_tuples():
    kl, count = tuple_kl(STUDENT, TEACHER, LABELS, tau_teacher=3.0, tau_student=1.5, margin=0.3)
    loss, parts = _evaluate(
        RelationshipMatching(
            relation="tuple", weight=7.0, tau_teacher=3.0, tau_student=1.5, margin=0.3
        )
    )
    assert loss == pytest.approx(7 * float(kl), rel=1e-6)
    assert parts == pytest.approx({"relation_kl": float(kl), "num_relations": float(count)})
    assert loss > 0


@pytest.mark.parametrize("centers", ["batch", "global"])
def test_local_distillation(centers):
    # Eq. 6: CE + w_0 · exp(-.05 · 3) · KL in epoch 3.
    fixed = tf.constant(CENTERS) if centers == "global" else None
    kl = float(local_kl(LOGITS, TEACHER, LABELS, tau_teacher=3.0, tau_student=1.5, centers=fixed))
    weight = 20 * np.exp(-0.15)
    loss, parts = _evaluate(
        LocalDistillation(weight=20.0, tau_teacher=3.0, tau_student=1.5, centers=centers), fixed
    )
    assert loss == pytest.approx(_numpy_cross_entropy() + weight * kl, rel=1e-6)
    assert parts == pytest.approx(
        {
            "cross_entropy": _numpy_cross_entropy(),
            "local_kl": kl,
            "local_weight": weight,
            "train_accuracy": ACCURACY,
        }
    )


def test_lkd_does_not_decay():
    # Its w_e is w_0 in every epoch.
    _, parts = _evaluate(LocalDistillation(weight=20.0, decay=0.0))
    assert parts["local_weight"] == 20.0


def test_rkd():
    distance, angle = float(rkd_distance(STUDENT, TEACHER)), float(rkd_angle(STUDENT, TEACHER))
    loss, parts = _evaluate(RelationalDistillation(distance_weight=3.0, angle_weight=5.0))
    assert loss == pytest.approx(3 * distance + 5 * angle, rel=1e-6)
    assert parts == pytest.approx({"rkd_distance": distance, "rkd_angle": angle})


def test_joint_distillation():
    # Eq. 9: γ · stage 1 + CE + w_e · KL.
    stage_1, stage_2 = RelationshipMatching(weight=7.0), LocalDistillation(weight=20.0)
    embedding, _ = triplet_kl(STUDENT, TEACHER, LABELS)
    local = float(local_kl(LOGITS, TEACHER, LABELS))
    loss, _ = _evaluate(JointDistillation(stage_1, stage_2, gamma=0.2))
    expected = 0.2 * 7 * float(embedding) + _numpy_cross_entropy()
    assert loss == pytest.approx(expected + 20 * np.exp(-0.15) * local, rel=1e-6)


# ---- the train step -----------------------------------------------------------------------


OBJECTIVES = {
    "cross-entropy": CrossEntropy(),
    "triplets": RelationshipMatching(weight=10.0),
    "tuples": RelationshipMatching(relation="tuple", weight=10.0, margin=0.5),
    "local, batch centres": LocalDistillation(),
    "local, global centres": LocalDistillation(centers="global"),
    "rkd": RelationalDistillation(),
    "joint": JointDistillation(RelationshipMatching(), LocalDistillation()),
}
IMAGES = RANDOM.uniform(0, 255, (8, 8, 8, 3)).astype(np.float32)


def _learner(objective, recipe=tiny.RECIPE, steps_per_epoch=1):
    tf.keras.utils.set_random_seed(0)
    tf.keras.mixed_precision.set_global_policy(recipe.precision)
    if objective.classifies:
        student = networks.classifier(tiny.TinyNetwork(), 8, 5)
    else:
        student = networks.embedding_network(tiny.TinyNetwork(), 8)
    teacher = networks.classifier(tiny.TinyNetwork(5), 8, 3) if objective.needs_teacher else None
    centers = tf.constant(RANDOM.normal(size=(5, 45)), tf.float32)
    learner = Learner(
        student,
        objective,
        teacher,
        centers if objective.needs_teacher_centers else None,
        recipe.weight_decay,
        steps_per_epoch,
    )
    learner.compile(optimizer=recipe.optimizer(steps_per_epoch))
    return learner


def _fit(learner, steps, epochs=1):
    data = tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat()
    return learner.fit(data, steps_per_epoch=steps, epochs=epochs, verbose=0).history


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "float32") for name in OBJECTIVES]
    # Between them, these hold every loss.
    + [(n, p) for n in ("tuples", "rkd", "joint") for p in ("mixed_float16", "mixed_bfloat16")],
)
def test_every_objective_trains(name, precision):
    objective = OBJECTIVES[name]
    learner = _learner(objective, dataclasses.replace(tiny.RECIPE, precision=precision))
    frozen = [w.copy() for w in learner.teacher.get_weights()] if learner.teacher else []
    before = learner.student.get_weights()
    # Stage 1 has no head: it trains an embedding, and nothing else.
    assert ("logits" in learner.student.output_names) == objective.classifies
    assert {dtype for dtype in _output_dtypes(learner.student)} == {tf.float32}

    history = _fit(learner, steps=3)
    assert set(history) == {"loss", *objective.parts, "weight_penalty"}
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["loss"][0] > 0
    assert all(isinstance(m, tf.keras.metrics.Mean) for m in learner.metrics)
    assert {m.dtype for m in learner.metrics} == {"float32"}
    # A frozen teacher keeps its weights and its batch norm's statistics; a student does not.
    assert all(not np.array_equal(a, b) for a, b in _changing(before, learner.student))
    if learner.teacher:
        for a, b in zip(frozen, learner.teacher.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def _output_dtypes(network):
    return [x.dtype for x in network(IMAGES).values()]


def _changing(before, student):
    return zip(before, student.get_weights(), strict=True)


def test_weight_decays_with_the_optimizers_epochs():
    # Two steps an epoch. w_e = 10 · exp(-.05 · e), e = 0, 1, 2.
    learner = _learner(LocalDistillation(weight=10.0), steps_per_epoch=2)
    history = _fit(learner, steps=2, epochs=3)
    np.testing.assert_allclose(history["local_weight"], 10 * np.exp([0, -0.05, -0.1]), rtol=1e-6)


def test_weight_goes_on_from_restored_iterations():
    # A run that is resumed at step 8 of 2 a epoch is in epoch 4, whatever fit() has counted.
    learner = _learner(LocalDistillation(weight=10.0), steps_per_epoch=2)
    learner.optimizer.iterations.assign(8)
    history = _fit(learner, steps=2)
    np.testing.assert_allclose(history["local_weight"], [10 * np.exp(-0.2)], rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class _Nothing(Objective):
    """Loss zero: what moves the weights is the penalty alone."""

    def __call__(self, batch):
        return 0.0 * tf.reduce_sum(batch.student["logits"]), {}


def test_penalty_shrinks_every_weight():
    # Gradient of ½·λ·‖w‖² is λ·w: one step of plain SGD leaves w · (1 - lr·λ).
    recipe = dataclasses.replace(
        tiny.RECIPE,
        learning_rate=0.5,
        milestones=(),
        momentum=0.0,
        nesterov=False,
        weight_decay=0.25,
    )
    learner = _learner(_Nothing(), recipe)
    before = [w.numpy() for w in learner.student.trainable_variables]
    penalty = 0.5 * 0.25 * sum(np.sum(np.square(w, dtype=np.float64)) for w in before)
    history = _fit(learner, steps=1)
    for w, now in zip(before, learner.student.trainable_variables, strict=True):
        np.testing.assert_allclose(now, w * (1 - 0.5 * 0.25), rtol=1e-6)
    assert history["weight_penalty"] == pytest.approx([penalty], rel=1e-6)
    assert history["loss"] == [0.0]


@dataclasses.dataclass(frozen=True)
class _Linear(Objective):
    """Loss Σ logits: its gradient for the head's bias is the batch size, at any weights."""

    def __call__(self, batch):
        return tf.reduce_sum(batch.student["logits"]), {}


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_accumulates_the_penalty_as_in_torch(nesterov):
    # torch.optim.SGD: g = ∇ + λ·w; v = m·v + g; w -= lr · (g + m·v if nesterov else v).
    # Decoupled decay, such as SGDW or Keras's weight_decay, would leave λ·w out of v.
    rate, momentum, decay = 0.01, 0.9, 0.3
    recipe = dataclasses.replace(
        tiny.RECIPE,
        learning_rate=rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=decay,
        milestones=(),
    )
    learner = _learner(_Linear(), recipe)
    bias = learner.student.get_layer("logits").bias
    bias.assign([1.0, -2.0, 3.0, 0.5, 0.0])
    w, v = bias.numpy().astype(np.float64), np.zeros(5)
    for _ in range(3):
        g = len(IMAGES) + decay * w
        v = momentum * v + g
        w = w - rate * (g + momentum * v if nesterov else v)
    _fit(learner, steps=3)
    np.testing.assert_allclose(bias, w, rtol=1e-5)
