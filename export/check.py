"""Does a SavedModel answer as the network that it was made from?"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from export import requests, signatures
from export.replay import Arrays
from export.trained import Trained
from refilled_tf.common.errors import InputError, require
from refilled_tf.data import batches
from refilled_tf.data.task import Examples
from refilled_tf.models import networks

IMAGES = 32
TOLERANCE = 1e-4
ROOT = Path(__file__).resolve().parent.parent


def check(saved_model: Path, trained: Trained) -> float:
    """Compares every signature's answers to real test images with the network's own.

    The SavedModel is loaded in a fresh process, both by `tf.saved_model.load` and by TensorFlow's C
    library, with which TensorFlow Serving restores it.

    Args:
        saved_model: folder of the export.
        trained: what it was made from.

    Returns:
        The largest difference, at most `TOLERANCE`.

    Raises:
        InputError: the export cannot be loaded, lacks a signature or answers differently.
    """
    rows = np.linspace(0, len(trained.data.test.labels) - 1, IMAGES).astype(int)
    examples = Examples(*(column[rows] for column in trained.data.test))
    size = trained.stage.task.data.image_size
    images = np.concatenate(list(batches.scoring_batches(examples, size)))
    asked = requests.make(examples.images[:], images)
    # On the CPU, as the fresh process: a GPU rounds otherwise, and this one may own it all.
    with tf.device("CPU"):
        outputs = networks.outputs_of(trained.network, [images])

    largest = 0.0
    for loader, replies in _replies(saved_model, asked).items():
        require(
            replies.keys() == asked.keys(),
            f"the export has the signatures {sorted(replies)} instead of {sorted(asked)}",
        )
        for signature, reply in replies.items():
            wanted, names = outputs, trained.data.class_names
            if "support_labels" in asked[signature]:
                wanted, names = taught(outputs, asked[signature]["support_labels"])
            for output, difference in differences(reply, wanted, names).items():
                require(
                    difference <= TOLERANCE,
                    f"loaded by {loader}, the export's signature {signature!r} differs from the "
                    f"network by {difference:.1e} in {output!r}; nothing was written",
                )
                largest = max(largest, difference)
    return largest


def differences(
    reply: dict[str, np.ndarray], outputs: dict[str, np.ndarray], class_names: Sequence[str]
) -> dict[str, float]:
    """Returns how far each output of a signature is from what the network's outputs demand.

    Args:
        reply: "classes", "scores", "probabilities", "embedding", as far as the signature has them.
        outputs: the network's "logits" [B, C] and "embedding" [B, d].
        class_names: of the C classes.

    Returns:
        The largest absolute difference by output; infinite where the shape is wrong, NaN where a
        name is.
    """
    logits, embedding = (outputs[name].astype(np.float64) for name in ("logits", "embedding"))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    wanted = {
        "classes": -np.sort(-logits)[:, : signatures.TOP],
        "scores": -np.sort(-probabilities)[:, : signatures.TOP],
        "probabilities": probabilities,
        "embedding": _normalized(embedding),
    }
    # A name stands for its logit: two that are nearly equal may have changed places.
    got = {
        name: _logits_of(value, logits, class_names) if name == "classes" else value
        for name, value in reply.items()
    }
    return {
        name: float(np.abs(value - wanted[name]).max())
        if value.shape == wanted[name].shape
        else np.inf
        for name, value in got.items()
    }


def taught(
    outputs: dict[str, np.ndarray], labels: np.ndarray
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns what a network's outputs become where "serving_support" learns new classes.

    Args:
        outputs: the network's "embedding" [B, d]; all B images are asked for.
        labels: [N] bytes, the names of the first N images' classes.

    Returns:
        The outputs with the "logits" [B, C'] of the new classes, and the names of these.
    """
    embedding = _normalized(outputs["embedding"].astype(np.float64))
    names = list(dict.fromkeys(labels))
    support = embedding[: len(labels)]
    centers = _normalized(np.stack([support[labels == name].mean(axis=0) for name in names]))
    gaps = embedding[:, np.newaxis] - centers
    return outputs | {"logits": -(gaps**2).sum(axis=-1)}, tuple(name.decode() for name in names)


def _normalized(vectors: np.ndarray) -> np.ndarray:
    """Brings vectors [N, d] to length one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _logits_of(names: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Looks the logits of named classes up, [B, k] bytes in [B, C]; NaN for unknown names."""
    encoded = [name.encode() for name in class_names]
    rows = [dict(zip(encoded, row, strict=True)) for row in logits]
    return np.array(
        [
            [row.get(name, np.nan) for name in row_names]
            for row_names, row in zip(names, rows, strict=False)
        ]
    )


def _replies(saved_model: Path, asked: Arrays) -> dict[str, Arrays]:
    """Asks the export in a fresh process; returns its replies by the way of loading."""
    with tempfile.TemporaryDirectory() as folder:
        requests_path, replies_path = Path(folder) / "requests", Path(folder) / "replies"
        requests_path.write_bytes(pickle.dumps(asked))
        command = [sys.executable, "-m", "export.replay"]
        run = subprocess.run(
            [*command, str(saved_model.resolve()), str(requests_path), str(replies_path)],
            cwd=ROOT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            last = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
            raise InputError(f"a fresh process cannot run the export: {last}; nothing was written")
        return pickle.loads(replies_path.read_bytes())
