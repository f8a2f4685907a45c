"""FOLDER/predictions.csv: what a stage's classifier makes of each image that it is scored on."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refilled_tf.common import storage
from refilled_tf.common.errors import require
from refilled_tf.data.task import TaskData
from refilled_tf.evaluation import paired

FILE = "predictions.csv"
HEADER = ["image", "class", "predicted"]


class Hits(NamedTuple):
    """The images that a classifier gets right.

    Attributes:
        keys: [N] strings that identify the images in their dataset.
        right: [N] bool.
    """

    keys: np.ndarray
    right: np.ndarray


def write(folder: Path, data: TaskData, logits: np.ndarray) -> None:
    """Writes a line for each image: its key, its class and the predicted one, by their names.

    Args:
        folder: of the stage.
        data: whose test (or validation) images were scored.
        logits: [N, C] for these images.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    names = np.asarray(data.class_names)
    predicted = names[np.argmax(logits, axis=-1)]
    writer.writerows(zip(data.test.keys, names[data.test.labels], predicted, strict=True))
    storage.write_text(folder / FILE, out.getvalue())


def difference(ours: Sequence[Path], reference: Sequence[Path]) -> tuple[float, float] | None:
    """Compares the stages of two methods, seed by seed, image by image; see `paired.difference`.

    Args:
        ours: folders of a method's stages.
        reference: of another one's, with the same seeds.

    Returns:
        What ours are above the reference, and the standard error of that, as shares; None where
        they have not predicted the same images.
    """
    hits = []
    for folders in zip(ours, reference, strict=True):
        one, other = (read_hits(folder) for folder in folders)
        if one and other and np.array_equal(one.keys, other.keys):
            hits.append([one.right, other.right])
    return paired.difference(*np.stack(hits, axis=1)) if hits else None


def read_hits(folder: Path) -> Hits | None:
    """Reads which images were predicted right; None where there are no predictions.

    Raises:
        InputError: the file is not one that `write` has written.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    require(
        header == HEADER and bool(lines) and all(len(line) == len(HEADER) for line in lines),
        f"{path} must hold lines of {','.join(HEADER)}; delete {folder} to train the stage again",
    )
    keys, labels, predicted = np.array(lines).T
    return Hits(keys, labels == predicted)
