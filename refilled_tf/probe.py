"""Is this teacher any use here? python -m refilled_tf.probe --images=DIR --teacher=SPEC.

Scores teachers on one's own classes, before anything is distilled: how well do simple classifiers
do on their frozen embeddings? Only the images that train are looked at, since a choice of teacher
must not be made by those that are to judge the student.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from etils import epy
from tqdm import tqdm

from refilled_tf.common import gin_files
from refilled_tf.common.entry import no_arguments, run_main
from refilled_tf.common.errors import InputError, joined, require
from refilled_tf.common.progress import bar_interval
from refilled_tf.own_images import pools, students, teachers

with epy.lazy_imports():
    from refilled_tf.data import batches
    from refilled_tf.data import task as tasks
    from refilled_tf.evaluation import embedding
    from refilled_tf.experiment import config
    from refilled_tf.models import networks
    from refilled_tf.own_images import distill_config
    from refilled_tf.reporting import report

FLAGS = flags.FLAGS
BATCH_SIZE = 32
FEWEST_FOLDS = 3
PIXELS = 16  # side of the images whose pixels are a baseline


class Score(NamedTuple):
    """Scores of a teacher's embedding on some classes.

    Attributes:
        name: as the command line names the teacher.
        size: d of its embeddings [N, d].
        accuracies: as `cross_validated` returns them.
        seconds: per image; None where no network runs.
    """

    name: str
    size: int
    accuracies: dict[str, np.ndarray]
    seconds: float | None

    def mean(self, classifier: str) -> float:
        """Returns the mean accuracy over the folds."""
        return float(self.accuracies[classifier].mean())

    def error(self, classifier: str) -> float:
        """Returns the standard error of the mean over the folds."""
        folds = self.accuracies[classifier]
        return float(folds.std(ddof=1) / np.sqrt(len(folds)))


def require_foldable(task: tasks.Task, folds: int, data_dir: str | None) -> None:
    """Rejects classes that cannot be cross-validated, before any network runs.

    Raises:
        InputError: naming the class with the fewest images.
    """
    require(folds >= FEWEST_FOLDS, f"--folds={folds} must be at least {FEWEST_FOLDS}")
    index = tasks.read_index(task.data.source, data_dir)
    selection = tasks.select(task, index)
    counts = [int(np.sum(index.labels[selection.train] == c)) for c in selection.classes]
    fewest = int(np.argmin(counts))
    require(
        counts[fewest] >= folds,
        f"class {selection.class_names[fewest]!r} has {counts[fewest]} training images; "
        f"--folds={folds} takes at least {folds} of each class, so give it more images"
        + (" or take fewer folds" if folds > FEWEST_FOLDS else ""),
    )


def score(
    name: str,
    teacher: teachers.Teacher,
    task: tasks.Task,
    image_size: int,
    folds: int,
    data_dir: str | None,
) -> Score:
    """Asks a teacher about every training image, un-augmented, and scores what it says.

    Args:
        name: of the teacher, for the table.
        teacher: as `teachers.parse` gives it.
        task: classes and images.
        image_size: side of the student's images in pixels; the teacher sees the images as large as
            it was made for, if that is more.
        folds: of the cross-validation.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.

    Raises:
        InputError: the teacher cannot be read, or does not know some image.
    """
    sizes = distill_config.sizes(teacher, image_size)
    task = dataclasses.replace(task, data=dataclasses.replace(task.data, **sizes))
    seconds = None
    if networks.looks_up(teacher):
        index = tasks.read_index(task.data.source, data_dir)
        rows = tasks.select(task, index).train
        embeddings, labels = teacher.embeddings(index.keys[rows]), index.labels[rows]
    else:
        size, examples = task.data.crop_size, tasks.load(task, data_dir).train
        network, labels = networks.embedding_network(teacher, size), examples.labels
        network(np.zeros((1, size, size, 3), np.float32))  # the first call prepares the others
        total = -(-len(labels) // BATCH_SIZE)
        crops = batches.scoring_batches(examples, size, BATCH_SIZE)
        bar = tqdm(crops, name, total, mininterval=bar_interval())
        started = time.monotonic()
        outputs = networks.outputs_of(network, bar)
        seconds = (time.monotonic() - started) / len(labels)
        embeddings = outputs["embedding"]
    accuracies = embedding.cross_validated(embeddings, labels, folds, seed=0)
    return Score(name, embeddings.shape[1], accuracies, seconds)


def of_pixels(task: tasks.Task, folds: int, data_dir: str | None) -> Score:
    """Scores the images' own pixels, as a teacher that knows nothing would hand them on."""
    data = dataclasses.replace(task.data, image_size=PIXELS, load_size=PIXELS, view_size=None)
    examples = tasks.load(dataclasses.replace(task, data=data), data_dir).train
    flat = examples.images[:].reshape(len(examples.labels), -1).astype(np.float32)
    accuracies = embedding.cross_validated(flat, examples.labels, folds, seed=0)
    return Score(f"no teacher: {PIXELS}×{PIXELS} pixels", flat.shape[1], accuracies, None)


