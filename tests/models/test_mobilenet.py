"""MobileNets against the parameter counts that their papers and Keras publish, and Keras's own."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.models.mobilenet import MobileNet, MobileNetV2, MobileNetV3Small
from refilled_tf.models.networks import (
    classifier,
    embedding_network,
    feature_shapes,
    with_features,
)

# Trainable weights with 100 and with 200 classes, and batch norm's running statistics: from the
# layer shapes of Howard et al., Table 1, 25,600·α per 100 classes of the top layer plus biases.
COUNTS = {
    1.0: (3_309_476, 3_411_976, 21_888),
    0.75: (1_893_460, 1_970_360, 16_416),
    0.5: (869_892, 921_192, 10_944),
    0.25: (238_772, 264_472, 5_472),
}


def _size(weights):
    return sum(int(np.prod(w.shape)) for w in weights)


@pytest.mark.parametrize("width", COUNTS)
def test_parameter_counts(width):
    # The image size changes no count; one backbone under two tops saves time.
    backbone = MobileNet(width=width).build(32)
    built = SimpleNamespace(build=lambda image_size: backbone)
    for classes, trainable in zip((100, 200), COUNTS[width], strict=False):
        network = classifier(built, 32, classes)
        assert _size(network.trainable_weights) == trainable
        assert _size(network.non_trainable_weights) == COUNTS[width][2]
        assert network.output_shape["embedding"] == (None, 1024 * width)


@pytest.mark.parametrize(("stride", "size", "last"), [(2, 224, 7), (2, 32, 1), (1, 32, 2)])
def test_stem_stride_sets_the_resolution(stride, size, last):
    """Four more strides of 2 follow the stem: 224 / 32 = 7; 32 / 16 = 2 with stride 1."""
    network = MobileNet(width=0.25, stem_stride=stride).build(size)
    assert network.get_layer("conv1").strides == (stride, stride)
    assert network.get_layer("conv_pw_13_relu").output_shape[1:3] == (last, last)


@pytest.mark.parametrize(
    ("stride", "blocks", "shapes"),
    [
        (1, (1, 3, 5), [(32, 32, 16), (16, 16, 32), (8, 8, 64)]),
        (2, (3, 5, 11), [(8, 8, 32), (4, 4, 64), (2, 2, 128)]),
    ],
)
def test_features_are_the_last_of_their_resolution(stride, blocks, shapes):
    network = embedding_network(MobileNet(width=0.25, stem_stride=stride), 32)
    names = [name for f, b in enumerate(blocks, 1) for name in (f"f{f}", f"conv_pw_{b}_bn")]
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    outputs = with_features(network, names)(images)
    for feature, block, shape in zip(("f1", "f2", "f3"), blocks, shapes, strict=True):
        assert outputs[feature].shape == (2, *shape)
        activated = np.clip(outputs[f"conv_pw_{block}_bn"], 0, 6)
        np.testing.assert_array_equal(outputs[feature], activated)
        assert network.get_layer(f"conv_dw_{block + 1}").strides == (2, 2)


def test_batch_norm_is_synchronised_with_the_momentum_asked_for():
    network = MobileNet(width=0.25, batch_norm_momentum=0.8).build(32)
    norms = [x for x in network.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
    assert len(norms) == 27  # the stem's, and two of each of 13 blocks
    assert {norm.momentum for norm in norms} == {0.8}
    assert all(norm.synchronized for norm in norms)
    assert MobileNet().batch_norm_momentum == 0.9


def test_images_are_scaled_inside_to_minus_one_and_one():
    """Keras's own MobileNet with the same weights, fed by its own preprocess_input."""
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    network = MobileNet(width=0.25).build(32)
    keras = tf.keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, include_top=False, weights=None, pooling="avg"
    )
    keras.set_weights(network.get_weights())
    wanted = keras(tf.keras.applications.mobilenet.preprocess_input(images.copy()))
    np.testing.assert_allclose(network(images), wanted, rtol=1e-4, atol=1e-6)


