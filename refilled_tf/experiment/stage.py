"""A stage: what is trained on which task with which objective, and the folder it has to itself.

FOLDER/stage.json       what made it: every setting that matters, its parents' digests, and versions
FOLDER/checkpoints/     the last saved epochs, while it trains
FOLDER/cache/           of a teacher: its outputs for fixed views, see teacher_cache.py
FOLDER/logs/            TensorBoard
FOLDER/history.csv      the loss and its parts, epoch by epoch
FOLDER/model.keras      the trained network; this Keras 2 reads it, or a later one
FOLDER/head.keras       what an objective for few-shot learning has trained on top of the embedding
FOLDER/predictions.csv  what a classifier makes of each image that it is scored on
FOLDER/result.json      scores and cost; written last, so it marks the stage as finished
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import filelock
import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common import stack, storage
from refilled_tf.common.errors import require, require_built, require_name, require_whole
from refilled_tf.data import batches, unlabelled
from refilled_tf.data.recipe import Recipe
from refilled_tf.data.task import Task, load, read_index, select
from refilled_tf.few_shot.base import Selection
from refilled_tf.models import networks
from refilled_tf.models.embedding_files import EmbeddingFile
from refilled_tf.models.onnx_files import OnnxFile
from refilled_tf.objectives.base import Objective


@gin.register("teacher_cache")
@dataclasses.dataclass(frozen=True)
class TeacherCache:
    """Whether the teacher is asked in every step, or once about a few views of each image.

    Attributes:
        views: K, how many fixed augmentations of an image there are; 0 augments afresh in every
            step and runs the teacher.
        seed: of the views; stages that share it, a task and a teacher share their cache.
        augmented: False makes the one view the centre crop, as it is scored.
    """

    views: int = 0
    seed: int = 0
    augmented: bool = True

    def __post_init__(self):
        for name in ("views", "seed"):
            require_whole(f"teacher_cache.{name}", getattr(self, name), least=0)
        require(
            self.augmented or self.views == 1,
            f"teacher_cache.views={self.views} must be 1 where teacher_cache.augmented is False",
        )


@gin.register
@dataclasses.dataclass(frozen=True)
class Stage:
    """What to train, on what, how, and starting from where.

    Attributes:
        name: of its folder; unique in an experiment.
        method: its name in the table of results.
        task: classes and images; its unlabelled ones are dropped where the objective takes none.
        backbone: the network under training.
        objective: what it minimises.
        recipe: how long and how fast; dropped where the objective trains nothing.
        start: the stage whose embedding weights it starts from; None starts from scratch.
        teacher: the stage whose network teaches, or several of them; dropped where the objective
            needs none.
        teacher_cache: how often the teacher is run; the default where there is none. One that is
            an `EmbeddingFile` knows un-augmented images alone, so it is one such view then.
        selection: what chooses among the epochs; None keeps the last one.
        seed: of initial weights, batches and augmentation; dropped as the recipe is.
    """

    name: str
    method: str
    task: Task
    backbone: networks.Backbone
    objective: Objective
    recipe: Recipe | None = None
    start: Stage | None = None
    teacher: Stage | tuple[Stage, ...] | None = None
    teacher_cache: TeacherCache = TeacherCache()
    selection: Selection | None = None
    seed: int = 0

    def __post_init__(self):
        require_name("Stage.name", self.name)
        kinds = {
            "task": (Task, "@student()"),
            "backbone": (networks.Backbone, "@MobileNet()"),
            "objective": (Objective, "@CrossEntropy()"),
            "teacher_cache": (TeacherCache, "@teacher_cache()"),
        }
        if getattr(self.objective, "trains", True):
            kinds["recipe"] = Recipe, "@Recipe()"
        else:
            dropped = {"recipe": None, "selection": None}
            if not self.objective.refits:
                dropped |= {"start": None, "seed": 0}
            for option, none in dropped.items():
                object.__setattr__(self, option, none)
        if self.selection is not None:
            kinds["selection"] = Selection, "@Selection()"
        for option, (kind, example) in kinds.items():
            require_built(f"{self.name}/Stage.{option}", getattr(self, option), kind, example)
        require_whole("Stage.seed", self.seed, least=0)
        require(self.seed < 2**31, f"Stage.seed={self.seed} must lie in [0, 2³¹)")
        if self.start is not None:
            require_built(f"{self.name}/Stage.start", self.start, Stage, "@triplet/Stage()")
        require(
            self.start is not None or not self.objective.refits,
            f"stage {self.name!r} has the objective Refit, which needs Stage.start",
        )
        if self.selection:
            self.selection.learner.check(self.objective, self.selection.protocol.episodes.ways)
        if not (self.objective.trains and self.objective.takes_unlabelled):
            object.__setattr__(self, "task", dataclasses.replace(self.task, unlabelled=()))
        if self.recipe is not None and not self.task.unlabelled:
            unused = {name: getattr(Recipe, name) for name in ("unlabelled_share", "mixup")}
            object.__setattr__(self, "recipe", dataclasses.replace(self.recipe, **unused))
        if not self.objective.needs_teacher:
            object.__setattr__(self, "teacher", None)
            object.__setattr__(self, "teacher_cache", TeacherCache())
        if isinstance(self.teacher, list | tuple):
            several = tuple(self.teacher)
            first = next(iter(several), None)
            object.__setattr__(self, "teacher", several if len(several) > 1 else first)
        for teacher in self.teachers:
            require_built(f"{self.name}/Stage.teacher", teacher, Stage, "@teacher/Stage()")
        require(
            not self.objective.needs_teacher or self.teacher is not None,
            f"stage {self.name!r} has the objective {type(self.objective).__name__}, which needs "
            f"Stage.teacher",
        )
        names = [teacher.name for teacher in self.teachers]
        require(len(set(names)) == len(names), f"Stage.teacher names {names}: one of them twice")
        self.objective.check_teachers(len(names))
        if self.looks_up:
            object.__setattr__(self, "teacher_cache", TeacherCache(1, augmented=False))

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The stages that must be finished first."""
        return (*self.teachers, *((self.start,) if self.start else ()))

    @property
    def teachers(self) -> tuple[Stage, ...]:
        """Those who teach."""
        several = self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
        return tuple(each for each in several if each is not None)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Whose images it reads itself."""
        return (self.task, *((self.selection.protocol.task,) if self.selection else ()))

    @property
    def looks_up(self) -> bool:
        """Whether there is a teacher without a network, which only knows embeddings of images."""
        return any(isinstance(each.backbone, EmbeddingFile) for each in self.teachers)

    @property
    def network(self) -> Stage:
        """The stage whose network is scored, as of every row of a table."""
        return self

    def settings(self) -> dict[str, Any]:
        """Returns every setting that shapes the result; see `settings_of`."""
        return settings_of(self, self.parents)

    def digest(self) -> str:
        """Returns a short hash of the settings."""
        return _digest(self.settings())


def settings_of(spec: Any, parents: Iterable[Stage]) -> dict[str, Any]:
    """Returns all settings of a dataclass and those nested in it, as {"Class.option": value}.

    Args:
        spec: the dataclass.
        parents: the stages it builds on, which stand as their names and digests.
    """
    return _flatten(spec) | {f"parent {parent.name}": parent.digest() for parent in parents}


def _digest(settings: dict[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# The name in the table, what to do with images that a finished stage has not met, and where a
# file lies whose content is a setting, and whether its code may run.
_NO_SETTINGS = (
    "Stage.method",
    "Probe.method",
    "Trials.method",
    "Data.on_corrupt",
    "KerasFile.file",
    "KerasFile.trusted",
    "Application.weights",
    "FromWeights.weights",
    "EmbeddingFile.file",
    "OnnxFile.file",
    "ImageFolder.folder",
    "PhotoFolder.folder",
    "ExampleFiles.train",
    "ExampleFiles.test",
)

# Options that are listed only where they are set, so that a folder from before there were any is
# still known to be made with the same settings.
LISTED_IF_SET = (
    "ImageFolder.on_conflict",
    "Data.view_size",
    "Data.min_crop",
    "Task.unlabelled",
    "Recipe.steps",
    "Recipe.unlabelled_share",
    "Recipe.mixup",
    "TeacherCache.augmented",
    "RelationshipMatching.teacher_weights",
    "RelationshipMatching.neighbors",
    "LocalDistillation.teacher_weights",
)

# What has a task of its own beside the task of its owner, or beside another one.
_PREFIXES = {
    "Stage.selection": "selection ",
    "Trials.test": "test ",
    "Trials.validation": "validation ",
}


def _flatten(spec: Any) -> dict[str, Any]:
    """Lists the options of a nested dataclass under their gin names; stages are left out."""
    owner = type(spec).__name__
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        name = f"{owner}.{field.name}"
        if isinstance(value, Stage) or name in _NO_SETTINGS:
            continue
        if name == "Stage.teacher" and value is not None:
            flat[name] = [teacher.name for teacher in value]  # several, in the order of their τ
            continue
        if name in LISTED_IF_SET and value == field.default:
            continue
        if name == "Task.unlabelled":
            flat[name] = [{"kind": type(part).__name__} | _flatten(part) for part in value]
            continue
        if dataclasses.is_dataclass(value):
            flat[name] = type(value).__name__
            prefix = _PREFIXES.get(name, "")
            flat |= {prefix + option: x for option, x in _flatten(value).items()}
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


class Named(Protocol):
    """What has a folder: a stage, or a row with results of its own.

    Attributes:
        name: of the folder.
    """

    name: str

    def settings(self) -> dict[str, Any]:
        """Returns every setting that shapes the result."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Where an experiment runs.

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
        name = f"{spec.name}-{_digest(spec.settings())}" if self.pooled else spec.name
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
        settings = _flatten(stage.task) | _flatten(stage.teacher_cache)
        return self.folder(teacher) / "cache" / _digest(settings)

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


