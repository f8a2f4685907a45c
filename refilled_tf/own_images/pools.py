"""Unlabelled images as a command line names them: a folder, a TFDS dataset, a training's images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from etils import epy

from refilled_tf.common import gin_files
from refilled_tf.common.errors import InputError, require

with epy.lazy_imports():
    from refilled_tf.data import sources, task, unlabelled
    from refilled_tf.experiment import config

ACCEPTED = (
    "a folder of photos, which may lie at any depth; NAME or NAME:SPLIT of TensorFlow Datasets; a "
    "--work_dir of a training or an --output of distill, for the images that its teacher has "
    "learnt from"
)
# NAME or NAME:SPLIT of TFDS, where NAME may end in a version.
NAMED = r"(\w+(?::\d[\d.]*)?)(?::([a-z]\w*))?"
# Names under which TFDS's datasets keep what identifies an image.
KEYS = ("image/filename", "file_name", "filename", "id", "image/id", "key", "name")


def parse(spec: str, data_dir: str | None) -> task.Task | sources.Source:
    """Turns an --unlabelled into what gin's student.unlabelled would hold.

    Args:
        spec: one of `ACCEPTED`.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.

    Raises:
        InputError: there is no such thing.
    """
    folder = Path(spec).expanduser()
    if training := gin_files.training_in(folder):
        tasks = [stage.task for stage in config.load_work_dir(training).stages()]
        taught = next((each for each in tasks if each.role == "teacher"), None)
        if taught is None:
            raise InputError(
                f"--unlabelled={spec}: no stage of this training has a teacher's task, so there "
                "are no images that its teacher has learnt from"
            )
        return taught
    if folder.is_dir():
        return unlabelled.PhotoFolder(str(folder.resolve()))
    name, split = _named(spec)
    return tfds_source("--unlabelled", name, data_dir, [split] if split else None)


def require_named(spec: str) -> None:
    """Rejects an --unlabelled that is no folder, nor can be TFDS's name of a dataset."""
    if not Path(spec).expanduser().is_dir():
        _named(spec)


def _named(spec: str) -> tuple[str, str | None]:
    """Returns the names of a dataset, and of its split if there is one."""
    found = re.fullmatch(NAMED, spec)
    if found is None:
        raise InputError(f"--unlabelled={spec} is none of what is accepted: {ACCEPTED}")
    return found[1], found[2]


def require_images(images: str) -> None:
    """Rejects an --images that is no folder, nor can be TFDS's name of a dataset."""
    require(
        Path(images).expanduser().is_dir() or re.fullmatch(r"\w+(:[\d.]+)?", images) is not None,
        f"--images={images} is neither a folder nor the name of a TFDS dataset",
    )


def tfds_source(
    option: str, name: str, data_dir: str | None, splits: Sequence[str] | None = None
) -> sources.TfdsSource:
    """Finds out how to read a TFDS dataset.

    Args:
        option: that names it.
        name: of the dataset.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.
        splits: to read; None for "train" and the one that is scored.

    Raises:
        InputError: there is no such dataset, or it lacks what is needed.
    """
    try:
        info = sources.TfdsSource(name).builder(data_dir).info
    except InputError as error:
        raise InputError(f"{option}={name} is no folder, and {error}") from error
    key = next((key for key in KEYS if key in info.features), None)
    if key is None or not {"image", "label"} <= info.features.keys():
        raise InputError(
            f"{option}={name}: of a TFDS dataset, the features image, label and one of "
            f"{', '.join(KEYS)} are needed; it has {', '.join(info.features)}"
        )
    if splits is None:
        scored = next((split for split in ("test", "validation") if split in info.splits), None)
        splits = ("train", scored) if scored else ("train",)
    missing = [split for split in splits if split not in info.splits]
    require(
        not missing,
        f"{option}={name} has no split {', '.join(missing)}; it has {', '.join(info.splits)}",
    )
    return sources.TfdsSource(name, splits=tuple(splits), key=key)


def gin_lines(parts: Sequence[task.Task | sources.Source], scopes: Sequence[str]) -> list[str]:
    """Returns gin lines that give tasks these unlabelled images.

    Args:
        parts: as `parse` gives them.
        scopes: of the rows that take them.
    """
    references, lines = [], []
    for number, part in enumerate(parts, start=1):
        reference, options = config.as_gin(part, f"unlabelled_{number}")
        references.append(reference)
        lines += options
    listed = ", ".join(references)
    return [*lines, *(f"{scope}/student.unlabelled = [{listed}]" for scope in scopes)]
