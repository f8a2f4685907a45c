"""Basics of few-shot learners: tasks, images, and how a learner is chosen.

A learner gets a few labelled images of new classes, the support, and answers for others, the
query. What it knows beforehand stands in networks that stages have trained on other classes.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar, NamedTuple, TypeVar

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import InputError, require, require_built, require_whole
from refilled_tf.data import batches, episodes
from refilled_tf.data.episodes import Episodes, Tasks
from refilled_tf.data.task import Examples, Task
from refilled_tf.models import networks
from refilled_tf.objectives.base import Objective

Value = TypeVar("Value")
Wanted = TypeVar("Wanted", bound=Objective)
Self = TypeVar("Self", bound="FewShotLearner")


class Networks(NamedTuple):
    """Networks that a learner may know beforehand.

    Attributes:
        student: images to {"embedding"}.
        head: what an objective has trained on top of the embedding; None if nothing.
        teacher: images to {"embedding", …}; None without a teacher.
    """

    student: tf.keras.Model
    head: tf.keras.Model | None = None
    teacher: tf.keras.Model | None = None


class Pool:
    """The images that tasks are drawn from, and what networks make of them.

    A network is asked once about all images, since an image is in many tasks.

    Attributes:
        examples: N images.
        crop_size: side of their centres, in pixels.
    """

    def __init__(self, examples: Examples, crop_size: int):
        """Takes the images as they are loaded; networks see their centres."""
        self.examples = examples
        self.crop_size = crop_size
        self._known: dict[tuple[int, str], tuple[tf.keras.Model, np.ndarray]] = {}

    def embeddings(self, network: tf.keras.Model) -> np.ndarray:
        """Returns the embeddings [N, d] float32 of a network that does not change any more."""
        return self._ask(network, "", network.output["embedding"])

    def inputs_of(self, network: tf.keras.Model, layer: str) -> np.ndarray:
        """Returns what comes to a layer of such a network, [N, …] float32."""
        return self._ask(network, layer, network.get_layer(layer).input)

    def _ask(self, network: tf.keras.Model, layer: str, tensor: tf.Tensor) -> np.ndarray:
        key = id(network), layer
        if key not in self._known:
            asked = tf.keras.Model(network.input, {"": tensor})
            batch = batches.scoring_batches(self.examples, self.crop_size)
            # With the network, which keeps its id from being given to another one.
            self._known[key] = network, networks.outputs_of(asked, batch)[""]
        return self._known[key][1]


@dataclasses.dataclass(frozen=True)
class FewShotLearner:
    """Learns tasks from their support: a frozen dataclass of hyper-parameters.

    A new method for few-shot learning is one file with one such class and, where it is also
    trained on tasks beforehand, an `EpisodicObjective`. An option may be given as a tuple: these
    are values to choose from, by the accuracy on tasks of validation classes.
    """

    needs_teacher: ClassVar[bool] = False

    def check(self, objective: Objective, ways: int) -> None:
        """Rejects a network that cannot serve it.

        Args:
            objective: what the network has been trained on.
            ways: classes of a task.

        Raises:
            InputError: naming what it needs.
        """

    def check_network(self, network: tf.keras.Model) -> None:
        """Rejects a network, with fresh weights, whose layers it cannot work on.

        Raises:
            InputError: naming the layer.
        """

    def candidates(self: Self) -> list[Self]:
        """Returns a learner for each combination of the options given as tuples."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        grid = {name: value for name, value in options.items() if isinstance(value, tuple | list)}
        empty = [name for name, values in grid.items() if not values]
        require(not empty, f"{type(self).__name__}.{''.join(empty[:1])} is empty: no value to take")
        return [
            dataclasses.replace(self, **dict(zip(grid, values, strict=True)))
            for values in itertools.product(*grid.values())
        ]

    def answers(self, networks: Networks, pool: Pool, tasks: Tasks) -> np.ndarray:
        """Learns every task and answers its queries.

        Args:
            networks: what it knows beforehand.
            pool: the images.
            tasks: T tasks.

        Returns:
            [T, C·Q] int, the class of each query among its task's, 0 … C-1.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it learns")

    def adapted(self, networks: Networks, pool: Pool, tasks: Tasks) -> list[tf.keras.Model]:
        """Returns a network for each task, images to {"embedding", "logits" [B, C]}.

        Raises:
            InputError: what it learns of a task is no network.
        """
        raise InputError(f"{type(self).__name__} does not make a network of a task")

    def accuracies(self, networks: Networks, pool: Pool, tasks: Tasks) -> np.ndarray:
        """Returns the share of right answers in each of T tasks, [T] float64."""
        right = self.answers(networks, pool, tasks) == labels_of(tasks.query[0])
        return right.mean(axis=1)


def chosen(option: Value | tuple[Value, ...]) -> Value:
    """Returns the one value of an option of a candidate, which has none to choose from any more."""
    assert not isinstance(option, tuple), f"{option} is to be chosen from, see `candidates`"
    return option


@gin.register
@dataclasses.dataclass(frozen=True)
class Protocol:
    """On which tasks learners are compared.

    Attributes:
        task: whose classes, such as @student() or @validation(); all their images, training and
            test, are in the pool.
        episodes: how tasks are drawn from it.
    """

    task: Task
    episodes: Episodes

    def __post_init__(self):
        require_built("Protocol.task", self.task, Task, "@student()")
        require_built("Protocol.episodes", self.episodes, Episodes, "@Episodes()")
        require(
            self.episodes.count >= 2,
            f"Episodes.count={self.episodes.count} must be at least 2, for there to be an interval",
        )

    def check(self, shots: int, data_dir: str | None) -> None:
        """Rejects what cannot be drawn, without decoding an image.

        Raises:
            InputError: naming the class that has too few images, or the option.
        """
        facts = episodes.facts(self.task, data_dir)
        self.episodes.draw(facts, shots)

    def pool(self, data_dir: str | None) -> Pool:
        """Loads all images of the classes."""
        return Pool(episodes.pool(self.task, data_dir), self.task.data.crop_size)

    def tasks(self, shots: int, data_dir: str | None) -> Tasks:
        """Draws the tasks, as rows of the pool."""
        return self.episodes.draw(episodes.facts(self.task, data_dir), shots)


@gin.register
@dataclasses.dataclass(frozen=True)
class Selection:
    """Chooses the epoch after which a network does best on tasks of validation classes.

    Attributes:
        protocol: these tasks.
        shots: labelled images a class in them.
        learner: what is scored.
    """

    protocol: Protocol
    shots: int
    learner: FewShotLearner

    def __post_init__(self):
        require_built("Selection.protocol", self.protocol, Protocol, "@validation/Protocol()")
        require_built("Selection.learner", self.learner, FewShotLearner, "@NearestPrototype()")
        require_whole("Selection.shots", self.shots)
        require(
            not self.learner.needs_teacher,
            f"Selection.learner={self.learner} needs a teacher, which a stage under training has "
            "not; take another, such as @NearestPrototype()",
        )

    def check(self, network: tf.keras.Model, data_dir: str | None) -> None:
        """Rejects impossible tasks, and a learner that is several or cannot use the network."""
        self.protocol.check(self.shots, data_dir)
        self.learner.check_network(network)
        require(
            len(self.learner.candidates()) == 1,
            f"Selection.learner={self.learner} must have one value for every option",
        )

    def score(self, known: Networks, data_dir: str | None) -> float:
        """Returns the mean accuracy in [0, 1]."""
        pool = self.protocol.pool(data_dir)
        (learner,) = self.learner.candidates()
        tasks = self.protocol.tasks(self.shots, data_dir)
        return float(np.mean(learner.accuracies(known, pool, tasks)))


def require_objective(
    learner: FewShotLearner, objective: Objective, wanted: type[Wanted]
) -> Wanted:
    """Returns what a network has been trained on; rejects any but the wanted kind."""
    if not isinstance(objective, wanted):
        raise InputError(
            f"{type(learner).__name__} needs a network trained on {wanted.__name__}, not on "
            f"{type(objective).__name__}"
        )
    return objective


def labels_of(rows: np.ndarray) -> np.ndarray:
    """Returns the labels 0 … C-1 of a task's rows [C, K] once they are flattened: [C·K]."""
    return np.repeat(np.arange(rows.shape[-2], dtype=np.int32), rows.shape[-1])


def merge_classes(x):
    """Returns what is sorted into classes, [T, C, K, …], class by class: [T, C·K, …]."""
    return tf.reshape(x, (-1, x.shape[1] * x.shape[2], *x.shape[3:]))
