"""Hyper-parameters chosen on validation images, by Optuna.

Nothing of the search itself is kept. Its sampler is seeded, so a search that is run again asks for
the same trials in the same order, and finds those that are finished as stages in the work_dir; a
killed one goes on from its last epoch, and more trials go on where fewer have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from refilled_tf.common import settings, storage
from refilled_tf.common.errors import DivergedError, require
from refilled_tf.data.recipe import Recipe
from refilled_tf.experiment import config
from refilled_tf.experiment.launch import launch
from refilled_tf.experiment.stage import Stage
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.probe_distillation import ProbeDistillation
from refilled_tf.objectives.relationship import RelationshipMatching
from refilled_tf.own_images import candidates

TRIALS = "trials.json"
# In their order a search draws: another one would not find its finished trials.
SEARCHED = (RelationshipMatching, LocalDistillation, ProbeDistillation, Recipe)
# By name in gin: the smallest, the first and the largest value.
RANGES = {
    option: limits for kind in SEARCHED for option, limits in settings.ranges_of(kind).items()
}

TuningTrial = dict[str, Any]


def run(
    text: str,
    width_option: str,
    widths: Sequence[float],
    folder: Path,
    count: int,
    data_dir: str | None,
    command: str,
) -> list[TuningTrial]:
    """Runs trials of the last row on a part of the training images, scored on the rest.

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
    row = config.load_text(text).rows[-1]
    assert isinstance(row, Stage), "the last row is the student"
    chain = chain_of(row)
    ranges = ranges_of(chain)
    trials: list[TuningTrial] = []

    def accuracy(trial: optuna.Trial) -> float:
        values = {
            option: _rounded(trial.suggest_float(option, least, most, log=True))
            for option, (least, _, most) in ranges.items()
        }
        if len(widths) > 1:
            values[width_option] = trial.suggest_categorical(width_option, widths)
        name = f"trial_{trial.number:03d}"
        params = [
            f"Experiment.rows = [@{row.name}/Stage()]",
            f"student.holdout = {candidates.HOLDOUT}",
            *(f"{stage.name}/Stage.name = '{name}_{stage.name}'" for stage in chain[1:]),
            f"{row.name}/Stage.name = '{name}'",
            *(f"{option} = {value}" for option, value in values.items()),
        ]
        try:
            _, _, results = launch([str(gin_file)], params, folder, data_dir, command)
        except DivergedError as error:
            print(f"{name}: {error}")
            raise
        (scored,) = results["rows"]
        facts = {"accuracy": scored["accuracy"], "images": scored["images"]}
        trials.append({"name": name, "settings": values} | facts)
        storage.write_json(folder / TRIALS, trials)
        found = f"{100 * scored['accuracy']:.2f} % of {scored['images']} validation images"
        print(f"{name}: {found}, {values}")
        return scored["accuracy"]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    first = {option: start for option, (_, start, _) in ranges.items()}
    study.enqueue_trial(first | ({width_option: widths[0]} if len(widths) > 1 else {}))
    study.optimize(accuracy, n_trials=count, catch=DivergedError)
    require(len(trials) > 0, f"--tune={count}: none of the trials kept a finite loss, see above")
    return trials


def chain_of(row: Stage) -> list[Stage]:
    """Returns a row and the student's stages that it starts from, each before its start."""
    return [row, *(chain_of(row.start) if row.start else ())]


def ranges_of(chain: Sequence[Stage]) -> dict[str, tuple[float, float, float]]:
    """Returns those of `RANGES` that stages take."""
    kinds = {type(part).__name__ for stage in chain for part in (stage.objective, stage.recipe)}
    return {option: r for option, r in RANGES.items() if option.partition(".")[0] in kinds}


def chosen(trials: list[TuningTrial]) -> list[str]:
    """Returns the best trial's settings in gin; of equally good ones the first's."""
    best = max(trials, key=lambda trial: trial["accuracy"])
    return [
        f"# {best['name']}, {100 * best['accuracy']:.2f} % of {best['images']} validation images",
        *(f"{option} = {value}" for option, value in best["settings"].items()),
    ]


def _rounded(value: float) -> float:
    """Rounds to three significant digits."""
    return float(f"{value:.3g}")
