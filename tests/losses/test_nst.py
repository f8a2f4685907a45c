"""Neuron selectivity transfer against hand-derived numbers and NumPy loops in float64."""

from __future__ import annotations

import itertools

import numeric
import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.nst import neuron_selectivity


def _numpy_channels(image):
    rows = [image[..., c].ravel() for c in range(image.shape[-1])]
    return [row / np.linalg.norm(row) if row.any() else row for row in rows]


def _numpy_kernel(one, other):
    return np.mean([(a @ b) ** 2 for a, b in itertools.product(one, other)])


def _numpy_neuron_selectivity(student, teacher):
    losses = []
    for s, t in zip(np.float64(student), np.float64(teacher), strict=True):
        s, t = _numpy_channels(s), _numpy_channels(t)
        losses.append(_numpy_kernel(t, t) + _numpy_kernel(s, s) - 2 * _numpy_kernel(s, t))
    return np.mean(losses)


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _loss(student, teacher):
    return float(neuron_selectivity(tf.constant(student), tf.constant(teacher)))


def test_by_hand():
    # Two places. The student's channels are active at one each, the teacher's only one at the
    # first: k(t, t) = 1, k(s, s) = mean(1, 0, 0, 1), k(s, t) = mean(1, 0).
    student = tf.constant([[[[3.0, 0.0], [0.0, -5.0]]]])
    teacher = tf.constant([[[[2.0], [0.0]]]])
    assert _loss(student, teacher) == pytest.approx(1 + 1 / 2 - 2 * 1 / 2)


def test_against_numpy():
    student, teacher = _random(0, 3, 4, 5, 2), _random(1, 3, 4, 5, 6)
    loss = neuron_selectivity(tf.constant(student), tf.constant(teacher))
    assert loss.dtype == tf.float32
    assert loss.shape == []
    assert float(loss) == pytest.approx(_numpy_neuron_selectivity(student, teacher), rel=1e-4)


def test_gradient_against_central_differences():
    student, teacher = _random(2, 2, 2, 3, 3), _random(3, 2, 2, 3, 4)
    x, t = tf.constant(student), tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch([x, t])
        loss = neuron_selectivity(x, t)
    gradient, to_teacher = tape.gradient(loss, [x, t])
    assert to_teacher is None
    expected = numeric.gradient(lambda x: _numpy_neuron_selectivity(x, teacher), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_only_the_distribution_of_channels_counts():
    # Neither their order nor sign, size or number: twice every channel is the same distribution.
    student = _random(4, 3, 4, 4, 5)
    sizes = np.float32([1, -2, 30, 0.4, 5])
    teacher = np.concatenate([student * sizes, student], axis=-1)[..., ::-1]
    assert _loss(student, teacher) == pytest.approx(0.0, abs=1e-6)
    assert _loss(student, np.roll(teacher, 1, axis=1)) > 1e-3


def test_never_negative():
    random = np.random.default_rng(5)
    for seed in range(20):
        student = _random(seed, 2, 3, 3, random.integers(1, 9))
        other = _random(100 + seed, 2, 3, 3, 1)
        for blend in (0.0, 1e-3, 1.0):
            assert _loss(student, student + blend * other) > -1e-6


@pytest.mark.parametrize("kind", ["zero", "one channel zero", "identical channels"])
def test_finite(kind):
    student = _random(6, 3, 4, 4, 3)
    if kind == "identical channels":
        student[:] = student[..., :1]
    else:
        student[..., 0 if kind == "one channel zero" else slice(None)] = 0.0
    x, teacher = tf.constant(student), tf.constant(_random(7, 3, 4, 4, 2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = neuron_selectivity(x, teacher)
    gradient = tape.gradient(loss, x).numpy()
    assert float(loss) == pytest.approx(_numpy_neuron_selectivity(student, teacher), rel=1e-4)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[student == 0], 0.0)
    assert (np.abs(gradient).max() > 0) == (kind != "zero")
    assert np.isfinite(_loss(teacher, x))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_input(dtype):
    student, teacher = (tf.cast(_random(seed, 2, 3, 3, 4) * 300, dtype) for seed in (8, 9))
    loss = neuron_selectivity(student, teacher)
    floats = (tf.cast(x, tf.float64).numpy() for x in (student, teacher))
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(_numpy_neuron_selectivity(*floats), rel=1e-4)


def test_no_tensor_is_larger_than_the_features():
    # The definition read literally multiplies all pairs of channels place by place:
    # [B, c, c, h·w], half a gigabyte for a batch of 64 at a WRN's f1.
    batch, size, channels = 4, 16, 32

    @tf.function
    def gradient(student, teacher):
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = neuron_selectivity(student, teacher)
        return tape.gradient(loss, student)

    spec = tf.TensorSpec([batch, size, size, channels])
    operations = gradient.get_concrete_function(spec, spec).graph.get_operations()
    largest = max(x.shape.num_elements() for op in operations for x in op.outputs)
    assert largest == batch * size**2 * channels
