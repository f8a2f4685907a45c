"""Standard distillation: cross-entropy, KD, and whatever else a method has to match."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.common.errors import require, require_not_negative, require_positive
from refilled_tf.losses.kd import kd
from refilled_tf.objectives.base import GlobalBatch, Objective, Shapes
from refilled_tf.objectives.cross_entropy import accuracy, cross_entropy


@gin.register
@dataclasses.dataclass(frozen=True)
class Distillation(Objective):
    """r · cross-entropy + a · KD + a method's own loss, such as FitNet's.

    Attributes:
        method: an objective for embeddings or features; None for KD alone.
        cross_entropy_weight: r.
        kd_weight: a. Above 0 the teacher must have learnt the student's classes.
        temperature: T of KD.
    """

    needs_teacher: ClassVar[bool] = True

    method: Objective | None = None
    cross_entropy_weight: float = 1.0
    kd_weight: float = 0.0
    temperature: float = 4.0

    def __post_init__(self):
        require(
            self.method is None
            or (isinstance(self.method, Objective) and not self.method.classifies),
            f"Distillation.method={self.method!r} must be an objective for embeddings or features, "
            "such as @FitNet()",
        )
        require_not_negative(self, "cross_entropy_weight", "kd_weight")
        require(
            self.method is not None or self.kd_weight > 0,
            "Distillation distils nothing: set Distillation.method or kd_weight",
        )
        require_positive(self, "temperature")

    @property
    def parts(self) -> tuple[str, ...]:
        """Each term without its weight."""
        soft = ("kd",) if self.kd_weight else ()
        own = self.method.parts if self.method else ()
        return ("cross_entropy", *soft, *own, "train_accuracy")

    @property
    def shares_classes(self) -> bool:
        """KD compares logits class by class."""
        return self.kd_weight > 0

    @property
    def features(self) -> tuple[str, ...]:
        """The hidden layers that the method asks for."""
        return self.method.features if self.method else ()

    def adapter(self, student: Shapes, teacher: Shapes) -> tf.keras.Model | None:
        """Returns what the method trains beside the student."""
        return self.method.adapter(student, teacher) if self.method else None

    def check_teachers(self, count: int) -> None:
        """Accepts one teacher; the method's per-teacher options must fit one."""
        super().check_teachers(count)
        if self.method:
            self.method.check_teachers(count)

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the weighted sum, its bare terms and the batch's accuracy."""
        logits = batch.student["logits"]
        classification = cross_entropy(logits, batch.labels)
        loss, parts = self.cross_entropy_weight * classification, {"cross_entropy": classification}
        if self.kd_weight:
            parts["kd"] = kd(logits, batch.teacher["logits"], self.temperature)
            loss += self.kd_weight * parts["kd"]
        if self.method:
            method_loss, method_parts = self.method(batch)
            loss += method_loss
            parts |= method_parts
        return loss, parts | {"train_accuracy": accuracy(logits, batch.labels)}
