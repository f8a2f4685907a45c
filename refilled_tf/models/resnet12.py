"""ResNet-12, the residual network of few-shot learning (Lee et al., 2019)."""

from __future__ import annotations

import dataclasses

import gin
import tensorflow as tf

from refilled_tf.common.errors import require, require_whole
from refilled_tf.models import networks, residual


@gin.register
@dataclasses.dataclass(frozen=True)
class ResNet12:
    """Four residual blocks of three convolutions, with leaky ReLUs and dropout.

    Attributes:
        widths: channels of each block.
        dropout: share that training drops behind each block: single units behind the first two,
            squares of a channel (DropBlock) behind the last two; 0 drops nothing. It is constant,
            whereas the published code lets that of the squares grow over 40,000 steps.
        drop_block: side of those squares; one that does not fit drops the whole channel. The
            published code takes 5 for images of 84×84 and 2 for 32×32.
        batch_norm_momentum: as in `MobileNet`.
    """

    widths: tuple[int, ...] = (64, 160, 320, 640)
    dropout: float = 0.1
    drop_block: int = 5
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        require(
            isinstance(self.widths, (tuple, list))
            and len(self.widths) == 4
            and all(isinstance(width, int) and width >= 1 for width in self.widths),
            f"ResNet12.widths={self.widths!r} must be four whole numbers from 1 on, such as "
            "(64, 160, 320, 640)",
        )
        object.__setattr__(self, "widths", tuple(self.widths))
        require(
            0 <= self.dropout < 1,
            f"ResNet12.dropout={self.dropout} must lie in [0, 1), such as 0.1",
        )
        require_whole("ResNet12.drop_block", self.drop_block)

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with fresh weights.

        Its features "f1", "f2" and "f3" are at strides 1, 2 and 4, before pooling and dropout.

        What training drops is a function of `tf.keras.utils.set_random_seed`, and goes on where
        it was when a checkpoint of the network is restored. That does not hold for networks from
        `clone_model` and from saved files: they drop, but their checkpoints do not know what.

        Args:
            image_size: side of the input in pixels, at least 16.

        Returns:
            Functional model: images [B, S, S, 3] in [0, 255] to embeddings [B, widths[3]].

        Raises:
            InputError: the images are too small.
        """
        require(image_size >= 16, f"ResNet12 takes images from 16×16 on, not {image_size}")
        images, x = residual.input_images(image_size)
        for number, channels in enumerate(self.widths, start=1):
            name = f"block{number}"
            x = self._block(x, channels, name)
            if number <= 3:
                x = networks.mark(x, f"f{number}")
            x = tf.keras.layers.MaxPooling2D(2, name=f"{name}_pool")(x)
            if self.dropout and number <= 2:
                x = _dropout(tf.keras.layers.Dropout, self.dropout, f"{name}_drop")(x)
            elif self.dropout:
                x = _drop_block(x, self.dropout, self.drop_block, f"{name}_drop")
        return tf.keras.Model(images, tf.keras.layers.GlobalAveragePooling2D(name="pool")(x))

    def _block(self, x: tf.Tensor, channels: int, name: str) -> tf.Tensor:
        y = x
        for index in (1, 2, 3):
            y = self._convolution_norm(y, channels, 3, f"{name}_conv{index}")
            if index < 3:
                y = _leaky_relu(y, f"{name}_relu{index}")
        x = self._convolution_norm(x, channels, 1, f"{name}_shortcut")
        return _leaky_relu(tf.keras.layers.Add(name=f"{name}_add")([x, y]), f"{name}_relu3")

    def _convolution_norm(self, x: tf.Tensor, channels: int, size: int, name: str) -> tf.Tensor:
        x = residual.convolution(x, channels, size, 1, name)
        return residual.norm(x, self.batch_norm_momentum, f"{name}_norm")


def _leaky_relu(x: tf.Tensor, name: str) -> tf.Tensor:
    return tf.keras.layers.LeakyReLU(0.1, name=name)(x)


def _drop_block(x: tf.Tensor, rate: float, size: int, name: str) -> tf.Tensor:
    """Drops squares of each channel, and divides what stays by its share (Ghiasi et al., 2018).

    KerasCV's layer draws a mask when a `tf.function` is traced and keeps it in every step.

    Args:
        x: [B, h, h, c].
        rate: share of the units to drop, as if no squares overlapped.
        size: side of a square.
        name: of the layer, or what the layers' names start with.

    Returns:
        [B, h, h, c]; just `x` in inference mode.
    """
    side = x.shape[1]
    if size >= side:
        # A larger square has no place in the channel: the rate below would divide by zero.
        return _dropout(tf.keras.layers.SpatialDropout2D, rate, name)(x)
    margin = size - 1
    corners = tf.ones_like(x[:, margin:, margin:], tf.float32)
    corner_rate = rate * (side / (size * (side - margin))) ** 2
    drop = _dropout(tf.keras.layers.Dropout, corner_rate, f"{name}_corners", dtype="float32")
    # The corners that stay are 1 in inference mode and more in training mode.
    dropped = 1.0 - tf.sign(drop(corners))
    dropped = tf.keras.layers.ZeroPadding2D(margin, name=f"{name}_pad", dtype="float32")(dropped)
    grow = tf.keras.layers.MaxPooling2D(size, 1, name=f"{name}_squares", dtype="float32")
    kept = 1.0 - grow(dropped)
    return x * tf.cast(kept / tf.reduce_mean(kept), x.dtype)


def _dropout(kind: type, rate: float, name: str, **options) -> tf.keras.layers.Layer:
    """Returns a dropout layer whose random state is part of the network's checkpoints."""
    return networks.checkpointed(kind(rate, rng_type="stateful", name=name, **options))
