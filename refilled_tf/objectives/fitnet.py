"""FitNet: a hidden layer of the student is regressed on the teacher's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.losses.fitnet import hint
from refilled_tf.objectives.base import GlobalBatch, Shapes
from refilled_tf.objectives.features import FeatureMatching, inputs, require_same_sizes


@gin.register
@dataclasses.dataclass(frozen=True)
class FitNet(FeatureMatching):
    """b · the mean squared difference of features, after a regressor on the student's.

    Attributes:
        weight: b.
        layers: whose features, by their names in both networks.
    """

    parts: ClassVar[tuple[str, ...]] = ("hint",)

    weight: float = 100.0
    layers: tuple[str, ...] = ("f2",)

    def adapter(self, student: Shapes, teacher: Shapes) -> tf.keras.Model:
        """Builds a regressor for each layer."""
        require_same_sizes("FitNet", student, teacher)
        features = inputs(student)
        regressed = {name: _regressor(x, teacher[name][-1]) for name, x in features.items()}
        return tf.keras.Model(features, regressed, name="regressors")

    def layer_loss(self, batch: GlobalBatch, layer: str) -> tf.Tensor:
        """Returns the hint loss."""
        return hint(batch.adapted[layer], batch.teacher[layer])


def _regressor(features: tf.Tensor, channels: int) -> tf.Tensor:
    """Turns [B, h, w, c_S] into [B, h, w, channels], as the field's benchmark does."""
    x = tf.keras.layers.Conv2D(channels, 1, use_bias=False)(features)
    x = tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    return tf.keras.layers.ReLU()(x)
