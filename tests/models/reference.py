"""What networks of convolutions are held to: their layers in NumPy, in double precision."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def batch_norms(network: tf.keras.Model) -> list[tf.keras.layers.BatchNormalization]:
    return [x for x in network.layers if isinstance(x, tf.keras.layers.BatchNormalization)]


def assert_batch_norms(network: tf.keras.Model, count: int, momentum: float) -> None:
    norms = batch_norms(network)
    assert len(norms) == count
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(momentum, 1e-5)}
    assert all(norm.synchronized for norm in norms)


def randomise(network: tf.keras.Model) -> None:
    """Gives other values to what starts as 0 and 1: batch norms, and biases of convolutions."""
    random = np.random.default_rng(0)
    for norm in batch_norms(network):
        ranges = ((0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 2.0))
        size = norm.gamma.shape[0]
        norm.set_weights([random.uniform(*limits, size) for limits in ranges])
    for layer in network.layers:
        if isinstance(layer, tf.keras.layers.Conv2D) and layer.use_bias:
            layer.bias.assign(random.uniform(-0.5, 0.5, layer.bias.shape))


def convolve(network: tf.keras.Model, name: str, x: np.ndarray, stride: int) -> np.ndarray:
    """Pads both sides by half the kernel and sums over its taps, as Torch's Conv2d does."""
    kernel, *bias = network.get_layer(name).get_weights()
    size, margin = kernel.shape[0], kernel.shape[0] // 2
    x = np.pad(x.astype(np.float64), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    taps = [
        x[:, i : i + stride * height : stride, j : j + stride * width : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    ]
    return np.sum([tap[:, :height, :width] for tap in taps], axis=0) + sum(bias)


def normalise(network: tf.keras.Model, name: str, x: np.ndarray) -> np.ndarray:
    """Batch norm in inference mode, with Torch's ε."""
    gamma, beta, mean, variance = network.get_layer(name).get_weights()
    return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def max_pool(x: np.ndarray) -> np.ndarray:
    """Takes the maximum of every 2×2; leaves out the last row or column of odd sides."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    corners = [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    return np.max(corners, axis=0)


def assert_same_outputs(network: tf.keras.Model, images: np.ndarray, wanted: dict) -> None:
    """Compares up to the rounding of single precision, relative to each output's size."""
    outputs = network(images, training=False)
    assert outputs.keys() == wanted.keys()
    for name, value in wanted.items():
        assert outputs[name].shape == value.shape
        tolerance = 1e-4 * np.abs(value).max()
        np.testing.assert_allclose(outputs[name], value, rtol=0, atol=tolerance, err_msg=name)
