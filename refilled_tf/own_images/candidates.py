"""A contest of ways to train: candidates compete on held-out training images.

All of them take as many steps as the final training. Their stages are kept, so that a killed
competition goes on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refilled_tf.common import gin_files, storage
from refilled_tf.common.errors import DivergedError
from refilled_tf.data.task import Task, read_index, select
from refilled_tf.experiment import config, experiment, predictions, training
from refilled_tf.experiment.experiment import Experiment
from refilled_tf.experiment.launch import launch, open_run

HOLDOUT = 0.2
_HELD_OUT = f"student.holdout = {HOLDOUT}"
REFERENCE = "student_kx"  # the student alone, as long
REFIT = "_refit"  # how the stage is named that fits another one's last layer anew
HEAD = "teacher_head"  # the teacher with a linear classifier
ALONE = (REFERENCE, "lkd_alone", "probe")
WITH_POOL = ("lkd_pool", "probe_pool")
FILE = "candidates.json"
PLAN = "plan.json"
STEPS = 6_000  # unless a budget says otherwise
QUICK_STEPS = 600
LEAST_STEPS = 200
# After each of which there may be a checkpoint; steps are a multiple.
EPOCHS = 20


def names(has_pool: bool) -> list[str]:
    """Returns the stages that compete, each before the one that refits its last layer."""
    trained = (*ALONE, *(WITH_POOL if has_pool else ()))
    return [name for each in trained for name in (each, each + REFIT)]


def experiment_of(text: str, has_pool: bool) -> Experiment:
    """Returns the experiment of all candidates.

    Args:
        text: the experiment in gin.
        has_pool: whether there are unlabelled images.
    """
    return config.load_text(text, [_rows(names(has_pool)), _HELD_OUT])


def planned_steps(
    minutes: float, text: str, has_pool: bool, folder: Path, data_dir: str | None
) -> int:
    """Returns the steps of an earlier plan with this budget, else measures them."""
    path = folder.with_name(PLAN)
    if path.exists():
        plan = storage.read_json(path)
        if plan.get("minutes") == minutes:
            return plan["steps"]
    steps = steps_within(minutes, text, has_pool, folder, data_dir)
    storage.write_json(path, {"minutes": minutes, "steps": steps})
    return steps


def steps_within(
    minutes: float, text: str, has_pool: bool, folder: Path, data_dir: str | None
) -> int:
    """Finds out how many steps a training may take, by taking some.

    Args:
        minutes: for all candidates and the final trainings, from now on.
        text: the experiment in gin.
        has_pool: whether there are unlabelled images.
        folder: of the candidates: a training's folder.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.

    Returns:
        A multiple of `EPOCHS`, at least `LEAST_STEPS`.
    """
    started, count = time.monotonic(), len(names(has_pool)) // 2 + 2
    slowest = names(has_pool)[-2]
    spec = config.load_text(text, [_rows([slowest]), _HELD_OUT])
    run = open_run(spec, folder, data_dir)
    # What says that the folder is a training's, also to those that come after this process.
    storage.write_text(folder / gin_files.OPERATIVE, config.operative_config())
    *parents, stage = spec.stages()
    for parent in parents:
        experiment.finish(parent, run)
    seconds = training.pace(stage, run)
    left = 60 * minutes - (time.monotonic() - started)
    steps = max(LEAST_STEPS, int(left / count / seconds) // EPOCHS * EPOCHS)
    print(
        f"a step takes {1000 * seconds:.0f} ms on this machine: {count} trainings of {steps:,} "
        f"steps take about {count * steps * seconds / 60:.0f} minutes, without scoring and export"
    )
    return steps


def run(
    text: str, has_pool: bool, folder: Path, data_dir: str | None, command: str
) -> list[dict[str, Any]]:
    """Trains the candidates on a part of the training images, and scores them on the rest.

    Args:
        text: the experiment in gin.
        has_pool: whether there are unlabelled images.
        folder: of the candidates: a training's folder.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.
        command: that does this.

    Returns:
        Of each whose loss stayed finite its "stage", "method", "accuracy" on "images" held-out
        images, and what it is "above" the student alone, with the standard "error" of that; best
        first, of equals the one first among `names`, as it is the simpler one.
        FOLDER/candidates.json holds the same.

    Raises:
        InputError: as `launch` says, or the student alone has diverged.
    """
    gin_file = folder.with_name(f"{folder.name}.gin")
    storage.write_text(gin_file, text)

    def train(rows: Sequence[str]) -> dict[str, Any]:
        params = [_rows(rows), _HELD_OUT]
        _, _, results = launch([str(gin_file)], params, folder, data_dir, command)
        return results

    trained = []
    for name in names(has_pool):
        if name.endswith(REFIT) and name.removesuffix(REFIT) not in trained:
            continue
        try:
            train([name])
            trained.append(name)
        except DivergedError as error:
            if name == REFERENCE:
                raise
            print(f"{name} is out: {error}")
    # All are finished now; the folder is left as that of one experiment, to export any from.
    results = train(trained)
    stages, found = folder / "stages", []
    for row in results["rows"]:
        compared = predictions.difference([stages / row["stage"]], [stages / REFERENCE])
        assert compared is not None, "all candidates are scored on the same images"
        facts = {name: row[name] for name in ("stage", "method", "accuracy", "images")}
        found.append(facts | dict(zip(("above", "error"), compared, strict=True)))
    found.sort(key=lambda row: -row["accuracy"])
    storage.write_json(folder / FILE, found)
    return found


def training_rows(task: Task, data_dir: str | None) -> np.ndarray:
    """Returns which images of the student's task train candidates, as rows of the dataset."""
    return select(
        dataclasses.replace(task, holdout=HOLDOUT), read_index(task.data.source, data_dir)
    ).train


def final_rows(winner: str, has_head: bool) -> str:
    """Returns the gin line that trains the winner on all images, beside its measures.

    Args:
        winner: the best candidate's stage.
        has_head: whether the teacher's network can have a head.
    """
    stages = dict.fromkeys([*([HEAD] if has_head else ()), REFERENCE, winner])
    return _rows(stages, ["teacher_1nn", "teacher_lr"])


def _rows(stages: Iterable[str], probes: Sequence[str] = ()) -> str:
    rows = [*(f"@{name}/Probe()" for name in probes), *(f"@{name}/Stage()" for name in stages)]
    return f"Experiment.rows = [{', '.join(rows)}]"
