"""Stage 1: the student's embedding learns the teacher's comparisons (Eq. 2-4)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.errors import require, require_not_negative, require_positive
from refilled_tf.learners.base import GlobalBatch, Objective, check_each, take_each
from refilled_tf.losses.triplets import FALLBACKS, triplet_kl
from refilled_tf.losses.tuples import tuple_kl


@gin.register
@dataclasses.dataclass(frozen=True)
class RelationshipMatching(Objective):
    """weight · mean KL between the teacher's and the student's view of triplets or tuples.

    Attributes:
        relation: "triplet" compares an anchor's positive with its nearest semi-hard negative;
            "tuple" with all negatives at most `margin` farther than the positive.
        weight: of the mean KL. The paper prints none; it must hold against weight decay.
        tau_teacher: temperature of the teacher's distances; one for all teachers, or one for each.
        tau_student: temperature of the student's distances.
        fallback: for a positive pair with no negative beyond it: "skip" it or take the
            "farthest" negative. Triplets only.
        margin: of tuples, in units of distance between normalised embeddings.
        teacher_weights: what each of several teachers counts; None for all the same.
    """

    classifies: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("relation_kl", "num_relations")

    relation: str = "triplet"
    weight: float = 500.0
    tau_teacher: float | tuple[float, ...] = 2.0
    tau_student: float = 1.0
    fallback: str = "skip"
    margin: float = 0.2
    teacher_weights: tuple[float, ...] | None = None

    def __post_init__(self):
        take_each(self)
        require_not_negative(self, "weight")
        require_positive(self, "tau_student", "margin")
        require(
            self.relation in ("triplet", "tuple"),
            f"RelationshipMatching.relation={self.relation!r} must be 'triplet' or 'tuple'",
        )
        require(
            self.fallback in FALLBACKS,
            f"RelationshipMatching.fallback={self.fallback!r} must be one of {FALLBACKS}",
        )

    def check_teachers(self, count: int) -> None:
        """Takes several, whose p_ijk are averaged."""
        check_each(self, count)

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the weighted loss, the bare mean KL and the number of triplets or tuples."""
        what = batch.student["embedding"], batch.teacher_embeddings, batch.labels
        options = {"tau_teacher": self.tau_teacher, "tau_student": self.tau_student}
        options["teacher_weights"] = self.teacher_weights
        if self.relation == "triplet":
            kl, count = triplet_kl(*what, **options, fallback=self.fallback)
        else:
            kl, count = tuple_kl(*what, **options, margin=self.margin)
        return self.weight * kl, {"relation_kl": kl, "num_relations": count}
