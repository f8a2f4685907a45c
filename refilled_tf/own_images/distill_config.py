"""From the options of a distill command to the gin file that it stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from refilled_tf.common.errors import require
from refilled_tf.common.settings import is_unset
from refilled_tf.data.image_folder import ImageFolder
from refilled_tf.data.sources import Source
from refilled_tf.data.splits import SharedClasses
from refilled_tf.data.task import Data, Task, student
from refilled_tf.experiment import config
from refilled_tf.models import networks
from refilled_tf.own_images import candidates, pools, students, teachers, tuning

BASE = "methods/own_images.gin"
TRAIN_FRACTION = 0.8
QUICK_VIEWS = 2  # for a first look


def task_of(images: str, data_dir: str | None) -> Task:
    """Finds out what --images means.

    Args:
        images: a folder, or the name of a TFDS dataset.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.

    Returns:
        The task of all its classes, with images of any size.

    Raises:
        InputError: it is neither, or none that this can make out.
    """
    source: Source
    if Path(images).expanduser().is_dir():
        source = ImageFolder(str(Path(images).expanduser().resolve()))
        split = source.survey().has_splits
    else:
        pools.require_images(images)
        source = pools.tfds_source("--images", images, data_dir)
        require(
            "train" in source.builder(data_dir).info.splits,
            f"--images={images} has no split train, from which a student could learn",
        )
        split = len(source.splits) > 1
    return student(Data(source, SharedClasses(), train_fraction=None if split else TRAIN_FRACTION))


def check_choices(widths: Sequence[float], params: Sequence[str], tune: int) -> None:
    """Rejects invalid widths, and settings that trials choose.

    Args:
        widths: as --width gives them.
        params: as --gin_param gives them.
        tune: the number of trials that choose.

    Raises:
        InputError: naming the option.
    """
    config.require_quotes(params)
    for width in widths:
        require(width > 0, f"--width={width} must be positive, such as 0.25")
    require(
        len(widths) == 1 or tune > 0,
        f"--width is given {len(widths)} times; give it once, or let --tune=10 choose",
    )
    for param in params:
        require(
            not tune or config.option_of(param) not in tuning.RANGES,
            f"--gin_param={param!r} is what --tune={tune} chooses; give one of the two",
        )


def settings(
    task: Task,
    teacher: teachers.Teacher,
    student: students.Student,
    image_size: int,
    unlabelled: Sequence[Task | Source] = (),
) -> list[str]:
    """Writes what the command's options mean in gin, after methods/own_images.gin.

    Args:
        task: as `task_of` returns it.
        teacher: as `teachers.parse` returns it.
        student: as `students.parse` returns it.
        image_size: side of the student's images in pixels.
        unlabelled: as `pools.parse` returns them.

    Returns:
        Single settings.

    Raises:
        InputError: there is no such size, or the teacher's network cannot be built.
    """
    require(image_size >= 1, f"--image_size={image_size} must be positive, such as 96")
    return [
        *_source_lines(task.data.source),
        f"Data.train_fraction = {task.data.train_fraction}",
        *(f"Data.{name} = {value}" for name, value in sizes(teacher, image_size).items()),
        *teachers.gin_lines(teacher),
        *_trained_teacher_lines(teacher, image_size),
        *students.gin_lines(student),
        *(pools.gin_lines(unlabelled, candidates.WITH_POOL) if unlabelled else ()),
    ]


def _trained_teacher_lines(teacher: teachers.Teacher, image_size: int) -> list[str]:
    """Returns gin lines that set the networks of the rows fine_tune and teacher_head."""
    if not networks.in_keras(teacher):
        return []
    backbone = f"@teacher/{type(teacher).__name__}()"
    return [
        f"fine_tune/Stage.backbone = {backbone}",
        f"{candidates.HEAD}/Stage.backbone = {backbone}",
        f"{candidates.HEAD}/Data.image_size = {view_size(teacher, image_size)}",
        f"{candidates.HEAD}/Data.view_size = None",
    ]


def gin_text(
    opening: Sequence[str], params: Sequence[str], lengths: dict[str, Any], given: Sequence[str]
) -> str:
    """Writes the gin file.

    Args:
        opening: of comments, each of a line or several.
        params: as `settings` returns them.
        lengths: as the function of that name returns them.
        given: single settings of the user's, which come last.

    Returns:
        Gin text.
    """
    blocks = [
        [*(f"# {line}" for text in opening for line in text.splitlines()), f"include '{BASE}'"],
        params,
        # The first whatever the lengths: steps that a user gives must suit it.
        [
            f"Recipe.epochs = {candidates.EPOCHS}",
            *(f"{name} = {value}" for name, value in lengths.items()),
        ],
        given,
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def task_in(text: str, params: Sequence[str] = ()) -> Task:
    """Returns the student's task as a gin file's text describes it.

    Args:
        text: of the file.
        params: the settings in it that somebody has given, which must have an effect.

    Raises:
        InputError: as `config.load_experiment` says.
    """
    stages = config.load_text(text, params).stages()
    return next(stage.task for stage in stages if stage.task.role == "student")


class Sizes(TypedDict):
    """The options of `Data` that are sizes."""

    image_size: int
    view_size: int | None
    load_size: int


def sizes(teacher: teachers.Teacher, image_size: int) -> Sizes:
    """Returns the options of `Data` that are sizes.

    Args:
        teacher: as `teachers.parse` returns it.
        image_size: side of the student's images.

    Raises:
        InputError: the teacher's network cannot be built.
    """
    view = view_size(teacher, image_size)
    return {
        "image_size": image_size,
        "view_size": view if view > image_size else None,
        "load_size": round(view * 8 / 7),
    }


def view_size(teacher: teachers.Teacher, image_size: int) -> int:
    """Returns the side of the crops: what the teacher was made for, if that is more.

    Args:
        teacher: as `teachers.parse` returns it.
        image_size: side of the student's images.
    """
    if networks.looks_up(teacher):
        return image_size
    network = networks.embedding_network(teacher, image_size).get_layer("pretrained")
    return max(image_size, network.input_shape[1] or image_size)


def lengths(images: int, steps: int, views: int) -> dict[str, Any]:
    """Returns the settings that go with a number of steps and of images.

    Args:
        images: labelled ones that train, without those that candidates are scored on.
        steps: of a training; a multiple of `candidates.EPOCHS`.
        views: of each image, which the teacher is asked about beforehand, and not in every step.
    """
    return {
        "Recipe.steps": steps,
        "Recipe.batch_size": min(32, images),
        "teacher_cache.views": views,
        # So that few views are not little augmentation; chosen in docs/results/cross_task.md.
        "teacher_cache.jitter": 0.25,
    }


def views(images: int) -> int:
    """Returns how many views of each image a teacher is asked about: 16,000 in all, or two each.

    Args:
        images: labelled and unlabelled ones.
    """
    return min(8, max(QUICK_VIEWS, 16_000 // images))


def _source_lines(source: Any) -> list[str]:
    """Writes a source, which is a dataclass, in gin."""
    kind = type(source).__name__
    options = {
        f"{kind}.{field.name}": getattr(source, field.name)
        for field in dataclasses.fields(source)
        if field.init
        # A gin file from before there was such an option is still what would be written.
        and not is_unset(field, getattr(source, field.name))
    }
    return [
        f"Data.source = @{kind}()",
        *(f"{name} = {value!r}" for name, value in options.items() if value is not None),
    ]
