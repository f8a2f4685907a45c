"""ConvNet-4 against the published parameter counts and against the formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from reference import (
    assert_batch_norms,
    assert_same_outputs,
    convolve,
    max_pool,
    normalise,
    randomise,
    relu,
)

from refilled_tf.common.errors import InputError
from refilled_tf.experiment.training import count_parameters
from refilled_tf.models.convnet import ConvNet
from refilled_tf.models.networks import embedding_network, feature_shapes, with_features

FEATURES = ("f1", "f2", "f3")

# Trainable weights, and batch norm's running statistics: of 64 channels as published; of 32 from
# the layers' shapes, 3·9·32 + 3·32·9·32 weights and 4·32 each of bias, scale and shift.
COUNTS = {64: (113_088, 512), 32: (28_896, 256)}


@pytest.mark.parametrize("channels", COUNTS)
@pytest.mark.parametrize("pooling", ["max", "flatten"])
def test_parameter_counts(channels, pooling):
    network = embedding_network(ConvNet(channels, pooling), 32)
    trainable, batch_norm = COUNTS[channels]
    assert count_parameters(network) == {"trainable": trainable, "batch_norm": batch_norm}
    assert ConvNet().channels == 64


@pytest.mark.parametrize(
    ("pooling", "size", "width"),
    # 84 → 42 → 21 → 10 → 5, and prototypical networks' 1,600 = 64·5·5.
    [("max", 84, 64), ("flatten", 84, 1600), ("flatten", 32, 256), ("flatten", 16, 64)],
)
def test_embedding_and_features_have_the_published_sizes(pooling, size, width):
    network = embedding_network(ConvNet(pooling=pooling), size)
    assert network.output_shape == {"embedding": (None, width)}
    assert feature_shapes(network, FEATURES) == {
        name: (None, size // stride, size // stride, 64)
        for name, stride in zip(FEATURES, (1, 2, 4), strict=True)
    }


def test_layers_are_a_chain():
    """As computing many networks at once needs."""
    network = ConvNet().build(32)
    for before, layer in zip(network.layers, network.layers[1:], strict=False):
        assert layer.input is before.output
    assert len(network.layers) == 2 + 4 * 4 + 3 + 1  # images, scaling; blocks; marks; pooling


def test_batch_norm_is_synchronised_with_the_momentum_asked_for():
    assert_batch_norms(ConvNet(batch_norm_momentum=0.8).build(32), 4, 0.8)
    assert ConvNet().batch_norm_momentum == 0.9


def test_kernels_start_as_torchs():
    """Uniform in ±1/√(fan in), and so of the deviation 1/√(3·fan in)."""
    (kernel, bias) = ConvNet().build(16).get_layer("block2_conv").get_weights()
    fan_in = 3 * 3 * 64
    assert np.abs(kernel).max() == pytest.approx(fan_in**-0.5, rel=0.01)
    assert kernel.std() == pytest.approx((3 * fan_in) ** -0.5, rel=0.03)
    assert not bias.any()


@pytest.mark.parametrize("size", [32, 29])
@pytest.mark.parametrize("pooling", ["max", "flatten"])
def test_network_is_the_published_one(pooling, size):
    images = np.random.default_rng(0).uniform(0, 255, (3, size, size, 3)).astype(np.float32)
    network = embedding_network(ConvNet(8, pooling), size)
    randomise(network)
    wanted, x = {}, images / 127.5 - 1
    for block in (1, 2, 3, 4):
        x = convolve(network, f"block{block}_conv", x, 1)
        x = wanted[f"f{block}"] = relu(normalise(network, f"block{block}_norm", x))
        x = max_pool(x)
    del wanted["f4"]
    sides = [wanted[name].shape[1] for name in FEATURES]
    assert [*sides, x.shape[1]] == [size, size // 2, size // 4, size // 16]
    wanted["embedding"] = x.max(axis=(1, 2)) if pooling == "max" else x.reshape(3, -1)
    assert_same_outputs(with_features(network, FEATURES), images, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"ConvNet\.channels=0 must be a whole number of at least 1"),
        ({"channels": 0.5}, r"ConvNet\.channels=0\.5 "),
        ({"pooling": "avg"}, r"ConvNet\.pooling='avg' must be 'max' or 'flatten'"),
    ],
)
def test_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        ConvNet(**options)


def test_images_too_small_are_refused():
    with pytest.raises(InputError, match=r"16×16.*not 15"):
        ConvNet().build(15)
