"""Probe distillation: a linear classifier on the frozen teacher teaches the student's classes.

Source: the task head on a frozen general teacher whose posterior is distilled on all images there
are, labelled or not: Vemulapalli et al., "Knowledge Transfer from Vision Foundation Models for
Efficient Training of Small Task-specific Models", ICML 2024. The temperature and its square are
Hinton's (2015). The head is cross-fitted and calibrated here, see `linear_probe`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common import settings
from refilled_tf.common.errors import require, require_not_negative, require_positive, require_whole
from refilled_tf.evaluation import linear_probe
from refilled_tf.losses.local import posterior_kl
from refilled_tf.losses.mixture import log_mixture
from refilled_tf.losses.posterior import probe_posterior
from refilled_tf.models.networks import numbered
from refilled_tf.objectives.base import GlobalBatch, Objective, TeacherEmbeddings
from refilled_tf.objectives.cross_entropy import accuracy, cross_entropy


@gin.register
@dataclasses.dataclass(frozen=True)
class ProbeDistillation(Objective):
    """r · cross-entropy of the labelled images + a · T² · KL(probe ‖ student) of all images.

    Attributes:
        cross_entropy_weight: r.
        weight: a.
        temperature: T, of both sides.
        views: on how many augmentations of each labelled image, beside the image itself, the probe
            is fitted.
        teacher_weights: what each of several teachers counts, whose posteriors are averaged; None
            for all the same.
    """

    needs_teacher: ClassVar[bool] = True
    takes_unlabelled: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("cross_entropy", "probe_kl", "train_accuracy")

    cross_entropy_weight: float = dataclasses.field(
        default=0.3, metadata=settings.searched(0.03, 0.3, 3.0)
    )
    weight: float = 1.0
    temperature: float = dataclasses.field(default=2.0, metadata=settings.searched(0.5, 2.0, 8.0))
    views: int = 4
    teacher_weights: tuple[float, ...] | None = None

    def __post_init__(self):
        if isinstance(self.teacher_weights, list):
            object.__setattr__(self, "teacher_weights", tuple(self.teacher_weights))
        require_not_negative(self, "cross_entropy_weight", "weight")
        require_positive(self, "temperature")
        require_whole("ProbeDistillation.views", self.views, least=0)
        if self.teacher_weights is not None:
            require_positive(self, "teacher_weights")

    def check_teachers(self, count: int) -> None:
        """Accepts several teachers, with a weight for each or none."""
        weights = self.teacher_weights
        require(
            weights is None or len(weights) == count,
            f"ProbeDistillation.teacher_weights={weights} must be one for each of {count} teachers",
        )

    def fit_teacher(self, known: TeacherEmbeddings) -> dict[str, np.ndarray]:
        """Fits a probe for each teacher; see `linear_probe.LinearProbe` for its arrays.

        "fold" is [N + M]: an unlabelled image that is among the labelled ones too is judged as
        these are, any other one by the probe that has seen all labelled images.
        """
        found: dict[str, np.ndarray] = {}
        for number, embeddings in enumerate(known.labelled(self.views)):
            probe = linear_probe.fit(embeddings, known.labels, known.seed)
            found |= {
                numbered("weights", number): probe.weights,
                numbered("bias", number): probe.bias,
                numbered("probe_c", number): np.array(probe.c, np.float32),
                numbered("probe_temperature", number): np.array(probe.temperature, np.float32),
                numbered("probe_accuracy", number): np.array(probe.accuracy, np.float32),
            }
        # The folds are of labels and seed alone, so all teachers have the same.
        folds = dict(zip(known.keys.tolist(), probe.fold.tolist(), strict=False))
        rest = len(probe.weights) - 1
        found["fold"] = np.array([folds.get(key, rest) for key in known.keys.tolist()], np.int32)
        return found

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the weighted sum, its bare terms and the accuracy on labelled images."""
        labelled = batch.labelled
        classification = cross_entropy(labelled.student["logits"], labelled.labels)
        fold = tf.gather(batch.fitted["fold"], batch.rows)
        posteriors = [
            probe_posterior(
                embeddings,
                batch.fitted[numbered("weights", number)],
                batch.fitted[numbered("bias", number)],
                fold,
                self.temperature,
            )
            for number, embeddings in enumerate(batch.teacher_embeddings)
        ]
        log_teacher = log_mixture(posteriors, self.teacher_weights)
        divergence = self.temperature**2 * posterior_kl(
            log_teacher, batch.student["logits"], self.temperature
        )
        loss = self.cross_entropy_weight * classification + self.weight * divergence
        return loss, {
            "cross_entropy": classification,
            "probe_kl": divergence,
            "train_accuracy": accuracy(labelled.student["logits"], labelled.labels),
        }
