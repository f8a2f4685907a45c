"""Stage 2: the classifier learns from the teacher's nearest-centre posterior (Eq. 6)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common import settings
from refilled_tf.common.errors import require_choice, require_not_negative, require_positive
from refilled_tf.losses.local import class_centers, decayed_weight, local_kl
from refilled_tf.models import networks
from refilled_tf.objectives.base import (
    GlobalBatch,
    Objective,
    TeacherEmbeddings,
    check_each,
    take_each,
)
from refilled_tf.objectives.cross_entropy import accuracy, cross_entropy


@gin.register
@dataclasses.dataclass(frozen=True)
class LocalDistillation(Objective):
    """Cross-entropy over all classes + w_e · local KL over the classes of the batch.

    With global centres it takes unlabelled images too: the nearest-centre posterior needs no label
    of the image. The classes are then still those of the batch's labelled images.

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

    weight: float = dataclasses.field(default=10.0, metadata=settings.searched(0.03, 2.0, 10.0))
    decay: float = 0.05
    tau_teacher: float | tuple[float, ...] = dataclasses.field(
        default=2.0, metadata=settings.searched(0.5, 2.0, 8.0)
    )
    tau_student: float = 1.0
    centers: Literal["batch", "global"] = "batch"
    teacher_weights: tuple[float, ...] | None = dataclasses.field(
        default=None, metadata=settings.IF_SET
    )

    def __post_init__(self):
        take_each(self)
        require_not_negative(self, "weight", "decay")
        require_positive(self, "tau_student")
        require_choice(self, "centers")

    @property
    def takes_unlabelled(self) -> bool:
        """The posterior needs no label of an image once the centres are known."""
        return self.centers == "global"

    def fit_teacher(self, known: TeacherEmbeddings) -> dict[str, np.ndarray]:
        """Returns the global centres [C, d_T], of several teachers under `numbered` names."""
        if self.centers == "batch":
            return {}
        return {
            networks.numbered("centers", number): class_centers(
                embeddings[:, 0], known.labels, known.num_classes
            )[0].numpy()
            for number, embeddings in enumerate(known.labelled(0))
        }

    def check_teachers(self, count: int) -> None:
        """Accepts several teachers, whose posteriors are averaged."""
        check_each(self, count)

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the loss, its parts, the current weight and the accuracy on labelled images."""
        labelled = batch.labelled
        classification = cross_entropy(labelled.student["logits"], labelled.labels)
        local = local_kl(
            batch.student["logits"],
            batch.teacher_embeddings,
            batch.labels,
            tau_teacher=self.tau_teacher,
            tau_student=self.tau_student,
            teacher_weights=self.teacher_weights,
            centers=list(batch.fitted.values()) or None,
        )
        weight = decayed_weight(self.weight, batch.epoch, self.decay)
        return classification + weight * local, {
            "cross_entropy": classification,
            "local_kl": local,
            "local_weight": weight,
            "train_accuracy": accuracy(labelled.student["logits"], labelled.labels),
        }
