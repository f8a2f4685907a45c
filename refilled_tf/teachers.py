"""Teachers as a command line names them: runs/x, FILE.keras, FILE.npz, imagenet:MobileNetV2."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tensorflow as tf

from refilled_tf import config
from refilled_tf.errors import InputError, require
from refilled_tf.models.embedding_files import EmbeddingFile
from refilled_tf.models.keras_files import Application, KerasFile
from refilled_tf.stage import Run

IMAGENET = "imagenet:"
ACCEPTED = (
    "a --work_dir of a training, optionally with :STAGE; a .keras or .h5 file or a SavedModel "
    "folder that Keras wrote; an .npz file of embeddings; imagenet:NAME, a network of "
    "tf.keras.applications"
)

Teacher = KerasFile | Application | EmbeddingFile


def parse(
    spec: str,
    layer: str | None = None,
    weights: str | None = None,
    preprocessing: str | None = None,
) -> Teacher:
    """Turns a --teacher into what a gin file's Stage.backbone would hold.

    Only files' existence is checked here. `refilled_tf.stage.check` checks the rest (that a network
    can be read, its layer and its input; that an embedding file has every image) before anything
    is trained; outside of a stage, `build(image_size)` of the result, or `embeddings(keys)` of an
    `EmbeddingFile`, raise the same errors.

    Args:
        spec: one of `ACCEPTED`. Of a training the stage "teacher" is taken, unless :STAGE follows.
        layer: --teacher_layer, whose output is the embedding; None for the default, see
            `KerasFile.layer`.
        weights: --teacher_weights, a file of the weights of an imagenet: network; None for a
            download.
        preprocessing: --teacher_preprocessing of a file, one of `keras_files.PREPROCESSING`; None
            for "none".

    Returns:
        The teacher.

    Raises:
        InputError: there is no such teacher, or an option that it does not take.
    """
    if spec.startswith(IMAGENET):
        _refuse(spec, teacher_preprocessing=preprocessing)
        return Application(spec.removeprefix(IMAGENET), weights, layer)
    _refuse(spec, teacher_weights=weights)
    path = Path(spec).expanduser()
    work_dir, _, stage = spec.partition(":")
    if (Path(work_dir).expanduser() / config.OPERATIVE).is_file():
        _refuse(spec, teacher_preprocessing=preprocessing)
        return KerasFile(str(_model_of(Path(work_dir).expanduser(), stage or "teacher")), layer)
    require(path.exists(), f"--teacher={spec}: there is no such thing; accepted are {ACCEPTED}")
    if path.suffix == ".npz":
        _refuse(spec, teacher_layer=layer, teacher_preprocessing=preprocessing)
        return EmbeddingFile(spec)
    require(
        path.suffix in (".keras", ".h5", ".hdf5") or (path / "saved_model.pb").is_file(),
        f"--teacher={spec} is none of what is accepted: {ACCEPTED}",
    )
    return KerasFile(spec, layer, preprocessing or "none")


def gin_lines(teacher: Teacher, scope: str = "teacher") -> list[str]:
    """Says in gin that a stage's network is this teacher.

    Args:
        teacher: what `parse` gave.
        scope: of the stage and of the teacher's options; different for different teachers.

    Returns:
        Lines such as "teacher/Stage.backbone = @teacher/KerasFile()" that go after (or include)
        gin/models/pretrained_teacher.gin. Options at their default are left out.
    """
    kind = type(teacher).__name__
    options = {
        field.name: getattr(teacher, field.name)
        for field in dataclasses.fields(teacher)
        if field.init and getattr(teacher, field.name) != field.default
    }
    return [
        f"{scope}/Stage.backbone = @{scope}/{kind}()",
        *(f"{scope}/{kind}.{name} = {value!r}" for name, value in options.items()),
    ]


def _refuse(spec: str, **options: str | None) -> None:
    for name, value in options.items():
        require(value is None, f"--{name}={value} does not go with --teacher={spec}")


def _model_of(work_dir: Path, name: str) -> Path:
    """Returns the file of a training's finished stage."""
    where = Run(work_dir, None, tf.distribute.get_strategy())
    stages = {each.name: each for each in config.load_work_dir(work_dir).stages()}
    finished = [name for name, each in stages.items() if where.is_finished(each)]
    require(
        name in finished,
        f"--teacher={work_dir}: it has no finished stage {name!r}; finished are "
        f"{', '.join(f'{work_dir}:{each}' for each in finished) or 'none'}",
    )
    path = where.folder(stages[name]) / "model.keras"
    if not path.is_file():
        raise InputError(f"--teacher={work_dir}: {path} is missing")
    return path
