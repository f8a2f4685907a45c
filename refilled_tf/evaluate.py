"""Scores stages again from disk: python -m refilled_tf.evaluate --work_dir=runs/quickstart.

Reads the operative config that the training left in its work_dir, so nothing else is needed.
--split=train scores classifiers on the training images, un-augmented: far above the test images is
overfitting.
Prints per-class accuracy and draws a confusion matrix for every classifier.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags
from etils import epy

from refilled_tf.common import gin_files
from refilled_tf.common.entry import no_arguments, run_main
from refilled_tf.common.errors import require

with epy.lazy_imports():
    import tensorflow as tf

    from refilled_tf.data import task
    from refilled_tf.experiment import config, loading, stage, training
    from refilled_tf.experiment import run as runs
    from refilled_tf.reporting import report

FLAGS = flags.FLAGS
flags.DEFINE_string("work_dir", None, "The folder of a training.", required=True)
flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")
flags.DEFINE_enum(
    "split", "test", ["train", "test"], "Training images, or those that results are of."
)
flags.DEFINE_multi_string(
    "stage", [], "Stages to score; all finished ones, of --split=train all classifiers, if unset."
)


def check(argv: list[str]) -> None:
    """Rejects what is not the folder of a training."""
    no_arguments(argv)
    gin_files.require_training(Path(FLAGS.work_dir))


def main(_: list[str]) -> None:
    """Scores the stages that the flags name."""
    work_dir = Path(FLAGS.work_dir)
    spec = config.load_work_dir(work_dir)
    data_dir = FLAGS.data_dir or spec.data_dir
    run = runs.Run(work_dir, data_dir, tf.distribute.get_strategy())
    known = {each.name: each for each in spec.stages()}
    unknown = [name for name in FLAGS.stage if name not in known]
    require(not unknown, f"--stage={unknown} is not a stage here; there are {', '.join(known)}")
    for name in FLAGS.stage:
        require(
            known[name].objective.runs_alone,
            f"--stage={name} cannot be scored alone: {type(known[name].objective).__name__} has "
            "trained weights that a task must adapt first",
        )
        require(
            known[name].objective.classifies or FLAGS.split == "test",
            f"--split={FLAGS.split}: {name} is an embedding, whose training images are what test "
            "images are compared with; leave --stage out, or name classifiers",
        )
    chosen = FLAGS.stage or [
        name
        for name, each in known.items()
        if run.is_finished(each)
        and each.objective.runs_alone
        and (each.objective.classifies or FLAGS.split == "test")
    ]
    require(bool(chosen), f"{work_dir} has no finished stage that --split={FLAGS.split} can score")
    for name in chosen:
        evaluate(known[name], run, FLAGS.split)


def evaluate(each: stage.Stage, run: runs.Run, split: str) -> None:
    """Prints a stage's scores and, for a classifier, saves its confusion matrix beside it.

    Args:
        each: a finished stage.
        run: its folders.
        split: "test", or "train" for a classifier's training images, un-augmented.

    Raises:
        InputError: the stage is unfinished, unreadable or made by other settings.
    """
    runs.check_folder(each, run)
    data = task.load(each.task, run.data_dir)
    labels, kind = (
        (data.test.labels, data.scored_on) if split == "test" else (data.train.labels, "training")
    )
    print(f"\n== {each.name}: {each.method}, {len(labels)} {kind} images")
    if not each.objective.classifies:
        quality = training.score(each, run, data)["embedding"]
        print("  ".join(f"{name} {100 * x:.2f}" for name, x in quality.items()))
        return
    predictions = np.argmax(loading.outputs(each, run, each.task, split)["logits"], axis=-1)
    accuracy = 100 * np.mean(predictions == labels)
    print(f"accuracy {accuracy:.2f}")
    print(report.per_class_accuracy(labels, predictions, data.class_names))
    picture = run.folder(each) / ("confusion.png" if split == "test" else "confusion_train.png")
    title = f"{each.method}: {accuracy:.2f} % of {len(labels)} {kind} images"
    report.save_confusion_matrix(picture, labels, predictions, data.class_names, title)
    print(f"confusion matrix: {picture}")


if __name__ == "__main__":
    run_main(main, check)