def check(stage: Stage, run: Run) -> None:
    """Refuses what cannot be trained, before anything is: folder, data, batches.

    Raises:
        InputError: naming the option, class or dataset at fault.
    """
    check_folder(stage, run)
    index = read_index(stage.task.data.source, run.data_dir)
    selection = select(stage.task, index)
    for known in (stage, *stage.teachers):
        if isinstance(known.backbone, EmbeddingFile):
            known.backbone.embeddings(index.keys[[*selection.train, *selection.test]])
    if not stage.objective.trains:
        if stage.objective.refits:
            networks.require_same_weights(untrained_network(stage.start), untrained_network(stage))
        elif not isinstance(stage.backbone, EmbeddingFile):
            untrained_network(stage)
        return
    recipe, replicas = stage.recipe, run.strategy.num_replicas_in_sync
    require(
        recipe.batch_size >= replicas and recipe.batch_size % replicas == 0,
        f"Recipe.batch_size={recipe.batch_size} must be a multiple of the {replicas} replicas",
    )
    stage.objective.check_batches(recipe, replicas)
    further = 0
    if stage.task.unlabelled:
        examples = unlabelled.load(stage.task, run.data_dir).examples
        further = len(examples.labels)
        require(
            recipe.unlabelled % replicas == 0,
            f"Recipe.unlabelled_share={recipe.unlabelled_share} of Recipe.batch_size="
            f"{recipe.batch_size} is {recipe.unlabelled} images, which must be a multiple of the "
            f"{replicas} replicas",
        )
        require(
            not recipe.mixup or not stage.teacher_cache.views,
            f"Recipe.mixup={recipe.mixup} makes new images in every step, of which a teacher cache "
            "knows nothing; set --gin_param='teacher_cache.views = 0'",
        )
        for teacher in stage.teachers:
            if isinstance(teacher.backbone, EmbeddingFile):
                teacher.backbone.embeddings(examples.keys)
    batches.order(index.labels[selection.train], further, recipe, stage.seed, 0, 1)
    if stage.objective.shares_classes:
        teacher = stage.teacher.task
        known = select(teacher, read_index(teacher.data.source, run.data_dir)).class_names
        require(
            stage.teacher.objective.classifies and known == selection.class_names,
            f"stage {stage.name!r} has the objective {type(stage.objective).__name__}, whose "
            "teacher must have learnt the student's classes; take "
            "--gin_param='Data.class_split = @SharedClasses()', or a cross-task objective",
        )
    network = untrained_network(stage)
    require(
        bool(network.trainable_weights),
        f"stage {stage.name!r} is to train a network of {type(stage.backbone).__name__}, which has "
        "no weights that Keras could train; it can teach (Stage.teacher) and be probed",
    )
    if stage.start:
        networks.require_same_weights(untrained_network(stage.start), network)
    if stage.selection:
        stage.selection.check(network, run.data_dir)
    if stage.objective.features:
        sides = (network, untrained_network(stage.teacher))
        stage.objective.adapter(
            *(networks.feature_shapes(side, stage.objective.features) for side in sides)
        )


