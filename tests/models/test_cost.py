"""What networks cost, against counts by hand."""

from __future__ import annotations

import pytest
import tensorflow as tf

from refilled_tf.models import networks
from refilled_tf.models.cost import cost_of
from refilled_tf.models.mobilenet import MobileNet


def test_layers_by_hand():
    """3×3 convolution to 4 channels at 8×8, its depthwise one at stride 2, and a dense layer.

    Multiplications: 64 · 27 · 4 + 16 · 9 · 4 + 64 · 5; weights: 27 · 4 + 9 · 4 + 4 · 4 (of the
    normalisation) + 64 · 5 + 5.
    """
    network = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 3)),
            tf.keras.layers.Conv2D(4, 3, padding="same", use_bias=False),
            tf.keras.layers.DepthwiseConv2D(3, 2, padding="same", use_bias=False),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(5),
        ]
    )
    assert cost_of(network) == (485, 6912 + 576 + 320)


@pytest.mark.parametrize(("width", "millions"), [(1.0, 569), (0.5, 149), (0.25, 41)])
def test_mobilenets_of_the_paper(width, millions):
    """Table 6 of Howard et al., "MobileNets", 2017, at 224 × 224; it counts the classifier too."""
    network = networks.classifier(MobileNet(width=width), 224, 1000)
    assert cost_of(network).multiplications / 1e6 == pytest.approx(millions, abs=1)
