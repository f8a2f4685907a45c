"""Rows of few-shot learning: a learner's mean accuracy over many tasks of unseen classes."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import gin
import numpy as np
from tqdm import tqdm

from refilled_tf.common import settings, storage
from refilled_tf.common.errors import require, require_built, require_name
from refilled_tf.common.settings import settings_of
from refilled_tf.data.task import Task
from refilled_tf.experiment.loading import load_head, loaded, untrained_network
from refilled_tf.experiment.run import Run, check_folder, write_facts
from refilled_tf.experiment.stage import Stage
from refilled_tf.few_shot.base import FewShotLearner, Networks, Pool, Protocol


@dataclasses.dataclass(frozen=True)
class Trials:
    """A row of few-shot tasks: a learner with K labelled images a class.

    Its folder holds result.json, so that it is scored once, as a stage is trained once.

    Attributes:
        name: of its folder.
        method: its name in the table of results.
        shots: K.
        learner: how tasks are learnt, or, with options given as tuples, several ways.
        network: the stage whose embedding it starts from.
        teacher: the stage whose network teaches; dropped where the learner needs none.
        test: the tasks it is scored on.
        validation: the tasks that choose among several ways.
    """

    name: str
    method: str = dataclasses.field(metadata=settings.NEVER)
    shots: int
    learner: FewShotLearner
    network: Stage = dataclasses.field(metadata=settings.PARENT)
    teacher: Stage | None = dataclasses.field(metadata=settings.PARENT)
    test: Protocol = dataclasses.field(metadata=settings.prefixed("test "))
    validation: Protocol = dataclasses.field(metadata=settings.prefixed("validation "))

    def __post_init__(self):
        require_name("trials.name", self.name)
        for option, kind, example in (
            ("learner", FewShotLearner, "@FineTune()"),
            ("network", Stage, "@convnet/Stage()"),
            ("test", Protocol, "@test/Protocol()"),
            ("validation", Protocol, "@validation/Protocol()"),
        ):
            require_built(f"{self.name}: trials.{option}", getattr(self, option), kind, example)
        if not self.learner.needs_teacher:
            object.__setattr__(self, "teacher", None)
        else:
            require(
                self.teacher is not None,
                f"{self.name}: the learner {type(self.learner).__name__} needs trials.teacher",
            )
            require_built(f"{self.name}: trials.teacher", self.teacher, Stage, "@resnet12/Stage()")
        self.learner.check(self.network.objective, self.test.episodes.ways)

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The stages that must be finished first."""
        return tuple(parent for parent in (self.teacher, self.network) if parent is not None)

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The test, and the validation if there is anything to choose."""
        return (self.test, self.validation) if self.learner.candidates()[1:] else (self.test,)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks whose images it reads itself."""
        return tuple(protocol.task for protocol in self.protocols)

    @property
    def seed(self) -> int:
        """The seed that draws the tasks."""
        return self.test.episodes.seed

    def settings(self) -> dict[str, Any]:
        """Returns every setting that shapes the result; see `settings.settings_of`."""
        return settings_of(self, self.parents)

    def check(self, run: Run) -> None:
        """Rejects tasks that cannot be drawn, and another row's folder, before any training.

        Raises:
            InputError: naming the option, layer or class at fault, or the settings that differ.
        """
        check_folder(self, run)
        if self.teacher:
            untrained_network(self.teacher)
        self.learner.check_network(untrained_network(self.network))
        for protocol in self.protocols:
            protocol.check(self.shots, run.data_dir)

    def networks(self, run: Run) -> Networks:
        """Loads what the learner may know beforehand."""
        teacher = loaded(self.teacher, run) if self.teacher else None
        return Networks(loaded(self.network, run), load_head(self.network, run), teacher)

    def score(self, run: Run) -> dict[str, Any]:
        """Scores the learner, or finds it scored.

        Returns:
            "scored_on", "images" (answered, of all tasks), "shots", "accuracy", the mean over the
            tasks, its "interval", half the width of the 95 % interval, "chosen", the options that
            validation has chosen, "candidates", their accuracies there, "accuracies" of all
            tasks, and "seconds".
        """
        folder = run.folder(self)
        if run.is_finished(self):
            return storage.read_json(folder / "result.json")
        started = time.monotonic()
        known = self.networks(run)
        chosen, candidates = self._choose(known, run.data_dir)
        tasks = self.test.tasks(self.shots, run.data_dir)
        accuracies = chosen.accuracies(known, _pool(self.test, run.data_dir), tasks)
        mean, interval = mean_and_interval(accuracies)
        result = {
            "scored_on": self.test.task.role,
            "images": int(tasks.query.size),
            "shots": self.shots,
            "accuracy": mean,
            "interval": interval,
            "chosen": self._varied(chosen),
            "candidates": candidates,
            "accuracies": [round(float(accuracy), 6) for accuracy in accuracies],
            "seconds": round(time.monotonic() - started, 1),
        }
        if run.is_chief:
            write_facts(self, run)
            storage.write_json(folder / "result.json", result)
        return result

    def chosen(self, run: Run) -> FewShotLearner:
        """Returns the learner that a finished row has scored.

        Raises:
            InputError: the row is not scored yet, or its file unreadable.
        """
        require(run.is_finished(self), f"{self.name} is not scored yet")
        result = storage.read_json(run.folder(self) / "result.json")
        return dataclasses.replace(self.learner, **result["chosen"])

    def _choose(self, known: Networks, data_dir: str | None) -> tuple[FewShotLearner, list[dict]]:
        """Returns the best candidate on the validation tasks, the first of equals, and all."""
        candidates = self.learner.candidates()
        if len(candidates) == 1:
            return candidates[0], []
        pool, tasks = _pool(self.validation, data_dir), self.validation.tasks(self.shots, data_dir)
        means = [
            float(np.mean(candidate.accuracies(known, pool, tasks)))
            for candidate in tqdm(candidates, f"{self.name}: choosing options")
        ]
        scored = zip(candidates, means, strict=True)
        table = [self._varied(candidate) | {"accuracy": mean} for candidate, mean in scored]
        return candidates[int(np.argmax(means))], table

    def _varied(self, candidate: FewShotLearner) -> dict[str, Any]:
        """Returns the options of a candidate that have several values in the learner."""
        values = {f.name: getattr(candidate, f.name) for f in dataclasses.fields(candidate)}
        return {name: v for name, v in values.items() if v != getattr(self.learner, name)}


@gin.register
def trials(
    name: str,
    method: str,
    learner: FewShotLearner,
    network: Stage,
    test: Protocol,
    validation: Protocol,
    teacher: Stage | None = None,
    shots: Sequence[int] = (1, 5, 10, 30),
) -> tuple[Trials, ...]:
    """Returns a row for each number of labelled images a class; see `Trials`."""
    return tuple(
        Trials(f"{name}_{k}_shot", method, k, learner, network, teacher, test, validation)
        for k in shots
    )


def mean_and_interval(accuracies: np.ndarray) -> tuple[float, float]:
    """Returns the mean of [T ≥ 2] accuracies and half the width of its 95 % interval, 1.96·s/√T."""
    deviation = np.std(accuracies, ddof=1)
    return float(np.mean(accuracies)), float(1.96 * deviation / np.sqrt(len(accuracies)))


# Rows share images and networks, and so what these make of those.
@functools.lru_cache(maxsize=2)
def _pool(protocol: Protocol, data_dir: str | None) -> Pool:
    return protocol.pool(data_dir)
