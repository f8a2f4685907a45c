"""Several teachers in the losses: expected from NumPy's averages of what single ones hold."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.local import class_centers, local_kl
from refilled_tf.losses.mixture import log_mixture, mixture_logits
from refilled_tf.losses.triplets import semi_hard_triplets, triplet_kl
from refilled_tf.losses.tuples import tuple_kl

RANDOM = np.random.default_rng(0)
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2], np.int32)
STUDENT = RANDOM.normal(size=(9, 4)).astype(np.float32)
TEACHERS = [RANDOM.normal(size=(9, d)).astype(np.float32) for d in (3, 6)]
LOGITS = RANDOM.normal(size=(9, 3)).astype(np.float32)
TAUS, WEIGHTS = (0.5, 2.0), (3.0, 1.0)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _softmax(x):
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _distances(embeddings):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.linalg.norm(unit[:, None] - unit[None], axis=-1)


def test_mixture_is_the_weighted_mean():
    # By hand: (3 · ½ + 1 · ¼) / 4 = 7/16.
    logs = [tf.math.log([0.5, 0.5]), tf.math.log([0.25, 0.75])]
    np.testing.assert_allclose(np.exp(log_mixture(logs, WEIGHTS)), [7 / 16, 9 / 16], rtol=1e-6)
    # By hand: the mean of ½ and ¾ is ⅝, whose odds are 5 : 3.
    logits = mixture_logits([tf.constant(0.0), tf.math.log(3.0)])
    np.testing.assert_allclose(logits, np.log(5 / 3), rtol=1e-6)


def test_certain_teachers_leave_it_finite():
    logits = mixture_logits([tf.constant([1e4, -1e4]), tf.constant([1e4, 1e4])])
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[1], 0.0, atol=1e-3)  # ½ of 0 and 1


def test_triplets_average_the_probabilities():
    anchor, positive, negative = (
        x.numpy() for x in semi_hard_triplets(_distances(STUDENT), LABELS)
    )
    gap = lambda d: d[anchor, negative] - d[anchor, positive]  # noqa: E731
    held = [_sigmoid(gap(_distances(t)) / tau) for t, tau in zip(TEACHERS, TAUS, strict=True)]
    p, q = np.average(held, axis=0, weights=WEIGHTS), _sigmoid(gap(_distances(STUDENT)))
    expected = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    loss, count = triplet_kl(STUDENT, TEACHERS, LABELS, tau_teacher=TAUS, teacher_weights=WEIGHTS)
    assert count == len(anchor)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_local_posteriors_are_averaged():
    def posterior(embeddings, tau):
        centers = np.stack([embeddings[c == LABELS].mean(axis=0) for c in range(3)])
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
        return _softmax(embeddings @ centers.T / tau)

    p = np.average([posterior(*x) for x in zip(TEACHERS, TAUS, strict=True)], 0, WEIGHTS)
    expected = np.mean(np.sum(p * (np.log(p) - np.log(_softmax(LOGITS))), axis=1))
    options = {"tau_teacher": TAUS, "teacher_weights": WEIGHTS}
    loss = local_kl(LOGITS, TEACHERS, LABELS, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    centers = [class_centers(each, LABELS, 3)[0] for each in TEACHERS]
    fixed = local_kl(LOGITS, TEACHERS, LABELS, **options, centers=centers)
    np.testing.assert_allclose(fixed, expected, rtol=1e-4)


LOSSES = {
    "triplets": lambda *args, **options: triplet_kl(STUDENT, *args, **options)[0],
    "tuples": lambda *args, **options: tuple_kl(STUDENT, *args, tau_student=1.0, **options)[0],
    "local": lambda *args, **options: local_kl(LOGITS, *args, **options),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_same_teacher_twice_is_one(loss):
    one = loss(TEACHERS[0], LABELS, tau_teacher=2.0)
    twice = loss([TEACHERS[0]] * 2, LABELS, tau_teacher=2.0)
    np.testing.assert_allclose(twice, one, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_each_teacher_counts_by_its_weight_and_temperature(loss):
    alone = loss(TEACHERS[0], LABELS, tau_teacher=0.5)
    nearly = loss(TEACHERS, LABELS, tau_teacher=TAUS, teacher_weights=(1.0, 1e-7))
    np.testing.assert_allclose(nearly, alone, rtol=1e-4)
    equal = loss(TEACHERS, LABELS, tau_teacher=TAUS)
    swapped = loss(TEACHERS, LABELS, tau_teacher=TAUS[::-1])
    assert abs(equal - alone) > 1e-4
    assert abs(equal - swapped) > 1e-5


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tau_teacher": (1.0, 2.0, 3.0)}, "tau_teacher"),
        ({"tau_teacher": (1.0, 0.0)}, "tau_teacher"),
        ({"tau_teacher": 1.0, "teacher_weights": (1.0,)}, "weights"),
        ({"tau_teacher": 1.0, "teacher_weights": (1.0, 0.0)}, "weight"),
    ],
)
def test_wrong_numbers_are_refused(loss, options, named):
    with pytest.raises(ValueError, match=named):
        loss(TEACHERS, LABELS, **options)
