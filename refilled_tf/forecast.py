"""How long stages will take, by those of their kind that are finished."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from refilled_tf import experiment, storage
from refilled_tf.data.task import read_index, select
from refilled_tf.report import markdown
from refilled_tf.stage import Run, Stage


class Forecast:
    """Seconds that an image costs in an epoch, from the finished stages of a work_dir."""

    def __init__(self, where: Run):
        """Reads what is finished."""
        self._where = where
        self._costs: dict[tuple, list[float]] = {}
        for path in where.work_dir.glob("stages/*/result.json"):
            facts, result = storage.read_json(path.with_name("stage.json")), storage.read_json(path)
            if result.get("epochs"):
                seen = result["epochs"] * facts["training_images"]
                kind = _kind(facts["settings"])
                self._costs.setdefault(kind, []).append(result["seconds"] / seen)

    def minutes(self, spec: experiment.Row) -> float | None:
        """Returns what is left to do, in minutes; None where nothing of its kind is finished."""
        if self._where.is_finished(spec):
            return 0.0
        if not isinstance(spec, Stage) or spec.recipe is None:
            return None
        costs = self._costs.get(_kind(spec.settings()))
        if costs is None:
            return None
        index = read_index(spec.task.data.source, self._where.data_dir)
        images = len(select(spec.task, index).train)
        return statistics.median(costs) * spec.recipe.total_epochs * images / 60

    def table(self, specs: Sequence[experiment.Row]) -> str:
        """Lists what is to be finished, and the sum."""
        lines, known, unknown = [], 0.0, 0
        for spec in specs:
            minutes = self.minutes(spec)
            known += minutes or 0.0
            unknown += minutes is None
            state = "finished" if minutes == 0 else f"{minutes:.1f}" if minutes else "unknown"
            lines.append((self._where.folder(spec).name, state))
        total = f"{len(specs)} to finish; {known:.0f} minutes, and {unknown} of unknown length"
        return f"{markdown(('Stage', 'Minutes'), lines)}\n\n{total}"


def _kind(settings: dict) -> tuple:
    """Returns what a step costs by: network, objective, pixels, batch; not the seed, say."""
    options = ("Stage.backbone", "Stage.objective", "Data.", "Recipe.batch_size", "teacher_cache")
    networks = ("MobileNet.", "WideResNet.", "ConvNet.", "ResNet", "CifarResNet.")
    return tuple(
        (name, str(value))
        for name, value in sorted(settings.items())
        if name.startswith(options + networks) and "split" not in name
    )
