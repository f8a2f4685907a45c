"""Loading of finished stages, and the network that a stage starts with."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import numpy as np
import tensorflow as tf

from refilled_tf.common import stack
from refilled_tf.common.errors import require
from refilled_tf.data import batches
from refilled_tf.data.task import Task, load
from refilled_tf.experiment.run import Run
from refilled_tf.experiment.stage import Stage
from refilled_tf.models import networks


def untrained_network(stage: Stage) -> tf.keras.Model:
    """Builds a stage's embedding network as it is before any training.

    Raises:
        InputError: the backbone does not take images of that size.
    """
    data = stage.task.data
    objective = stage.objective
    size = data.image_size if objective.trains or objective.refits else data.crop_size
    return _fresh_network(stage.backbone, size)


# Most stages of an experiment share their network.
@functools.lru_cache(maxsize=8)
def _fresh_network(
    backbone: networks.Backbone | networks.Lookup, image_size: int
) -> tf.keras.Model:
    return networks.embedding_network(backbone, image_size)


def load_head(stage: Stage, run: Run) -> tf.keras.Model | None:
    """Loads what a finished stage has trained on top of its embedding; None if nothing.

    Raises:
        InputError: as `load_network`.
    """
    return _load(stage, run, "head.keras") if stage.objective.head(1) is not None else None


def load_network(stage: Stage, run: Run) -> tf.keras.Model:
    """Loads a finished stage's network.

    Raises:
        InputError: the stage is not finished or its file unreadable.
    """
    if not networks.in_keras(stage.backbone):
        # No Keras file can hold it. That it is still the file of its stage, `check_folder` sees.
        return untrained_network(stage)
    return _load(stage, run, "model.keras")


# Scores, trials and pictures look at the same networks.
@functools.lru_cache(maxsize=12)
def loaded(stage: Stage, run: Run) -> tf.keras.Model:
    """Returns what `load_network` does, from memory if it has been asked for before.

    For inference on one device: its variables are outside of any strategy.
    """
    return load_network(stage, run)


def read_history(path: Path) -> dict[str, np.ndarray]:
    """Reads a stage's history.csv; an epoch that was trained again after a crash counts once."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = {int(line["epoch"]): line for line in csv.DictReader(file)}
    epochs = sorted(lines)
    # Keras adds a column of NA for a validation that there is none of.
    names = [name for name, value in lines[epochs[0]].items() if value != "NA"]
    return {name: np.array([float(lines[epoch][name]) for epoch in epochs]) for name in names}


# Rows, stages and pictures ask the same again, and a large teacher takes its time.
@functools.lru_cache(maxsize=16)
def outputs(stage: Stage, run: Run, task: Task, part: str) -> dict[str, np.ndarray]:
    """Returns what a finished stage's network makes of un-augmented images.

    Args:
        stage: the stage.
        run: where.
        task: whose images.
        part: "train" or "test".

    Returns:
        "embedding" [N, d] and maybe "logits" [N, C], float32; not to be written to.

    Raises:
        InputError: as `load_network`, or as the `Lookup` says.
    """
    examples = getattr(load(task, run.data_dir), part)
    if networks.looks_up(stage.backbone):
        return {"embedding": stage.backbone.embeddings(examples.keys)}
    crops = batches.scoring_batches(examples, task.data.crop_size)
    return networks.outputs_of(loaded(stage, run), crops)


def _load(stage: Stage, run: Run, file: str) -> tf.keras.Model:
    path = run.folder(stage) / file
    require(path.exists(), f"{path} is missing: stage {stage.name!r} is not finished")
    advice = f"delete {path.parent} to train the stage again"
    return stack.load_keras(path, str(path), advice, getattr(stage.backbone, "trusted", False))
