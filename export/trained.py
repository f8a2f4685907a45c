"""A trained classifier as a training's folder holds it: all that an export starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from export import PREFERRED
from refilled_tf.common import storage
from refilled_tf.common.errors import require
from refilled_tf.data import batches, episodes, task
from refilled_tf.data.episodes import Tasks
from refilled_tf.data.task import Examples, TaskData
from refilled_tf.experiment import config, loading, training
from refilled_tf.experiment.run import Run, check_folder
from refilled_tf.experiment.stage import Stage
from refilled_tf.experiment.trials import Trials
from refilled_tf.few_shot.base import labels_of
from refilled_tf.models import networks
from refilled_tf.objectives.cross_entropy import CrossEntropy, accuracy


class Trained(NamedTuple):
    """A finished classifier, or one that a few-shot row has just learnt.

    Attributes:
        stage: what it was trained on, how, and from which other stages.
        network: images [B, S, S, 3] in [0, 255] to {"embedding" [B, d], "logits" [B, C]}.
        data: the images of its task, and the names of the C classes.
        result: what its result.json holds, with the accuracy on images as an export takes them.
        config: every setting of its experiment, as gin text.
    """

    stage: Stage
    network: tf.keras.Model
    data: TaskData
    result: dict[str, Any]
    config: str


def load(
    work_dir: Path,
    stage_name: str | None,
    data_dir: str | None,
    task_number: int | None = None,
) -> Trained:
    """Loads a classifier.

    Args:
        work_dir: the folder of a training.
        stage_name: which of its stages, or a row of few-shot learning; None leaves it to
            `choose_stage`.
        data_dir: the folder of prepared TFDS datasets; None for the training's.
        task_number: which of the row's tasks to learn; None takes the first, 0.

    Returns:
        The network with all that is known of it.

    Raises:
        InputError: the folder is not a training's, the stage is none to export, or a file or
            dataset is missing or unreadable.
    """
    experiment = config.load_work_dir(work_dir)
    data_dir = data_dir or experiment.data_dir
    run = Run(work_dir, data_dir, tf.distribute.get_strategy())
    rows = {row.name: row for row in experiment.rows if isinstance(row, Trials)}
    if stage_name in rows:
        return learn(rows[stage_name], task_number or 0, run)
    require(
        task_number is None,
        f"--task={task_number} goes with a row of few-shot learning; --stage={stage_name} is none",
    )
    require(
        stage_name is not None or not rows,
        f"a few-shot training needs --stage, the row whose learner is exported: {', '.join(rows)}",
    )
    finished = {stage.name for stage in experiment.stages() if run.is_finished(stage)}
    stage = choose_stage(experiment.stages(), finished, stage_name, rows)
    check_folder(stage, run)
    network = loading.load_network(stage, run)
    result = storage.read_json(run.folder(stage) / "result.json")
    taken = _at_image_size(stage.task)
    data = task.load(taken, data_dir)
    if taken != stage.task:
        crops = batches.scoring_batches(data.test, taken.data.image_size)
        logits = networks.outputs_of(network, crops)["logits"]
        result["accuracy"] = float(accuracy(logits, data.test.labels))
    stage = dataclasses.replace(stage, task=taken)
    return Trained(stage, network, data, result, config.operative_config())


def _at_image_size(whole: task.Task) -> task.Task:
    """Returns a task whose images are loaded so much smaller that views need no resizing.

    An export takes what the network takes, and a phone's runtime cannot resize with antialiasing.
    """
    data = whole.data
    if data.view_size is None:
        return whole
    loaded = round(data.load_size * data.image_size / data.view_size)
    return dataclasses.replace(
        whole, data=dataclasses.replace(data, load_size=loaded, view_size=None)
    )


def learn(row: Trials, number: int, run: Run) -> Trained:
    """Learns one of the tasks that a row of few-shot learning has been scored on.

    Args:
        row: the row, which must be finished.
        number: of the task, from 0.
        run: its folders.

    Returns:
        The network of the task's classes; its training images are the support, its test images
        the queries.

    Raises:
        InputError: the row is unfinished, has no such task, or makes no network of it.
    """
    check_folder(row, run)
    learner, known = row.chosen(run), row.networks(run)
    test = dataclasses.replace(row.test, task=_at_image_size(row.test.task))
    pool, tasks = test.pool(run.data_dir), test.tasks(row.shots, run.data_dir)
    count = len(tasks.classes)
    require(0 <= number < count, f"--task={number}: {row.name} has the tasks 0 to {count - 1}")
    task = Tasks(*(part[number : number + 1] for part in tasks))
    (network,) = learner.adapted(known, pool, task)
    names = episodes.facts(test.task, run.data_dir).class_names
    support, query = (
        Examples(pool.examples.images[rows], labels_of(part), pool.examples.keys[rows])
        for part in (task.support[0], task.query[0])
        for rows in (part.ravel(),)
    )
    stage = Stage(
        name=f"{row.name}_task_{number}",
        method=f"{row.method}, {row.shots} images a class",
        task=dataclasses.replace(test.task, images_per_class=row.shots),
        backbone=row.network.backbone,
        objective=CrossEntropy(),
        recipe=row.network.recipe,
        start=row.network,
    )
    data = TaskData(support, query, tuple(names[c] for c in task.classes[0]), "query")
    result = {
        "accuracy": float(learner.accuracies(known, pool, task)[0]),
        "images": len(query.labels),
        "scored_on": data.scored_on,
        "parameters": training.count_parameters(network),
    }
    return Trained(stage, network, data, result, config.operative_config())


def of_student(known: Sequence[Stage]) -> list[Stage]:
    """Returns the classifiers of the student's task, one of which is exported unless another is."""
    return [s for s in known if s.objective.classifies and s.task.role == "student"]


def choose_stage(
    known: Sequence[Stage],
    finished: Collection[str],
    name: str | None,
    others: Collection[str] = (),
) -> Stage:
    """Chooses the stage to export.

    Args:
        known: the stages of an experiment, in their order of training.
        finished: names of those that are trained.
        name: of the wanted stage. None takes "refilled" if it is finished, else the last finished
            classifier of the student's task. The best by test accuracy would be a choice that
            the test images have made, and their accuracy of it too good.
        others: names that `load` would have taken, for the message.

    Returns:
        A finished stage that classifies.

    Raises:
        InputError: there is no such stage, or it is unfinished, or an embedding network.
    """
    if name is None:
        ready = [stage for stage in of_student(known) if stage.name in finished]
        require(bool(ready), "no classifier of the student's task is finished yet; train one first")
        return next((stage for stage in ready if stage.name == PREFERRED), ready[-1])
    by_name = {stage.name: stage for stage in known}
    require(
        name in by_name,
        f"--stage={name} is not a stage here; there are {', '.join([*by_name, *others])}",
    )
    ready = [stage for stage in known if stage.objective.classifies and stage.name in finished]
    choices = f"finished classifiers here: {', '.join(s.name for s in ready) or 'none'}"
    require(
        by_name[name].objective.classifies,
        f"--stage={name} is an embedding network, which knows no classes; {choices}",
    )
    require(name in finished, f"--stage={name} is not finished; {choices}")
    return by_name[name]