def ranked(scores: list[Score]) -> list[Score]:
    """Puts the best first: by its linear probe, which is what a teacher tells a student."""
    return sorted(scores, key=lambda each: each.mean("linear"), reverse=True)


def table(scores: list[Score]) -> str:
    """Formats scores as a Markdown table, accuracies in percent ± standard error over the folds."""

    def cell(each: Score, classifier: str) -> str:
        return f"{100 * each.mean(classifier):.1f} ± {100 * each.error(classifier):.1f}"

    lines = [
        (
            each.name,
            str(each.size),
            *(cell(each, classifier) for classifier in ("ncm", "1nn", "linear")),
            "" if each.seconds is None else f"{each.seconds:.4f}",
        )
        for each in scores
    ]
    header = ("Teacher", "d", "NCM", "1NN", "Linear probe", "Seconds an image")
    return report.markdown(header, lines)


def expectation(scores: list[Score], pixels: Score) -> str:
    """Says in words what the scores mean.

    Args:
        scores: the best first.
        pixels: what a linear classifier makes of the images without any teacher.
    """
    best, floor = scores[0], pixels.mean("linear")
    accuracy, error = best.mean("linear"), best.error("linear")

    def knows_nothing(each: Score) -> bool:
        return each.mean("linear") - 2 * each.error("linear") <= floor

    if knows_nothing(best):
        return (
            f"No teacher here knows these classes: a linear classifier on {best.name} is right in "
            f"{100 * accuracy:.1f} %, on {pixels.size // 3} pixels without any teacher in "
            f"{100 * floor:.1f} %. Expect nothing of distilling it; a student learns as much from "
            "the labels alone."
        )
    said = (
        f"A linear classifier on {best.name} is right in {100 * accuracy:.1f} %, without a teacher "
        f"in {100 * floor:.1f} %. That is about what a student can come to with enough unlabelled "
        "images; the more it beats a student trained on the labels alone, the more there is to "
        "hand over."
    )
    useless = [each.name for each in scores if knows_nothing(each)]
    if useless:
        said += f" No better than pixels: {', '.join(useless)}."
    close = [
        each.name
        for each in scores[1:]
        if accuracy - each.mean("linear") <= 2 * np.hypot(error, each.error("linear"))
    ]
    if close:
        said += f" Within the noise of it: {', '.join(close)}; of equals take the fastest."
    return said


def check(argv: list[str]) -> None:
    """Rejects files, folders and names that are not there."""
    no_arguments(argv)
    pools.require_images(FLAGS.images)
    for spec in FLAGS.teacher:
        teachers.require_found(spec)
    gin_files.check_names([], FLAGS.gin_param)


