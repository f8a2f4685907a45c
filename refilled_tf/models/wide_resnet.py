"""Wide residual networks (Zagoruyko & Komodakis, 2016) as embedding networks."""

from __future__ import annotations

import dataclasses

import gin
import tensorflow as tf

from refilled_tf.common.errors import require_whole
from refilled_tf.models import residual


@gin.register
@dataclasses.dataclass(frozen=True)
class WideResNet:
    """WRN-depth-width for small images, without dropout.

    Attributes:
        depth: number of layers, 6n + 4: 10, 16, 22, 28, 34, 40, …
        width: the widening factor k, a whole number.
        batch_norm_momentum: as in `MobileNet`.
    """

    depth: int
    width: int
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        self._blocks_per_group()
        require_whole("WideResNet.width", self.width)

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with fresh weights.

        Its features "f1", "f2" and "f3" are at strides 1, 2 and 4, before batch norm and ReLU.

        Args:
            image_size: side of the input in pixels.

        Returns:
            Functional model: images [B, S, S, 3] in [0, 255] to embeddings [B, 64·width].
        """
        images, x = residual.input_images(image_size)
        x = residual.convolution(x, 16, 3, 1, "stem")
        x = residual.groups(x, [self._blocks_per_group()] * 3, 16 * self.width, self._block)
        x = self._norm_relu(x, "last")
        return tf.keras.Model(images, tf.keras.layers.GlobalAveragePooling2D(name="pool")(x))

    def _blocks_per_group(self) -> int:
        return residual.blocks_per_group("WideResNet.depth", self.depth, others=4)

    def _block(self, x: tf.Tensor, channels: int, stride: int, name: str) -> tf.Tensor:
        activated = self._norm_relu(x, f"{name}_1")
        y = residual.convolution(activated, channels, 3, stride, f"{name}_conv1")
        y = residual.convolution(self._norm_relu(y, f"{name}_2"), channels, 3, 1, f"{name}_conv2")
        if x.shape[-1] != channels:
            x = residual.convolution(activated, channels, 1, stride, f"{name}_shortcut")
        return tf.keras.layers.Add(name=f"{name}_add")([x, y])

    def _norm_relu(self, x: tf.Tensor, name: str) -> tf.Tensor:
        x = residual.norm(x, self.batch_norm_momentum, f"{name}_norm")
        return residual.relu(x, f"{name}_relu")
