"""The report of a distillation: one HTML page that needs no network."""

from __future__ import annotations

import dataclasses
import math
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf
from sklearn.metrics import confusion_matrix

from refilled_tf.data import batches
from refilled_tf.data.task import TaskData
from refilled_tf.models import networks
from refilled_tf.reporting import pages, report

MOST_PICTURES = 12  # of images that it gets right, and of others
MOST_CONFUSIONS = 20  # in a list
MOST_CLASSES = 40  # in a confusion matrix, and in a table that is not folded


SNIPPET = """\
import mediapipe as mp
import numpy as np
from PIL import Image, ImageOps

photo = ImageOps.exif_transpose(Image.open("photo.jpg"))
if photo.mode.startswith("I"):  # 16 bits, of which training sees the upper 8
    photo = Image.fromarray((np.asarray(photo) // 256).astype(np.uint8))
photo = photo.convert("RGBA")  # and what is transparent on white
photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
pixels = np.array(photo.resize(({side}, {side}), Image.Resampling.BILINEAR))
file = {file!r}
with mp.tasks.vision.ImageClassifier.create_from_model_path(file) as classifier:
    found = classifier.classify(mp.Image(image_format=mp.ImageFormat.SRGB, data=pixels))
print(found.classifications[0].categories[0])"""


@dataclasses.dataclass(frozen=True)
class Report:
    """All that the page is made of.

    Attributes:
        command: that did all this.
        rows: of results.json.
        exported: the name of the stage that was exported.
        student: its network in words.
        network: its network, images [B, S, S, 3] in [0, 255] to {"logits" [B, C], …}.
        size: S.
        data: its images and classes.
        notes: what is odd about the images.
        tflite: what tflite.json holds.
        candidates: that have competed on held-out images, as `candidates.run` returns them; none
            where the user has chosen rows.
        trials: of tuning; none without.
        gin: text of the gin file.
        output: the folder of all files.
        gain: what the exported row is above the student alone on the test images, and the standard
            error of that, as shares; None where there is nothing to compare.
        head: what tflite.json holds of the teacher with a linear head; None where there is none.
        teacher: the network that teaches, in words; "" where none does.
    """

    command: str
    rows: Sequence[dict[str, Any]]
    exported: str
    student: str
    network: tf.keras.Model
    size: int
    data: TaskData
    notes: Sequence[str]
    tflite: dict[str, Any]
    candidates: Sequence[dict[str, Any]]
    trials: Sequence[dict[str, Any]]
    gin: str
    output: Path
    gain: tuple[float, float] | None = None
    head: dict[str, Any] | None = None
    teacher: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """The row of the exported network."""
        return next(row for row in self.rows if row["stage"] == self.exported)


def line(what: Report) -> str:
    """Returns the result in one line."""
    others = ", ".join(
        f"{row['method']} {_percent(row['accuracy'])}"
        for row in what.rows
        if row != what.row and row["accuracy"] is not None
    )
    return (
        f"{what.row['method']}: {_percent(what.row['accuracy'])} of {what.row['images']} test "
        f"images right{f' ({others})' if others else ''}; see {what.output / 'report.html'}"
    )


def competition(candidates: Sequence[dict[str, Any]]) -> str:
    """Lists how candidates did on held-out images, best first."""
    lines = [
        (row["method"], _percent(row["accuracy"]), points(row["above"], row["error"]))
        for row in candidates
    ]
    images = candidates[0]["images"]
    return report.markdown(
        ("Candidate", f"right of {images} held-out images", "above the student alone"), lines
    )


def points(mean: float, error: float) -> str:
    """Writes a difference of shares, and its standard error, in points."""
    return f"{100 * mean:+.1f} ± {100 * error:.1f}"


def warning(rows: Sequence[dict[str, Any]]) -> str:
    """Warns of a teacher whose own classifier is not above the student; "" of others.

    Args:
        rows: of results.json.
    """
    accuracies = {row["stage"]: row["accuracy"] for row in rows}
    teacher, student = (accuracies.get(name) for name in ("teacher_lr", "student_kx"))
    if teacher is None or student is None or teacher > student:
        return ""
    return (
        f"The teacher's own linear classifier ({_percent(teacher)}) is not above the student alone "
        f"({_percent(student)}): it knows too little of these classes to teach them. "
        "`python -m refilled_tf.probe` compares teachers"
    )


