"""Stage 1 of the RKD baseline: distances and angles are matched by regression."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.common.errors import require_not_negative
from refilled_tf.losses.rkd import rkd_angle, rkd_distance
from refilled_tf.objectives.base import GlobalBatch, Objective


@gin.register
@dataclasses.dataclass(frozen=True)
class RelationalDistillation(Objective):
    """Relational knowledge distillation (Park et al., CVPR 2019).

    Attributes:
        distance_weight: of the Huber loss on pairwise distances.
        angle_weight: of the Huber loss on triplet angles.
    """

    classifies: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("rkd_distance", "rkd_angle")

    distance_weight: float = 25.0
    angle_weight: float = 50.0

    def __post_init__(self):
        require_not_negative(self, "distance_weight", "angle_weight")

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the weighted sum and its two bare parts."""
        embeddings = batch.student["embedding"], batch.teacher["embedding"]
        distance, angle = rkd_distance(*embeddings), rkd_angle(*embeddings)
        loss = self.distance_weight * distance + self.angle_weight * angle
        return loss, {"rkd_distance": distance, "rkd_angle": angle}
