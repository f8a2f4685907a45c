"""From the options of a distill command to the gin file that it stands for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refilled_tf import config, students, teachers, tuning
from refilled_tf.data.image_folder import ImageFolder
from refilled_tf.data.sources import Source, TfdsSource
from refilled_tf.data.splits import SharedClasses
from refilled_tf.data.task import Data, Task, student
from refilled_tf.errors import InputError, require
from refilled_tf.models import networks

BASE = "methods/own_images.gin"
TRAIN_FRACTION = 0.8
# Names under which TFDS's datasets keep what identifies an image.
KEYS = ("image/filename", "file_name", "filename", "id", "image/id", "key", "name")


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
    if Path(images).expanduser().is_dir():
        source = ImageFolder(str(Path(images).expanduser().resolve()))
        split = source.survey().has_splits
    else:
        require(
            re.fullmatch(r"\w+(:[\d.]+)?", images) is not None,
            f"--images={images} is neither a folder nor the name of a TFDS dataset",
        )
        source = _tfds_source(images, data_dir)
        split = len(source.splits) > 1
    return student(Data(source, SharedClasses(), train_fraction=None if split else TRAIN_FRACTION))


def _tfds_source(name: str, data_dir: str | None) -> TfdsSource:
    try:
        info = TfdsSource(name).builder(data_dir).info
    except InputError as error:
        raise InputError(f"--images={name} is no folder, and {error}") from error
    key = next((key for key in KEYS if key in info.features), None)
    require(
        key is not None and {"image", "label"} <= info.features.keys() and "train" in info.splits,
        f"--images={name}: of a TFDS dataset, the features image, label and one of "
        f"{', '.join(KEYS)} and the split train are needed; it has "
        f"{', '.join(info.features)} and {', '.join(info.splits)}",
    )
    scored = next((split for split in ("test", "validation") if split in info.splits), None)
    return TfdsSource(name, splits=("train", scored) if scored else ("train",), key=key)


def check_choices(widths: Sequence[float], params: Sequence[str], tune: int) -> None:
    """Refuses width multipliers that nothing can be done with, and settings that trials choose.

    Args:
        widths: as --width gives them.
        params: as --gin_param gives them.
        tune: the number of trials that choose.

    Raises:
        InputError: naming the option.
    """
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
    task: Task, teacher: teachers.Teacher, student: students.Student, image_size: int
) -> list[str]:
    """Writes what the command's options mean in gin, after methods/own_images.gin.

    Args:
        task: as `task_of` returns it.
        teacher: as `teachers.parse` returns it.
        student: as `students.parse` returns it.
        image_size: side of the student's images in pixels.

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
        *_fine_tune_lines(teacher),
        *students.gin_lines(student),
    ]


def _fine_tune_lines(teacher: teachers.Teacher) -> list[str]:
    """Lets the row @fine_tune/Stage() be asked for, where the teacher has a network to train."""
    if isinstance(teacher, teachers.EmbeddingFile | teachers.OnnxFile):
        return []
    return [f"fine_tune/Stage.backbone = @teacher/{type(teacher).__name__}()"]


def gin_text(
    opening: Sequence[str], params: Sequence[str], lengths: dict[str, Any], given: Sequence[str]
) -> str:
    """Writes the gin file.

    Args:
        opening: of comments, each of a line or several.
        params: as `settings` returns them.
        lengths: as `schedule` returns them.
        given: single settings of the user's, which come last.

    Returns:
        Gin text.
    """
    blocks = [
        [*(f"# {line}" for text in opening for line in text.splitlines()), f"include '{BASE}'"],
        params,
        [f"{name} = {value}" for name, value in lengths.items()],
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


def sizes(teacher: teachers.Teacher, image_size: int) -> dict[str, int | None]:
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
    if isinstance(teacher, teachers.EmbeddingFile):
        return image_size
    network = networks.embedding_network(teacher, image_size).get_layer("pretrained")
    return max(image_size, network.input_shape[1] or image_size)


def schedule(training_images: int, in_trials: int, quick: bool) -> dict[str, Any]:
    """Returns settings of length, so that a few hundred images take minutes on a laptop.

    Args:
        training_images: how many there are.
        in_trials: how many of them train when some are held out for tuning; all without tuning.
        quick: whether a first look is all that is wanted.
    """
    # About 3,000 steps: with fewer a student is far from convergence.
    epochs = min(100, max(20, 100_000 // training_images))
    return {
        "Recipe.epochs": epochs // 5 if quick else epochs,
        "Recipe.batch_size": min(32, in_trials),
        # A large teacher is asked up to 8,000 times beforehand, and not in every step.
        "teacher_cache.views": 2 if quick else min(8, max(2, 8_000 // training_images)),
    }


def _source_lines(source: Source) -> list[str]:
    kind = type(source).__name__
    options = {f.name: getattr(source, f.name) for f in dataclasses.fields(source) if f.init}
    return [
        f"Data.source = @{kind}()",
        *(f"{kind}.{name} = {value!r}" for name, value in options.items() if value is not None),
    ]
