"""The folders of an experiment, with their locks and their stage.json."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import filelock
import tensorflow as tf

from refilled_tf.common import settings, stack, storage
from refilled_tf.common.errors import InputError, require
from refilled_tf.common.settings import Named
from refilled_tf.experiment.stage import Stage


@dataclasses.dataclass(frozen=True)
class Run:
    """The place and the strategy of an experiment.

    Attributes:
        work_dir: the folder that holds the stages' folders; shared by all workers.
        data_dir: of prepared TFDS datasets; None for TFDS's default.
        strategy: how a step is distributed.
        pooled: whether folders carry the digest of their stage, so that many experiments can share
            the work_dir, and the stages that are equal.
        deadline: when to stop after the epoch under way, on the clock of `time.monotonic`.
    """

    work_dir: Path
    data_dir: str | None
    strategy: tf.distribute.Strategy
    pooled: bool = False
    deadline: float | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes: the only one, the chief, or worker 0."""
        resolver = self.strategy.cluster_resolver
        if resolver is None or not resolver.task_type:
            return True
        chief = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
        return (resolver.task_type, resolver.task_id) == (chief, 0)

    def folder(self, spec: Named) -> Path:
        """Returns the folder of a stage, or of a row with results of its own."""
        name = f"{spec.name}-{settings.digest(spec.settings())}" if self.pooled else spec.name
        return self.work_dir / "stages" / name

    def lock(self, spec: Named) -> filelock.BaseFileLock:
        """Returns what to hold while working in a folder; it goes with the process that holds it.

        The same object for the same folder, so that who holds it may take it once more.
        """
        folder = self.folder(spec)
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f".{folder.name}.lock")
        # A soft lock would outlive its process.
        return filelock.FileLock(file, is_singleton=True, fallback_to_soft=False)

    def cache_folder(self, stage: Stage, teacher: Stage) -> Path:
        """Returns where one of its teachers' outputs for the stage's views are, or will be."""
        asked = dataclasses.replace(stage.teacher_cache, jitter=0.0)
        shared = settings.flatten(stage.task) | settings.flatten(asked)
        return self.folder(teacher) / "cache" / settings.digest(shared)

    def is_finished(self, spec: Named) -> bool:
        """Whether a stage is trained and scored, or a row scored."""
        return (self.folder(spec) / "result.json").exists()

    def wait_for_all(self) -> None:
        """Returns when every worker has come here."""
        if isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            tf.function(self.strategy.run)(
                lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.ones(()))
            )

    def leave_together(self) -> None:
        """Returns when every worker has finished its part and this process may end."""
        # A worker that ends first takes its end of the connection with it, where another may not
        # have heard yet that all are here. They are: nobody ends before all have come.
        with contextlib.suppress(tf.errors.UnavailableError):
            self.wait_for_all()


def check_folder(stage: Named, run: Run) -> None:
    """Rejects a folder that other settings have made.

    Raises:
        InputError: naming the settings that differ.
    """
    folder = run.folder(stage)
    found = differing_settings(stage, run)
    require(
        not found,
        f"{folder} was made with other settings: {'; '.join(found.values())}. Take another "
        "--work_dir, or delete that folder to train the stage again",
    )


def differing_settings(stage: Named, run: Run) -> dict[str, str]:
    """Returns the settings of a stage that differ from those that have made its folder, in words.

    Raises:
        InputError: the folder's stage.json holds no settings.
    """
    path = run.folder(stage) / "stage.json"
    if not path.exists():
        return {}
    facts = storage.read_json(path)
    there = facts.get("settings") if isinstance(facts, dict) else None
    if not isinstance(there, dict):
        raise InputError(
            f"{path} holds no settings of a stage; delete {path.parent} to train the stage again"
        )
    return settings.differing(there, stage.settings(), settings.unlisted(stage))


def write_facts(spec: Named, run: Run, **more: Any) -> None:
    """Writes stage.json: the settings, the versions that have worked on it in turn, and more."""
    versions, now = recorded_versions(spec, run), stack.versions()
    if now not in versions[-1:]:
        versions.append(now)
    facts = {"settings": spec.settings(), "versions": versions}
    storage.write_json(run.folder(spec) / "stage.json", facts | more)


def recorded_versions(spec: Named, run: Run) -> list[dict[str, str]]:
    """Returns what `stack.versions` was whenever a folder was worked on, without repetitions."""
    path = run.folder(spec) / "stage.json"
    return storage.read_json(path).get("versions", []) if path.exists() else []
