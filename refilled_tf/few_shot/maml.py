"""MAML (Finn, Abbeel, Levine, ICML 2017): initial weights from which a few steps suffice."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import require, require_not_negative, require_whole
from refilled_tf.data.episodes import Tasks
from refilled_tf.data.recipe import Recipe
from refilled_tf.few_shot.adaptation import descend, gradient, groups
from refilled_tf.few_shot.base import (
    FewShotLearner,
    Networks,
    Pool,
    chosen,
    merge_classes,
    require_objective,
)
from refilled_tf.few_shot.episodic import EpisodicObjective
from refilled_tf.losses.prototypes import task_cross_entropy
from refilled_tf.models.stacked import Chain, Weights
from refilled_tf.objectives.base import Learner, Objective


@gin.register
@dataclasses.dataclass(frozen=True)
class Maml(EpisodicObjective):
    """Trains initial weights by the loss after a few steps from them, in second order.

    Batch norm takes the statistics of what is before it, a task's support or its query, as in the
    authors' code: the queries of a task are answered together. A replica works on whole tasks.

    Attributes:
        inner_steps: of gradient descent on the support.
        inner_rate: their learning rate.
    """

    runs_alone: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("train_accuracy",)

    inner_steps: int = 5
    inner_rate: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        require_whole("Maml.inner_steps", self.inner_steps)
        require_not_negative(self, "inner_rate")

    def head(self, embedding_size: int) -> tf.keras.Model:
        """Builds the classifier [B, d] to [B, C] that tasks start from."""
        return tf.keras.Sequential(
            [tf.keras.Input((embedding_size,)), tf.keras.layers.Dense(self.ways, name="logits")],
            name="classifier",
        )

    def check_batches(self, recipe: Recipe, replicas: int) -> None:
        """Rejects batches of which replicas do not get whole tasks."""
        super().check_batches(recipe, replicas)
        tasks = recipe.batch_size // (self.ways * (self.shots + self.queries))
        require(
            tasks % replicas == 0,
            f"Recipe.classes_per_batch={recipe.classes_per_batch} makes {tasks} tasks of "
            f"Maml.ways={self.ways}, which {replicas} replicas cannot share equally",
        )

    def loss_of(
        self, learner: Learner, images: tf.Tensor, labels: tf.Tensor, rows: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the mean loss, and accuracy, of this replica's queries after the inner steps."""
        support, query = (merge_classes(part) for part in self.support_and_query(images))
        chain = Chain([learner.student, learner.head])
        weights = chain.stacked(support.shape[0])
        # Written out, unlike a loop of TensorFlow's: its gradient is computed faster.
        for step in range(self.inner_steps):
            gradients = gradient(lambda w, _: support_losses(chain, w, support), weights, step)
            pairs = zip(weights, gradients, strict=True)
            weights = [w - self.inner_rate * g for w, g in pairs]
        losses, accuracies = task_cross_entropy(chain(weights, query, batch_statistics=True))
        return tf.reduce_mean(losses), {"train_accuracy": tf.reduce_mean(accuracies)}


@gin.register
@dataclasses.dataclass(frozen=True)
class InnerLoop(FewShotLearner):
    """Takes gradient steps on the support from the initial weights that `Maml` has trained.

    Attributes:
        steps: how many.
        learning_rate: of them.
        group: tasks in one graph, as many as fit into memory.
    """

    steps: int | tuple[int, ...] = 10
    learning_rate: float | tuple[float, ...] = 0.01
    group: int = 20

    def __post_init__(self):
        require_whole("InnerLoop.steps", self.steps)
        require_whole("InnerLoop.group", self.group)
        require_not_negative(self, "learning_rate")

    def check(self, objective: Objective, ways: int) -> None:
        """Needs the classifier that `Maml` trains, of as many classes as a task has."""
        maml = require_objective(self, objective, Maml)
        require(
            maml.ways == ways,
            f"InnerLoop starts from the classifier of Maml.ways={maml.ways}, but tasks have "
            f"Episodes.ways={ways}",
        )

    def check_network(self, network: tf.keras.Model) -> None:
        """Rejects a network with branches."""
        Chain([network])

    def answers(self, networks: Networks, pool: Pool, tasks: Tasks) -> np.ndarray:
        """Takes the class of the largest logit."""
        return np.argmax(self.logits(networks, pool, tasks), axis=-1)

    def logits(self, networks: Networks, pool: Pool, tasks: Tasks) -> np.ndarray:
        """Adapts all layers to every task; returns the queries' logits [T, C·Q, C] float32."""
        chain = Chain([networks.student, networks.head])
        images = pool.inputs_of(networks.student, networks.student.layers[0].name)

        @tf.function
        def learn(support, query):
            support, query = merge_classes(support), merge_classes(query)
            start = chain.stacked(support.shape[0])
            weights = descend(
                lambda weights, step: support_losses(chain, weights, support),
                start,
                chosen(self.steps),
                chosen(self.learning_rate),
            )
            return chain(weights, query, batch_statistics=True)

        parts = groups(tasks, self.group)
        return np.concatenate([learn(images[p.support], images[p.query]) for p in parts])


def support_losses(chain: Chain, weights: Weights, support: tf.Tensor) -> tf.Tensor:
    """Returns the cross-entropy [T] of tasks' support [T, C·K, S, S, 3], class by class."""
    return task_cross_entropy(chain(weights, support, batch_statistics=True))[0]
