"""Networks as a whole: precision, saving, and starting from another one's embedding."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.errors import InputError
from refilled_tf.models.mobilenet import MobileNet
from refilled_tf.models.networks import (
    classifier,
    copy_embedding_weights,
    embedding_network,
    outputs_of,
)

# Without momentum one training step sets all of batch norm's statistics.
SMALL = MobileNet(width=0.25, batch_norm_momentum=0.0)
IMAGES = np.random.default_rng(0).uniform(0, 255, (5, 32, 32, 3)).astype(np.float32)


@pytest.fixture
def half_precision():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


def _disturb(network):
    """Gives all weights, batch norm's statistics included, values unlike their first ones."""
    random = np.random.default_rng(1)
    network.set_weights([w * random.uniform(0.5, 1.5, w.shape) for w in network.get_weights()])
    network(IMAGES, training=True)


def _assert_close(a, b):
    """Equal but for the order in which a convolution sums, which is the library's choice."""
    np.testing.assert_allclose(a, b, rtol=5e-3, atol=5e-3)
    assert np.std(a) > 0.05


def test_logits_are_linear_in_the_embedding():
    network = classifier(SMALL, 32, 7)
    assert network.output_shape == {"embedding": (None, 256), "logits": (None, 7)}
    _disturb(network)
    weights, bias = network.get_layer("logits").get_weights()
    outputs = network(IMAGES)
    wanted = outputs["embedding"].numpy() @ weights + bias
    np.testing.assert_allclose(outputs["logits"], wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_network_answers_in_float32(half_precision):
    network = classifier(SMALL, 32, 3)
    assert network.get_layer("conv1").compute_dtype == "float16"
    assert network.get_layer("logits").compute_dtype == "float32"
    assert {w.dtype for w in network.trainable_weights} == {tf.float32}
    outputs = network(IMAGES)
    assert outputs["embedding"].dtype == outputs["logits"].dtype == tf.float32
    assert np.isfinite(outputs["logits"]).all()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_saved_network_computes_the_same(tmp_path, policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        network = classifier(SMALL, 32, 3)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    _disturb(network)
    network.save(tmp_path / "model.keras")
    again = tf.keras.models.load_model(tmp_path / "model.keras", compile=False)

    for before, after in zip(network.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert [x.compute_dtype for x in again.layers] == [x.compute_dtype for x in network.layers]
    before, after = network(IMAGES), again(IMAGES)
    for name in ("embedding", "logits"):
        if policy == "float32":
            _assert_close(before[name], after[name])
        else:  # rounding to half precision, amplified by 27 batch norms of random weights
            assert np.corrcoef(np.ravel(before[name]), np.ravel(after[name]))[0, 1] > 0.99
    assert again.get_layer("conv_pw_5_bn").momentum == 0.0


def test_copied_embedding_is_the_same_and_the_top_is_fresh():
    source, target = embedding_network(SMALL, 32), classifier(SMALL, 32, 3)
    assert source.output_shape == {"embedding": (None, 256)}
    _disturb(source)
    top = [w.copy() for w in target.get_layer("logits").get_weights()]
    copy_embedding_weights(source, target)
    _assert_close(source(IMAGES)["embedding"], target(IMAGES)["embedding"])
    for before, after in zip(top, target.get_layer("logits").get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_copy_leaves_the_sources_top_behind():
    """As fine-tuning a teacher needs, whose classes are others and maybe as many."""
    source, target = classifier(SMALL, 32, 3), classifier(SMALL, 32, 3)
    _disturb(source)
    top = target.get_layer("logits").get_weights()[0].copy()
    copy_embedding_weights(source, target)
    np.testing.assert_array_equal(target.get_layer("logits").get_weights()[0], top)
    _assert_close(source(IMAGES)["embedding"], target(IMAGES)["embedding"])


def test_copy_from_another_width_is_refused():
    wide = embedding_network(MobileNet(width=0.125), 32)
    with pytest.raises(InputError, match=r"layer 'conv1'.*same backbone"):
        copy_embedding_weights(wide, classifier(SMALL, 32, 3))


def test_outputs_of_batches_are_joined_in_order():
    network = classifier(SMALL, 32, 3)
    _disturb(network)  # so that inference mode and training mode differ
    joined = outputs_of(network, [IMAGES[:2], IMAGES[2:4], IMAGES[4:]])
    at_once = network(IMAGES, training=False)
    for name in ("embedding", "logits"):
        assert isinstance(joined[name], np.ndarray)
        _assert_close(joined[name], at_once[name])
