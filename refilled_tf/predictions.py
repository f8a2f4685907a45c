"""FOLDER/predictions.csv: what a stage's classifier makes of each image that it is scored on."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refilled_tf import storage
from refilled_tf.data.task import TaskData
from refilled_tf.errors import require

FILE = "predictions.csv"
HEADER = ["image", "class", "predicted"]


class Hits(NamedTuple):
    """Which images a classifier gets right.

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
        header == HEADER and lines and all(len(line) == len(HEADER) for line in lines),
        f"{path} must hold lines of {','.join(HEADER)}; delete {folder} to train the stage again",
    )
    keys, labels, predicted = np.array(lines).T
    return Hits(keys, labels == predicted)
