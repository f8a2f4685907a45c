"""Attention transfer against hand-derived numbers and NumPy loops in float64."""

from __future__ import annotations

import numeric
import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.attention import attention_maps, attention_transfer


def _numpy_map(image):
    height, width, channels = image.shape
    places = [
        sum(image[i, j, c] ** 2 for c in range(channels)) / channels
        for i in range(height)
        for j in range(width)
    ]
    length = np.sqrt(sum(place**2 for place in places))
    return [place / length if length else 0.0 for place in places]


def _numpy_attention_transfer(student, teacher):
    errors = [
        (a - b) ** 2
        for s, t in zip(np.float64(student), np.float64(teacher), strict=True)
        for a, b in zip(_numpy_map(s), _numpy_map(t), strict=True)
    ]
    return np.mean(errors)


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_by_hand():
    # Two places. The student is active at the first alone, (1, 0); the teacher at both alike,
    # (1, 1) / √2, over other channels: ((1 - 1/√2)² + 1/2) / 2 = 1 - 1/√2.
    student = tf.constant([[[[3.0], [0.0]]]])
    teacher = tf.constant([[[[2.0, 0.0], [0.0, -2.0]]]])
    assert float(attention_transfer(student, teacher)) == pytest.approx(1 - 1 / np.sqrt(2))


def test_against_numpy():
    student, teacher = _random(0, 3, 4, 5, 2), _random(1, 3, 4, 5, 6)
    loss = attention_transfer(tf.constant(student), tf.constant(teacher))
    assert loss.dtype == tf.float32
    assert loss.shape == []
    assert float(loss) == pytest.approx(_numpy_attention_transfer(student, teacher), rel=1e-5)


def test_gradient_against_central_differences():
    student, teacher = _random(2, 2, 2, 3, 2), _random(3, 2, 2, 3, 4)
    x, t = tf.constant(student), tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch([x, t])
        loss = attention_transfer(x, t)
    gradient, to_teacher = tape.gradient(loss, [x, t])
    assert to_teacher is None
    expected = numeric.gradient(lambda x: _numpy_attention_transfer(x, teacher), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_only_where_counts():
    # Neither the order, the sign nor the number of channels, nor the size of an image's features.
    student = _random(4, 3, 4, 4, 5)
    teacher = np.concatenate([-student[..., ::-1], student], axis=-1)
    teacher *= np.float32([0.1, 1, 10]).reshape(3, 1, 1, 1)
    assert float(attention_transfer(tf.constant(student), tf.constant(teacher))) < 1e-12
    moved = np.roll(teacher, 1, axis=1)
    assert float(attention_transfer(tf.constant(student), tf.constant(moved))) > 1e-3


def test_maps_have_length_one():
    maps = attention_maps(tf.constant(_random(5, 3, 4, 5, 2)))
    assert maps.shape == [3, 20]
    np.testing.assert_allclose(np.linalg.norm(maps, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-4, 1e4])
def test_finite(size):
    student = _random(6, 3, 4, 4, 2) * np.float32(size)
    student[0] = 0.0  # one image is dark in any case
    x, teacher = tf.constant(student), tf.constant(_random(7, 3, 4, 4, 2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = attention_transfer(x, teacher)
    gradient = tape.gradient(loss, x).numpy()
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0], 0.0)
    assert (np.abs(gradient[1:]).max() > 0) == (size >= 1e-4)
    assert np.isfinite(attention_transfer(teacher, x))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_input(dtype):
    # Squares of 300 would overflow in half precision.
    student, teacher = (tf.cast(_random(seed, 2, 3, 3, 4) * 300, dtype) for seed in (8, 9))
    loss = attention_transfer(student, teacher)
    floats = (tf.cast(x, tf.float64).numpy() for x in (student, teacher))
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(_numpy_attention_transfer(*floats), rel=1e-4)
