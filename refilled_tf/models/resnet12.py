"""ResNet-12, the residual network of few-shot learning (Oreshkin et al., 2018; Lee et al., 2019)."""

from __future__ import annotations

import dataclasses

import gin
import tensorflow as tf

from refilled_tf.errors import require
from refilled_tf.models import networks, residual


@gin.register
@dataclasses.dataclass(frozen=True)
class ResNet12:
    """Four residual blocks of three convolutions, with leaky ReLUs and dropout.

    Attributes:
        widths: channels of each block.
        dropout: share that training drops behind every block, of single units behind the first
            two and of whole blocks of a channel (DropBlock) behind the last two; 0 drops nothing.
            It is constant, where published runs let DropBlock's grow over 40,000 steps.
        drop_block: side of those blocks. Published runs have 5 for images of 84×84 and 2 for
            32×32.
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
        require(
            self.drop_block >= 1 and self.drop_block % 1 == 0,
            f"ResNet12.drop_block={self.drop_block} must be a whole number from 1 on, such as 5",
        )

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with fresh weights.

        Its features "f1", "f2" and "f3" are at strides 1, 2 and 4, before pooling and dropout.

        What training drops comes from `tf.keras.utils.set_random_seed`, and where it has got to
        from checkpoints of the network. Copies by `clone_model` and loaded files have a random
        state of their own, which checkpoints leave out.

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
    """Drops blocks of each channel, and scales what stays by the inverse of its share.

    KerasCV's layer draws its mask while a `tf.function` is traced: every step would drop the
    same. It would also make saved networks need KerasCV, where this needs Keras alone.

    Args:
        x: [B, h, h, c].
        rate: expected share of units that are dropped, where no blocks overlap.
        size: side of a block; capped at h, since larger ones have no place.
        name: of the layer, or the start of the layers' names.

    Returns:
        [B, h, h, c]; in inference mode, `x`.
    """
    side = x.shape[1]
    if size >= side:
        return _dropout(tf.keras.layers.SpatialDropout2D, rate, name)(x)
    margin = size - 1
    # Each of the (h - margin)² places of a block starts one with the same probability.
    ones = tf.ones_like(x[:, margin:, margin:], tf.float32)
    start_rate = rate * (side / (size * (side - margin))) ** 2
    none_starts = _dropout(tf.keras.layers.Dropout, start_rate, f"{name}_starts", dtype="float32")(
        ones
    )
    # Dropout has scaled it in training mode, which its sign undoes.
    starts = tf.keras.layers.ZeroPadding2D(margin, name=f"{name}_pad", dtype="float32")(
        1.0 - tf.sign(none_starts)
    )
    dropped = tf.keras.layers.MaxPooling2D(size, 1, name=f"{name}_grow", dtype="float32")(starts)
    kept = 1.0 - dropped
    return x * tf.cast(kept / tf.reduce_mean(kept), x.dtype)


def _dropout(kind: type, rate: float, name: str, **options) -> tf.keras.layers.Layer:
    """Returns a dropout layer whose random state is part of the network's checkpoints."""
    layer = kind(rate, rng_type="stateful", name=name, **options)
    # Keras itself keeps it out, so that a resumed run would drop the same as in its first steps.
    layer.random_state = layer._random_generator
    return layer
