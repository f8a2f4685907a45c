"""The paper's Figure 1: python -m refilled_tf.figure1 --work_dir=DIR --output_dir=OUT.

How much does a teacher change the first step of a classifier's top layer, when a task has few
classes and when it has many? For tasks of more and more random classes the gradients of O_kd and
of O_lkd (cross-entropy plus a distillation term) are compared with that of O_xent (cross-entropy
alone): ‖∂O/∂w_c - ∂O_xent/∂w_c‖, averaged over the columns w_c of the top layer. The paper claims
that KD's difference falls faster with the number of classes than LKD's.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from etils import epy
from tqdm import tqdm

from refilled_tf.common import gin_files, storage
from refilled_tf.common.entry import no_arguments, run_main
from refilled_tf.common.errors import InputError, require

with epy.lazy_imports():
    import matplotlib
    import matplotlib.pyplot as plt
    import tensorflow as tf

    from refilled_tf.data import resizing, task
    from refilled_tf.experiment import config, loading, stage
    from refilled_tf.experiment import run as runs
    from refilled_tf.losses import kd, local
    from refilled_tf.models import networks

FLAGS = flags.FLAGS

TEMPERATURE = 4.0  # of the teacher, in standard distillation (supplement, section 2.2)
TERMS = ("KD", "LKD")


class Measurement(NamedTuple):
    """One random task. `differences` are those of `TERMS`, in their order."""

    classes: int
    seed: int
    differences: tuple[float, float]


def norm_differences(
    features: tf.Tensor,
    kernel: tf.Tensor,
    labels: tf.Tensor,
    teacher_logits: tf.Tensor,
    teacher_embedding: tf.Tensor,
) -> tuple[float, float]:
    """Mean over the top layer's columns of ‖∂O/∂w_c - ∂O_xent/∂w_c‖, for O_kd and O_lkd.

    O is O_xent plus a term of weight 1, and gradients add up, so the difference is the gradient
    of the term alone (supplement, section 1.2).

    Args:
        features: [B, d] float32, of a fresh student.
        kernel: [d, C] float32, its top layer W.
        labels: [B] int32 in [0, C).
        teacher_logits: [B, C] float32.
        teacher_embedding: [B, d_T] float32.

    Returns:
        KD's and LKD's.
    """
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(kernel)
        logits = tf.matmul(features, kernel)
        terms = (
            kd.kd(logits, teacher_logits, TEMPERATURE),
            local.local_kl(logits, teacher_embedding, labels, tau_teacher=TEMPERATURE),
        )
    of_kd, of_lkd = (tf.norm(tape.gradient(term, kernel), axis=0) for term in terms)
    return float(tf.reduce_mean(of_kd)), float(tf.reduce_mean(of_lkd))


def measure(
    teacher: tf.keras.Model,
    student: tf.keras.Model,
    examples: task.Examples,
    image_size: int,
    num_classes: int,
    seed: int,
    batch_size: int,
) -> Measurement:
    """Draws a task, and a batch of it, and compares the gradients.

    Args:
        teacher: outputs "embedding" [B, d_T] and "logits" [B, C] of all C classes; its posterior
            for the task is the one over the task's classes.
        student: fresh; outputs "embedding" [B, d].
        examples: training images of all C classes.
        image_size: side of the networks' input.
        num_classes: of the task.
        seed: of classes, images and top layer.
        batch_size: B.

    Returns:
        The differences.
    """
    random = np.random.default_rng([seed, num_classes])
    total = int(examples.labels.max()) + 1
    classes = np.sort(random.choice(total, num_classes, replace=False))
    rows = random.choice(np.flatnonzero(np.isin(examples.labels, classes)), batch_size, False)
    images = resizing.center_crop(examples.images[rows], image_size).astype(np.float32)
    labels = np.searchsorted(classes, examples.labels[rows]).astype(np.int32)
    taught = networks.outputs_of(teacher, [images])
    # In training mode, as in the first step.
    features = student(tf.constant(images), training=True)["embedding"]
    kernel = tf.keras.initializers.GlorotUniform(seed)((features.shape[-1], num_classes))
    differences = norm_differences(
        features, kernel, labels, taught["logits"][:, classes], taught["embedding"]
    )
    return Measurement(num_classes, seed, differences)


def curves(measurements: list[Measurement]) -> tuple[np.ndarray, np.ndarray]:
    """Arranges the measurements.

    Returns:
        [K] task sizes, ascending, and [K, seeds, terms] differences, each divided by the same
        seed's at the smallest size: curves that all begin at 1.
    """
    sizes = np.unique([m.classes for m in measurements])
    values = np.array([[m.differences for m in measurements if m.classes == n] for n in sizes])
    return sizes, values / values[:1]


def verdict(measurements: list[Measurement]) -> str:
    """Says whether KD's difference falls faster than LKD's."""
    sizes, relative = curves(measurements)
    last = relative[-1]
    gap = last[:, 1] - last[:, 0]
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    holds = "holds" if gap.mean() > 2 * error else "does not hold"
    left = ", ".join(f"{t} {100 * x:.1f} %" for t, x in zip(TERMS, last.mean(0), strict=True))
    return (
        f"From {sizes[0]} to {sizes[-1]} classes, of the difference is left: {left} "
        f"(LKD - KD: {100 * gap.mean():.1f} ± {100 * error:.1f} points, standard error of "
        f"{len(gap)} seeds). The paper's claim that KD's falls faster {holds} here."
    )


def save(measurements: list[Measurement], folder: Path) -> None:
    """Writes figure1.csv and figure1.png."""
    matplotlib.use("agg")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["classes", "seed", *(f"{term}_difference" for term in TERMS)])
    writer.writerows(
        [m.classes, m.seed, *(f"{x:.6g}" for x in m.differences)] for m in measurements
    )
    storage.write_text(folder / "figure1.csv", text.getvalue())

    sizes, relative = curves(measurements)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    mean, deviation = relative.mean(axis=1), relative.std(axis=1, ddof=1)
    for i, (term, color) in enumerate(zip(TERMS, ("tab:red", "tab:blue"), strict=True)):
        axes.plot(sizes, mean[:, i], "o-", color=color, label=term)
        low, high = mean[:, i] - deviation[:, i], mean[:, i] + deviation[:, i]
        axes.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set_xlabel("classes in the task")
    axes.set_ylabel(f"gradient difference to cross-entropy,\nrelative to {sizes[0]} classes")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title=f"mean ± deviation, {relative.shape[1]} seeds")
    with storage.replacing(folder / "figure1.png") as path:
        figure.savefig(path, dpi=120)
    plt.close(figure)


def _tasks(num_classes: int, sizes: int, seeds: int) -> Iterator[tuple[int, int]]:
    for size in np.linspace(0, num_classes, sizes + 1)[1:].round().astype(int):
        for seed in range(seeds):
            yield int(size), seed


def check(argv: list[str]) -> None:
    """Rejects what is not the folder of a training."""
    no_arguments(argv)
    gin_files.require_training(Path(FLAGS.work_dir))


def main(_: list[str]) -> None:
    """Measures, draws and judges."""
    spec = config.load_work_dir(Path(FLAGS.work_dir))
    data_dir = FLAGS.data_dir or spec.data_dir
    run = runs.Run(Path(FLAGS.work_dir), data_dir, tf.distribute.get_strategy())
    taught = next((each for each in spec.stages() if each.name == "teacher"), None)
    if taught is None:
        raise InputError(f"--work_dir={FLAGS.work_dir} has no stage 'teacher'")
    require(
        taught.objective.classifies, f"--work_dir={FLAGS.work_dir}: the teacher is no classifier"
    )
    runs.check_folder(taught, run)
    folder = Path(FLAGS.output_dir)
    print(reproduce(taught, run, folder, FLAGS.seeds, FLAGS.sizes, FLAGS.batch_size))
    print(f"Picture {folder / 'figure1.png'}, numbers {folder / 'figure1.csv'}")


def reproduce(
    taught: stage.Stage,
    run: runs.Run,
    folder: Path,
    seeds: int = 10,
    sizes: int = 10,
    batch_size: int = 128,
) -> str:
    """Measures and draws.

    Args:
        taught: the teacher, a finished classifier.
        run: its folder.
        folder: where figure1.png and figure1.csv go.
        seeds: random tasks of each size.
        sizes: of tasks, evenly spaced up to all of the teacher's classes.
        batch_size: images of a task.

    Returns:
        What the figure says, in words.

    Raises:
        InputError: the smallest tasks have too few images.
    """
    teacher = loading.load_network(taught, run)
    data = task.load(taught.task, run.data_dir)
    smallest = round(len(data.class_names) / sizes)
    require(
        smallest >= 2 and batch_size <= smallest * int(np.min(np.bincount(data.train.labels))),
        f"--sizes={sizes} begins with tasks of {smallest} of {len(data.class_names)} "
        f"classes: too few for --batch_size={batch_size} images",
    )
    size = taught.task.data.crop_size
    measurements = []
    for num_classes, seed in tqdm(list(_tasks(len(data.class_names), sizes, seeds))):
        tf.keras.utils.set_random_seed(seed)
        student = networks.embedding_network(taught.backbone, size)
        measurements.append(
            measure(teacher, student, data.train, size, num_classes, seed, batch_size)
        )
    save(measurements, folder)
    return verdict(measurements)


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_string(
        "work_dir", None, "A training with a finished stage 'teacher'.", required=True
    )
    flags.DEFINE_string("output_dir", None, "Where figure1.png and figure1.csv go.", required=True)
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")
    flags.DEFINE_integer("seeds", 10, "Random tasks of each size.", lower_bound=2)
    flags.DEFINE_integer("sizes", 10, "Task sizes, evenly spaced up to all classes.", lower_bound=2)
    flags.DEFINE_integer("batch_size", 128, "Images of a task.", lower_bound=1)
    run_main(main, check, goes_on=True)
