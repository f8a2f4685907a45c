"""A linear support vector machine on frozen embeddings."""

from __future__ import annotations

import dataclasses

import gin
import numpy as np
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from refilled_tf.common.errors import require_positive
from refilled_tf.data.episodes import Tasks
from refilled_tf.few_shot.base import FewShotLearner, Networks, Pool, chosen, labels_of


@gin.register
@dataclasses.dataclass(frozen=True)
class LinearSvm(FewShotLearner):
    """scikit-learn's, one class against the rest, on l2-normalised embeddings.

    Attributes:
        c: how much errors weigh against a wide margin.
    """

    c: float | tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)

    def __post_init__(self):
        require_positive(self, "c")

    def answers(self, networks: Networks, pool: Pool, tasks: Tasks) -> np.ndarray:
        """Fits a machine to every task."""
        embeddings = normalize(pool.embeddings(networks.student))
        # The primal problem is the smaller and, without random order, a deterministic one.
        return np.array(
            [
                LinearSVC(C=chosen(self.c), dual=False)
                .fit(embeddings[support.ravel()], labels_of(support))
                .predict(embeddings[query.ravel()])
                for support, query in zip(tasks.support, tasks.query, strict=True)
            ]
        )
