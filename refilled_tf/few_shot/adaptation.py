"""Gradient descent on many tasks side by side, each on a copy of a network's last layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import require_not_negative, require_whole
from refilled_tf.data.episodes import Tasks
from refilled_tf.few_shot.base import FewShotLearner, Networks, Pool, chosen, merge_classes
from refilled_tf.losses.prototypes import task_cross_entropy
from refilled_tf.models.networks import with_classifier
from refilled_tf.models.stacked import Chain, Weights

# (weights, number of the step) to the losses [T] of the tasks.
Loss = Callable[[Weights, tf.Tensor], tf.Tensor]


def gradient(loss: Loss, weights: Weights, step: tf.Tensor) -> Weights:
    """Returns each task's gradient; tasks share no weight, so it is that of their sum."""
    with tf.GradientTape() as tape:
        tape.watch(weights)
        total = tf.reduce_sum(loss(weights, step))
    return tape.gradient(total, weights)


def descend(
    loss: Loss, weights: Weights, steps: int, learning_rate: float, momentum: float = 0.0
) -> Weights:
    """Takes steps of SGD with momentum, as torch and Keras define it, on T tasks.

    Args:
        loss: of the weights.
        weights: [T, …] each, where the descent starts.
        steps: how many.
        learning_rate: of every step.
        momentum: share of a step that goes into the next.

    Returns:
        The weights where it ends.
    """

    def body(step, weights, velocities):
        gradients = gradient(loss, weights, step)
        velocities = [
            momentum * v - learning_rate * g for v, g in zip(velocities, gradients, strict=True)
        ]
        return step + 1, [w + v for w, v in zip(weights, velocities, strict=True)], velocities

    start = tf.constant(0), weights, [tf.zeros_like(w) for w in weights]
    return tf.while_loop(lambda step, *_: step < steps, body, start)[1]


@dataclasses.dataclass(frozen=True)
class Adaptation(FewShotLearner):
    """Trains a new top layer, and the network from some layer on, on a task's support.

    Every step takes the whole support, centre crops; batch norm keeps its running statistics. All
    tasks of a group are one graph.

    Attributes:
        first: name of the first layer that is trained, such as "block4_conv"; "logits" trains
            the top layer alone.
        steps: of SGD with momentum .9.
        learning_rate: of them.
        weight_decay: λ of ½·λ·‖w‖² on the trained weights.
        group: tasks in one graph, as many as fit into memory.
    """

    first: str | tuple[str, ...] = "logits"
    steps: int | tuple[int, ...] = 100
    learning_rate: float | tuple[float, ...] = 0.1
    weight_decay: float | tuple[float, ...] = 5e-4
    group: int = 50

    def __post_init__(self):
        require_whole(f"{type(self).__name__}.steps", self.steps)
        require_whole(f"{type(self).__name__}.group", self.group)
        require_not_negative(self, "learning_rate", "weight_decay")

    def check_network(self, network: tf.keras.Model) -> None:
        """Rejects a network without the layers to train, or with branches there."""
        for first in {candidate.first for candidate in self.candidates()}:
            Chain([with_classifier(network, 2)], chosen(first))

    def answers(self, networks: Networks, pool: Pool, tasks: Tasks) -> np.ndarray:
        """Takes the class of the largest logit."""
        return np.argmax(self.logits(networks, pool, tasks), axis=-1)

    def logits(self, networks: Networks, pool: Pool, tasks: Tasks) -> np.ndarray:
        """Adapts to every task; returns the queries' logits [T, C·Q, C] float32."""
        chain = Chain(
            [with_classifier(networks.student, tasks.classes.shape[1])], chosen(self.first)
        )
        inputs = self._inputs(networks, pool)

        @tf.function
        def learn(support, query, *known):
            weights = self._adapted(chain, merge_classes(support), *known)
            return chain(weights, merge_classes(query))

        return np.concatenate(
            [
                learn(inputs[part.support], inputs[part.query], *self.known(networks, pool, part))
                for part in groups(tasks, self.group)
            ]
        )

    def adapted(self, networks: Networks, pool: Pool, tasks: Tasks) -> list[tf.keras.Model]:
        """Returns the networks of tasks, images to {"embedding", "logits"}."""
        students = [
            with_classifier(networks.student, tasks.classes.shape[1]) for _ in tasks.classes
        ]
        chains = [Chain([student], chosen(self.first)) for student in students]
        support = merge_classes(self._inputs(networks, pool)[tasks.support])
        known = self.known(networks, pool, tasks)
        stacked = tf.function(lambda *data: self._adapted(chains[0], *data))(support, *known)
        for task, chain in enumerate(chains):
            for variable, weights in zip(chain.variables, stacked, strict=True):
                variable.assign(weights[task])
        return students

    def _inputs(self, networks: Networks, pool: Pool) -> np.ndarray:
        """Returns what comes to the first trained layer, [N, …]."""
        if (first := chosen(self.first)) == "logits":
            return pool.embeddings(networks.student)
        return pool.inputs_of(networks.student, first)

    def known(self, networks: Networks, pool: Pool, tasks: Tasks) -> tuple[np.ndarray, ...]:
        """Returns what the loss needs to know of a group's support, [T, C·K, …] each."""
        return ()

    def losses(self, logits: tf.Tensor, step: tf.Tensor, *known: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each task.

        Args:
            logits: [T, C·K, C], class by class.
            step: number of the step, from 0.
            known: what `known` returned.

        Returns:
            [T] float32.
        """
        return task_cross_entropy(logits)[0]

    def _adapted(self, chain: Chain, support: tf.Tensor, *known: tf.Tensor) -> Weights:
        """Returns the weights [T, …] after training on support [T, C·K, …]."""

        def loss(weights, step):
            penalty = tf.add_n([tf.reduce_sum(w**2, axis=range(1, w.shape.rank)) for w in weights])
            losses = self.losses(chain(weights, support), step, *known)
            return losses + chosen(self.weight_decay) / 2 * penalty

        start = chain.stacked(support.shape[0])
        return descend(loss, start, chosen(self.steps), chosen(self.learning_rate), momentum=0.9)


def groups(tasks: Tasks, count: int):
    """Yields the tasks in groups of at most `count`."""
    for start in range(0, len(tasks.classes), count):
        yield Tasks(*(part[start : start + count] for part in tasks))
