"""Label-free stage 1: the student's embedding is projected onto the teacher's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.objectives.projection import Projection


@gin.register
@dataclasses.dataclass(frozen=True)
class EmbeddingRegression(Projection):
    """weight · mean ‖ẑ_S - ẑ_T‖², the squared distance of l2-normalised embeddings.

    Source: Navaneet et al., "SimReg: Regression as a Simple Yet Effective Tool for Self-supervised
    Knowledge Distillation", BMVC 2021, Eq. 2.
    """

    parts: ClassVar[tuple[str, ...]] = ("squared_distance",)

    def embedding_loss(
        self, student: tf.Tensor, teacher: tf.Tensor, fitted: dict[str, tf.Tensor]
    ) -> tf.Tensor:
        """Returns the squared distance, 2 - 2·cosine."""
        return tf.reduce_sum(tf.square(student - teacher), axis=-1)
