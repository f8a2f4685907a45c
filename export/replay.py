"""Asks every signature of a SavedModel: python -m export.replay SAVED_MODEL REQUESTS REPLIES.

A program of its own that knows TensorFlow alone. What it can load, a server can: nothing is left
over from the process that wrote the model. The two files are pickles: numpy's own format drops
zero bytes at the end of strings.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from export import c_api

# Signature to its inputs or outputs, by name.
Arrays = dict[str, dict[str, np.ndarray]]


def by_function(saved_model: str, requests: Arrays) -> Arrays:
    """Loads a SavedModel as TensorFlow 2 programs do, and asks all of its signatures."""
    signatures = tf.saved_model.load(saved_model).signatures
    replies = {name: signatures[name](**_tensors(requests[name])) for name in signatures}
    return {
        name: {output: value.numpy() for output, value in reply.items()}
        for name, reply in replies.items()
    }


def _tensors(inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in inputs.items()}


def by_c_library(saved_model: str, requests: Arrays) -> Arrays:
    """Restores a SavedModel as TensorFlow Serving does, and asks the signatures."""
    with contextlib.closing(c_api.SavedModel(saved_model)) as model:
        return {name: model.run(name, inputs) for name, inputs in requests.items()}


def main(saved_model: str, requests_path: str, replies_path: str) -> None:
    """Writes the replies, {loader: {signature: {output: array}}}."""
    requests = pickle.loads(Path(requests_path).read_bytes())
    replies = {
        "tf.saved_model.load": by_function(saved_model, requests),
        "TensorFlow's C library": by_c_library(saved_model, requests),
    }
    Path(replies_path).write_bytes(pickle.dumps(replies))


if __name__ == "__main__":
    main(*sys.argv[1:])
