"""RKD against hand-derived numbers and NumPy loops in float64."""

from __future__ import annotations

import itertools

import numeric
import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.rkd import rkd_angle, rkd_distance


def _huber(error):
    error = abs(error)
    return 0.5 * error**2 if error <= 1 else error - 0.5


def _numpy_distance(student, teacher):
    def relative(x):
        n = len(x)
        d = np.array([[np.linalg.norm(x[i] - x[j]) for j in range(n)] for i in range(n)])
        return d / d[d > 0].mean()

    s, t = relative(np.asarray(student, np.float64)), relative(np.asarray(teacher, np.float64))
    return np.mean([_huber(e) for e in (s - t).ravel()])


def _numpy_angle(student, teacher):
    def cosine(x, i, j, k):
        a, b = x[j] - x[i], x[k] - x[i]
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / lengths if lengths else 0.0

    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    errors = [
        _huber(cosine(student, *ijk) - cosine(teacher, *ijk))
        for ijk in itertools.product(range(len(student)), repeat=3)
    ]
    return np.mean(errors)


CASES = [(rkd_distance, _numpy_distance), (rkd_angle, _numpy_angle)]
NAMES = ["distance", "angle"]


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_distance_by_hand():
    # On a line the student is at 0, 1, 3, the teacher at 0, 1, 2. Mean positive distances are
    # (1 + 2 + 3) / 3 = 2 and (1 + 1 + 2) / 3 = 4/3; relative ones (.5, 1, 1.5) against
    # (.75, .75, 1.5): errors 1/4, 1/4, 0, each twice, with three zeros on the diagonal.
    loss = rkd_distance(tf.constant([[0.0], [1], [3]]), tf.constant([[0.0], [1], [2]]))
    assert float(loss) == pytest.approx(4 * 0.5 * 0.25**2 / 9, rel=1e-5)


def test_distance_beyond_delta_is_linear():
    # Student at 0, 0, 0, 0, 100 against a teacher with all five at one point: relative
    # distances are 1 (eight entries, their own mean) against 0: 1/2 each. With eight ones
    # among 25 entries: 4/25. Then one far pair among near ones gives errors above 1.
    student = tf.constant([[0.0], [0], [0], [0], [100]])
    assert float(rkd_distance(student, tf.zeros([5, 1]))) == pytest.approx(4 / 25, rel=1e-5)
    student = np.array([[0.0], [1], [2], [3], [400]], np.float32)
    teacher = np.array([[0.0], [400], [2], [3], [4]], np.float32)
    expected = _numpy_distance(student, teacher)
    assert expected > 0.3
    loss = rkd_distance(tf.constant(student), tf.constant(teacher))
    assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_angle_by_hand():
    # A right angle at the first point with equal legs, against three points on a line with
    # the first in the middle. Cosines for (j, k), j != k: at the corner 0 against -1; at each
    # end 1/sqrt(2) against 1. Each occurs twice; where j = k both are 1, where i is one of
    # them 0.
    student = tf.constant([[0.0, 0], [1, 0], [0, 1]])
    teacher = tf.constant([[0.0, 0], [1, 0], [-1, 0]])
    expected = 2 * (0.5 + 2 * 0.5 * (1 - np.sqrt(0.5)) ** 2) / 27
    assert float(rkd_angle(student, teacher)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("loss", "reference"), CASES, ids=NAMES)
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("batch", [2, 3, 11])
def test_against_numpy(loss, reference, size, batch):
    # Embeddings of different widths; the losses do not depend on the scale of either.
    student, teacher = _random(0, batch, 4), _random(1, batch, 6)
    student[0], teacher[-1] = student[-1], teacher[0] + 2  # a coincident pair on one side
    if batch == 2:
        student[0] += 1
    expected = reference(student, teacher)
    actual = loss(tf.constant(student * np.float32(size)), tf.constant(teacher))
    assert actual.dtype == tf.float32
    assert actual.shape == []
    # Two points have one relative distance, 1, on both sides: that loss is 0.
    assert float(actual) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("loss", "reference"), CASES, ids=NAMES)
def test_gradient_against_central_differences(loss, reference):
    student, teacher = _random(2, 6, 3), _random(3, 6, 5)
    x, t = tf.constant(student), tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch([x, t])
        value = loss(x, t)
    gradient, to_teacher = tape.gradient(value, [x, t])
    assert to_teacher is None
    expected = numeric.gradient(lambda x: reference(x, teacher), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("loss", "reference"), CASES, ids=NAMES)
def test_similar_figures_have_no_loss(loss, reference):
    # Shifting, scaling and rotating changes neither relative distances nor angles; a stretch
    # along one axis changes both.
    x = _random(4, 10, 3)
    rotation = np.linalg.qr(_random(5, 3, 3))[0].astype(np.float32)
    assert float(loss(tf.constant(x), tf.constant(3 * x @ rotation + 1))) < 1e-6
    stretched = x * np.float32([5, 1, 1])
    assert float(loss(tf.constant(x), tf.constant(stretched))) > 1e-3


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle], ids=NAMES)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, 1e30])
@pytest.mark.parametrize("kind", ["one", "random", "identical", "half identical"])
def test_finite_for_any_finite_input(loss, kind, size):
    x = _random(6, 1 if kind == "one" else 10, 4)
    if "identical" in kind:
        x[: 10 if kind == "identical" else 5] = x[0]
    x = tf.constant(x * np.float32(size))
    teacher = tf.constant(_random(7, *x.shape))
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(x, teacher)
    gradient = tape.gradient(value, x).numpy()
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    if kind in ("one", "identical"):  # no two points that differ: nowhere to go
        np.testing.assert_array_equal(gradient, 0.0)
    elif size:
        assert np.abs(gradient).max() > 0
    assert np.isfinite(loss(teacher, x))


@pytest.mark.parametrize(("loss", "reference"), CASES, ids=NAMES)
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_input(loss, reference, dtype):
    student, teacher = (tf.cast(_random(seed, 8, 4) * 300, dtype) for seed in (8, 9))
    value = loss(student, teacher)
    expected = reference(*(tf.cast(x, tf.float64).numpy() for x in (student, teacher)))
    assert value.dtype == tf.float32
    assert float(value) == pytest.approx(expected, rel=1e-3)
