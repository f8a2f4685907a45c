"""Stage 1: the student's embedding learns the teacher's comparisons (Eq. 2-4)."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Literal

import gin
import tensorflow as tf

from refilled_tf.common import settings
from refilled_tf.common.errors import (
    require,
    require_choice,
    require_not_negative,
    require_positive,
    require_whole,
)
from refilled_tf.data.recipe import Recipe
from refilled_tf.losses.distances import l2_normalize, pairwise_distances
from refilled_tf.losses.triplets import nearest_neighbors, triplet_kl
from refilled_tf.losses.tuples import tuple_kl
from refilled_tf.objectives.base import GlobalBatch, Objective, check_each, take_each


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
        neighbors: k for matching without labels: an anchor's positives are then its k nearest in
            the teacher's embedding of the batch, and those that it is so near to; all others are
            negatives. 0 goes by labels.
    """

    classifies: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("relation_kl", "num_relations")

    relation: Literal["triplet", "tuple"] = "triplet"
    weight: float = dataclasses.field(default=500.0, metadata=settings.searched(1.0, 30.0, 300.0))
    tau_teacher: float | tuple[float, ...] = dataclasses.field(
        default=2.0, metadata=settings.searched(0.5, 2.0, 8.0)
    )
    tau_student: float = 1.0
    fallback: Literal["skip", "farthest"] = "skip"
    margin: float = 0.2
    teacher_weights: tuple[float, ...] | None = dataclasses.field(
        default=None, metadata=settings.IF_SET
    )
    neighbors: int = dataclasses.field(default=0, metadata=settings.IF_SET)

    def __post_init__(self):
        require_whole("RelationshipMatching.neighbors", self.neighbors, least=0)
        take_each(self)
        require_not_negative(self, "weight")
        require_positive(self, "tau_student", "margin")
        require_choice(self, "relation", "fallback")

    @property
    def takes_unlabelled(self) -> bool:
        """True where the teacher's neighbours take the place of classes."""
        return self.neighbors > 0

    def check_batches(self, recipe: Recipe, replicas: int) -> None:
        """Rejects more neighbours than a batch holds."""
        require(
            self.neighbors < recipe.batch_size - 1,
            f"RelationshipMatching.neighbors={self.neighbors} must leave negatives in a batch of "
            f"Recipe.batch_size={recipe.batch_size}",
        )

    def check_teachers(self, count: int) -> None:
        """Accepts several teachers, whose p_ijk are averaged."""
        check_each(self, count)

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the weighted loss, the bare mean KL and the number of triplets or tuples."""
        relatives = batch.labels
        if self.neighbors:
            distances = [
                pairwise_distances(l2_normalize(each)) for each in batch.teacher_embeddings
            ]
            relatives = nearest_neighbors(tf.add_n(distances), self.neighbors)
        what = batch.student["embedding"], batch.teacher_embeddings, relatives
        if self.relation == "triplet":
            relation_kl = functools.partial(triplet_kl, fallback=self.fallback)
        else:
            relation_kl = functools.partial(tuple_kl, margin=self.margin)
        kl, count = relation_kl(
            *what,
            tau_teacher=self.tau_teacher,
            tau_student=self.tau_student,
            teacher_weights=self.teacher_weights,
        )
        return self.weight * kl, {"relation_kl": kl, "num_relations": count}
