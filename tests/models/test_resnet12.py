"""ResNet-12 against the published parameter counts and against the formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from reference import (
    assert_batch_norms,
    assert_same_outputs,
    convolve,
    max_pool,
    normalise,
    randomise,
)

from refilled_tf.common.errors import InputError
from refilled_tf.experiment.training import count_parameters
from refilled_tf.models.networks import embedding_network, feature_shapes, with_features
from refilled_tf.models.resnet12 import ResNet12

FEATURES = ("f1", "f2", "f3")
SMALL = (4, 6, 8, 10)


@pytest.fixture(scope="module")
def published():
    """Built once: it has 12 million weights."""
    return embedding_network(ResNet12(), 84)


def test_parameter_counts(published):
    assert count_parameters(published) == {"trainable": 12_424_320, "batch_norm": 9_472}


def test_embedding_and_features_have_the_published_sizes(published):
    """84 → 42 → 21 → 10 → 5, features before the pooling that halves them."""
    assert published.output_shape == {"embedding": (None, 640)}
    assert feature_shapes(published, FEATURES) == {
        "f1": (None, 84, 84, 64),
        "f2": (None, 42, 42, 160),
        "f3": (None, 21, 21, 320),
    }
    assert published.get_layer("pool").input_shape == (None, 5, 5, 640)


def test_batch_norm_is_synchronised_with_the_momentum_asked_for(published):
    assert_batch_norms(ResNet12(SMALL, batch_norm_momentum=0.8).build(32), 4 * 4, 0.8)
    assert_batch_norms(published, 4 * 4, 0.9)


def _leaky_relu(x):
    return np.where(x > 0, x, 0.1 * x)


def _reference(network, images):
    outputs, x = {}, images / 127.5 - 1
    for block in (1, 2, 3, 4):
        y = x
        for layer in (1, 2, 3):
            y = convolve(network, f"block{block}_conv{layer}", y, 1)
            y = normalise(network, f"block{block}_conv{layer}_norm", y)
            y = _leaky_relu(y) if layer < 3 else y
        x = convolve(network, f"block{block}_shortcut", x, 1)
        x = normalise(network, f"block{block}_shortcut_norm", x)
        x = outputs[f"f{block}"] = _leaky_relu(x + y)
        x = max_pool(x)
    return {name: outputs[name] for name in FEATURES} | {"embedding": x.mean(axis=(1, 2))}


@pytest.mark.parametrize(("size", "drop_block"), [(32, 5), (32, 2), (45, 2)])
def test_network_is_the_published_one(size, drop_block):
    images = np.random.default_rng(0).uniform(0, 255, (3, size, size, 3)).astype(np.float32)
    network = embedding_network(ResNet12(SMALL, drop_block=drop_block), size)
    randomise(network)
    wanted = _reference(network, images)
    assert [wanted[name].shape[1] for name in FEATURES] == [size, size // 2, size // 4]
    assert_same_outputs(with_features(network, FEATURES), images, wanted)


def test_dropout_is_for_training_alone():
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    network, without = (ResNet12(SMALL, rate, drop_block=2).build(32) for rate in (0.1, 0.0))
    without.set_weights(network.get_weights())

    def difference(training):
        pair = network(images, training=training), without(images, training=training)
        return np.abs(pair[0] - pair[1]).max()

    assert difference(training=False) < 1e-5
    assert difference(training=True) > 0.01


# Behind each block, the layer whose input has been dropped from.
AFTER = {1: "block2_conv1", 2: "block3_conv1", 3: "block4_conv1", 4: "pool"}


def _dropping(network, block):
    """Returns a function, traced once, of images to [B, h, h, c] before and after the dropout."""
    pooled = network.get_layer(f"block{block}_pool").output
    part = tf.keras.Model(network.input, (pooled, network.get_layer(AFTER[block]).input))
    step = tf.function(lambda images: part(images, training=True))
    return lambda images: [x.numpy() for x in step(images)]


def _images(count, size):
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 2])
def test_first_blocks_drop_units(block):
    tf.keras.utils.set_random_seed(0)
    network = ResNet12((8, 8, 1, 1), dropout=0.3).build(32)
    before, after = _dropping(network, block)(_images(8, 32))
    kept = after != 0
    assert kept.mean() == pytest.approx(0.7, abs=0.03)
    np.testing.assert_allclose(after, before * kept / 0.7, rtol=1e-5)
    # Neighbours are dropped independently of each other.
    assert (kept[:, 1:] & kept[:, :-1]).mean() == pytest.approx(0.7**2, abs=0.04)


def _squares(places, size):
    """Covers [B, h, h, c] by the squares whose upper left corners are True in [B, p, p, c]."""
    side = places.shape[1] + size - 1
    covered = np.zeros((len(places), side, side, places.shape[-1]), bool)
    for i in range(size):
        for j in range(size):
            rows, columns = (slice(k, k + places.shape[1]) for k in (i, j))
            covered[:, rows, columns] |= places
    return covered


@pytest.mark.parametrize(
    ("block", "image_size", "size"), [(3, 64, 3), (3, 40, 2), (4, 64, 3), (4, 64, 1)]
)
def test_last_blocks_drop_squares(block, image_size, size):
    """Of corners that are drawn with γ = rate·h² / (size²·(h - size + 1)²), DropBlock's Eq. 1."""
    tf.keras.utils.set_random_seed(0)
    network = ResNet12((2, 2, 40, 40), dropout=0.2, drop_block=size).build(image_size)
    before, after = _dropping(network, block)(_images(10, image_size))
    dropped = after == 0
    side = image_size // 2**block
    places = side - size + 1

    windows = [dropped[:, i : i + places, j : j + places] for i in range(size) for j in range(size)]
    np.testing.assert_array_equal(_squares(np.all(windows, axis=0), size), dropped)
    np.testing.assert_allclose(after, before * ~dropped / (1 - dropped.mean()), rtol=1e-4)

    gamma = 0.2 * side**2 / size**2 / places**2
    along = [min(i, places - 1) - max(0, i - size + 1) + 1 for i in range(side)]
    share = 1 - (1 - gamma) ** np.outer(along, along)  # a place is in so many squares
    assert dropped.mean() == pytest.approx(share.mean(), rel=0.1)
    np.testing.assert_allclose(dropped.mean(axis=(0, 3)), share, atol=0.09)


