"""The projector of label-free objectives to the teacher's embedding; dropped after training."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import tensorflow as tf

from refilled_tf.common.errors import require_not_negative, require_whole
from refilled_tf.losses.distances import l2_normalize
from refilled_tf.objectives.base import GlobalBatch, Objective, Shapes


@dataclasses.dataclass(frozen=True)
class Projection(Objective):
    """weight · the mean over images of a loss between two embeddings of the teacher's width.

    Labels are not looked at.

    Attributes:
        weight: of the loss.
        hidden: width of the projector's hidden layer; 0 for a linear projector.
    """

    classifies: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    takes_unlabelled: ClassVar[bool] = True

    weight: float = 1.0
    hidden: int = 512

    def __post_init__(self):
        require_not_negative(self, "weight")
        require_whole(f"{type(self).__name__}.hidden", self.hidden, least=0)

    @property
    def features(self) -> tuple[str, ...]:
        """The embedding, for the projector."""
        return ("embedding",)

    def adapter(self, student: Shapes, teacher: Shapes) -> tf.keras.Model:
        """Builds the projector: [B, d_S] to [B, d_T]."""
        embedding = tf.keras.Input(student["embedding"][1:], name="embedding")
        x = embedding
        if self.hidden:
            x = tf.keras.layers.Dense(self.hidden, use_bias=False)(x)
            x = tf.keras.layers.BatchNormalization()(x)
            x = tf.keras.layers.ReLU()(x)
        projected = tf.keras.layers.Dense(teacher["embedding"][-1])(x)
        return tf.keras.Model({"embedding": embedding}, {"embedding": projected}, name="projector")

    def embedding_loss(
        self, student: tf.Tensor, teacher: tf.Tensor, fitted: dict[str, tf.Tensor]
    ) -> tf.Tensor:
        """Returns the loss [B] of l2-normalised embeddings [B, d_T]."""
        raise NotImplementedError(f"{type(self).__name__} must say its loss")

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the weighted and the bare mean."""
        student = l2_normalize(batch.adapted["embedding"])
        teacher = l2_normalize(batch.teacher["embedding"])
        loss = tf.reduce_mean(self.embedding_loss(student, teacher, batch.fitted))
        (name,) = self.parts
        return self.weight * loss, {name: loss}
