"""Wide-ResNets against the published parameter counts and against the formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from reference import assert_batch_norms, assert_same_outputs, convolve, normalise, randomise, relu

from refilled_tf.common.errors import InputError
from refilled_tf.experiment.training import count_parameters
from refilled_tf.models.networks import classifier, embedding_network, with_features
from refilled_tf.models.wide_resnet import WideResNet

# Trainable weights with 100 classes, and batch norm's running statistics.
COUNTS = {
    (40, 2): (2_255_156, 5_408),
    (16, 2): (703_284, 1_824),
    (40, 1): (569_780, 2_720),
    (16, 1): (180_916, 928),
}


@pytest.mark.parametrize(("depth", "width"), COUNTS)
def test_parameter_counts(depth, width):
    network = classifier(WideResNet(depth, width), 32, 100)
    trainable, batch_norm = COUNTS[depth, width]
    assert count_parameters(network) == {"trainable": trainable, "batch_norm": batch_norm}
    assert network.output_shape["embedding"] == (None, 64 * width)


def test_batch_norm_is_synchronised_with_the_momentum_asked_for():
    network = WideResNet(10, 2, batch_norm_momentum=0.8).build(32)
    assert_batch_norms(network, 2 * 3 + 1, 0.8)
    assert WideResNet(10, 2).batch_norm_momentum == 0.9


def _reference(network, images, blocks):
    outputs = {}
    x = convolve(network, "stem", images / 127.5 - 1, 1)
    for group in (1, 2, 3):
        for block in range(1, blocks + 1):
            name = f"group{group}_block{block}"
            stride = 2 if (group, block) in ((2, 1), (3, 1)) else 1
            activated = relu(normalise(network, f"{name}_1_norm", x))
            y = convolve(network, f"{name}_conv1", activated, stride)
            y = relu(normalise(network, f"{name}_2_norm", y))
            y = convolve(network, f"{name}_conv2", y, 1)
            if x.shape != y.shape:
                x = convolve(network, f"{name}_shortcut", activated, stride)
            x = x + y
        outputs[f"f{group}"] = x
    activated = relu(normalise(network, "last_norm", x))
    return outputs | {"embedding": activated.mean(axis=(1, 2))}


@pytest.mark.parametrize(("width", "size"), [(1, 16), (2, 13)])
def test_network_is_the_published_one(width, size):
    images = np.random.default_rng(0).uniform(0, 255, (3, size, size, 3)).astype(np.float32)
    network = embedding_network(WideResNet(16, width), size)
    randomise(network)
    wanted = _reference(network, images, blocks=2)
    half, quarter = -(-size // 2), -(-size // 4)
    assert [wanted[f].shape[1] for f in ("f1", "f2", "f3")] == [size, half, quarter]
    assert_same_outputs(with_features(network, ("f1", "f2", "f3")), images, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 41, "width": 1}, r"WideResNet\.depth=41 must be 6n\+4.* 40 and 46"),
        ({"depth": 45, "width": 1}, r"WideResNet\.depth=45 .* 40 and 46"),
        ({"depth": 4, "width": 1}, r"WideResNet\.depth=4 .* 10 and 16"),
        ({"depth": -2, "width": 1}, r"WideResNet\.depth=-2 .* 10 and 16"),
        ({"depth": 16.5, "width": 1}, r"WideResNet\.depth=16\.5 "),
        ({"depth": 16, "width": 0}, r"WideResNet\.width=0 must be a whole number of at least 1"),
        ({"depth": 16, "width": 0.5}, r"WideResNet\.width=0\.5 "),
        ({"depth": 16, "width": 1.5}, r"WideResNet\.width=1\.5 "),
    ],
)
def test_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        WideResNet(**options)
