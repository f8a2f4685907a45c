"""A network and an experiment on the digits so small that a stage trains in seconds.

The same as Python objects (`teacher`, `first`, `second`) and as a gin file (`GIN`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path

import gin
import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.data.recipe import Recipe
from refilled_tf.data.sources import Digits
from refilled_tf.data.splits import AlphabeticalHalves
from refilled_tf.data.task import Data, Task
from refilled_tf.experiment import experiment, training
from refilled_tf.experiment.run import Run
from refilled_tf.experiment.stage import Stage
from refilled_tf.objectives.cross_entropy import CrossEntropy
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.relationship import RelationshipMatching

ROOT = Path(__file__).resolve().parents[1]

GIN = f"""
include '{ROOT}/gin/data/digits.gin'
include '{ROOT}/gin/models/mobilenet.gin'
include '{ROOT}/gin/methods/cross_task.gin'

Experiment.rows = [@student/Stage(), @refilled/Stage()]
Stage.backbone = @TinyNetwork()
teacher/Stage.backbone = @TinyNetwork()
Data.image_size = 8
Data.load_size = 8
Data.pad = 1
RelationshipMatching.weight = 10.0
Recipe.epochs = 2
Recipe.batch_size = 50
"""


@gin.register
@dataclasses.dataclass(frozen=True)
class TinyNetwork:
    """One convolution with synchronised batch norm: 8×8 images to 9·filters numbers."""

    filters: int = 4

    def build(self, image_size: int) -> tf.keras.Model:
        images = tf.keras.Input((image_size, image_size, 3), name="images")
        x = tf.keras.layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(images)
        x = tf.keras.layers.Conv2D(self.filters, 3, 2, use_bias=False, name="conv")(x)
        x = tf.keras.layers.BatchNormalization(momentum=0.9, synchronized=True, name="norm")(x)
        x = tf.keras.layers.ReLU(name="relu")(x)
        return tf.keras.Model(images, tf.keras.layers.Flatten(name="flatten")(x))


DATA = Data(
    source=Digits(),
    class_split=AlphabeticalHalves(),
    train_fraction=0.7,
    image_size=8,
    load_size=8,
    pad=1,
    flip=False,
)
RECIPE = Recipe(epochs=2, batch_size=50, learning_rate=0.05, milestones=(0.5,))


def teacher(**changes) -> Stage:
    return _stage("teacher", "teacher", CrossEntropy(), **changes)


def first(**changes) -> Stage:
    objective = changes.pop("objective", RelationshipMatching(weight=10.0))
    return _stage("first", "student", objective, **{"teacher": teacher(), **changes})


def second(**changes) -> Stage:
    objective = changes.pop("objective", LocalDistillation())
    parents = {"teacher": teacher(), "start": first()}
    return _stage("second", "student", objective, **{**parents, **changes})


def _stage(default_name, role, objective, **changes) -> Stage:
    fixed = {
        "name": default_name,
        "method": default_name.title(),
        "task": Task(DATA, role),
        "backbone": TinyNetwork(),
        "objective": objective,
        "recipe": RECIPE,
    }
    return Stage(**{**fixed, **changes})


def run_in(work_dir: Path, devices: int = 1) -> Run:
    return Run(Path(work_dir), None, strategy(devices))


@functools.cache
def strategy(devices: int) -> tf.distribute.MirroredStrategy:
    """Returns the process's only strategy on so many CPUs, 1 or both."""
    if devices == 1:
        return tf.distribute.MirroredStrategy(["CPU:0"])
    return experiment.make_strategy("mirrored")


def saved_weights(work_dir: Path, name: str) -> list[np.ndarray]:
    """Returns all weights, batch-norm statistics included, of a finished stage."""
    path = Path(work_dir) / "stages" / name / "model.keras"
    return tf.keras.models.load_model(path, compile=False).get_weights()


def largest_difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Returns the largest difference between two lists of weights."""
    return max(np.abs(a - b).max() for a, b in zip(one, other, strict=True))


def train_until(epoch: int, spec: Stage, run: Run, save_steps: int = 1) -> Path:
    """Trains up to right after an epoch's checkpoint, as a kill at that moment would leave it.

    By default every epoch is saved, however short. Returns the folder of the checkpoints.
    """
    save = tf.train.CheckpointManager.save

    def save_and_stop(manager, checkpoint_number):
        path = save(manager, checkpoint_number=checkpoint_number)
        if checkpoint_number == epoch:
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SAVE_STEPS", save_steps)
        patch.setattr(tf.train.CheckpointManager, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            training.train(spec, run)
    return run.folder(spec) / "checkpoints"


def _forbid_writing(folder: str) -> None:
    """From now on Python refuses to open a file beneath `folder` for writing."""

    def hook(event, arguments):
        if event != "open" or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path, mode, flags = arguments
        # os.open passes no mode; what open() passes says all.
        writes = set(mode) & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        if writes and Path(path).resolve().is_relative_to(folder):
            raise PermissionError(f"tiny: no writing of {path}")

    sys.addaudithook(hook)


if "TINY_READ_ONLY" in os.environ:
    _forbid_writing(str(Path(os.environ["TINY_READ_ONLY"]).resolve()))
if "TINY_SAVE_STEPS" in os.environ:
    training.SAVE_STEPS = int(os.environ["TINY_SAVE_STEPS"])


def truncate(path: Path) -> None:
    """Cuts a file in half, as a full disk or a killed copy would."""
    content = path.read_bytes()
    assert content
    path.write_bytes(content[: len(content) // 2])
