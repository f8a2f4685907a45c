"""The fused operation against Keras's sums and products, which are the independent reference."""

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf.models.batch_norm import BatchNorm

OPTIONS = {"momentum": 0.9, "epsilon": 1e-3}


def _layers(channels, **options):
    tf.keras.utils.set_random_seed(0)
    weights = [np.random.uniform(0.5, 2, channels) for _ in range(4)]
    layers = []
    for kind, further in (
        (BatchNorm, {}),
        (tf.keras.layers.BatchNormalization, {"synchronized": True}),
    ):
        layer = kind(**OPTIONS | options | further)
        layer.build((None, 5, 4, channels))
        layer.set_weights(weights)
        layers.append(layer)
    return layers


def _images(step, channels=3):
    return tf.constant(np.random.default_rng(step).normal(1, 2, (2, 5, 4, channels)), tf.float32)


def _trained(layer):
    """Outputs and gradients of three steps, and what is left of the weights."""
    seen = []
    for step in range(3):
        images = _images(step)
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images, training=True)
            loss = tf.reduce_sum(outputs**3)
        gradients = tape.gradient(loss, [images, layer.gamma, layer.beta])
        seen += [outputs, *gradients]
        for variable, gradient in zip((layer.gamma, layer.beta), gradients[1:], strict=True):
            variable.assign_sub(1e-3 * gradient)
    return [*seen, *layer.get_weights(), layer(_images(9), training=False)]


def test_training_is_that_of_keras():
    for found, expected in zip(*map(_trained, _layers(3)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_running_variance_by_hand():
    """Of 0, 2, 4, 6 the variance is 5, not 20/3: .9 of 1 and .1 of 5 are 1.4."""
    layer = BatchNorm(momentum=0.9)
    layer(tf.reshape([0.0, 2.0, 4.0, 6.0], (1, 2, 2, 1)), training=True)
    np.testing.assert_allclose(layer.moving_mean, [0.3], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, [1.4], rtol=1e-6)


@pytest.mark.parametrize("kind", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_its_statistics_in_float32(kind):
    ours, keras = _layers(3, dtype=tf.keras.mixed_precision.Policy(kind))
    outputs = [layer(_images(0), training=True) for layer in (ours, keras)]
    assert outputs[0].dtype == outputs[1].dtype
    np.testing.assert_allclose(*(tf.cast(x, tf.float32) for x in outputs), atol=0.05)
    assert ours.moving_variance.dtype == tf.float32
    for found, expected in zip(ours.get_weights(), keras.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_double_precision_is_kept():
    ours, keras = _layers(3, dtype="float64")
    outputs = [layer(_images(0), training=True) for layer in (ours, keras)]
    assert outputs[0].dtype == tf.float64
    np.testing.assert_allclose(*outputs, rtol=1e-12)


def test_frozen_layer_learns_nothing():
    ours, keras = _layers(3)
    for layer in (ours, keras):
        layer.trainable = False
    np.testing.assert_allclose(*(x(_images(0), training=True) for x in (ours, keras)), atol=1e-5)
    for found, expected in zip(ours.get_weights(), keras.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def _statistics(devices):
    """What the running statistics become on so many devices, each with its share of images."""
    images = _images(0)
    strategy = tiny.strategy(devices)
    with strategy.scope():
        (layer, _) = _layers(3)
    shares = tf.split(images, devices)
    values = strategy.experimental_distribute_values_from_function(
        lambda context: shares[context.replica_id_in_sync_group]
    )
    strategy.run(tf.function(lambda x: layer(x, training=True)), args=(values,))
    return layer.get_weights()


def test_two_replicas_share_their_statistics():
    """The identity: what one device makes of all images, by the fused operation."""
    for found, expected in zip(_statistics(2), _statistics(1), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
