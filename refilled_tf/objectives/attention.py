"""AT: the student looks where the teacher looks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.losses.attention import attention_transfer
from refilled_tf.objectives.base import GlobalBatch
from refilled_tf.objectives.features import FeatureMatching


@gin.register
@dataclasses.dataclass(frozen=True)
class AttentionTransfer(FeatureMatching):
    """b · the mean squared difference of attention maps, summed over layers.

    Attributes:
        weight: b.
        layers: whose features, by their names in both networks.
    """

    parts: ClassVar[tuple[str, ...]] = ("attention",)

    weight: float = 1000.0

    def layer_loss(self, batch: GlobalBatch, layer: str) -> tf.Tensor:
        """Returns the difference of attention."""
        return attention_transfer(batch.student[layer], batch.teacher[layer])