@pytest.mark.parametrize(("block", "image_size"), [(3, 32), (4, 32), (4, 84), (3, 16), (4, 16)])
def test_square_that_does_not_fit_drops_the_channel(block, image_size):
    tf.keras.utils.set_random_seed(0)
    network = ResNet12((2, 2, 40, 40), dropout=0.2).build(image_size)
    before, after = _dropping(network, block)(_images(10, image_size))
    kept = after != 0
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean() == pytest.approx(0.8, abs=0.07)
    np.testing.assert_allclose(after, before * kept / 0.8, rtol=1e-5)


def _steps(block):
    """Returns fresh weights' checkpoint, and a function that says what one more step drops."""
    tf.keras.utils.set_random_seed(3)
    network = ResNet12((2, 2, 10, 10), dropout=0.3, drop_block=2).build(32)
    drop, images = _dropping(network, block), _images(4, 32)
    return tf.train.Checkpoint(student=network), lambda: drop(images)[1] == 0


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_every_step_drops_something_else_but_as_the_seed_says(block):
    (_, step), (_, again) = _steps(block), _steps(block)
    first, second = step(), step()
    assert (first != second).any()
    np.testing.assert_array_equal(again(), first)
    np.testing.assert_array_equal(again(), second)


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_restored_network_drops_what_the_unbroken_one_does(block, tmp_path):
    checkpoint, step = _steps(block)
    first = step()
    path = checkpoint.save(tmp_path / "checkpoint")
    second = step()
    checkpoint, resumed = _steps(block)
    checkpoint.restore(path).assert_consumed()
    np.testing.assert_array_equal(resumed(), second)
    assert (first != second).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (64, 160, 320)}, r"ResNet12\.widths=\(64, 160, 320\) must be four whole "),
        ({"widths": (64, 160, 320, 0)}, r"ResNet12\.widths=.* such as \(64, 160, 320, 640\)"),
        ({"widths": (64, 160, 320, 0.5)}, r"ResNet12\.widths="),
        ({"widths": 64}, r"ResNet12\.widths=64 "),
        ({"dropout": 1.0}, r"ResNet12\.dropout=1\.0 must lie in \[0, 1\)"),
        ({"dropout": -0.1}, r"ResNet12\.dropout=-0\.1 "),
        ({"drop_block": 0}, r"ResNet12\.drop_block=0 must be a whole number of at least 1"),
        ({"drop_block": 2.5}, r"ResNet12\.drop_block=2\.5 "),
    ],
)
def test_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        ResNet12(**options)


def test_images_too_small_are_refused():
    with pytest.raises(InputError, match=r"16×16.*not 15"):
        ResNet12().build(15)
