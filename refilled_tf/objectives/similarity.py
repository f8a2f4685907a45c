"""Label-free stage 1: the student sees each image as near to others as the teacher does."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import require_positive, require_whole
from refilled_tf.losses.similarity import similarity_kl
from refilled_tf.objectives.base import TeacherEmbeddings
from refilled_tf.objectives.projection import Projection


@gin.register
@dataclasses.dataclass(frozen=True)
class SimilarityDistillation(Projection):
    """weight · mean KL between softmaxes over similarities to a bank of teacher embeddings.

    Source: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021,
    Eq. 3. SEED keeps a queue of the teacher's latest embeddings. A frozen teacher's do not age, so
    a fixed sample of the training images serves as well, and takes no state to save and share.

    Attributes:
        bank: how many embeddings.
        tau_teacher: temperature of the teacher's similarities.
        tau_student: temperature of the student's.
    """

    parts: ClassVar[tuple[str, ...]] = ("similarity_kl",)

    bank: int = 4096
    tau_teacher: float = 0.07
    tau_student: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        require_whole("SimilarityDistillation.bank", self.bank)
        require_positive(self, "tau_teacher", "tau_student")

    def fit_teacher(self, known: TeacherEmbeddings) -> dict[str, np.ndarray]:
        """Returns the normalised "bank" [A, d_T]."""
        (sample,) = known.sample(self.bank)
        return {"bank": sample / np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-12)}

    def embedding_loss(
        self, student: tf.Tensor, teacher: tf.Tensor, fitted: dict[str, tf.Tensor]
    ) -> tf.Tensor:
        """Returns KL(teacher ‖ student)."""
        taus = {"tau_teacher": self.tau_teacher, "tau_student": self.tau_student}
        return similarity_kl(student, teacher, fitted["bank"], **taus)
