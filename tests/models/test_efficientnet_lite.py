"""EfficientNet-Lite0 against the published counts, and its options."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.models.efficientnet_lite import EfficientNetLite0
from refilled_tf.models.networks import classifier, embedding_network, feature_shapes


def _size(weights):
    return sum(int(np.prod(w.shape)) for w in weights)


def test_published_parameter_count():
    """4,652,008 in all with 1,000 classes, as google/efficientnet-lite and timm count."""
    network = classifier(EfficientNetLite0(), 32, 1000)
    assert _size(network.trainable_weights) == 4_652_008
    assert network.output_shape["embedding"] == (None, 1280)


def test_width_multiplies_blocks_in_multiples_of_8():
    """By hand: 320·.35 = 112; 16·.35 = 5.6 → 8; 24·.35 = 8.4 → 8; 40·.35 = 14 → 16."""
    network = EfficientNetLite0(width=0.35).build(32)
    channels = {layer.name: layer.output_shape[-1] for layer in network.layers}
    assert channels["stem"] == 32
    assert [channels[f"group{i}_block1_project"] for i in (1, 2, 3, 7)] == [8, 8, 16, 112]
    assert channels["head"] == 1280
    # 24·.8 = 19.2 would be 16, less than nine tenths, so it is 24.
    assert EfficientNetLite0(0.8).build(32).get_layer("f1").output_shape[-1] == 24


@pytest.mark.parametrize("stride", [1, 2])
def test_features_and_last_map(stride):
    network = embedding_network(EfficientNetLite0(0.25, stem_stride=stride), 64)
    shapes = feature_shapes(network, ("f1", "f2", "f3", "head"))
    assert [shape[1] for shape in shapes.values()] == [s // stride for s in (32, 16, 8, 4)]


def test_batch_norm_is_synchronised_with_the_momentum_asked_for():
    network = EfficientNetLite0(0.25, batch_norm_momentum=0.8).build(32)
    norms = [x for x in network.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
    # The stem's, the head's, two of the first block and three of each of the 15 others.
    assert len(norms) == 2 + 2 + 3 * 15
    assert {(norm.momentum, norm.synchronized) for norm in norms} == {(0.8, True)}


def test_images_are_scaled_inside():
    network = EfficientNetLite0(0.25).build(32)
    assert network.get_layer("rescale")(np.full((1, 1, 1, 3), 255.0)).numpy().max() == 1
    np.testing.assert_allclose(network.get_layer("rescale")(np.zeros((1, 1))), [[-127 / 128]])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 0}, r"EfficientNetLite0\.width=0"), ({"stem_stride": 4}, "stem_stride=4 must be")],
)
def test_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        EfficientNetLite0(**options)


def test_images_too_small_are_refused():
    with pytest.raises(InputError, match=r"32×32.*not 16"):
        EfficientNetLite0().build(16)
