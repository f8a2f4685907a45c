"""Distances against hand-derived numbers and float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.distances import l2_normalize, pairwise_distances


def _numpy_distances(x: np.ndarray) -> np.ndarray:
    """By differences, not by a Gram matrix, in float64."""
    x = np.asarray(x, np.float64)
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


def _gradient(function, x, upstream=None):
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x, output_gradients=upstream).numpy()


def test_l2_normalize_by_hand():
    # 3-4-5 triangle; a negative axis vector.
    out = l2_normalize(tf.constant([[3.0, 4.0], [0.0, -7.0]]))
    np.testing.assert_allclose(out, [[0.6, 0.8], [0.0, -1.0]], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e4, 1e30])
def test_l2_normalize_of_any_length_is_one(size):
    # The direction of (1, 2, 2) / 3 does not depend on its length; 1e30 squared overflows and
    # 1e-30 squared vanishes in float32.
    out = l2_normalize(tf.constant([[1.0, 2.0, 2.0]]) * size)
    np.testing.assert_allclose(out, [[1 / 3, 2 / 3, 2 / 3]], rtol=1e-5)


def test_l2_normalize_keeps_zero_vectors_and_gives_them_zero_gradient():
    x = tf.constant([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_array_equal(l2_normalize(x)[0], [0.0, 0.0])
    upstream = tf.constant([[1.0, 2.0], [1.0, 2.0]])
    gradient = _gradient(l2_normalize, x, upstream)
    np.testing.assert_array_equal(gradient[0], [0.0, 0.0])
    # (I - u u^T) g / |x| with u = (.6, .8), g = (1, 2), |x| = 5: g - 2.2 u = (-.32, .24).
    np.testing.assert_allclose(gradient[1], [-0.064, 0.048], rtol=1e-5)


def test_l2_normalize_shows_nan():
    out = l2_normalize(tf.constant([[np.nan, 1.0], [1.0, 0.0]])).numpy()
    assert np.isnan(out[0]).any()
    assert np.isfinite(out[1]).all()


def test_distances_by_hand():
    # The 3-4-5 triangle again.
    out = pairwise_distances(tf.constant([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
    np.testing.assert_allclose(out, [[0, 3, 4], [3, 0, 5], [4, 5, 0]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3), (2, 5), (17, 64), (128, 256)])
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e4, 1e30])
def test_distances_against_numpy(shape, size):
    x = (np.random.default_rng(0).normal(size=shape) * size).astype(np.float32)
    out = pairwise_distances(tf.constant(x)).numpy()
    assert out.dtype == np.float32
    np.testing.assert_array_equal(np.diag(out), np.zeros(shape[0]))
    np.testing.assert_allclose(out, _numpy_distances(x), rtol=1e-4)


def test_a_common_offset_costs_no_precision():
    # Without centring a Gram matrix of vectors of length ~1600 has an error of ~.3 in
    # squares.
    x = np.random.default_rng(0).normal(size=(32, 256)).astype(np.float32) + np.float32(100)
    np.testing.assert_allclose(
        pairwise_distances(tf.constant(x)), _numpy_distances(x), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("batch", [7, 64, 129])
@pytest.mark.parametrize("width", [3, 1280])
def test_coincident_points_are_at_exactly_zero_with_zero_gradient(batch, width):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(batch, width)).astype(np.float32)
    x[-1] = x[0]
    x = tf.constant(x)
    out = pairwise_distances(x).numpy()
    assert out[0, -1] == out[-1, 0] == 0.0
    # Only the distance of the two copies is asked for, so only its gradient flows.
    upstream = tf.scatter_nd([[0, batch - 1], [batch - 1, 0]], [1.0, 1.0], [batch, batch])
    np.testing.assert_array_equal(_gradient(pairwise_distances, x, upstream), 0.0)


def test_the_resolution_is_a_thousandth():
    # 32 points of length about sqrt(64) = 8, each with a neighbour at a relative distance of
    # 1e-5, where a Gram matrix in float32 holds only rounding, or of 1e-2, where it holds the
    # distance.
    rng = np.random.default_rng(3)
    x, step = rng.normal(size=(2, 32, 64))
    for relative in (1e-5, 1e-2):
        both = tf.constant(np.concatenate([x, x + relative * step]), tf.float32)
        neighbours = np.diag(pairwise_distances(both).numpy()[:32, 32:])
        expected = np.zeros(32) if relative < 1e-3 else relative * np.linalg.norm(step, axis=1)
        np.testing.assert_allclose(neighbours, expected, rtol=0.02)


@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_identical_points_are_all_at_zero(batch, value):
    x = tf.fill([batch, 10], value)
    np.testing.assert_array_equal(pairwise_distances(x), np.zeros([batch, batch]))
    np.testing.assert_array_equal(_gradient(pairwise_distances, x), 0.0)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_gradient_against_the_formula(size):
    # d|x_i - x_j| / dx_i is the unit vector from x_j to x_i: with weights W on the distances
    # the gradient is sum_j (W_ij + W_ji) u_ij whatever the scale; here in float64, by
    # differences.
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(9, 4)) * size).astype(np.float32)
    weights = rng.normal(size=(9, 9)).astype(np.float32)
    x64 = x.astype(np.float64)
    difference = x64[:, None] - x64[None]
    distance = np.linalg.norm(difference, axis=-1) + np.eye(9)
    expected = np.einsum("ij,ijd->id", weights + weights.T, difference / distance[..., None])
    actual = _gradient(pairwise_distances, x, tf.constant(weights))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_result_is_float32_whatever_comes_in(dtype):
    # 3 and 4 are exact in every one of these types; their squares sum to 25.
    x = tf.constant([[0.0, 0.0], [3.0, 4.0]], dtype)
    for out, expected in ((pairwise_distances(x)[0, 1], 5.0), (l2_normalize(x)[1, 0], 0.6)):
        assert out.dtype == tf.float32
        assert float(out) == pytest.approx(expected, rel=1e-6)
