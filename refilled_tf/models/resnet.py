"""Residual networks (He et al., 2016) as embedding networks: for CIFAR, and ResNet-34."""

from __future__ import annotations

import dataclasses
import functools

import gin
import tensorflow as tf

from refilled_tf.common.errors import require
from refilled_tf.models import residual


@gin.register
@dataclasses.dataclass(frozen=True)
class CifarResNet:
    """ResNet-depth for small images, with shortcuts that have no parameters (option A).

    Attributes:
        depth: number of layers, 6n + 2: 8, 14, 20, 26, 32, …, 110, …
        batch_norm_momentum: as in `MobileNet`.
    """

    depth: int
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        self._blocks_per_group()

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with fresh weights.

        Its features "f1", "f2" and "f3" are at strides 1, 2 and 4.

        Args:
            image_size: side of the input in pixels.

        Returns:
            Functional model: images [B, S, S, 3] in [0, 255] to embeddings [B, 64].
        """
        images, x = residual.input_images(image_size)
        x = _convolution_norm(x, 16, 1, "stem", size=3, momentum=self.batch_norm_momentum)
        x = residual.relu(x, "stem_relu")
        block = functools.partial(
            _basic_block, shortcut=_zero_channels, momentum=self.batch_norm_momentum
        )
        x = residual.groups(x, [self._blocks_per_group()] * 3, 16, block)
        return tf.keras.Model(images, tf.keras.layers.GlobalAveragePooling2D(name="pool")(x))

    def _blocks_per_group(self) -> int:
        return residual.blocks_per_group("CifarResNet.depth", self.depth, others=2)


@gin.register
@dataclasses.dataclass(frozen=True)
class ResNet34:
    """ResNet-34 for large images.

    Attributes:
        batch_norm_momentum: as in `MobileNet`.
    """

    batch_norm_momentum: float = 0.9

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with fresh weights.

        Its features "f1", "f2" and "f3" are at strides 4, 8 and 16, those of the first three
        groups of four.

        Args:
            image_size: side of the input in pixels, at least 32.

        Returns:
            Functional model: images [B, S, S, 3] in [0, 255] to embeddings [B, 512].

        Raises:
            InputError: the images are too small.
        """
        require(image_size >= 32, f"ResNet34 takes images from 32×32 on, not {image_size}")
        images, x = residual.input_images(image_size)
        x = _convolution_norm(x, 64, 2, "stem", size=7, momentum=self.batch_norm_momentum)
        x = residual.relu(x, "stem_relu")
        # Padding by zeros changes no maximum after a ReLU.
        x = tf.keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = tf.keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
        projection = functools.partial(_convolution_norm, size=1, momentum=self.batch_norm_momentum)
        block = functools.partial(
            _basic_block, shortcut=projection, momentum=self.batch_norm_momentum
        )
        x = residual.groups(x, (3, 4, 6, 3), 64, block)
        return tf.keras.Model(images, tf.keras.layers.GlobalAveragePooling2D(name="pool")(x))


def _basic_block(
    x: tf.Tensor,
    channels: int,
    stride: int,
    name: str,
    *,
    shortcut: residual.Block,
    momentum: float,
) -> tf.Tensor:
    y = _convolution_norm(x, channels, stride, f"{name}_conv1", size=3, momentum=momentum)
    y = residual.relu(y, f"{name}_relu1")
    y = _convolution_norm(y, channels, 1, f"{name}_conv2", size=3, momentum=momentum)
    if x.shape[-1] != channels:
        x = shortcut(x, channels, stride, f"{name}_shortcut")
    return residual.relu(tf.keras.layers.Add(name=f"{name}_add")([x, y]), f"{name}_relu2")


def _convolution_norm(
    x: tf.Tensor, channels: int, stride: int, name: str, *, size: int, momentum: float
) -> tf.Tensor:
    x = residual.convolution(x, channels, size, stride, name)
    return residual.norm(x, momentum, f"{name}_norm")


def _zero_channels(x: tf.Tensor, channels: int, stride: int, name: str) -> tf.Tensor:
    """Option A: every stride-th pixel, and zeros for the channels that are new."""
    x = tf.keras.layers.MaxPooling2D(1, stride, name=f"{name}_subsample")(x)
    # "channels_first" makes the last dimension one of the two that this layer pads.
    return tf.keras.layers.ZeroPadding2D(
        ((0, 0), (0, channels - x.shape[-1])), data_format="channels_first", name=f"{name}_pad"
    )(x)
