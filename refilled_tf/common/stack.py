"""Versions of Python, TensorFlow and Keras, of this process and of Keras files."""

from __future__ import annotations

import json
import platform
import re
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import tensorflow as tf

from refilled_tf.common.errors import InputError, listed, one_line, require

# Where tf.keras comes from: with TensorFlow 2.15 from keras, later from tf_keras.
_KERAS = tf.keras.Model.__module__.split(".")[0]
KERAS = metadata.version(_KERAS)

_KERAS_2 = "From Python 3.12 on, requirements.txt installs a later one"
_KERAS_3 = (
    "Save it with Keras 2 (pip install tf-keras), or have Keras 3 write it as ONNX, without its "
    "classifier: keras.Model(net.inputs, net.layers[-2].output).export('teacher.onnx', "
    "format='onnx'), and give --teacher=teacher.onnx"
)
_OLD_KERAS = (
    "Load it with that Keras and save it with a later Keras 2 as a .keras file, or write it as "
    "ONNX (python -m tf2onnx.convert --keras FILE.h5 --output teacher.onnx)"
)

# Packages whose classes a file may name; others would be imported, and run, by loading it.
_KNOWN_PACKAGES = ("builtins", "keras", "keras_cv", "refilled_tf", "tensorflow", "tf_keras")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results may depend on."""
    others = ("tensorflow", "keras-cv", "numpy")
    known = {"python": platform.python_version(), "keras": KERAS}
    return known | {name: metadata.version(name) for name in others}


def changes(then: dict[str, str]) -> str:
    """Lists the packages that were others, such as "numpy 1.26.4 → 2.5.5"; "" if none was.

    Args:
        then: what `versions` returned.
    """
    return ", ".join(
        f"{name} {then[name]} → {number}"
        for name, number in versions().items()
        if name != "python" and then.get(name, number) != number
    )


def load_keras(path: Path, what: str, advice: str, trusted: bool = False) -> tf.keras.Model:
    """Loads a network that Keras has saved.

    Args:
        path: a .keras or .h5 file, or a folder in TensorFlow's SavedModel format that Keras wrote.
        what: names it in messages.
        advice: what to do about one that no Keras could read.
        trusted: whether it may hold code, which loading or running it then runs.

    Raises:
        InputError: it holds code and is not trusted, or Keras cannot read it, perhaps because a
            later Keras has written it.
    """
    require(
        not path.is_dir() or (path / "keras_metadata.pb").is_file(),
        f"{what} is a SavedModel without Keras's layers, as exports for a server are; {advice}",
    )
    code = [] if trusted else code_in(path)
    require(
        not code,
        f"{what} is not Keras's layers alone but holds code, which would run here: "
        f"{listed(code)}. Of a teacher whose maker you trust, --trust_teacher "
        f"(KerasFile.trusted = True) allows that; else {advice}",
    )
    try:
        return tf.keras.models.load_model(path, compile=False, safe_mode=not trusted)
    except Exception as error:  # Keras raises whatever the zip, HDF5 or JSON reader raised.
        message = (
            f"{what}: Keras cannot read it ({type(error).__name__}: {one_line(error)}); {advice}"
        )
        theirs = keras_of(path)
        if theirs is not None and _ordered(theirs) > _ordered(KERAS):
            message = (
                f"{what} was saved with Keras {theirs}, which this Keras {KERAS} cannot read. "
                + (_KERAS_2 if theirs.startswith("2.") else _KERAS_3)
            )
        elif theirs is not None and _ordered(theirs) < _ordered(KERAS):
            message += f". It was saved with Keras {theirs}, and this is {KERAS}. {_OLD_KERAS}"
        raise InputError(message) from error


def keras_of(path: Path) -> str | None:
    """Returns the version of Keras that a file or folder says it is of; None if it says none."""
    try:
        if path.is_dir():
            text = (path / "keras_metadata.pb").read_bytes()
            found = re.search(rb'"keras_version": "([\d.]+)"', text)
            return found[1].decode() if found else None
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("metadata.json"))["keras_version"]
        with h5py.File(path) as file:
            return file.attrs["keras_version"]
    except (OSError, ValueError, KeyError):
        return None


def code_in(path: Path) -> list[str]:
    """Lists what is code in a file or folder that Keras has saved, as far as it can be seen.

    Lambda layers hold Python's own byte code, and a class of another package is looked for by
    importing that. What cannot be read is left to Keras.

    Args:
        path: as `load_keras` takes it.

    Returns:
        Such as ["Lambda layer 'scale'", "Blur of my_layers"].
    """
    try:
        if path.is_dir():
            text = (path / "keras_metadata.pb").read_bytes().decode(errors="replace")
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                text = archive.read("config.json").decode()
        else:
            with h5py.File(path) as file:
                text = file.attrs["model_config"]
                text = text if isinstance(text, str) else text.decode()
    except (OSError, ValueError, KeyError):
        return []
    found = {name: None for config in _configs(text) for name in _code(config)}
    return list(found)


def _configs(text: str) -> Iterator[Any]:
    """Yields the JSON objects in a text, which may have other things between them."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            config, end = decoder.raw_decode(text, place)
            yield config
        except ValueError:
            end = place + 1
        place = text.find("{", end)


def _code(config: Any) -> Iterator[str]:
    """Yields what is code in a piece of Keras's configuration."""
    if isinstance(config, list):
        for each in config:
            yield from _code(each)
    if not isinstance(config, dict):
        return
    kind, module = config.get("class_name"), config.get("module")
    if kind in ("Lambda", "__lambda__"):
        inner = config.get("config")
        yield f"Lambda layer {inner.get('name') if isinstance(inner, dict) else ''!r}"
    elif kind and isinstance(module, str) and module.split(".")[0] not in _KNOWN_PACKAGES:
        yield f"{kind} of {module}"
    for each in config.values():
        yield from _code(each)


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
