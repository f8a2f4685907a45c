"""A classification task: some classes of a dataset, their training and their test images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import gin
import numpy as np
from absl import logging

from refilled_tf.common import settings
from refilled_tf.common.errors import (
    InputError,
    details,
    gin_param,
    listed,
    require,
    require_built,
    require_choice,
    require_whole,
)
from refilled_tf.data import pixels, splits
from refilled_tf.data.sources import Index, Source


class Images(Protocol):
    """Images [N, S, S, 3] uint8: an array in memory, or files that are decoded when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, 3)."""

    def __getitem__(self, rows) -> np.ndarray:
        """Returns some images, by a slice or an array of rows."""


class Examples(NamedTuple):
    """Images and what is known of them.

    Attributes:
        images: [N, S, S, 3] uint8.
        labels: [N] int32, 0 … C-1, positions in the task's class names; -1 without a label.
        keys: [N] strings that identify the images in their dataset.
    """

    images: Images
    labels: np.ndarray
    keys: np.ndarray


class TaskData(NamedTuple):
    """A task's images. `scored_on` names what `test` is: "test" or "validation"."""

    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    scored_on: str


@gin.register
@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset and how it is cut, loaded and augmented, for teacher and student alike.

    Attributes:
        source: where images come from.
        class_split: which classes teach, which are learnt and which, if any, are for validation.
        num_classes: only the first so many classes take part; None takes all.
        train_fraction: share of each class's images that train; None keeps the dataset's split.
        split_seed: seed of the instance splits.
        image_size: side of a student's input, in pixels.
        load_size: side to which images are resized when loaded; training takes random crops of
            them, scoring the centre.
        view_size: side of these crops, where a given teacher is to see them in a higher resolution
            than networks that train, for which they are resized to image_size; None for
            image_size.
        min_crop: where training crops are to vary in size: their smallest side, as a share of the
            padded image's; sides are drawn evenly from there to the whole, and crops resized.
            None cuts them out at their final size.
        pad: black pixels added on every edge before the random crop.
        flip: whether training images are mirrored at random.
        on_corrupt: what to do with an undecodable image: "error" stops, "skip" leaves it out.
    """

    source: Source
    class_split: Callable[..., splits.ClassSplit]
    num_classes: int | None = None
    train_fraction: float | None = None
    split_seed: int = 0
    image_size: int = 224
    load_size: int = 256
    view_size: int | None = dataclasses.field(default=None, metadata=settings.IF_SET)
    min_crop: float | None = dataclasses.field(default=None, metadata=settings.IF_SET)
    pad: int = 0
    flip: bool = True
    on_corrupt: Literal["error", "skip"] = dataclasses.field(
        default="error", metadata=settings.NEVER
    )

    def __post_init__(self):
        require_built("Data.source", self.source, Source, "@ImageFolder()")
        require_built("Data.class_split", self.class_split, Callable, "@RandomHalves()")
        for name, least in (
            ("image_size", 1), ("load_size", 1), ("view_size", 1), ("num_classes", 0),
            ("pad", 0), ("split_seed", 0),
        ):  # fmt: skip
            if getattr(self, name) is not None:
                require_whole(f"Data.{name}", getattr(self, name), least)
        require(
            self.load_size >= self.image_size,
            f"Data.load_size={self.load_size} must be at least Data.image_size={self.image_size}",
        )
        require(
            self.load_size >= self.crop_size >= self.image_size,
            f"Data.view_size={self.view_size} must lie between Data.image_size={self.image_size} "
            f"and Data.load_size={self.load_size}, or be None",
        )
        require(
            self.min_crop is None or 0 < self.min_crop <= 1,
            f"Data.min_crop={self.min_crop} must lie in (0, 1], or be None for crops of one size",
        )
        require(
            self.train_fraction is None or 0 < self.train_fraction < 1,
            f"Data.train_fraction={self.train_fraction} must lie between 0 and 1, or be None "
            "for the dataset's own split",
        )
        require_choice(self, "on_corrupt")

    @property
    def crop_size(self) -> int:
        """Side of the crops, before networks that take smaller images have them resized."""
        return self.view_size or self.image_size


@dataclasses.dataclass(frozen=True)
class Task:
    """One side of a cross-task experiment.

    Attributes:
        data: the dataset.
        role: whose classes: "teacher" (SEEN in few-shot learning, meta-train), "student" (UNSEEN,
            meta-test) or "validation" (meta-val), which a class split need not have.
        images_per_class: labelled training images a class; None takes all there are.
        holdout: share of these held out for validation. When positive, models are trained on
            the rest and scored on these, and the test images are not touched: this is how
            hyper-parameters are chosen.
        unlabelled: where further training images come from, whose labels, if there are any, are
            not read: tasks, of which the training images count, and sources, of which all do. See
            unlabelled.py.
    """

    data: Data
    role: str
    images_per_class: int | None = None
    holdout: float = 0.0
    unlabelled: tuple[Task | Source, ...] = dataclasses.field(default=(), metadata=settings.IF_SET)

    def __post_init__(self):
        require_built(f"{self.role}.data", self.data, Data, "@Data()")
        parts = self.unlabelled
        parts = tuple(parts) if isinstance(parts, list | tuple) else (parts,)
        for part in parts:
            require_built(f"{self.role}.unlabelled", part, Task | Source, "[@teacher()]")
        object.__setattr__(self, "unlabelled", parts)
        if self.images_per_class is not None:
            require_whole(f"{self.role}.images_per_class", self.images_per_class)
        require(0 <= self.holdout < 1, f"{self.role}.holdout={self.holdout} must lie in [0, 1)")


@gin.register
def teacher(data: Data, images_per_class: int | None = None, holdout: float = 0.0) -> Task:
    """Returns the teacher's task: `teacher.images_per_class` in a gin file."""
    return Task(data, "teacher", images_per_class, holdout)


