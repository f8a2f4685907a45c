r"""REFILLED with a live teacher and with a cached one: seconds an epoch, and accuracy.

    python -m benchmarks.teacher_cache --data_dir=DIR
    python -m benchmarks.teacher_cache --data_dir=DIR --parts=accuracy --views=1,2,4,8

Both on CIFAR-100, teacher and student sharing their classes.

*speed*: an epoch of either stage of REFILLED for the student WRN-16-1 under the teacher WRN-40-2,
on `--images` training images. Live and cached epochs alternate, after a step each that compiles;
printed are medians of `--repeats`. Weights are fresh: they do not change what a step costs. A
cache is built with the last of `--views`. It is built once, for both stages.

*accuracy*: both stages for each of `--views`, 0 being a live teacher, on the first `--classes`
classes, one seed. The teacher, trained first, is a WRN of `--teacher_depth`; its 40 layers would
take most of the time.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import refilled_tf.models  # noqa: F401  # isort: skip  # TensorFlow without its notices
import tensorflow as tf
from absl import flags

from refilled_tf.common.entry import run_main
from refilled_tf.common.errors import require
from refilled_tf.data import batches, task
from refilled_tf.data.batches import Views
from refilled_tf.data.task import TaskData
from refilled_tf.experiment import config, experiment, teacher_cache
from refilled_tf.experiment.run import Run
from refilled_tf.experiment.stage import Stage, TeacherCache
from refilled_tf.models import networks
from refilled_tf.objectives.base import Learner

FLAGS = flags.FLAGS

GIN_FILES = ("data/cifar100.gin", "models/wide_resnet.gin", "methods/refilled.gin")
SPEED_HEADER = (
    *("Stage", "Live, s/epoch", "Cached, s/epoch", "Live / cached"),
    *("Building, s", "Pays after, epochs"),
)
ACCURACY_HEADER = ("Views", "NCM after stage 1", "Accuracy")


def refilled(depth: int, classes: int, images_per_class: int) -> Stage:
    """REFILLED's second stage, with the first and the teacher as its parents."""
    params = [
        "Experiment.rows = [@refilled/Stage()]",
        "Data.class_split = @SharedClasses()",
        f"Data.num_classes = {classes}",
        f"teacher.images_per_class = {images_per_class}",
        f"student.images_per_class = {images_per_class}",
        f"teacher/WideResNet.depth = {depth}",
        "student/WideResNet.width = 1",
        f"Recipe.epochs = {FLAGS.epochs}",
        f"Recipe.batch_size = {FLAGS.batch_size}",
        # As the project's CPU-sized experiments on CIFAR-100.
        "RelationshipMatching.weight = 3.0",
        "RelationshipMatching.tau_teacher = 4.0",
        "LocalDistillation.weight = 2.0",
        "LocalDistillation.tau_teacher = 4.0",
    ]
    (row,) = config.load_experiment(GIN_FILES, params).rows
    return row


def measure_speed(row: Stage, views: int, repeats: int, data_dir: str | None) -> list[list[str]]:
    """Times epochs of both stages.

    Returns:
      The cells of a row for each stage, as `SPEED_HEADER` names them.
    """
    data = task.load(row.task, data_dir)
    size = row.task.data.image_size
    teacher = networks.classifier(row.teacher.backbone, size, len(data.class_names))
    with tempfile.TemporaryDirectory() as folder:
        what = Path(folder), teacher, TeacherCache(views), data.train, row.task.data
        start = time.perf_counter()
        teacher_cache.build(*what)
        building = time.perf_counter() - start
        cached = teacher_cache.load(*what)
        cells = []
        for each in (row.start, row):
            epochs = [_epoch(each, data, teacher, source) for source in (None, cached)]
            pairs = [[epoch() for epoch in epochs] for _ in range(repeats)]
            seconds = [statistics.median(times) for times in zip(*pairs, strict=True)]
            cells.append(speed_cells(each.method, *seconds, building))
    return cells


def _epoch(
    each: Stage, data: TaskData, teacher: tf.keras.Model, views: Views | None
) -> Callable[[], float]:
    """Returns a function that trains for an epoch, already compiled, and says its seconds."""
    recipe, size = each.recipe, each.task.data.image_size
    if each.objective.classifies:
        student = networks.classifier(each.backbone, size, len(data.class_names))
    else:
        student = networks.embedding_network(each.backbone, size)
    order = batches.epoch_order(data.train.labels, recipe.batch_size, each.seed, 0)
    learner = Learner(student, each.objective, teacher, None, recipe.weight_decay, len(order))
    learner.compile(optimizer=recipe.optimizer(len(order)))
    dataset = batches.training_batches(data.train, each.task.data, order, each.seed, views=views)
    step = tf.function(learner.train_step)

    def run(steps: tf.data.Dataset) -> float:
        start = time.perf_counter()
        for batch in steps:
            loss = step(batch)["loss"]
        loss.numpy()  # waits for the result
        return time.perf_counter() - start

    run(dataset.take(1))
    return lambda: run(dataset)


