"""MobileNet v1 (Howard et al., 2017) as an embedding network."""

from __future__ import annotations

import dataclasses

import gin
import tensorflow as tf

from refilled_tf.errors import require


@gin.register
@dataclasses.dataclass(frozen=True)
class MobileNet:
    """`tf.keras.applications.MobileNet` without its classifier, and with what it fixes freed.

    Attributes:
        width: the width multiplier α, > 0.
        stem_stride: stride of the first convolution; 1 keeps small images larger.
        batch_norm_momentum: Keras's .99 adapts too slowly in a few thousand steps; .9 is the
            default of the codebases that the recipe comes from.
    """

    width: float = 1.0
    stem_stride: int = 2
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        require(self.width > 0, f"MobileNet.width={self.width} must be positive, such as 0.25")
        require(
            self.stem_stride in (1, 2),
            f"MobileNet.stem_stride={self.stem_stride} must be 1 or 2",
        )

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network with fresh weights.

        Batch norm is synchronised: its statistics are those of the global batch.

        Args:
            image_size: side of the input in pixels, at least 32.

        Returns:
            Functional model: images [B, S, S, 3] in [0, 255] to embeddings [B, 1024·α].

        Raises:
            InputError: the images are too small.
        """
        require(image_size >= 32, f"MobileNet takes images from 32×32 on, not {image_size}")
        images = tf.keras.Input((image_size, image_size, 3), name="images")
        scaled = tf.keras.layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(images)
        template = tf.keras.applications.MobileNet(
            input_tensor=scaled,
            alpha=self.width,
            include_top=False,
            weights=None,
            pooling="avg",
        )
        return tf.keras.models.clone_model(
            template, input_tensors=images, clone_function=self._clone_layer
        )

    def _clone_layer(self, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            config.update(momentum=self.batch_norm_momentum, synchronized=True)
        if layer.name == "conv1":
            config.update(strides=self.stem_stride)
        # The last blocks at their resolution: strides 1, 2, 4 as in networks for CIFAR, or
        # 4, 8, 16 as in networks for 224×224.
        blocks = (1, 3, 5) if self.stem_stride == 1 else (3, 5, 11)
        for feature, block in enumerate(blocks, start=1):
            if layer.name == f"conv_pw_{block}_relu":
                config.update(name=f"f{feature}")
        return type(layer).from_config(config)
