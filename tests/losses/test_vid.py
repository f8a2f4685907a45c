"""Variational information distillation against hand-derived numbers and NumPy loops."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.vid import gaussian_nll

SHAPE = (3, 4, 5, 6)
RANDOM = np.random.default_rng(0)
VARIANCE = RANDOM.uniform(0.5, 3, SHAPE[-1]).astype(np.float32)


def _random(seed):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def _numpy_nll(mean, variance, teacher):
    mean, variance, teacher = (np.float64(x) for x in (mean, variance, teacher))
    terms = [
        0.5 * ((teacher[i] - mean[i]) ** 2 / variance[i[-1]] + np.log(variance[i[-1]]))
        for i in np.ndindex(*SHAPE)
    ]
    return np.mean(terms)


def test_by_hand():
    # One place, two channels: errors 2 and 1, variances 1 and e.
    mean, teacher = tf.constant([[[[1.0, 1.0]]]]), tf.constant([[[[3.0, 0.0]]]])
    expected = (0.5 * (4 / 1 + 0) + 0.5 * (1 / np.e + 1)) / 2
    loss = gaussian_nll(mean, tf.constant([1.0, np.e]), teacher)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_against_numpy():
    mean, teacher = _random(1), _random(2)
    loss = gaussian_nll(tf.constant(mean), tf.constant(VARIANCE), tf.constant(teacher))
    assert loss.dtype == tf.float32
    assert loss.shape == []
    assert float(loss) == pytest.approx(_numpy_nll(mean, VARIANCE, teacher), rel=1e-5)


def test_gradient():
    # To μ: (μ - t) / σ² / (B·h·w·c). To σ²: ½ · (1/σ² - e/σ⁴) / c, e a channel's mean squared
    # error. None to the teacher.
    mean, teacher = tf.constant(_random(3)), tf.constant(_random(4))
    variance = tf.constant(VARIANCE)
    with tf.GradientTape() as tape:
        tape.watch([mean, variance, teacher])
        loss = gaussian_nll(mean, variance, teacher)
    to_mean, to_variance, to_teacher = tape.gradient(loss, [mean, variance, teacher])
    errors = np.mean(np.square(mean - teacher), axis=(0, 1, 2))
    np.testing.assert_allclose(
        to_mean, (mean - teacher) / VARIANCE / np.prod(SHAPE), rtol=1e-5, atol=1e-8
    )
    expected = 0.5 * (1 / VARIANCE - errors / VARIANCE**2) / SHAPE[-1]
    np.testing.assert_allclose(to_variance, expected, rtol=1e-4, atol=1e-7)
    assert to_teacher is None


def test_least_where_the_variance_is_the_mean_squared_error():
    mean, teacher = _random(5), _random(6)
    errors = np.mean(np.square(mean - teacher), axis=(0, 1, 2))
    least = float(gaussian_nll(mean, errors, teacher))
    assert least == pytest.approx(0.5 * np.mean(1 + np.log(errors)), rel=1e-5)
    for factor in (0.9, 1.1):
        assert float(gaussian_nll(mean, factor * errors, teacher)) > least


def test_zero_features():
    variance, zeros = tf.constant(VARIANCE), tf.zeros(SHAPE)
    with tf.GradientTape() as tape:
        tape.watch([zeros, variance])
        loss = gaussian_nll(zeros, variance, zeros)
    to_mean, to_variance = tape.gradient(loss, [zeros, variance])
    assert float(loss) == pytest.approx(0.5 * np.mean(np.log(VARIANCE)), rel=1e-5)
    np.testing.assert_array_equal(to_mean, 0.0)
    np.testing.assert_allclose(to_variance, 0.5 / VARIANCE / SHAPE[-1], rtol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_input(dtype):
    # Squares of 300 would overflow in half precision.
    mean, teacher = (tf.cast(_random(seed) * 300, dtype) for seed in (7, 8))
    loss = gaussian_nll(mean, tf.constant(VARIANCE), teacher)
    mean, teacher = (tf.cast(x, tf.float64).numpy() for x in (mean, teacher))
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(_numpy_nll(mean, VARIANCE, teacher), rel=1e-5)
