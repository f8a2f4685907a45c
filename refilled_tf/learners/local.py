"""Stage 2: the classifier learns from the teacher's nearest-centre posterior (Eq. 6)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.errors import require, require_not_negative, require_positive
from refilled_tf.learners.base import GlobalBatch, Objective, check_each, take_each
from refilled_tf.learners.cross_entropy import accuracy, cross_entropy
from refilled_tf.losses.local import decayed_weight, local_kl


@gin.register
@dataclasses.dataclass(frozen=True)
class LocalDistillation(Objective):
    """Cross-entropy over all classes + w_e · local KL over the classes of the batch.

    Attributes:
        weight: w_0 = 1000·λ; the paper's λ is .01 on CUB and .02 on CIFAR-100.
        decay: w_e = w_0 · exp(-decay·e) in epoch e. REFILLED decays by .05; LKD does not (0).
        tau_teacher: temperature of the teacher's posterior; one for all teachers, or one for each.
        tau_student: temperature of the student's.
        centers: the teacher's class centres are those of the "batch", or, fixed, of the whole
            training split ("global").
        teacher_weights: what each of several teachers counts; None for all the same.
    """

    needs_teacher: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = (
        "cross_entropy",
        "local_kl",
        "local_weight",
        "train_accuracy",
    )

    weight: float = 10.0
    decay: float = 0.05
    tau_teacher: float | tuple[float, ...] = 2.0
    tau_student: float = 1.0
    centers: str = "batch"
    teacher_weights: tuple[float, ...] | None = None

    def __post_init__(self):
        take_each(self)
        require_not_negative(self, "weight", "decay")
        require_positive(self, "tau_student")
        require(
            self.centers in ("batch", "global"),
            f"LocalDistillation.centers={self.centers!r} must be 'batch' or 'global'",
        )

    @property
    def needs_teacher_centers(self) -> bool:
        """Global centres are computed before training."""
        return self.centers == "global"

    def check_teachers(self, count: int) -> None:
        """Takes several, whose posteriors are averaged."""
        check_each(self, count)

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the loss, its parts, the current weight and the batch's accuracy."""
        logits = batch.student["logits"]
        classification = cross_entropy(logits, batch.labels)
        local = local_kl(
            logits,
            batch.teacher_embeddings,
            batch.labels,
            tau_teacher=self.tau_teacher,
            tau_student=self.tau_student,
            teacher_weights=self.teacher_weights,
            centers=batch.teacher_centers,
        )
        weight = decayed_weight(self.weight, batch.epoch, self.decay)
        return classification + weight * local, {
            "cross_entropy": classification,
            "local_kl": local,
            "local_weight": weight,
            "train_accuracy": accuracy(logits, batch.labels),
        }
