"""A folder of .tflite files, and what each has cost and gained beside the Keras network."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from export import conversion, tflite_model
from export.trained import Trained
from refilled_tf.common import storage
from refilled_tf.common.errors import InputError
from refilled_tf.common.progress import bar_interval
from refilled_tf.data import resizing

KERAS = "Keras"
THREADS = (1, 2)
TOLERATED_LOSS = 0.01  # of top-1
PACKAGES = ("tensorflow", "ai-edge-litert", "mediapipe")

TABLE = """\
| File                    |    kB | Top-1, % | Agreement, % | Difference | 1 thread | 2 threads |
| ----------------------- | ----: | -------: | -----------: | ---------: | -------: | --------: |
"""
ROW = "| {:23} | {:5.0f} | {:8.2f} | {:12.2f} | {:10.4f} | {:>8} | {:>9} |\n"
NOTES = """
- Stage {stage} ({method}), scored on {images} {split} images.
- Agreement: the share of images that get the same class as from Keras.
- Difference: the largest of any probability from Keras's.
- 1 thread, 2 threads: median milliseconds of a single image, on {cores} cores of {machine}.
- Keras takes {keras:.2f} ms with as many threads as it likes; its kB are those of its weights.
"""
WARNING = """
Warning: {name} gets {lost_images} of {images} images fewer right than Keras; the standard error
of that difference is {standard_error:.1f} images.
"""

# An image [L, L, 3] uint8 to the probabilities [C] of its classes.
Classifier = Callable[[np.ndarray], np.ndarray]


def write(trained: Trained, quantizations: Sequence[str], output_dir: Path, command: str) -> str:
    """Converts a classifier, scores the conversions, and then writes both.

    The files are named after the stage: lkd_int8.tflite.

    Args:
        trained: what to convert.
        quantizations: names of `export.QUANTIZATIONS`.
        output_dir: the folder of the files; made if missing.
        command: that does this.

    Returns:
        The content of tflite.md.

    Raises:
        InputError: the folder cannot be written.
    """
    converted = tflite_model.convert(trained, quantizations)
    files = {f"{trained.stage.name}_{name}.tflite": content for name, content in converted.items()}
    results = facts(trained, command, PACKAGES) | {"rows": score(trained, files)}
    page = text(results)
    try:
        for name, content in files.items():
            with storage.replacing(output_dir / name) as temporary:
                temporary.write_bytes(content)
        storage.write_json(output_dir / "tflite.json", results)
        storage.write_text(output_dir / "tflite.md", page)
    except OSError as error:
        raise InputError(f"--output_dir={output_dir} cannot be written: {error}") from error
    return page


def score(trained: Trained, files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Scores a network and its conversions on every test image, one at a time.

    Args:
        trained: the network, and the images of its task.
        files: content of .tflite files by name.

    Returns:
        The rows of tflite.json, the network first: {"name", "bytes", "milliseconds" of an image
        by number of threads}, and what `compare` returns.
    """
    images, labels = trained.data.test.images[:], trained.data.test.labels
    runs = 1 + len(files) * len(THREADS)
    with tqdm(total=runs * len(images), unit="image", mininterval=bar_interval()) as bar:
        bar.set_description(KERAS)
        wanted, median = _run(_keras(trained), images, bar)
        size = sum(weight.numpy().nbytes for weight in trained.network.weights)
        facts = {"name": KERAS, "bytes": size, "milliseconds": {"unlimited": median}}
        rows = [facts | compare(labels, wanted, wanted)]
        for name, model in files.items():
            bar.set_description(name)
            medians = {}
            for threads in THREADS:
                found, medians[str(threads)] = _run(_litert(model, threads), images, bar)
            facts = {"name": name, "bytes": len(model), "milliseconds": medians}
            rows.append(facts | compare(labels, wanted, found))
    return rows


def _keras(trained: Trained) -> Classifier:
    """Returns the network, traced for one image, as its own scoring calls it."""
    size = trained.stage.task.data.image_size

    @tf.function
    def probabilities(images):
        return tf.nn.softmax(trained.network(images, training=False)["logits"])

    def classify(image):
        crop = resizing.center_crop(image[np.newaxis], size)
        return probabilities(crop.astype(np.float32)).numpy()[0]

    return classify


def _litert(model: bytes, threads: int) -> Classifier:
    """Returns a .tflite file as LiteRT runs it on the CPU with so many threads."""
    interpreter = conversion.interpreter(model, threads)
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = given["quantization"] if given["dtype"] == np.uint8 else (1, 0)

    def classify(image):
        interpreter.set_tensor(taken["index"], image[np.newaxis].astype(taken["dtype"]))
        interpreter.invoke()
        (answer,) = interpreter.get_tensor(given["index"])
        return scale * (answer.astype(np.float32) - zero_point)

    return classify


def _run(classify: Classifier, images: np.ndarray, bar: tqdm) -> tuple[np.ndarray, float]:
    """Returns the images' probabilities [N, C], and the median of an image's milliseconds."""
    probabilities, seconds = [], []
    for image in images:
        started = time.perf_counter()
        probabilities.append(classify(image))
        seconds.append(time.perf_counter() - started)
        bar.update()
    return np.array(probabilities), round(1e3 * statistics.median(seconds), 3)


def compare(labels: np.ndarray, wanted: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Compares a conversion with what it was made from.

    Args:
        labels: [N] int.
        wanted: [N, C], the network's probabilities.
        found: [N, C], the conversion's.

    Returns:
        "accuracy" and "agreement", the shares of images that get their label and the network's
        class; "largest_difference" of any probability; "lost_images", how many images fewer are
        right than with the network, and the "standard_error" of that number.
    """
    theirs, ours = np.argmax(wanted, axis=1), np.argmax(found, axis=1)
    lost = (theirs == labels).astype(int) - (ours == labels)
    return {
        "accuracy": float(np.mean(ours == labels)),
        "agreement": float(np.mean(ours == theirs)),
        "largest_difference": float(np.abs(found - wanted).max()),
        "lost_images": int(lost.sum()),
        "standard_error": float(np.sqrt(len(lost)) * lost.std()),
    }


def text(results: dict[str, Any]) -> str:
    """Formats the content of tflite.json as a page of Markdown: a table, notes, warnings."""
    page = TABLE
    for row in results["rows"]:
        times = [row["milliseconds"].get(str(threads)) for threads in THREADS]
        page += ROW.format(
            row["name"],
            row["bytes"] / 1e3,
            100 * row["accuracy"],
            100 * row["agreement"],
            row["largest_difference"],
            *("" if time is None else f"{time:.2f}" for time in times),
        )
    keras = results["rows"][0]["milliseconds"]["unlimited"]
    page += NOTES.format(**results, keras=keras)
    for row in results["rows"]:
        if row["lost_images"] > TOLERATED_LOSS * results["images"]:
            page += WARNING.format(**results | row)
    return page


def facts(trained: Trained, command: str, packages: Sequence[str]) -> dict[str, Any]:
    """Returns what a file of results opens with: what was scored, when, with what and where."""
    return {
        "schema": 1,
        "command": command,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in packages},
        "stage": trained.stage.name,
        "method": trained.stage.method,
        "split": trained.data.scored_on,
        "images": len(trained.data.test.labels),
    }


def _processor() -> str:
    """Returns the name of this machine's processor, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    known = re.search(r"^model name\s*: (.+)", path.read_text() if path.exists() else "", re.M)
    return known[1] if known else platform.processor() or platform.machine()
