"""What this runs on, and which Keras has written a file."""

from __future__ import annotations

import json
import platform
import re
import zipfile
from importlib import metadata
from pathlib import Path

import h5py
import tensorflow as tf

from refilled_tf.errors import InputError, one_line

# Where tf.keras comes from: with TensorFlow 2.15 from keras, later from tf_keras.
_KERAS = tf.keras.Model.__module__.split(".")[0]
KERAS = metadata.version(_KERAS)

_KERAS_2 = "From Python 3.12 on, requirements.txt installs a later one"
_KERAS_3 = (
    "Save it with Keras 2 (pip install tf-keras), or let it teach through a file of its embeddings"
)


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


def load_keras(path: Path, what: str, advice: str) -> tf.keras.Model:
    """Loads a network that Keras has saved.

    Args:
        path: a .keras or .h5 file, or a folder in TensorFlow's SavedModel format that Keras wrote.
        what: names it in messages.
        advice: what to do about one that no Keras could read.

    Raises:
        InputError: Keras cannot read it, perhaps because a later Keras has written it.
    """
    try:
        return tf.keras.models.load_model(path, compile=False)
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


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
