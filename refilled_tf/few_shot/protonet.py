"""ProtoNet (Snell et al., 2017): the nearest mean of a class's support embeddings."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import require_positive
from refilled_tf.data.episodes import Tasks
from refilled_tf.few_shot.base import FewShotLearner, Networks, Pool, merge_classes
from refilled_tf.few_shot.episodic import EpisodicObjective
from refilled_tf.losses.prototypes import prototype_logits, task_cross_entropy
from refilled_tf.models.networks import with_classifier
from refilled_tf.objectives.base import GlobalBatch


@gin.register
@dataclasses.dataclass(frozen=True)
class ProtoNet(EpisodicObjective):
    """Trains an embedding in which the nearest prototype is the right one.

    Attributes:
        temperature: what squared distances are divided by.
    """

    parts: ClassVar[tuple[str, ...]] = ("train_accuracy",)

    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "temperature")

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the mean cross-entropy of the queries, and their accuracy."""
        support, query = self.support_and_query(batch.student["embedding"])
        logits = prototype_logits(
            merge_classes(query), tf.reduce_mean(support, axis=2), self.temperature
        )
        losses, accuracies = task_cross_entropy(logits)
        return tf.reduce_mean(losses), {"train_accuracy": tf.reduce_mean(accuracies)}


@gin.register
@dataclasses.dataclass(frozen=True)
class NearestPrototype(FewShotLearner):
    """Answers by the nearest class mean in squared Euclidean distance; embeddings stay."""

    def answers(self, networks: Networks, pool: Pool, tasks: Tasks) -> np.ndarray:
        """Compares every query with the prototypes of its task."""
        embeddings = pool.embeddings(networks.student)
        query = merge_classes(embeddings[tasks.query])
        logits = prototype_logits(query, self.prototypes(networks, pool, tasks))
        return np.argmax(logits, axis=-1)

    def prototypes(self, networks: Networks, pool: Pool, tasks: Tasks) -> tf.Tensor:
        """Returns what queries are compared with, [T, C, d]."""
        return tf.reduce_mean(pool.embeddings(networks.student)[tasks.support], axis=2)

    def adapted(self, networks: Networks, pool: Pool, tasks: Tasks) -> list[tf.keras.Model]:
        """Returns linear classifiers, which this is (Snell et al., section 2.4).

        -‖x - p‖² is 2·p·x - ‖p‖² but for ‖x‖², which all classes share.
        """
        classifiers = []
        for prototypes in self.prototypes(networks, pool, tasks).numpy():
            classifier = with_classifier(networks.student, len(prototypes))
            weights = [2 * prototypes.T, -(prototypes**2).sum(axis=1)]
            classifier.get_layer("logits").set_weights(weights)
            classifiers.append(classifier)
        return classifiers