def html(what: Report) -> str:
    """Writes the page.

    Returns:
        HTML; all pictures are inside.
    """
    crops = batches.scoring_batches(what.data.test, what.size)
    logits = networks.outputs_of(what.network, crops)["logits"]
    probabilities, predictions = tf.nn.softmax(logits).numpy(), np.argmax(logits, axis=-1)
    classes, right = per_class(what.data, predictions), predictions == what.data.test.labels
    return pages.render(
        "distill.html",
        percent=_percent,
        points=points,
        warning=warning(what.rows),
        standard_error=standard_error,
        what=what,
        output=shlex.quote(str(what.output)),
        side=what.data.test.images.shape[1],
        classes=classes,
        baseline=baseline(classes),
        folded=len(classes) > MOST_CLASSES,
        confusion="" if len(classes) > MOST_CLASSES else _confusion(what, predictions),
        confusions=confusions(what.data, predictions),
        groups={
            "it gets wrong": _pictures(what.data, probabilities, np.flatnonzero(~right)),
            "it gets right": _pictures(what.data, probabilities, np.flatnonzero(right)),
        },
        snippet=snippet(what),
    )


def snippet(what: Report) -> str:
    """Returns Python that classifies a photo by the smallest file, as its images were seen.

    It needs nothing of this project, and so says itself what `pixels.decode` does.
    """
    file = what.output.resolve() / "tflite" / what.tflite["rows"][-1]["name"]
    side = what.data.test.images.shape[1]
    return SNIPPET.format(file=str(file), side=side)


def standard_error(accuracy: float, images: int) -> str:
    """Returns the standard error of an accuracy on so many images, in points."""
    return f"{100 * math.sqrt(accuracy * (1 - accuracy) / images):.1f}"


def per_class(data: TaskData, predictions: np.ndarray) -> list[dict[str, Any]]:
    """Counts images and hits of every class.

    Args:
        data: images of C classes.
        predictions: [N] classes of the test images.

    Returns:
        {"name", "train", "test", "right", "taken_for": the most frequent mistake or ""} of each.
    """
    count = len(data.class_names)
    matrix = confusion_matrix(data.test.labels, predictions, labels=range(count))
    mistakes = matrix - np.diag(np.diag(matrix))
    train = np.bincount(data.train.labels, minlength=count)
    return [
        {
            "name": name,
            "train": int(train[c]),
            "test": int(matrix[c].sum()),
            "right": int(matrix[c, c]),
            "taken_for": data.class_names[mistakes[c].argmax()] if mistakes[c].any() else "",
        }
        for c, name in enumerate(data.class_names)
    ]


def baseline(classes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the accuracy of always answering the commonest class.

    Args:
        classes: as `per_class` returns them.

    Returns:
        "name" and "share" of the commonest class among the test images; "balanced", the mean over
        classes of the share of their images that is right, of which such an answer gets one class.
    """
    tested = [each for each in classes if each["test"]]
    total = sum(each["test"] for each in tested)
    commonest = max(tested, key=lambda each: each["test"])
    balanced = sum(each["right"] / each["test"] for each in tested) / len(tested)
    share = commonest["test"] / total
    return {"name": commonest["name"], "share": share, "balanced": balanced}


def confusions(data: TaskData, predictions: np.ndarray) -> list[dict[str, Any]]:
    """Lists the most frequent mistakes.

    Args:
        data: images of C classes.
        predictions: [N] classes of the test images.

    Returns:
        {"true", "taken_for", "count", "test": images of that class} of each, the commonest first.
    """
    names, count = data.class_names, len(data.class_names)
    matrix = confusion_matrix(data.test.labels, predictions, labels=range(count))
    tested = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    worst = np.argsort(-matrix, axis=None, kind="stable")[:MOST_CONFUSIONS]
    return [
        {
            "true": names[true],
            "taken_for": names[taken_for],
            "count": int(matrix[true, taken_for]),
            "test": int(tested[true]),
        }
        for true, taken_for in zip(*np.unravel_index(worst, matrix.shape), strict=True)
        if matrix[true, taken_for]
    ]


def _confusion(what: Report, predictions: np.ndarray) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "confusion.png"
        title = f"{what.row['method']}, {what.row['images']} test images"
        names = what.data.class_names
        report.save_confusion_matrix(path, what.data.test.labels, predictions, names, title)
        return pages.inline(path)


def _pictures(data: TaskData, probabilities: np.ndarray, rows: np.ndarray) -> list[dict[str, Any]]:
    """Returns pictures of some of the test images of `rows`, spread over the classes.

    Each with its class, and the name and probability of the one that it is taken for.
    """
    test, names = data.test, data.class_names
    rows = rows[np.argsort(test.labels[rows], kind="stable")]
    rows = rows[np.linspace(0, len(rows) - 1, min(MOST_PICTURES, len(rows))).astype(int)]
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        for row in rows:
            PIL.Image.fromarray(test.images[row]).resize((112, 112)).save(path)
            best = int(probabilities[row].argmax())
            facts = {"key": test.keys[row], "true": names[test.labels[row]]}
            facts |= {"taken_for": names[best], "probability": float(probabilities[row, best])}
            shown.append(facts | {"picture": pages.inline(path)})
    return shown


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
