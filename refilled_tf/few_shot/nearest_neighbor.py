"""1NN: the class of the nearest support image."""

from __future__ import annotations

import dataclasses

import gin
import numpy as np
from sklearn.metrics import pairwise_distances_argmin
from sklearn.preprocessing import normalize

from refilled_tf.data.episodes import Tasks
from refilled_tf.few_shot.base import FewShotLearner, Networks, Pool, labels_of


@gin.register
@dataclasses.dataclass(frozen=True)
class NearestNeighbor(FewShotLearner):
    """Among l2-normalised embeddings, which stay as they are."""

    def answers(self, networks: Networks, pool: Pool, tasks: Tasks) -> np.ndarray:
        """Compares every query with every support image of its task."""
        embeddings = normalize(pool.embeddings(networks.student))
        return np.array(
            [
                labels_of(support)[
                    pairwise_distances_argmin(
                        embeddings[query.ravel()], embeddings[support.ravel()]
                    )
                ]
                for support, query in zip(tasks.support, tasks.query, strict=True)
            ]
        )