def main(_: list[str]) -> None:
    """Scores, ranks and comments on the teachers that the flags name."""
    specs = FLAGS.teacher
    options = {
        name: _one_for_each(f"teacher_{name}", getattr(FLAGS, f"teacher_{name}"), len(specs))
        for name in teachers.OPTIONS
    }
    candidates = [
        teachers.parse(
            spec, FLAGS.trust_teacher, **{name: values[number] for name, values in options.items()}
        )
        for number, spec in enumerate(specs)
    ]
    config.require_quotes(FLAGS.gin_param)
    task = distill_config.task_of(FLAGS.images, FLAGS.data_dir)
    pairs = list(zip(specs, candidates, strict=True))
    # All are built before any is asked, as that may take hours.
    built, faults = attempted(
        lambda spec, teacher: (spec, teacher, distill_config.sizes(teacher, FLAGS.image_size)),
        pairs,
    )
    taken = [(spec, teacher) for spec, teacher, _ in built]
    if FLAGS.gin_param:
        # What distill would make of them, for whichever teacher.
        student = students.parse("MobileNet", 0.25)  # which is never built
        settings = distill_config.settings(task, taken[0][1], student, FLAGS.image_size)
        text = distill_config.gin_text([], settings, {}, FLAGS.gin_param)
        task = distill_config.task_in(text, FLAGS.gin_param)
    require_foldable(task, FLAGS.folds, FLAGS.data_dir)
    where = FLAGS.image_size, FLAGS.folds, FLAGS.data_dir
    scores, more = attempted(lambda spec, teacher: score(spec, teacher, task, *where), taken)
    faults += more
    scores = ranked(scores)
    selection = tasks.select(task, tasks.read_index(task.data.source, FLAGS.data_dir))
    pixels, classes = of_pixels(task, FLAGS.folds, FLAGS.data_dir), len(selection.class_names)
    print(f"\n{classes} classes, {len(selection.train)} images that train, {FLAGS.folds} folds\n")
    print(f"{table([*scores, pixels])}\n\n{expectation(scores, pixels)}")
    if faults:
        raise joined(faults, f"{len(faults)} of {len(specs)} teachers are not scored: ")


def attempted(
    work: Callable[[str, teachers.Teacher], Any], pairs: Sequence[tuple[str, teachers.Teacher]]
) -> tuple[list[Any], list[InputError]]:
    """Does something with each teacher; one that fails does not keep the others from it.

    Args:
        work: what to do.
        pairs: the teachers, and how the command line names them.

    Returns:
        What `work` returned where it did, and what was wrong with the others.

    Raises:
        InputError: it failed with all.
    """
    done, faults = [], []
    for pair in pairs:
        try:
            done.append(work(*pair))
        except InputError as error:
            faults.append(error)
            if len(pairs) > 1:
                print(f"{pair[0]} is left out: {error}")
    if not done:
        raise joined(faults)
    return done, faults


def _one_for_each(name: str, values: list[str], count: int) -> list[str | None]:
    """Spreads a repeated option over the teachers, in their order; "" stands for none."""
    require(
        len(values) in (0, count),
        f"--{name} is given {len(values)} times for {count} teachers; give it once for each, "
        f"--{name}= where there is none",
    )
    return [value or None for value in values] or [None] * count


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_string("images", None, "A folder of images, or a TFDS dataset.", required=True)
    flags.DEFINE_multi_string(
        "teacher", None, f"A teacher, repeatedly: {teachers.ACCEPTED}.", required=True
    )
    for name, explanation in teachers.OPTIONS.items():
        flags.DEFINE_multi_string(f"teacher_{name}", [], explanation)
    flags.DEFINE_bool("trust_teacher", False, teachers.TRUST)
    flags.DEFINE_integer("image_size", 96, "Side of the student's images in pixels.", 1)
    flags.DEFINE_integer("folds", 5, "Of the cross-validation.")
    flags.DEFINE_multi_string(
        "gin_param", [], "A single setting of the images, such as \"Data.on_corrupt = 'skip'\"."
    )
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")
    run_main(main, check)