def speed_cells(method: str, live: float, cached: float, building: float) -> list[str]:
    """The cells of a stage; a cache that is not faster never pays."""
    saved = live - cached
    pays = f"{building / saved:.1f}" if saved > 0 else "never"
    return [method, f"{live:.1f}", f"{cached:.1f}", f"{live / cached:.2f}", f"{building:.1f}", pays]


def measure_accuracy(row: Stage, views: list[int], data_dir: str | None) -> list[list[str]]:
    """Trains both stages for each number of views.

    Returns:
      The cells of a row for each, as `ACCURACY_HEADER` names them.
    """
    pairs = [_with_views(row, count) for count in views]
    spec = experiment.Experiment([each for pair in pairs for each in pair])
    with tempfile.TemporaryDirectory() as folder:
        where = Run(Path(folder), data_dir, experiment.make_strategy(spec.strategy))
        experiment.check(spec, where)
        rows = experiment.finish_rows(spec, where, GIN_FILES, "benchmarks.teacher_cache")["rows"]
    rows = zip(views, rows[::2], rows[1::2], strict=True)
    return [accuracy_cells(count, first, second) for count, first, second in rows]


def accuracy_cells(views: int, first: dict, second: dict) -> list[str]:
    """The cells of a number of views, from the results of both stages."""
    return [
        str(views or "live"),
        f"{100 * first['embedding']['ncm']:.2f}",
        f"{100 * second['accuracy']:.2f}",
    ]


def _with_views(row: Stage, count: int) -> tuple[Stage, Stage]:
    """Stage 1 and stage 2 under names of their own."""
    cache = TeacherCache(count)
    first = dataclasses.replace(row.start, name=f"{row.start.name}_{count}", teacher_cache=cache)
    name = f"{row.name}_{count}"
    return first, dataclasses.replace(row, name=name, start=first, teacher_cache=cache)


def numbers_of_views(values: list[str]) -> list[int]:
    """Reads --views."""
    require(
        all(count.isdecimal() for count in values) and bool(values) and int(values[-1]) > 0,
        f"--views={','.join(values)} must be whole numbers, the last one above 0",
    )
    return [int(count) for count in values]


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """Formats a Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(_: list[str]) -> None:
    views = numbers_of_views(FLAGS.views)
    if "speed" in FLAGS.parts:
        row = refilled(depth=40, classes=100, images_per_class=FLAGS.images // 100)
        cells = measure_speed(row, views[-1], FLAGS.repeats, FLAGS.data_dir)
        images = FLAGS.images // 100 * 100
        print(f"\nWRN-40-2 → WRN-16-1, {images} images an epoch, {views[-1]} views\n")
        print(table(SPEED_HEADER, cells), flush=True)
    if "accuracy" in FLAGS.parts:
        row = refilled(FLAGS.teacher_depth, FLAGS.classes, FLAGS.images_per_class)
        cells = measure_accuracy(row, views, FLAGS.data_dir)
        print(
            f"\nWRN-{FLAGS.teacher_depth}-2 → WRN-16-1, {FLAGS.classes} classes × "
            f"{FLAGS.images_per_class} images, {FLAGS.epochs} epochs a stage\n"
        )
        print(table(ACCURACY_HEADER, cells))


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Folder of TFDS datasets; TFDS's own if unset.")
    flags.DEFINE_multi_enum(
        "parts", ["speed", "accuracy"], ["speed", "accuracy"], "What to measure."
    )
    flags.DEFINE_list("views", ["0", "1", "4"], "Views of an image; 0: a live teacher.")
    flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=2)
    flags.DEFINE_integer("images", 1000, "speed: images of an epoch.", lower_bound=100)
    flags.DEFINE_integer("repeats", 3, "speed: timed epochs.", lower_bound=1)
    flags.DEFINE_integer("classes", 10, "accuracy: classes.", lower_bound=2)
    flags.DEFINE_integer("images_per_class", 100, "accuracy: images a class.")
    flags.DEFINE_integer("epochs", 20, "accuracy: epochs of a stage.", lower_bound=1)
    flags.DEFINE_integer("teacher_depth", 16, "accuracy: layers of the teacher.")
    run_main(main)