# ---- the later ones ------------------------------------------------------------------------

LATER = {
    "v2": MobileNetV2(0.35),
    "v3": MobileNetV3Small(0.5),
    "v3 minimalistic": MobileNetV3Small(0.5, minimalistic=True),
}


@pytest.mark.parametrize(
    ("backbone", "count", "statistics"),
    [
        # Of Keras's own without classifier: 2,257,984 and 939,120 weights in all.
        (MobileNetV2(), 2_223_872, 34_112),
        (MobileNetV3Small(), 927_008, 12_112),
    ],
    ids=["v2", "v3"],
)
def test_published_parameter_counts(backbone, count, statistics):
    network = backbone.build(32)
    assert _size(network.trainable_weights) == count
    assert _size(network.non_trainable_weights) == statistics


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", LATER)
def test_later_networks_are_kerass_own_at_another_stride(name, stride):
    """With a stem of stride 1, Keras's network on the image enlarged so that its stem undoes it.

    The stem's 3×3 kernel is cut to its middle in both, and Keras's stem then takes every other
    pixel of an image whose pixels are doubled: "same" padding puts that middle on odd ones.
    """
    backbone = dataclasses.replace(LATER[name], stem_stride=stride)
    network = backbone.build(32)
    stem = network.get_layer(backbone.stem)
    middle = np.zeros((3, 3, 1, 1), np.float32)
    middle[1, 1] = 1
    stem.set_weights([w * middle if w.ndim == 4 else w for w in stem.get_weights()])
    factor = 2 // stride
    keras = backbone.application(input_shape=(32 * factor, 32 * factor, 3), weights=None)
    keras.set_weights(network.get_weights())
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    answer, wanted = network(images).numpy(), keras(large / 127.5 - 1).numpy()
    np.testing.assert_allclose(answer, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", LATER)
def test_later_features_are_the_last_of_their_resolution(name, stride):
    backbone = dataclasses.replace(LATER[name], stem_stride=stride)
    network = embedding_network(backbone, 64)
    shapes = feature_shapes(network, ("f1", "f2", "f3"))
    assert [shape[1] for shape in shapes.values()] == [32 // stride, 16 // stride, 8 // stride]
    layers = network.layers
    for feature in shapes:
        (place,) = (i for i, layer in enumerate(layers) if layer.name == feature)
        # A block later, a depthwise convolution halves the resolution.
        following = next(
            layer for layer in layers[place:] if isinstance(layer, tf.keras.layers.DepthwiseConv2D)
        )
        assert following.strides == (2, 2)


@pytest.mark.parametrize("name", LATER)
def test_later_batch_norm_is_synchronised_with_the_momentum_asked_for(name):
    network = dataclasses.replace(LATER[name], batch_norm_momentum=0.8).build(32)
    norms = [x for x in network.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
    assert len(norms) > 20
    assert {(norm.momentum, norm.synchronized) for norm in norms} == {(0.8, True)}


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        (MobileNet, {"width": 0}, "MobileNet.width=0"),
        (MobileNet, {"width": float("inf")}, "MobileNet.width=inf must be positive"),
        (MobileNet, {"width": 0.03}, "width=0.03 must be positive and at least 0.03125"),
        (MobileNetV2, {"width": -0.5}, "MobileNetV2.width=-0.5"),
        (MobileNetV3Small, {"stem_stride": 3}, "MobileNetV3Small.stem_stride=3"),
    ],
)
def test_bad_option_is_named(kind, options, name):
    with pytest.raises(InputError) as caught:
        kind(**options)
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", [MobileNet, MobileNetV2, MobileNetV3Small])
def test_images_too_small_are_refused(kind):
    with pytest.raises(InputError, match=rf"{kind.__name__} takes .* 32×32.*not 31"):
        kind().build(31)