def untrained_network(stage: Stage) -> tf.keras.Model:
    """Builds a stage's embedding network as it is before any training.

    Raises:
        InputError: the backbone does not take images of that size.
    """
    data = stage.task.data
    objective = stage.objective
    size = data.image_size if objective.trains or objective.refits else data.crop_size
    return _fresh_network(stage.backbone, size)


# Most stages of an experiment share their network.
@functools.lru_cache(maxsize=8)
def _fresh_network(backbone: networks.Backbone, image_size: int) -> tf.keras.Model:
    return networks.embedding_network(backbone, image_size)


def check_folder(stage: Named, run: Run) -> None:
    """Refuses to go on with a folder that other settings have made.

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
    require(
        isinstance(there, dict),
        f"{path} holds no settings of a stage; delete {path.parent} to train the stage again",
    )
    return differing(there, stage.settings())


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


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """Lists in words how settings read from a file differ from the present ones; "" if nowhere."""
    return "; ".join(differing(there, now).values())


def differing(there: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Says in words, by name, how settings read from a file differ from the present ones."""
    # Through JSON, as what is compared with has been.
    now = json.loads(json.dumps(now))
    there = {name: value for name, value in there.items() if name not in _NO_SETTINGS}
    return {
        name: f"{name} = {there.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    }


def load_head(stage: Stage, run: Run) -> tf.keras.Model | None:
    """Loads what a finished stage has trained on top of its embedding; None if nothing.

    Raises:
        InputError: as `load_network`.
    """
    return _load(stage, run, "head.keras") if stage.objective.head(1) is not None else None


def load_network(stage: Stage, run: Run) -> tf.keras.Model:
    """Loads a finished stage's network.

    Raises:
        InputError: the stage is not finished or its file unreadable.
    """
    if isinstance(stage.backbone, OnnxFile):
        # No Keras file can hold it. That it is still the file of its stage, `check_folder` sees.
        return untrained_network(stage)
    return _load(stage, run, "model.keras")


def read_history(path: Path) -> dict[str, np.ndarray]:
    """Reads a stage's history.csv; an epoch that was trained again after a crash counts once."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = {int(line["epoch"]): line for line in csv.DictReader(file)}
    epochs = sorted(lines)
    # Keras adds a column of NA for a validation that there is none of.
    names = [name for name, value in lines[epochs[0]].items() if value != "NA"]
    return {name: np.array([float(lines[epoch][name]) for epoch in epochs]) for name in names}


# Rows and stages ask the same again, and a large teacher takes its time.
@functools.lru_cache(maxsize=8)
def outputs(stage: Stage, run: Run, task: Task, part: str) -> dict[str, np.ndarray]:
    """Returns what a finished stage's network makes of un-augmented images.

    Args:
        stage: the stage.
        run: where.
        task: whose images.
        part: "train" or "test".

    Returns:
        "embedding" [N, d] and maybe "logits" [N, C], float32; not to be written to.

    Raises:
        InputError: as `load_network`, or as `EmbeddingFile.embeddings`.
    """
    examples = getattr(load(task, run.data_dir), part)
    if isinstance(stage.backbone, EmbeddingFile):
        return {"embedding": stage.backbone.embeddings(examples.keys)}
    crops = batches.scoring_batches(examples, task.data.crop_size)
    return networks.outputs_of(load_network(stage, run), crops)


def _load(stage: Stage, run: Run, file: str) -> tf.keras.Model:
    path = run.folder(stage) / file
    require(path.exists(), f"{path} is missing: stage {stage.name!r} is not finished")
    advice = f"delete {path.parent} to train the stage again"
    return stack.load_keras(path, str(path), advice, getattr(stage.backbone, "trusted", False))
