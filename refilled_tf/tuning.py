"""Hyper-parameters chosen on validation images, by Optuna.

Nothing of the search itself is kept. Its sampler is seeded, so a search that is run again asks for
the same trials in the same order, and finds those that are finished as stages in the work_dir; a
killed one goes on from its last epoch, and more trials go on where fewer have ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from refilled_tf import storage
from refilled_tf.data.task import Task, read_index, select
from refilled_tf.errors import DivergedError, require
from refilled_tf.launch import launch

TRIALS = "trials.json"
# By name in gin: the smallest and the largest value, searched on a logarithmic scale.
RANGES = {
    "RelationshipMatching.weight": (1.0, 300.0),
    "RelationshipMatching.tau_teacher": (0.5, 8.0),
    "LocalDistillation.weight": (0.03, 10.0),
    "LocalDistillation.tau_teacher": (0.5, 8.0),
    "Recipe.learning_rate": (0.01, 0.3),
}
# Where the search begins.
FIRST = {
    "RelationshipMatching.weight": 30.0,
    "RelationshipMatching.tau_teacher": 2.0,
    "LocalDistillation.weight": 2.0,
    "LocalDistillation.tau_teacher": 2.0,
    "Recipe.learning_rate": 0.1,
}
HOLDOUT = 0.2

Trial = dict[str, Any]


def run(
    text: str,
    width_option: str,
    widths: Sequence[float],
    folder: Path,
    count: int,
    data_dir: str | None,
    command: str,
) -> list[Trial]:
    """Runs trials of REFILLED on a part of the training images, scored on the rest.

    Args:
        text: the experiment in gin.
        width_option: name of the student's width multiplier in gin.
        widths: the student's width multipliers to choose from; a single one is `text`'s.
        folder: of the trials: a training's folder, in which each is a stage.
        count: of trials, those included that are finished.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.
        command: that does this.

    Returns:
        {"name" of the stage, "settings", "accuracy" on "images" validation images} of each whose
        loss stayed finite, as FOLDER/trials.json holds them.

    Raises:
        InputError: no trial's did.
    """
    gin_file = folder.with_name(f"{folder.name}.gin")
    storage.write_text(gin_file, text)
    trials: list[Trial] = []

    def accuracy(trial: optuna.Trial) -> float:
        settings = {
            option: _rounded(trial.suggest_float(option, *ends, log=True))
            for option, ends in RANGES.items()
        }
        if len(widths) > 1:
            settings[width_option] = trial.suggest_categorical(width_option, widths)
        name = f"trial_{trial.number:03d}"
        params = [
            "Experiment.rows = [@refilled/Stage()]",
            f"student.holdout = {HOLDOUT}",
            f"triplet/Stage.name = '{name}_triplet'",
            f"refilled/Stage.name = '{name}'",
            *(f"{option} = {value}" for option, value in settings.items()),
        ]
        try:
            _, _, results = launch([str(gin_file)], params, folder, data_dir, command)
        except DivergedError as error:
            print(f"{name}: {error}")
            raise
        (row,) = results["rows"]
        facts = {"accuracy": row["accuracy"], "images": row["images"]}
        trials.append({"name": name, "settings": settings} | facts)
        storage.write_json(folder / TRIALS, trials)
        found = f"{100 * row['accuracy']:.2f} % of {row['images']} validation images"
        print(f"{name}: {found}, {settings}")
        return row["accuracy"]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial(FIRST | ({width_option: widths[0]} if len(widths) > 1 else {}))
    study.optimize(accuracy, n_trials=count, catch=DivergedError)
    require(len(trials) > 0, f"--tune={count}: none of the trials kept a finite loss, see above")
    return trials


def training_rows(task: Task, data_dir: str | None) -> np.ndarray:
    """Returns which images of the student's task train in a trial, as rows of the dataset."""
    return select(
        dataclasses.replace(task, holdout=HOLDOUT), read_index(task.data.source, data_dir)
    ).train


def chosen(trials: list[Trial]) -> list[str]:
    """Returns the best trial's settings in gin; of equally good ones the first's."""
    best = max(trials, key=lambda trial: trial["accuracy"])
    return [
        f"# {best['name']}, {100 * best['accuracy']:.2f} % of {best['images']} validation images",
        *(f"{option} = {value}" for option, value in best["settings"].items()),
    ]


def _rounded(value: float) -> float:
    """Keeps three digits, more than which nobody wants to read."""
    return float(f"{value:.3g}")
