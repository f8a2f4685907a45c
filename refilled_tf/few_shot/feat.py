"""FEAT (Ye, Hu, Zhan, Sha, CVPR 2020): prototypes that have seen one another."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.common.errors import require_not_negative, require_positive
from refilled_tf.data.episodes import Tasks
from refilled_tf.few_shot.base import Networks, Pool, merge_classes, require_objective
from refilled_tf.few_shot.episodic import EpisodicObjective
from refilled_tf.few_shot.protonet import NearestPrototype
from refilled_tf.losses.prototypes import prototype_logits, task_cross_entropy
from refilled_tf.objectives.base import GlobalBatch, Objective


@gin.register
@dataclasses.dataclass(frozen=True)
class Feat(EpisodicObjective):
    """Trains an embedding, and self-attention that adapts a task's prototypes to each other.

    Attributes:
        temperature: what squared distances to adapted prototypes are divided by.
        contrastive_weight: of the auxiliary loss: each class's embeddings, support and query,
            adapted among themselves, have a mean that should be the nearest to each of them.
        contrastive_temperature: what squared distances are divided by there.
    """

    parts: ClassVar[tuple[str, ...]] = ("query_loss", "contrastive_loss", "train_accuracy")

    temperature: float = 64.0
    contrastive_weight: float = 0.1
    contrastive_temperature: float = 16.0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "temperature", "contrastive_temperature")
        require_not_negative(self, "contrastive_weight")

    def head(self, embedding_size: int) -> tf.keras.Model:
        """Builds one head of self-attention, then the residual sum and layer norm.

        Args:
            embedding_size: d.

        Returns:
            Sets of embeddings [n, m, d] to sets of the same size, whatever their order.
        """
        members = tf.keras.Input((None, embedding_size), name="set")
        attention = tf.keras.layers.MultiHeadAttention(
            num_heads=1, key_dim=embedding_size, use_bias=False, name="attention"
        )
        added = tf.keras.layers.Add(name="add")([members, attention(members, members)])
        norm = tf.keras.layers.LayerNormalization(epsilon=1e-5, name="norm")
        return tf.keras.Model(members, norm(added), name="set_to_set")

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the sum of both losses, each without its weight, and the queries' accuracy."""
        assert batch.head is not None, "the head that `head` builds is in the batch"
        support, query = self.support_and_query(batch.student["embedding"])
        prototypes = batch.head(tf.reduce_mean(support, axis=2))
        logits = prototype_logits(merge_classes(query), prototypes, self.temperature)
        losses, accuracies = task_cross_entropy(logits)

        everyone = tf.concat([support, query], axis=2)
        classes, count, size = everyone.shape[1:]
        adapted = batch.head(tf.reshape(everyone, (-1, count, size)))
        centers = tf.reshape(tf.reduce_mean(adapted, axis=1), (-1, classes, size))
        logits = prototype_logits(merge_classes(everyone), centers, self.contrastive_temperature)
        contrastive, _ = task_cross_entropy(logits)

        query_loss, contrastive = tf.reduce_mean(losses), tf.reduce_mean(contrastive)
        return query_loss + self.contrastive_weight * contrastive, {
            "query_loss": query_loss,
            "contrastive_loss": contrastive,
            "train_accuracy": tf.reduce_mean(accuracies),
        }


@gin.register
@dataclasses.dataclass(frozen=True)
class AdaptedPrototypes(NearestPrototype):
    """Answers by the nearest of a task's adapted prototypes; no weight changes."""

    def check(self, objective: Objective, ways: int) -> None:
        """Needs the attention that `Feat` trains."""
        require_objective(self, objective, Feat)

    def prototypes(self, networks: Networks, pool: Pool, tasks: Tasks) -> tf.Tensor:
        """Returns what queries are compared with, [T, C, d]."""
        assert networks.head is not None, "a network trained on Feat has a head, see `check`"
        return networks.head(super().prototypes(networks, pool, tasks))
