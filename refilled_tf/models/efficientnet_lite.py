"""EfficientNet-Lite0 as an embedding network.

The source is Google's efficientnet_lite_builder (tensorflow/tpu): an EfficientNet (Tan & Le, 2019)
without squeeze-and-excite and with ReLU6, so that it calculates in integers. Keras has none.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.common.errors import require
from refilled_tf.models import networks
from refilled_tf.models.batch_norm import BatchNorm

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
STEM, HEAD = 32, 1280
# The groups that a feature is taken behind, the last ones at their resolution.
FEATURES = {2: "f1", 3: "f2", 5: "f3"}


@gin.register
@dataclasses.dataclass(frozen=True)
class EfficientNetLite0:
    """EfficientNet-Lite0: an embedding of 1280 numbers.

    Attributes:
        width: multiplies the channels of the blocks, in multiples of 8; as in the published
            larger ones, not those of the first and the last convolution.
        stem_stride: stride of the first convolution; 1 keeps small images larger.
        batch_norm_momentum: as in `MobileNet`.
        size_option: the option that makes the network smaller or larger.
    """

    size_option: ClassVar[str] = "width"

    width: float = 1.0
    stem_stride: int = 2
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        require(
            self.width > 0, f"EfficientNetLite0.width={self.width} must be positive, such as 0.5"
        )
        require(
            self.stem_stride in (1, 2),
            f"EfficientNetLite0.stem_stride={self.stem_stride} must be 1 or 2",
        )

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with fresh weights.

        Its features "f1", "f2" and "f3" are at strides 4, 8 and 16, or 2, 4 and 8 with a stem of
        stride 1. Batch norm is synchronised.

        Args:
            image_size: side of the input in pixels, at least 32.

        Returns:
            Functional model: images [B, S, S, 3] in [0, 255] to embeddings [B, 1280].

        Raises:
            InputError: the images are too small.
        """
        require(image_size >= 32, f"EfficientNetLite0 takes images from 32×32 on, not {image_size}")
        images = tf.keras.Input((image_size, image_size, 3), name="images")
        # As it was trained: (x - 127) / 128.
        x = tf.keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescale")(images)
        x = self._convolution(x, STEM, 3, self.stem_stride, "stem")
        for group, (repeats, kernel, stride, expansion, channels) in enumerate(GROUPS, start=1):
            for repeat in range(1, repeats + 1):
                y, name = x, f"group{group}_block{repeat}"
                if expansion > 1:
                    wide = expansion * x.shape[-1]
                    y = self._convolution(y, wide, 1, 1, f"{name}_expand")
                y = self._depthwise(y, kernel, stride if repeat == 1 else 1, f"{name}_depthwise")
                narrow = _rounded(channels * self.width)
                y = self._convolution(y, narrow, 1, 1, f"{name}_project", activated=False)
                x = y if repeat == 1 else tf.keras.layers.Add(name=f"{name}_add")([x, y])
            if group in FEATURES:
                x = networks.mark(x, FEATURES[group])
        x = self._convolution(x, HEAD, 1, 1, "head")
        return tf.keras.Model(images, tf.keras.layers.GlobalAveragePooling2D(name="pool")(x))

    def _convolution(
        self, x: tf.Tensor, channels: int, size: int, stride: int, name: str, activated: bool = True
    ) -> tf.Tensor:
        x = tf.keras.layers.Conv2D(
            channels,
            size,
            stride,
            "same",
            use_bias=False,
            kernel_initializer=_he(),
            name=name,
        )(x)
        return self._norm(x, name, activated)

    def _depthwise(self, x: tf.Tensor, size: int, stride: int, name: str) -> tf.Tensor:
        x = tf.keras.layers.DepthwiseConv2D(
            size, stride, "same", use_bias=False, depthwise_initializer=_he(), name=name
        )(x)
        return self._norm(x, name, activated=True)

    def _norm(self, x: tf.Tensor, name: str, activated: bool) -> tf.Tensor:
        x = BatchNorm(momentum=self.batch_norm_momentum, epsilon=1e-3, name=f"{name}_norm")(x)
        return tf.keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if activated else x


def _he() -> tf.keras.initializers.Initializer:
    """As published: normal, of variance 2 / (k²·channels), a depthwise kernel having k² alone."""
    return tf.keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal"
    )


def _rounded(channels: float) -> int:
    """Rounds to a multiple of 8 that is at least nine tenths, as EfficientNet does."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
