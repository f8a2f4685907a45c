"""FitNet's hint loss against hand-derived numbers and NumPy loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.fitnet import hint

SHAPE = (2, 3, 4, 5)


def _random(seed):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def _numpy_hint(student, teacher):
    student, teacher = np.float64(student), np.float64(teacher)
    return sum((student[i] - teacher[i]) ** 2 for i in np.ndindex(*SHAPE)) / np.prod(SHAPE)


def test_by_hand():
    # Errors 1, 0, -3 and 0 at one place of four channels: (1 + 9) / 4.
    student = tf.reshape(tf.constant([2.0, 5, -1, 0]), [1, 1, 1, 4])
    teacher = tf.reshape(tf.constant([1.0, 5, 2, 0]), [1, 1, 1, 4])
    assert float(hint(student, teacher)) == 2.5


def test_value_and_gradient():
    student, teacher = tf.constant(_random(0)), tf.constant(_random(1))
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss = hint(student, teacher)
    gradient, to_teacher = tape.gradient(loss, [student, teacher])
    assert loss.shape == []
    assert float(loss) == pytest.approx(_numpy_hint(student, teacher), rel=1e-5)
    np.testing.assert_allclose(gradient, 2 * (student - teacher) / np.prod(SHAPE), rtol=1e-5)
    assert to_teacher is None


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_input(dtype):
    # Squares of 300 would overflow in half precision.
    student, teacher = (tf.cast(_random(seed) * 300, dtype) for seed in (2, 3))
    loss = hint(student, teacher)
    expected = _numpy_hint(*(tf.cast(x, tf.float64).numpy() for x in (student, teacher)))
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)
