"""Networks as a whole: precision, saving, features, starting from another one's embedding."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.data.resizing import resized
from refilled_tf.models.convnet import ConvNet
from refilled_tf.models.mobilenet import MobileNet
from refilled_tf.models.networks import (
    classifier,
    copied,
    copy_embedding_weights,
    embedding_network,
    feature_shapes,
    joined,
    mark,
    outputs_of,
    with_features,
)
from refilled_tf.models.resnet import CifarResNet
from refilled_tf.models.resnet12 import ResNet12
from refilled_tf.models.wide_resnet import WideResNet

# Without momentum one training step sets all of batch norm's statistics.
SMALL = WideResNet(10, 1, batch_norm_momentum=0.0)
# ResNet-34 is made of the same kinds of layers as CifarResNet, but takes seconds each time.
BACKBONES = (
    SMALL,
    MobileNet(width=0.25, batch_norm_momentum=0.0),
    CifarResNet(8, batch_norm_momentum=0.0),
    ConvNet(channels=8, batch_norm_momentum=0.0),
    ResNet12((8, 8, 8, 8), drop_block=2, batch_norm_momentum=0.0),
)
KERAS = tf.keras.Model.__module__.split(".")[0] + "."
IMAGES = np.random.default_rng(0).uniform(0, 255, (5, 32, 32, 3)).astype(np.float32)


every_backbone = pytest.mark.parametrize(
    "backbone", BACKBONES, ids=lambda backbone: type(backbone).__name__
)


@pytest.fixture(autouse=True)
def _weights_of_a_seed():
    """Lest they depend on which tests have run before."""
    tf.keras.utils.set_random_seed(0)


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
    assert network.output_shape == {"embedding": (None, 64), "logits": (None, 7)}
    _disturb(network)
    weights, bias = network.get_layer("logits").get_weights()
    outputs = network(IMAGES)
    wanted = outputs["embedding"].numpy() @ weights + bias
    np.testing.assert_allclose(outputs["logits"], wanted, rtol=1e-4, atol=1e-5)


@every_backbone
def test_half_precision_network_answers_in_float32(backbone, half_precision):
    network = classifier(backbone, 32, 3)
    inner = [x for x in network.layers if x.weights and x.name != "logits"]
    assert {x.compute_dtype for x in inner} == {"float16"}
    assert network.get_layer("logits").compute_dtype == "float32"
    assert {w.dtype for w in network.trainable_weights} == {tf.float32}
    outputs = network(IMAGES)
    assert outputs["embedding"].dtype == outputs["logits"].dtype == tf.float32
    assert np.isfinite(outputs["logits"]).all()


@every_backbone
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_copied_and_saved_networks_compute_the_same(tmp_path, policy, backbone):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        network = classifier(backbone, 32, 3)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    _disturb(network)
    copied(network).save(tmp_path / "model.keras")
    saved = tf.keras.models.load_model(tmp_path / "model.keras", compile=False)

    wanted = network(IMAGES)
    for copy in (saved, copied(network)):
        for before, after in zip(network.get_weights(), copy.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
        assert [x.compute_dtype for x in copy.layers] == [x.compute_dtype for x in network.layers]
        assert all(type(x).__module__.startswith(KERAS) for x in copy.layers)
        norms = [x for x in copy.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
        assert {norm.momentum for norm in norms} == {0.0}
        outputs = copy(IMAGES)
        for name in ("embedding", "logits"):
            if policy == "float32":
                _assert_close(wanted[name], outputs[name])
            else:  # rounding to half precision, amplified by batch norms of random weights
                pair = np.ravel(wanted[name]), np.ravel(outputs[name])
                assert np.corrcoef(*pair)[0, 1] > 0.99


def test_marked_features_are_among_the_outputs():
    images = tf.keras.Input((2, 2, 3))
    doubled = mark(tf.keras.layers.Rescaling(2.0)(images), "doubled")
    network = tf.keras.Model(images, {"embedding": tf.keras.layers.Flatten()(doubled)})
    assert feature_shapes(network, ("doubled",)) == {"doubled": (None, 2, 2, 3)}

    numbers = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
    outputs = with_features(network, ("doubled",))(numbers)
    assert outputs.keys() == {"embedding", "doubled"}
    np.testing.assert_array_equal(outputs["doubled"], 2 * numbers)
    np.testing.assert_array_equal(outputs["embedding"], 2 * numbers.reshape(2, 12))


def test_network_with_features_has_the_same_weights():
    network = classifier(SMALL, 32, 3)
    weights = with_features(network, ("f1", "f2", "f3")).trainable_weights
    assert [id(w) for w in weights] == [id(w) for w in network.trainable_weights]


@pytest.mark.parametrize("look", [with_features, feature_shapes])
def test_unknown_feature_is_named(look):
    network = embedding_network(SMALL, 32)
    with pytest.raises(InputError, match=r"no layer 'f4' to distil; it has images, .*, f3, "):
        look(network, ("f1", "f4"))


@every_backbone
def test_copied_embedding_is_the_same_and_the_top_is_fresh(backbone):
    source, target = embedding_network(backbone, 32), classifier(backbone, 32, 3)
    assert source.output_names == ["embedding"]
    _disturb(source)
    top = [w.copy() for w in target.get_layer("logits").get_weights()]
    copy_embedding_weights(source, target)
    _assert_close(source(IMAGES)["embedding"], target(IMAGES)["embedding"])
    for before, after in zip(top, target.get_layer("logits").get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_networks_of_one_kind_are_joined():
    """Their names are the same, and a model holds no two layers of one name."""
    tf.keras.utils.set_random_seed(0)
    several = [classifier(ConvNet(channels=4), size, 3) for size in (32, 16)]
    given = joined(several, 32)(IMAGES)
    assert given.keys() == {"embedding", "logits", "embedding_2", "logits_2"}
    first, second = several[0](IMAGES), several[1](resized(IMAGES, 16))
    np.testing.assert_allclose(given["logits"], first["logits"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(given["logits_2"], second["logits"], rtol=1e-5, atol=1e-6)


def test_copy_leaves_the_sources_top_behind():
    """As fine-tuning a teacher needs, whose classes are others and maybe as many."""
    source, target = classifier(SMALL, 32, 3), classifier(SMALL, 32, 3)
    _disturb(source)
    top = target.get_layer("logits").get_weights()[0].copy()
    copy_embedding_weights(source, target)
    np.testing.assert_array_equal(target.get_layer("logits").get_weights()[0], top)
    _assert_close(source(IMAGES)["embedding"], target(IMAGES)["embedding"])


def test_copy_from_another_width_is_refused():
    wide = embedding_network(WideResNet(10, 2), 32)
    with pytest.raises(InputError, match=r"layer 'group1_block1_conv1'.*same backbone"):
        copy_embedding_weights(wide, classifier(SMALL, 32, 3))


def test_outputs_of_batches_are_joined_in_order():
    network = classifier(SMALL, 32, 3)
    _disturb(network)  # so that inference mode and training mode differ
    joined = outputs_of(network, [IMAGES[:2], IMAGES[2:4], IMAGES[4:]])
    at_once = network(IMAGES, training=False)
    for name in ("embedding", "logits"):
        assert isinstance(joined[name], np.ndarray)
        _assert_close(joined[name], at_once[name])
