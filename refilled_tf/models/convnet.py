"""The four-layer convolutional network of few-shot learning (Vinyals et al., 2016)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import gin
import tensorflow as tf

from refilled_tf.common.errors import require, require_choice, require_whole
from refilled_tf.models import networks, residual

BLOCKS = 4


@gin.register
@dataclasses.dataclass(frozen=True)
class ConvNet:
    """ConvNet-4: four times a convolution, batch norm, ReLU and max pooling.

    Attributes:
        channels: of every convolution; 64, or 32 as MAML has on larger images.
        pooling: "max" takes each channel's maximum over what is left of the image; "flatten"
            keeps every place of it, as prototypical networks did.
        batch_norm_momentum: as in `MobileNet`.
    """

    channels: int = 64
    pooling: Literal["max", "flatten"] = "max"
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        require_whole("ConvNet.channels", self.channels)
        require_choice(self, "pooling")

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with fresh weights: a chain of layers, without branches.

        Its features "f1", "f2" and "f3" are at strides 1, 2 and 4, before the pooling.

        Args:
            image_size: side of the input in pixels, at least 16.

        Returns:
            Functional model: images [B, S, S, 3] in [0, 255] to embeddings [B, channels] or,
            flattened, [B, channels·⌊S/16⌋²].

        Raises:
            InputError: the images are too small.
        """
        require(image_size >= 16, f"ConvNet takes images from 16×16 on, not {image_size}")
        images, x = residual.input_images(image_size)
        for block in range(1, BLOCKS + 1):
            x = self._activated(x, f"block{block}")
            if block < BLOCKS:
                x = networks.mark(x, f"f{block}")
            x = tf.keras.layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
        if self.pooling == "max":
            return tf.keras.Model(images, tf.keras.layers.GlobalMaxPooling2D(name="pool")(x))
        return tf.keras.Model(images, tf.keras.layers.Flatten(name="flatten")(x))

    def _activated(self, x: tf.Tensor, name: str) -> tf.Tensor:
        x = tf.keras.layers.Conv2D(
            self.channels,
            3,
            padding="same",
            # Torch's default, which the published networks start from: uniform, ±1/√(fan in).
            kernel_initializer=tf.keras.initializers.VarianceScaling(
                1 / 3, mode="fan_in", distribution="uniform"
            ),
            name=f"{name}_conv",
        )(x)
        x = residual.norm(x, self.batch_norm_momentum, f"{name}_norm")
        return residual.relu(x, f"{name}_relu")