@gin.register
def student(
    data: Data,
    images_per_class: int | None = None,
    holdout: float = 0.0,
    unlabelled: tuple[Task | Source, ...] = (),
) -> Task:
    """Returns the student's task: `student.images_per_class` in a gin file."""
    return Task(data, "student", images_per_class, holdout, unlabelled)


@gin.register
def validation(data: Data, images_per_class: int | None = None, holdout: float = 0.0) -> Task:
    """Returns the task of the validation classes: `validation.images_per_class` in a gin file."""
    return Task(data, "validation", images_per_class, holdout)


class Partition(NamedTuple):
    """The rows of an index that make up a task.

    Attributes:
        classes: [C] class ids of the dataset, ascending.
        train: rows that train.
        test: rows that are scored.
        class_names: of `classes`.
    """

    classes: np.ndarray
    train: np.ndarray
    test: np.ndarray
    class_names: tuple[str, ...]


def select(task: Task, index: Index) -> Partition:
    """Cuts a dataset's index down to a task: classes, instance split, holdout, few images.

    Raises:
        InputError: naming the classes that overlap, are missing or lack images.
    """
    data = task.data
    num_classes = len(index.class_names) if data.num_classes is None else data.num_classes
    require(
        2 <= num_classes <= len(index.class_names),
        f"Data.num_classes={data.num_classes} must lie between 2 and the dataset's "
        f"{len(index.class_names)}",
    )
    present = np.bincount(index.labels, minlength=len(index.class_names)) > 0
    absent = np.flatnonzero(~present[:num_classes])
    require(
        len(absent) == 0,
        f"{len(absent)} of the {num_classes} classes have no images in the dataset, such as "
        f"{index.class_names[absent[0]] if len(absent) else ''!r}; "
        f"Data.num_classes={int(np.argmin(present)) or None} would take only those before it",
    )
    superclasses = index.superclasses[:num_classes] if index.superclasses else None
    split = data.class_split(index.class_names[:num_classes], superclasses)
    splits.check_class_split(split, index.class_names)
    require(
        len(getattr(split, task.role)) > 0,
        f"Data.class_split gives no {task.role} classes; ListedClasses, ListedSuperclasses and "
        "RandomParts can",
    )
    classes = np.array(getattr(split, task.role))

    trains = index.trains
    if data.train_fraction is not None:
        trains = splits.training_rows(
            index.keys, index.labels, data.train_fraction, data.split_seed
        )
    mine = np.isin(index.labels, classes)
    train, test = np.flatnonzero(mine & trains), np.flatnonzero(mine & ~trains)
    if task.images_per_class is not None:
        train = train[
            splits.first_rows_per_class(
                index.keys[train], index.labels[train], task.images_per_class, data.split_seed
            )
        ]
    if task.holdout:
        kept = splits.training_rows(
            index.keys[train], index.labels[train], 1 - task.holdout, data.split_seed + 1
        )
        train, test = train[kept], train[~kept]
    names = tuple(index.class_names[c] for c in classes)
    broken = [name for name in names if name.splitlines() != [name]]
    require(not broken, f"the name of class {broken[:1]} is not a single line; rename the class")
    for what, rows in (("training", train), ("validation" if task.holdout else "test", test)):
        empty = np.setdiff1d(classes, index.labels[rows])
        short = [f"{index.class_names[c]!r} ({np.sum(index.labels == c)} images)" for c in empty]
        advice = f"change Data.train_fraction, {task.role}.images_per_class or {task.role}.holdout"
        if data.train_fraction is None:
            advice = "have another one drawn by --gin_param='Data.train_fraction = 0.8'"
        require(
            not short,
            f"the split leaves class {listed(short)} without {what} images; add images, or "
            f"{advice}",
            details(short),
        )
    return Partition(classes, train, test, names)


