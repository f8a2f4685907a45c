"""Tasks of few-shot learning, each with a few classes of a pool of images.

As orders of batches do, they depend on seed, number and keys alone, so that every method, on every
machine, is asked the same.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import gin
import numpy as np

from refilled_tf.common.errors import details, listed, require, require_whole
from refilled_tf.data import unlabelled
from refilled_tf.data.task import Examples, Task, load, read_index, select


class Facts(NamedTuple):
    """Facts about a pool of images, known before any is decoded.

    Attributes:
        labels: [N] int32, 0 … C-1.
        keys: [N] strings that identify the images in their dataset.
        class_names: of the labels.
    """

    labels: np.ndarray
    keys: np.ndarray
    class_names: tuple[str, ...]


class Tasks(NamedTuple):
    """T tasks of C classes, with K labelled images a class and Q to be answered.

    Attributes:
        classes: [T, C] int32 labels of the pool; the order is that of the task's own labels, so
            its class c is `classes[t, c]`.
        support: [T, C, K] int32 rows of the pool.
        query: [T, C, Q] int32 rows of the pool, none of them in the task's support.
    """

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray


@gin.register
@dataclasses.dataclass(frozen=True)
class Episodes:
    """Random tasks of some classes, C-way K-shot.

    A task has the same classes and queries for every K, and more shots extend the support of
    fewer; a larger `count` adds tasks. Whatever is compared, the comparison is a paired one.

    Attributes:
        ways: classes of a task, C.
        queries: images of each class to be answered, Q.
        count: number of tasks, T.
        seed: of the draw.
    """

    ways: int = 5
    queries: int = 15
    count: int = 600
    seed: int = 0

    def __post_init__(self):
        for name, least in (("ways", 2), ("queries", 1), ("count", 1), ("seed", 0)):
            require_whole(f"Episodes.{name}", getattr(self, name), least)

    def draw(self, facts: Facts, shots: int) -> Tasks:
        """Draws the tasks.

        Every task has its own random stream, and the images of a class are put in the order of
        their keys before drawing, so the order of the pool does not matter.

        Args:
            facts: of the pool.
            shots: labelled images a class, K.

        Raises:
            InputError: the pool has too few classes, or a class too few images.
        """
        classes, needed = len(facts.class_names), self.queries + shots
        require(shots >= 1, f"shots={shots}: a task needs at least 1 labelled image a class")
        require(
            self.ways <= classes,
            f"Episodes.ways={self.ways} exceeds the {classes} classes that tasks are drawn from",
        )
        counts = np.bincount(facts.labels, minlength=classes)
        fewest = int(np.argmin(counts))
        require(
            counts[fewest] >= needed,
            f"class {facts.class_names[fewest]!r} has {counts[fewest]} images, but tasks with "
            f"Episodes.queries={self.queries} and shots={shots} need {needed} of every class",
        )
        rows_of = np.split(np.lexsort((facts.keys, facts.labels)), np.cumsum(counts)[:-1])

        chosen = np.empty((self.count, self.ways), np.int32)
        rows = np.empty((self.count, self.ways, needed), np.int32)
        for number in range(self.count):
            random = np.random.default_rng([self.seed, number])
            chosen[number] = random.choice(classes, self.ways, replace=False)
            for c, label in enumerate(chosen[number]):
                # All of the class's rows: the next class's draw must not depend on K.
                rows[number, c] = random.permutation(rows_of[label])[:needed]
        return Tasks(chosen, rows[..., self.queries :], rows[..., : self.queries])


def facts(task: Task, data_dir: str | None = None) -> Facts:
    """Reads what `Episodes.draw` asks of the images that `pool` loads, in the same order.

    Raises:
        InputError: the dataset is missing, or the split impossible.
    """
    index = read_index(task.data.source, data_dir)
    selection = select(task, index)
    rows = np.concatenate([selection.train, selection.test])
    labels = np.searchsorted(selection.classes, index.labels[rows]).astype(np.int32)
    return Facts(labels, index.keys[rows], selection.class_names)


def pool(task: Task, data_dir: str | None = None) -> Examples:
    """Loads all images of a task's classes, training and test together.

    Raises:
        InputError: as `load` does, and where `Data.on_corrupt` would leave an image out: tasks
            would be others than elsewhere.
    """
    data = load(task, data_dir)
    together = unlabelled.joined([data.train, data.test])
    missing = np.setdiff1d(facts(task, data_dir).keys, together.keys).tolist()
    require(
        not missing,
        f"{len(missing)} image(s) cannot be decoded, which tasks are drawn from: "
        f"{listed(missing)}; Data.on_corrupt='skip' does not go with them",
        details(missing),
    )
    return together
