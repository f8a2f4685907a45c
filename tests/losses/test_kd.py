"""KD against hand-derived numbers and NumPy loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.kd import kd


def _softmax(logits):
    powers = [np.exp(z - max(logits)) for z in logits]
    return [power / sum(powers) for power in powers]


def _numpy_kd(student, teacher, temperature):
    total = 0.0
    for z_s, z_t in zip(np.float64(student), np.float64(teacher), strict=True):
        taught, learnt = _softmax(z_t / temperature), _softmax(z_s / temperature)
        total += sum(p * np.log(p / q) for p, q in zip(taught, learnt, strict=True))
    return temperature**2 * total / len(student)


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_by_hand():
    # At T = 2 the teacher says (3/4, 1/4), the student (1/2, 1/2) in one image of two and the
    # same as the teacher in the other: 4 · (3/4 · ln 3/2 + 1/4 · ln 1/2) / 2.
    teacher = tf.constant([[2 * np.log(3), 0.0], [2 * np.log(3), 0.0]])
    student = tf.constant([[5.0, 5.0], [1 + 2 * np.log(3), 1.0]])
    expected = 2 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert float(kd(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_against_numpy(temperature):
    student, teacher = 5 * _random(0, 7, 10), 5 * _random(1, 7, 10)
    loss = kd(tf.constant(student), tf.constant(teacher), temperature)
    assert loss.dtype == tf.float32
    assert loss.shape == []
    assert float(loss) == pytest.approx(_numpy_kd(student, teacher, temperature), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient(temperature):
    # d/dz_S of T²·KL is T·(q - p), over the batch's size; the teacher gets none.
    student, teacher = tf.constant(_random(2, 3, 5)), tf.constant(_random(3, 3, 5))
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss = kd(student, teacher, temperature)
    gradient, to_teacher = tape.gradient(loss, [student, teacher])
    taught, learnt = (
        np.array([_softmax(z) for z in np.float64(x) / temperature]) for x in (teacher, student)
    )
    np.testing.assert_allclose(gradient, temperature * (learnt - taught) / 3, atol=1e-6)
    assert to_teacher is None


@pytest.mark.parametrize("size", [0.0, 1e4, 1e30])
def test_finite_for_any_finite_input(size):
    student, teacher = (tf.constant(_random(seed, 4, 6) * np.float32(size)) for seed in (4, 5))
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = kd(student, teacher, 4.0)
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, student)).all()


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_input(dtype):
    student, teacher = (tf.cast(_random(seed, 4, 6), dtype) for seed in (6, 7))
    loss = kd(student, teacher, 4.0)
    expected = _numpy_kd(*(tf.cast(x, tf.float64).numpy() for x in (student, teacher)), 4.0)
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be above zero"):
        kd(tf.zeros([2, 3]), tf.zeros([2, 3]), temperature)
