"""A trained classifier as a training's folder holds it: all that an export starts from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from refilled_tf import config, storage
from refilled_tf import stage as stages
from refilled_tf.data import task
from refilled_tf.data.task import TaskData
from refilled_tf.errors import require
from refilled_tf.stage import Run, Stage

PREFERRED = "refilled"


class Trained(NamedTuple):
    """A finished classifier.

    Attributes:
        stage: what it was trained on, how, and from which other stages.
        network: images [B, S, S, 3] in [0, 255] to {"embedding" [B, d], "logits" [B, C]}.
        data: the images of its task, and the names of the C classes.
        result: what its result.json holds.
        config: every setting of its experiment, as gin text.
    """

    stage: Stage
    network: tf.keras.Model
    data: TaskData
    result: dict[str, Any]
    config: str


def load(work_dir: Path, stage_name: str | None, data_dir: str | None) -> Trained:
    """Loads a classifier.

    Args:
        work_dir: the folder of a training.
        stage_name: which of its stages; None leaves it to `choose_stage`.
        data_dir: the folder of prepared TFDS datasets; None for the training's.

    Returns:
        The network with all that is known of it.

    Raises:
        InputError: the folder is not a training's, the stage is none to export, or a file or
            dataset is missing or unreadable.
    """
    experiment = config.load_work_dir(work_dir)
    data_dir = data_dir or experiment.data_dir
    where = Run(work_dir, data_dir, tf.distribute.get_strategy())
    finished = {stage.name for stage in experiment.stages() if where.is_finished(stage)}
    stage = choose_stage(experiment.stages(), finished, stage_name)
    stages.check_folder(stage, where)
    return Trained(
        stage,
        stages.load_network(stage, where),
        task.load(stage.task, data_dir),
        storage.read_json(where.folder(stage) / "result.json"),
        config.operative_config(),
    )


def choose_stage(known: Sequence[Stage], finished: Collection[str], name: str | None) -> Stage:
    """Chooses the stage to export.

    Args:
        known: the stages of an experiment, in their order of training.
        finished: names of those that are trained.
        name: of the wanted stage. None takes "refilled" if it is finished, else the last finished
            classifier of the student's task. The best by test accuracy would be a choice that
            the test images have made, and their accuracy of it too good.

    Returns:
        A finished stage that classifies.

    Raises:
        InputError: there is no such stage, or it is unfinished, or an embedding network.
    """
    ready = [stage for stage in known if stage.objective.classifies and stage.name in finished]
    if name is None:
        ready = [stage for stage in ready if stage.task.role == "student"]
        require(bool(ready), "no classifier of the student's task is finished yet; train one first")
        return next((stage for stage in ready if stage.name == PREFERRED), ready[-1])
    by_name = {stage.name: stage for stage in known}
    require(
        name in by_name,
        f"--stage={name} is not a stage here; there are {', '.join(by_name)}",
    )
    choices = f"finished classifiers here: {', '.join(s.name for s in ready) or 'none'}"
    require(
        by_name[name].objective.classifies,
        f"--stage={name} is an embedding network, which knows no classes; {choices}",
    )
    require(name in finished, f"--stage={name} is not finished; {choices}")
    return by_name[name]
