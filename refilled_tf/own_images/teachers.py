"""Teachers as a command line names them: runs/x, FILE.keras, FILE.onnx, imagenet:MobileNetV2."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeAlias

from etils import epy

from refilled_tf.common import gin_files
from refilled_tf.common.errors import InputError, require

with epy.lazy_imports():
    import tensorflow as tf

    from refilled_tf.experiment import config
    from refilled_tf.experiment import run as runs
    from refilled_tf.models import embedding_files, keras_files, networks, onnx_files

IMAGENET = "imagenet:"
ACCEPTED = (
    "a --work_dir of a training or an --output of distill, optionally with :STAGE; a .keras or "
    ".h5 file or a SavedModel folder that Keras wrote; an .onnx file, such as PyTorch exports; an "
    ".npz file of embeddings; imagenet:NAME, a network of tf.keras.applications"
)
# What may be said of a teacher beside its spec, each as --teacher_NAME.
OPTIONS = {
    "layer": "Layer, or output of an ONNX graph, that is its embedding.",
    "weights": "File of the weights of an imagenet: teacher; unset for a download.",
    "preprocessing": "What a file wants done to images, such as torch.",
    "layout": "NCHW or NHWC, where an ONNX graph does not show which.",
    "input_size": "Side in pixels of what an imagenet: or ONNX teacher sees.",
}

TRUST = "Let a teacher's Keras file run code of its own, such as Lambda layers."

Teacher: TypeAlias = (
    "keras_files.KerasFile | keras_files.Application | embedding_files.EmbeddingFile "
    "| onnx_files.OnnxFile"
)


def parse(spec: str, trusted: bool = False, **options: str | None) -> Teacher:
    """Turns a --teacher into what a gin file's Stage.backbone would hold.

    Only files' existence is checked here. `experiment.checks.check` checks the rest (that a network
    can be read, its layer and its input; that an embedding file has every image) before anything
    is trained; outside of a stage, `build(image_size)` of the result, or `embeddings(keys)` of an
    `EmbeddingFile`, raise the same errors.

    Args:
        spec: one of `ACCEPTED`. Of a training the stage "teacher" is taken, unless :STAGE follows.
        trusted: whether a Keras file may hold code, see `KerasFile`.
        **options: of `OPTIONS`, what --teacher_NAME says; None where it is unset. They are those
            of the class that is returned.

    Returns:
        The teacher.

    Raises:
        InputError: there is no such teacher, or an option that it does not take.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if "input_size" in given:
        given["input_size"] = _pixels(given["input_size"])
    kind, what, taken = _locate(spec)
    for name, value in given.items():
        require(name in taken, f"--teacher_{name}={value} does not go with --teacher={spec}")
    if kind is keras_files.KerasFile:
        given["trusted"] = trusted
    return kind(what, **given)


def require_found(spec: str) -> None:
    """Rejects a --teacher that is no file or folder here, where it should be one.

    Raises:
        InputError: saying what is accepted.
    """
    work_dir = Path(spec.partition(":")[0]).expanduser()
    require(
        spec.startswith(IMAGENET)
        or Path(spec).expanduser().exists()
        or gin_files.training_in(work_dir) is not None,
        f"--teacher={spec}: there is no such thing; accepted are {ACCEPTED}",
    )


def cost(teacher: Teacher) -> str | None:
    """Returns what only this kind of teacher costs the student, in words; None if nothing.

    Args:
        teacher: what `parse` gave.
    """
    if not networks.looks_up(teacher):
        return None
    return (
        f"--teacher={teacher.file} knows each image as it is, and none of its crops and flips: "
        "what it says of the image stands for those that students see. A network that can be run "
        "(.onnx, .keras) is asked about each view"
    )


def _locate(spec: str) -> tuple[type[Teacher], str, tuple[str, ...]]:
    """Returns the kind of a teacher, its file or name, and which of `OPTIONS` it takes."""
    if spec.startswith(IMAGENET):
        return (
            keras_files.Application,
            spec.removeprefix(IMAGENET),
            ("layer", "weights", "input_size"),
        )
    require_found(spec)
    path = Path(spec).expanduser()
    work_dir, _, stage = spec.partition(":")
    if training := gin_files.training_in(Path(work_dir).expanduser()):
        file = _model_of(training, stage or "teacher", work_dir)
        return keras_files.KerasFile, str(file), ("layer",)
    _require_no_export(spec, path)
    if path.suffix == ".npz":
        return embedding_files.EmbeddingFile, spec, ()
    if path.suffix == ".onnx":
        return onnx_files.OnnxFile, spec, ("layer", "preprocessing", "layout", "input_size")
    require(
        path.suffix in (".keras", ".h5", ".hdf5") or (path / "saved_model.pb").is_file(),
        f"--teacher={spec} is none of what is accepted: {ACCEPTED}",
    )
    return keras_files.KerasFile, spec, ("layer", "preprocessing")


def _pixels(given: str | int) -> int:
    require(
        str(given).isdecimal() and int(given) > 0,
        f"--teacher_input_size={given} must be a number of pixels, such as 224",
    )
    return int(given)


def gin_lines(teacher: Teacher, scope: str = "teacher") -> list[str]:
    """Returns gin lines that make this teacher a stage's network.

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


def _model_of(work_dir: Path, name: str, spec: str) -> Path:
    """Returns the file of a training's finished stage; `spec` is how the user names the folder."""
    known = _networks(work_dir)
    require(
        name in known,
        f"--teacher={spec}: it has no finished stage {name!r}; finished are "
        f"{', '.join(f'{spec}:{each}' for each in known) or 'none'}",
    )
    return known[name]


def _networks(work_dir: Path) -> dict[str, Path]:
    """Returns the files of a training's networks by stage; one in an ONNX file has none here."""
    run = runs.Run(work_dir, None, tf.distribute.get_strategy())
    stages = [each for each in config.load_work_dir(work_dir).stages() if run.is_finished(each)]
    files = {each.name: run.folder(each) / "model.keras" for each in stages}
    return {name: file for name, file in files.items() if file.is_file()}


def _require_no_export(spec: str, path: Path) -> None:
    """Rejects what TF Serving serves, which has lost its layers, and says where they are."""
    versions = [p for p in path.glob("*") if p.name.isdecimal()] if path.is_dir() else []
    exported = [
        each
        for each in (path, *versions)
        if (each / "saved_model.pb").is_file() and not (each / "keras_metadata.pb").is_file()
    ]
    if not exported:
        return
    advice = "the --work_dir of the training or the --output of distill that it was exported from"
    for folder in (path, *path.resolve().parents[:2]):
        if training := gin_files.training_in(folder):
            advice = f"one of {', '.join(f'{folder}:{name}' for name in _networks(training))}"
    raise InputError(
        f"--teacher={spec} is an export for a server, which has no layers any more; give {advice}"
    )
