"""ResNets against the published parameter counts and against the formulas in NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from reference import assert_batch_norms, assert_same_outputs, convolve, normalise, randomise, relu

from refilled_tf.common.errors import InputError
from refilled_tf.experiment.training import count_parameters
from refilled_tf.models.networks import classifier, embedding_network, with_features
from refilled_tf.models.resnet import CifarResNet, ResNet34

FEATURES = ("f1", "f2", "f3")


def test_parameters_of_resnet_110():
    network = classifier(CifarResNet(110), 32, 100)
    assert count_parameters(network) == {"trainable": 1_733_812, "batch_norm": 8_096}
    assert network.output_shape["embedding"] == (None, 64)
    kernels = [w for w in network.trainable_weights if "kernel" in w.name]
    assert len(kernels) == 110


@pytest.fixture(scope="module")
def resnet_34():
    """Built once: it has 21 million weights."""
    return ResNet34(batch_norm_momentum=0.8).build(64)


def test_parameters_of_resnet_34(resnet_34):
    # The image size changes no count.
    network = classifier(SimpleNamespace(build=lambda image_size: resnet_34), 64, 200)
    assert count_parameters(network) == {"trainable": 21_387_272, "batch_norm": 17_024}
    assert network.output_shape["embedding"] == (None, 512)


def test_batch_norm_is_synchronised_with_the_momentum_asked_for(resnet_34):
    assert_batch_norms(resnet_34, 1 + 2 * 16 + 3, 0.8)
    assert ResNet34().batch_norm_momentum == 0.9
    assert_batch_norms(CifarResNet(8, batch_norm_momentum=0.8).build(32), 1 + 2 * 3, 0.8)
    assert CifarResNet(8).batch_norm_momentum == 0.9


def _reference(network, x, counts, shortcut):
    """The groups of blocks from the activated stem on."""
    outputs = {}
    for group, count in enumerate(counts, start=1):
        for block in range(1, count + 1):
            name = f"group{group}_block{block}"
            stride = 2 if group > 1 and block == 1 else 1
            y = convolve(network, f"{name}_conv1", x, stride)
            y = relu(normalise(network, f"{name}_conv1_norm", y))
            y = convolve(network, f"{name}_conv2", y, 1)
            y = normalise(network, f"{name}_conv2_norm", y)
            x = relu(y + (x if x.shape == y.shape else shortcut(network, name, x)))
        outputs[f"f{group}"] = x
    embedding = x.mean(axis=(1, 2))
    return {name: outputs[name] for name in FEATURES} | {"embedding": embedding}


def _zero_channels(network, name, x):
    halved = x[:, ::2, ::2]
    return np.concatenate([halved, np.zeros_like(halved)], axis=-1)


def _projection(network, name, x):
    return normalise(network, f"{name}_shortcut_norm", convolve(network, f"{name}_shortcut", x, 2))


@pytest.mark.parametrize("size", [16, 13])
def test_cifar_resnet_is_the_published_one(size):
    images = np.random.default_rng(0).uniform(0, 255, (3, size, size, 3)).astype(np.float32)
    network = embedding_network(CifarResNet(14), size)
    randomise(network)
    stem = convolve(network, "stem", images / 127.5 - 1, 1)
    stem = relu(normalise(network, "stem_norm", stem))
    wanted = _reference(network, stem, (2, 2, 2), _zero_channels)
    half, quarter = -(-size // 2), -(-size // 4)
    assert [wanted[f].shape[1] for f in FEATURES] == [size, half, quarter]
    assert_same_outputs(with_features(network, FEATURES), images, wanted)


def test_resnet_34_is_the_published_one(resnet_34):
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    network = embedding_network(SimpleNamespace(build=lambda image_size: resnet_34), 64)
    randomise(network)
    stem = convolve(network, "stem", images / 127.5 - 1, 2)
    stem = relu(normalise(network, "stem_norm", stem))
    padded = np.pad(stem, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    pooled = np.max(
        [padded[:, i : i + 32 : 2, j : j + 32 : 2] for i in range(3) for j in range(3)], axis=0
    )
    wanted = _reference(network, pooled, (3, 4, 6, 3), _projection)
    assert [wanted[f].shape[1] for f in FEATURES] == [16, 8, 4]
    assert_same_outputs(with_features(network, FEATURES), images, wanted)


@pytest.mark.parametrize(
    ("depth", "nearest"), [(109, "104 and 110"), (111, "110 and 116"), (2, "8 and 14")]
)
def test_bad_depth_is_named(depth, nearest):
    with pytest.raises(InputError, match=rf"CifarResNet\.depth={depth} must be 6n\+2.*{nearest}"):
        CifarResNet(depth)


def test_images_too_small_are_refused():
    with pytest.raises(InputError, match=r"32×32.*not 31"):
        ResNet34().build(31)
