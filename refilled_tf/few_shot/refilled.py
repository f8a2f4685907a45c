"""REFILLED's second stage on a task's support (Ye, Lu, Zhan, CVPR 2020, supplement Eq. 6)."""

from __future__ import annotations

import dataclasses

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import require_not_negative, require_positive
from refilled_tf.data.episodes import Tasks
from refilled_tf.few_shot.adaptation import Adaptation
from refilled_tf.few_shot.base import Networks, Pool, chosen, merge_classes
from refilled_tf.losses.distances import l2_normalize
from refilled_tf.losses.local import decayed_weight, nearest_center_posterior, posterior_kl
from refilled_tf.losses.prototypes import task_cross_entropy


@gin.register
@dataclasses.dataclass(frozen=True)
class Refilled(Adaptation):
    """Cross-entropy + w · local KL to the teacher's nearest-centre posterior.

    The support is the batch, so all of a task's classes are in it, and a step is an epoch.

    Attributes:
        weight: w_0.
        decay: w = w_0 · exp(-decay·step).
        tau_teacher: temperature of the teacher's posterior.
        tau_student: temperature of the student's.
    """

    needs_teacher = True

    weight: float | tuple[float, ...] = 1.0
    decay: float | tuple[float, ...] = 0.05
    tau_teacher: float | tuple[float, ...] = 2.0
    tau_student: float | tuple[float, ...] = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_not_negative(self, "weight", "decay")
        require_positive(self, "tau_teacher", "tau_student")

    def known(self, networks: Networks, pool: Pool, tasks: Tasks) -> tuple[np.ndarray, ...]:
        """Returns the teacher's log-posterior of the support, [T, C·K, C]."""
        support = pool.embeddings(networks.teacher)[tasks.support]
        centers = l2_normalize(tf.reduce_mean(support, axis=2))
        posterior = nearest_center_posterior(
            merge_classes(support), centers, chosen(self.tau_teacher)
        )
        return (posterior.numpy(),)

    def losses(self, logits: tf.Tensor, step: tf.Tensor, *known: tf.Tensor) -> tf.Tensor:
        """Returns Eq. 6 of each task."""
        (log_teacher,) = known
        local = posterior_kl(log_teacher, logits, chosen(self.tau_student))
        weight = decayed_weight(chosen(self.weight), step, chosen(self.decay))
        return task_cross_entropy(logits)[0] + weight * local
