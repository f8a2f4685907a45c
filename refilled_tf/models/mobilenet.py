"""MobileNets of `tf.keras.applications` as embedding networks, with what Keras fixes freed.

MobileNet (Howard et al., 2017), MobileNetV2 (Sandler et al., 2018) and MobileNetV3-Small (Howard et
al., 2019).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import gin
import tensorflow as tf

from refilled_tf.common.errors import require
from refilled_tf.models.batch_norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class _Application:
    """Options that these networks have in common.

    Attributes:
        network: its name in tf.keras.applications.
        stem: name of Keras's first convolution.
        least_width: the width below which a layer has no channel.
        size_option: the option that makes the network smaller or larger.
    """

    network: ClassVar[str]
    stem: ClassVar[str]
    least_width: ClassVar[float] = 0.0
    size_option: ClassVar[str] = "width"

    width: float = 1.0
    stem_stride: int = 2
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        name = type(self).__name__
        require(
            0 < self.width < math.inf and self.width >= self.least_width,
            f"{name}.width={self.width} must be positive"
            + (f" and at least {self.least_width}" if self.least_width else "")
            + ", such as 0.25",
        )
        require(self.stem_stride in (1, 2), f"{name}.stem_stride={self.stem_stride} must be 1 or 2")

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with fresh weights.

        Batch norm is synchronised: its statistics are those of the global batch.

        Args:
            image_size: side of the input in pixels, at least 32.

        Returns:
            Functional model: images [B, S, S, 3] in [0, 255] to embeddings [B, d].

        Raises:
            InputError: the images are too small.
        """
        name = type(self).__name__
        require(image_size >= 32, f"{name} takes images from 32×32 on, not {image_size}")
        images = tf.keras.Input((image_size, image_size, 3), name="images")
        # Padding in front of a stride depends on the size there: a stem that keeps the resolution
        # is followed by what follows, in Keras's network, on images twice as large.
        template_size = image_size * 2 // self.stem_stride
        large = tf.keras.Input((template_size, template_size, 3), name="images")
        scaled = tf.keras.layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(large)
        template = self.application(input_tensor=scaled, weights=None)
        return tf.keras.models.clone_model(
            template, input_tensors=images, clone_function=self._clone_layer
        )

    def application(self, **options: Any) -> tf.keras.Model:
        """Returns Keras's own network of this width, for images in [-1, 1], without classifier."""
        make = getattr(tf.keras.applications, self.network)
        options |= {"include_top": False, "pooling": "avg"}
        return make(alpha=self.width, **options)

    @property
    def features(self) -> Mapping[str, str]:
        """Keras's names of the layers that become "f1", "f2" and "f3"."""
        raise NotImplementedError

    def _clone_layer(self, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        kind, config = type(layer), layer.get_config()
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            kind = BatchNorm
            config.update(momentum=self.batch_norm_momentum)
        if layer.name == self.stem:
            config.update(strides=self.stem_stride)
        config["name"] = self.features.get(layer.name, layer.name)
        return kind.from_config(config)


@gin.register
@dataclasses.dataclass(frozen=True)
class MobileNet(_Application):
    """MobileNet v1: an embedding of 1024·α numbers.

    Attributes:
        width: the width multiplier α, > 0.
        stem_stride: stride of the first convolution; 1 keeps small images larger.
        batch_norm_momentum: Keras's .99 adapts too slowly in a few thousand steps; .9 is the
            default of the codebases that the recipe comes from.
    """

    network: ClassVar[str] = "MobileNet"
    stem: ClassVar[str] = "conv1"
    least_width: ClassVar[float] = 1 / 32  # leaves one channel to the stem

    @property
    def features(self) -> Mapping[str, str]:
        """The last blocks at their resolution.

        Strides are 1, 2, 4 as in networks for CIFAR, or 4, 8, 16 as in networks for 224×224.
        """
        blocks = (1, 3, 5) if self.stem_stride == 1 else (3, 5, 11)
        return {f"conv_pw_{block}_relu": f"f{i}" for i, block in enumerate(blocks, start=1)}


@gin.register
@dataclasses.dataclass(frozen=True)
class MobileNetV2(_Application):
    """MobileNetV2: an embedding of 1280 numbers, or 1280·α for α > 1.

    Attributes:
        width: as in `MobileNet`; channels are multiples of 8.
        stem_stride: as in `MobileNet`.
        batch_norm_momentum: as in `MobileNet`.
    """

    network: ClassVar[str] = "MobileNetV2"
    stem: ClassVar[str] = "Conv1"

    @property
    def features(self) -> Mapping[str, str]:
        """The last blocks at strides 2, 4, 8, or 4, 8, 16 with a stem of stride 2."""
        return {f"block_{block}_add": f"f{i}" for i, block in enumerate((2, 5, 12), start=1)}


@gin.register
@dataclasses.dataclass(frozen=True)
class MobileNetV3Small(_Application):
    """MobileNetV3-Small up to its last pooling: an embedding of 576·α numbers.

    Attributes:
        width: as in `MobileNetV2`.
        stem_stride: as in `MobileNet`.
        batch_norm_momentum: as in `MobileNet`.
        minimalistic: whether it does without squeeze-and-excite, hard swish and 5×5 kernels.
    """

    network: ClassVar[str] = "MobileNetV3Small"
    stem: ClassVar[str] = "Conv"

    minimalistic: bool = False

    def application(self, **options: Any) -> tf.keras.Model:
        """As `_Application.application`."""
        options |= {"minimalistic": self.minimalistic, "include_preprocessing": False}
        return super().application(**options)

    @property
    def features(self) -> Mapping[str, str]:
        """The last blocks at strides 2, 4, 8, or 4, 8, 16 with a stem of stride 2."""
        ends = ("expanded_conv/project/BatchNorm", "expanded_conv_2/Add", "expanded_conv_7/Add")
        return {end: f"f{i}" for i, end in enumerate(ends, start=1)}
