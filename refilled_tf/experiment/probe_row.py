"""Rows without training: simple classifiers on the frozen embedding of a teacher."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import gin
import numpy as np

from refilled_tf.common import settings, storage
from refilled_tf.common.errors import require, require_built, require_name
from refilled_tf.common.settings import settings_of
from refilled_tf.data.task import Task, load, read_index, select
from refilled_tf.evaluation import embedding
from refilled_tf.experiment.loading import outputs
from refilled_tf.experiment.run import Run, check_folder, write_facts
from refilled_tf.experiment.stage import Stage

CLASSIFIERS = {
    "1nn": embedding.nearest_neighbor_accuracy,
    "logistic_regression": embedding.logistic_regression_accuracy,
}


@gin.register
@dataclasses.dataclass(frozen=True)
class Probe:
    """A row: a classifier on the teacher's embedding of the student's images.

    Attributes:
        name: unique in an experiment.
        method: its name in the table of results.
        task: the classes and images to be classified.
        teacher: the stage whose network gives the embedding.
        classifier: "1nn" or "logistic_regression".
        seed: of the classifier's choices.
    """

    name: str
    method: str = dataclasses.field(metadata=settings.NEVER)
    task: Task
    teacher: Stage = dataclasses.field(metadata=settings.PARENT)
    classifier: str
    seed: int = 0

    def __post_init__(self):
        require_name("Probe.name", self.name)
        require_built(f"{self.name}/Probe.task", self.task, Task, "@student()")
        require_built(f"{self.name}/Probe.teacher", self.teacher, Stage, "@teacher/Stage()")
        require(
            self.classifier in CLASSIFIERS,
            f"Probe.classifier={self.classifier!r} must be one of {', '.join(CLASSIFIERS)}",
        )

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The stage that must be finished first."""
        return (self.teacher,)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks whose images it reads itself."""
        return (self.task,)

    @property
    def network(self) -> Stage:
        """The stage whose network is scored."""
        return self.teacher

    def settings(self) -> dict[str, Any]:
        """Returns every setting that shapes the result; see `settings.settings_of`."""
        return settings_of(self, self.parents)

    def check(self, run: Run) -> None:
        """Rejects another row's folder, and too few images, before any training.

        Raises:
            InputError: naming the settings that differ, or the class.
        """
        check_folder(self, run)
        index = read_index(self.task.data.source, run.data_dir)
        selection = select(self.task, index)
        labels, counts = np.unique(index.labels[selection.train], return_counts=True)
        fewest = index.class_names[labels[np.argmin(counts)]]
        require(
            self.classifier != "logistic_regression" or int(np.min(counts)) >= 2,
            f"row {self.name!r}: Probe.classifier='logistic_regression' needs at least 2 training "
            f"images of every class, one of them to choose its C by, and {fewest!r} has 1; raise "
            f"{self.task.role}.images_per_class, or leave the row out of Experiment.rows",
        )

    def score(self, run: Run) -> dict[str, Any]:
        """Scores the classifier, or finds it scored.

        Returns:
            "scored_on", "images", "accuracy", the "embedding" quality and "seconds".
        """
        folder = run.folder(self)
        if run.is_finished(self):
            return storage.read_json(folder / "result.json")
        started = time.monotonic()
        data = load(self.task, run.data_dir)
        train, test = (
            outputs(self.teacher, run, self.task, part)["embedding"] for part in ("train", "test")
        )
        sides = train, data.train.labels, test, data.test.labels
        result = {
            "scored_on": data.scored_on,
            "images": len(data.test.labels),
            "accuracy": CLASSIFIERS[self.classifier](*sides, self.seed),
            "embedding": embedding.embedding_quality(*sides, self.seed),
            "seconds": round(time.monotonic() - started, 1),
        }
        if run.is_chief:
            write_facts(self, run)
            storage.write_json(folder / "result.json", result)
        return result