@functools.lru_cache(maxsize=2)
def read_index(source: Source, data_dir: str | None) -> Index:
    """Reads a source's facts, once for teacher and student."""
    return source.index(data_dir)


@functools.lru_cache(maxsize=3)
def load(task: Task, data_dir: str | None = None) -> TaskData:
    """Reads and decodes a task's images.

    Args:
        task: what to load.
        data_dir: the folder of prepared TFDS datasets; None for TFDS's default.

    Returns:
        Training and test images with labels 0 … C-1.

    Raises:
        InputError: the dataset is missing, the split impossible, or an image undecodable and
            `Data.on_corrupt` is "error".
    """
    data = task.data
    index = read_index(data.source, data_dir)
    selection = select(task, index)
    rows = np.concatenate([selection.train, selection.test])
    images, readable = data.source.images(index.keys[rows], data.load_size, data_dir)
    corrupt = index.keys[rows][~readable]
    if len(corrupt):
        message = f"{len(corrupt)} image(s) cannot be decoded: "
        if data.on_corrupt == "error":
            named = _with_faults(data.source, corrupt, data_dir)
            raise InputError(
                f"{message}{listed(named)}. To leave them out: "
                f"{gin_param('Data.on_corrupt', 'skip')}",
                details(named),
            )
        logging.warning("skipped: %s", message + ", ".join(corrupt))

    def examples(part: np.ndarray, start: int) -> Examples:
        kept = readable[start : start + len(part)]
        part, decoded = part[kept], images[start : start + len(kept)]
        labels = np.searchsorted(selection.classes, index.labels[part]).astype(np.int32)
        return Examples(decoded if kept.all() else decoded[kept], labels, index.keys[part])

    train = examples(selection.train, 0)
    test = examples(selection.test, len(selection.train))
    for part in (train, test):
        lost = np.setdiff1d(np.arange(len(selection.classes)), part.labels)
        require(
            len(lost) == 0,
            f"the {len(corrupt)} image(s) that cannot be decoded leave class "
            f"{selection.class_names[lost[0]] if len(lost) else ''!r} without training or without "
            "test images",
        )
    return TaskData(train, test, selection.class_names, "validation" if task.holdout else "test")


def _with_faults(source: Source, keys: np.ndarray, data_dir: str | None) -> list[str]:
    """Returns the keys of undecodable images, each with what is wrong as far as Pillow tells."""
    named = keys.tolist()
    for row, encoded in source.encoded(keys, data_dir):
        try:
            pixels.decode(encoded)
        except InputError as error:
            named[row] += f" ({error})"
    return named
