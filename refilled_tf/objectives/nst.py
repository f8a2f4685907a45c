"""NST: the student's channels are distributed over space as the teacher's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.losses.nst import neuron_selectivity
from refilled_tf.objectives.base import GlobalBatch
from refilled_tf.objectives.features import FeatureMatching


@gin.register
@dataclasses.dataclass(frozen=True)
class NeuronSelectivity(FeatureMatching):
    """b · the squared maximum mean discrepancy of channels, summed over layers.

    Attributes:
        weight: b.
        layers: whose features, by their names in both networks.
    """

    parts: ClassVar[tuple[str, ...]] = ("selectivity",)

    weight: float = 50.0

    def layer_loss(self, batch: GlobalBatch, layer: str) -> tf.Tensor:
        """Returns the discrepancy."""
        return neuron_selectivity(batch.student[layer], batch.teacher[layer])
