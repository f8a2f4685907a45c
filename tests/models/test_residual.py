"""The initial weights of residual networks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.models import residual
from refilled_tf.models.wide_resnet import WideResNet


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2), (7, 2)])
def test_initial_weights_are_normal_by_the_fan_out(size, stride):
    tf.keras.utils.set_random_seed(0)
    x = tf.keras.Input((8, 8, 64))
    network = tf.keras.Model(x, residual.convolution(x, 128, size, stride, "convolution"))
    (weights,) = network.get_weights()
    deviation = np.sqrt(2 / (size * size * 128))
    assert weights.std() == pytest.approx(deviation, rel=0.03)
    assert abs(weights.mean()) < 0.03 * deviation
    assert np.abs(weights).max() > 3 * deviation  # Keras's own he_normal stops short of it


def test_layers_start_differently_but_as_the_seed_says():
    def kernels():
        tf.keras.utils.set_random_seed(3)
        network = WideResNet(16, 1).build(8)
        return [network.get_layer(f"group1_block{b}_conv2").get_weights()[0] for b in (1, 2)]

    (first, second), (again, _) = kernels(), kernels()
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(first, again)
