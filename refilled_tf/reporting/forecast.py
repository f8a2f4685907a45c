"""A forecast of what stages will take, by those of their kind that are finished."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from refilled_tf.common import storage
from refilled_tf.data.task import read_index, select
from refilled_tf.experiment import experiment
from refilled_tf.experiment.run import Run
from refilled_tf.experiment.stage import Stage
from refilled_tf.reporting.report import markdown


class Forecast:
    """Seconds that an image costs in an epoch, from the finished stages of a work_dir.

    Args:
        run: the work_dir.
        measured: minutes of stages by their names, for those of which no like is finished.
    """

    def __init__(self, run: Run, measured: Mapping[str, float] | None = None):
        """Reads what is finished."""
        self._run = run
        self._measured = measured or {}
        self._costs: dict[tuple, list[float]] = {}
        for path in run.work_dir.glob("stages/*/result.json"):
            facts, result = storage.read_json(path.with_name("stage.json")), storage.read_json(path)
            if result.get("epochs"):
                settings = facts["settings"]
                cycles = result["epochs"] // settings["Recipe.epochs"]
                seen = cycles * _seen(
                    settings.get("Recipe.steps"),
                    settings["Recipe.batch_size"],
                    settings["Recipe.epochs"],
                    facts["training_images"],
                )
                kind = _kind(settings)
                self._costs.setdefault(kind, []).append(result["seconds"] / seen)

    def minutes(self, spec: experiment.Row) -> float | None:
        """Returns how long a stage or row takes, in minutes; None where nobody knows."""
        if (
            isinstance(spec, Stage)
            and (recipe := spec.recipe)
            and (costs := self._costs.get(_kind(spec.settings())))
        ):
            index = read_index(spec.task.data.source, self._run.data_dir)
            images = len(select(spec.task, index).train)
            seen = _seen(recipe.steps, recipe.batch_size, recipe.epochs, images)
            return statistics.median(costs) * recipe.cycles * seen / 60
        return self._measured.get(spec.name)

    def table(self, specs: Sequence[tuple[experiment.Row, int]]) -> str:
        """Lists what is to be finished, each with the number of experiments that share it.

        Args:
            specs: as `tables.unique` returns them.
        """
        lines, known, unknown, finished = [], 0.0, 0, 0
        for spec, uses in specs:
            name = self._run.folder(spec).name
            if self._run.is_finished(spec):
                finished += 1
                state = "finished"
            elif (minutes := self.minutes(spec)) is None:
                unknown += 1
                state = "unknown"
            else:
                known += minutes
                state = f"{minutes:.1f}"
            lines.append((name, str(uses), state))
        total = f"{finished} of {len(specs)} finished; the others take {known:.0f} minutes"
        if unknown:
            total += f" and, of {unknown}, an unknown time"
        return f"{markdown(('Stage', 'Experiments', 'Minutes'), lines)}\n\n{total}"


def _seen(steps: int | None, batch_size: int, epochs: int, images: int) -> int:
    """Returns how many images a network sees in a cycle of its schedule."""
    return epochs * images if steps is None else steps * batch_size


def _kind(settings: dict) -> tuple:
    """Returns what a step costs by: network, objective, pixels, batch; not the seed, say."""
    options = ("Stage.backbone", "Stage.objective", "Data.", "Recipe.batch_size")
    # A network that starts from somebody's weights is one within another.
    networks = (settings["Stage.backbone"], settings.get("FromWeights.network"))
    kind = {
        name: str(value)
        for name, value in sorted(settings.items())
        if name.startswith((*options, *(f"{network}." for network in networks)))
        and "split" not in name
    }
    return (*kind.items(), settings["TeacherCache.views"] > 0)
