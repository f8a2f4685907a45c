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

import dataclasses
from typing import Any

import gin

from refilled_tf.common import settings
from refilled_tf.common.errors import require, require_built, require_name, require_whole
from refilled_tf.data.recipe import Recipe
from refilled_tf.data.task import Task
from refilled_tf.few_shot.base import Selection
from refilled_tf.models import networks
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
        jitter: 0 trains on the teacher's very view; 1 on a view that is drawn anew in every step,
            whichever the teacher saw; between, on a crop so far on the way from one to the other,
            as it is or mirrored. Dropped where the teacher is run: it sees what trains (Beyer et
            al., CVPR 2022).
    """

    views: int = 0
    seed: int = 0
    augmented: bool = dataclasses.field(default=True, metadata=settings.IF_SET)
    jitter: float = dataclasses.field(default=0.0, metadata=settings.IF_SET)

    def __post_init__(self):
        for name in ("views", "seed"):
            require_whole(f"teacher_cache.{name}", getattr(self, name), least=0)
        require(
            self.augmented or self.views == 1,
            f"teacher_cache.views={self.views} must be 1 where teacher_cache.augmented is False",
        )
        require(
            0 <= self.jitter <= 1, f"teacher_cache.jitter={self.jitter} must lie between 0 and 1"
        )
        if not self.views:
            object.__setattr__(self, "jitter", 0.0)


@gin.register
@dataclasses.dataclass(frozen=True)
class Stage:
    """A network to train: its task, objective, recipe, teacher and start.

    Attributes:
        name: of its folder; unique in an experiment.
        method: its name in the table of results.
        task: classes and images; its unlabelled ones are dropped where the objective takes none.
        backbone: the network under training; of a teacher maybe a `Lookup`, which has none.
        objective: what it minimises.
        recipe: how long and how fast; dropped where the objective trains nothing.
        start: the stage whose embedding weights it starts from; None starts from scratch.
        teacher: the stage whose network teaches, or several of them; dropped where the objective
            needs none.
        teacher_cache: how often the teacher is run; the default where there is none. One that is
            a `Lookup` knows un-augmented images alone, so it is one such view then.
        selection: what chooses among the epochs; None keeps the last one.
        seed: of initial weights, batches and augmentation; dropped as the recipe is.
    """

    name: str
    method: str = dataclasses.field(metadata=settings.NEVER)
    task: Task
    backbone: networks.Backbone | networks.Lookup
    objective: Objective
    recipe: Recipe | None = None
    start: Stage | None = dataclasses.field(default=None, metadata=settings.PARENT)
    teacher: Stage | tuple[Stage, ...] | None = dataclasses.field(
        default=None, metadata=settings.PARENT
    )
    teacher_cache: TeacherCache = TeacherCache()
    selection: Selection | None = dataclasses.field(
        default=None, metadata=settings.prefixed("selection ")
    )
    seed: int = 0

    def __post_init__(self):
        require_name("Stage.name", self.name)
        kinds: dict[str, tuple[Any, str]] = {
            "task": (Task, "@student()"),
            "backbone": (networks.Backbone | networks.Lookup, "@MobileNet()"),
            "objective": (Objective, "@CrossEntropy()"),
            "teacher_cache": (TeacherCache, "@teacher_cache()"),
        }
        if getattr(self.objective, "trains", True):
            kinds["recipe"] = Recipe, "@Recipe()"
        else:
            dropped: dict[str, int | None] = {"recipe": None, "selection": None}
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
            one = TeacherCache(1, augmented=False, jitter=self.teacher_cache.jitter)
            object.__setattr__(self, "teacher_cache", one)

    @property
    def parents(self) -> tuple[Stage, ...]:
        """The stages that must be finished first."""
        return (*self.teachers, *((self.start,) if self.start else ()))

    @property
    def teachers(self) -> tuple[Stage, ...]:
        """The teacher stages."""
        several = self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
        return tuple(each for each in several if each is not None)

    @property
    def training_recipe(self) -> Recipe:
        """The recipe of a stage whose objective trains."""
        assert self.recipe is not None, f"{self.name} has nothing to train"
        return self.recipe

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks whose images it reads itself."""
        return (self.task, *((self.selection.protocol.task,) if self.selection else ()))

    @property
    def looks_up(self) -> bool:
        """Whether there is a teacher without a network, which only knows embeddings of images."""
        return any(networks.looks_up(each.backbone) for each in self.teachers)

    @property
    def network(self) -> Stage:
        """The stage whose network is scored, as of every row of a table."""
        return self

    def settings(self) -> dict[str, Any]:
        """Returns every setting that shapes the result; see `settings.settings_of`."""
        return settings.settings_of(self, self.parents)

    def digest(self) -> str:
        """Returns a short hash of the settings."""
        return settings.digest(self.settings())
