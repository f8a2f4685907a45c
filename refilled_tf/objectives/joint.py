"""REFILLED^γ: both stages in one (Eq. 9)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import require_built, require_not_negative
from refilled_tf.objectives.base import GlobalBatch, Objective, TeacherEmbeddings
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.relationship import RelationshipMatching


@gin.register
@dataclasses.dataclass(frozen=True)
class JointDistillation(Objective):
    """γ · relationship matching + cross-entropy + w_e · local KL.

    Attributes:
        gamma: weight of the whole stage-1 loss.
        relationship: the stage-1 objective.
        local: the stage-2 objective.
    """

    needs_teacher: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = RelationshipMatching.parts + LocalDistillation.parts

    relationship: RelationshipMatching
    local: LocalDistillation
    gamma: float = 0.1

    def __post_init__(self):
        for name, kind in (("relationship", RelationshipMatching), ("local", LocalDistillation)):
            option = f"JointDistillation.{name}"
            require_built(option, getattr(self, name), kind, f"@{kind.__name__}()")
        require_not_negative(self, "gamma")

    def fit_teacher(self, known: TeacherEmbeddings) -> dict[str, np.ndarray]:
        """Returns what the stage-2 objective fits."""
        return self.local.fit_teacher(known)

    def check_teachers(self, count: int) -> None:
        """Accepts as many teachers as both objectives do."""
        self.relationship.check_teachers(count)
        self.local.check_teachers(count)

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the sum and the parts of both."""
        embedding_loss, embedding_parts = self.relationship(batch)
        classifier_loss, classifier_parts = self.local(batch)
        return self.gamma * embedding_loss + classifier_loss, {
            **embedding_parts,
            **classifier_parts,
        }
