"""A large folder of unlabelled photos: time until training may begin, memory, time of a batch.

python -m benchmarks.unlabelled --files=100000

Writes that many JPEGs of 200×200 pixels to a temporary folder, a thousand to each of its folders,
and prints a table for a tenth of them and for all. Each line is a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
from absl import app, flags
from tqdm import tqdm

FLAGS = flags.FLAGS
SIDE = 200  # of a photo, in pixels
LOADED = 96  # of what is made of it
PER_FOLDER = 1000
BATCH, BATCHES = 96, 20


def write(folder: Path, first: int, stop: int) -> None:
    """Writes photos of smooth noise, no two alike."""
    for number in tqdm(range(first, stop), "photos"):
        place = folder / f"{number // PER_FOLDER:04}"
        place.mkdir(exist_ok=True)
        small = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        image = PIL.Image.fromarray(small).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
        image.save(place / f"{number:07}.jpg", quality=90)


def measure(folder: Path) -> dict[str, float]:
    """Goes through what a training does before its first step, and reads some batches."""
    from refilled_tf.data import batches, unlabelled
    from refilled_tf.data.sources import Digits
    from refilled_tf.data.splits import SharedClasses
    from refilled_tf.data.task import Data, Task

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    data = Data(Digits(), SharedClasses(), train_fraction=0.8, image_size=LOADED, load_size=LOADED)
    pool = unlabelled.PhotoFolder(str(folder))
    task = Task(data, "student", unlabelled=(pool,))
    listed = time.monotonic()
    examples = unlabelled.load(task).examples
    loaded = time.monotonic()
    rows = np.random.default_rng(0).permutation(len(examples.labels))
    order = np.resize(rows, (BATCHES, BATCH)).astype(np.int32)
    for _ in batches.training_batches(examples, data, order, seed=0):
        pass
    read = time.monotonic()
    return {
        "files": len(examples.labels),
        "in memory": isinstance(examples.images, np.ndarray),
        "listed": listed - started,
        "looked through": loaded - listed,
        "batch": 1000 * (read - loaded) / BATCHES,
        "MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def main(argv: list[str]) -> None:
    """Prints the table."""
    if FLAGS.folder:
        print(json.dumps(measure(Path(FLAGS.folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        print("| files | decoded | listed, s | looked through, s | a batch of 96, ms | MB more |")
        print("| ---: | --- | ---: | ---: | ---: | ---: |")
        done = 0
        for count in (FLAGS.files // 10, FLAGS.files):
            write(Path(folder), done, count)
            done = count
            command = [sys.executable, "-m", "benchmarks.unlabelled", f"--folder={folder}"]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(run.stdout.splitlines()[-1])
            decoded = "once, into memory" if found["in memory"] else "for every batch"
            print(
                f"| {found['files']:,} | {decoded} | {found['listed']:.1f} "
                f"| {found['looked through']:.1f} | {found['batch']:.0f} | {found['MB']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    flags.DEFINE_integer("files", 100_000, "How many photos.", lower_bound=10)
    flags.DEFINE_string("folder", None, "Measure this folder alone, and print JSON.")
    app.run(main)
