"""SP: images that the teacher's features find alike are alike to the student's.

Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, Eq. 1 to 4.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.losses.distances import l2_normalize
from refilled_tf.objectives.base import GlobalBatch, Shapes
from refilled_tf.objectives.features import FeatureMatching


def similarities(features: tf.Tensor) -> tf.Tensor:
    """Inner products of all pairs of images, each row brought to length 1 (Eq. 1 and 2).

    Args:
        features: float Tensor [B, …].

    Returns:
        float32 Tensor [B, B]; a row of zeros, with a zero gradient, for features of zeros.
    """
    flat = tf.reshape(tf.cast(features, tf.float32), [tf.shape(features)[0], -1])
    return l2_normalize(tf.matmul(flat, flat, transpose_b=True))


def similarity_preserving(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """The mean squared difference of similarities (Eq. 4, of one layer).

    Args:
        student: float Tensor [B, …].
        teacher: float Tensor [B, …], perhaps of another size; gets no gradient.

    Returns:
        float32 scalar.
    """
    taught = tf.stop_gradient(similarities(teacher))
    return tf.reduce_mean(tf.math.squared_difference(similarities(student), taught))


@gin.register
@dataclasses.dataclass(frozen=True)
class SimilarityPreserving(FeatureMatching):
    """γ · the mean squared difference of similarities, summed over layers.

    Attributes:
        weight: γ.
        layers: whose features, by their names in both networks; the paper takes the last one.
    """

    parts: ClassVar[tuple[str, ...]] = ("similarity",)

    weight: float = 3000.0
    layers: tuple[str, ...] = ("f3",)

    def adapter(self, student: Shapes, teacher: Shapes) -> None:
        """Accepts features of any sizes, and trains nothing but the student."""

    def layer_loss(self, batch: GlobalBatch, layer: str) -> tf.Tensor:
        """Returns the difference of similarities."""
        return similarity_preserving(batch.student[layer], batch.teacher[layer])
