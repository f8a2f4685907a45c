"""An experiment: rows of a table, each the end of a chain of stages.

Stages are trained in the order in which they depend on each other, each once, whatever the
number of rows that build on it. results.json is written anew after every row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import gin
import tensorflow as tf

from refilled_tf.common import stack, storage
from refilled_tf.common.errors import require, require_built, require_choice
from refilled_tf.data import unlabelled
from refilled_tf.data.task import Task, load
from refilled_tf.experiment import checks, training
from refilled_tf.experiment.probe_row import Probe
from refilled_tf.experiment.run import Run
from refilled_tf.experiment.stage import Stage
from refilled_tf.experiment.trials import Trials

RESULTS_SCHEMA = 1
Row = Stage | Probe | Trials


@gin.register
@dataclasses.dataclass(frozen=True)
class Experiment:
    """Rows to train and score, and how.

    Attributes:
        rows: the methods to compare, in the order of the table; a tuple among them stands for its
            members.
        strategy: "mirrored" for all GPUs of this machine (or its CPU), "multi_worker" for
            several machines that TF_CONFIG names.
        deterministic: whether every op is made reproducible, at some cost in speed on a GPU.
        data_dir: folder of prepared TFDS datasets, unless the command line names one; None for
            TFDS's own. Where data lie does not shape results, so no stage depends on it.
    """

    rows: tuple[Row, ...]
    strategy: Literal["mirrored", "multi_worker"] = "mirrored"
    deterministic: bool = True
    data_dir: str | None = None

    def __post_init__(self):
        rows = [row if isinstance(row, tuple) else (row,) for row in self.rows]
        object.__setattr__(self, "rows", tuple(itertools.chain.from_iterable(rows)))
        for row in self.rows:
            require_built("Experiment.rows", row, Row, "@refilled/Stage()")
        require(len(self.rows) > 0, "Experiment.rows is empty: it needs at least one method")
        require_choice(self, "strategy")
        by_name: dict[str, Row] = {}
        for spec in self.specs():
            require(
                by_name.setdefault(spec.name, spec) == spec,
                f"two different stages are named {spec.name!r}; give each its own Stage.name",
            )

    def specs(self) -> Iterator[Row]:
        """Yields rows and all that they build on, parents first, repeated where shared."""
        for row in self.rows:
            yield from _with_parents(row)

    def stages(self) -> list[Stage]:
        """Returns the stages in an order of training, each once."""
        unique = {spec.name: spec for spec in self.specs() if isinstance(spec, Stage)}
        return list(unique.values())


def _with_parents(row: Row) -> Iterator[Row]:
    for parent in row.parents:
        yield from _with_parents(parent)
    yield row


@functools.cache
def make_strategy(kind: str) -> tf.distribute.Strategy:
    """Makes the strategy that `Experiment.strategy` names, one for the whole process.

    Two on the same devices would count their collective operations independently under the same
    keys, and TensorFlow fails when it sees a key with another operation.

    "mirrored" takes all visible GPUs; without any, all logical CPU devices. A lone CPU is
    TensorFlow's default strategy, which takes the same steps and reads a variable sooner.
    """
    if kind == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if tf.config.list_physical_devices("GPU"):
        return tf.distribute.MirroredStrategy()
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    return tf.distribute.MirroredStrategy(devices) if devices[1:] else tf.distribute.get_strategy()


def check(experiment: Experiment, run: Run) -> None:
    """Rejects what cannot be trained before anything is trained or written.

    Raises:
        InputError: see `checks.check` and, of what is not finished, `data.task.load`.
    """
    for stage in experiment.stages():
        checks.check(stage, run)
    for row in experiment.rows:
        if isinstance(row, Trials | Probe):
            row.check(run)
    # Last, as nothing else takes as long.
    for spec in experiment.specs():
        if not run.is_finished(spec):
            for task in spec.tasks:
                _decode(task, run.data_dir)


# Experiments of a table share tasks, more of them than `load` keeps.
@functools.cache
def _decode(task: Task, data_dir: str | None) -> None:
    """Rejects a task with images that cannot be decoded, once for the whole process."""
    load(task, data_dir)
    if task.unlabelled:
        unlabelled.load(task, data_dir)


def make_ready(experiment: Experiment, run: Run) -> None:
    """Rejects what cannot be trained, as `check` does, and makes operations reproducible.

    Raises:
        InputError: see `check`.
    """
    if experiment.deterministic:
        tf.config.experimental.enable_op_determinism()
    check(experiment, run)


def finish_rows(
    experiment: Experiment, run: Run, gin_files: Sequence[str], command: str
) -> dict[str, Any]:
    """Trains and scores every row.

    Args:
        experiment: what.
        run: folders and strategy.
        gin_files: that describe it.
        command: that runs it.

    Returns:
        What results.json holds: what it opens with, and {"rows": [`row_of`, …]}.

    Raises:
        InputError: as `training.train` says; rows finished so far stay in results.json.
    """
    finished: dict[str, dict[str, Any]] = {}
    results = {
        "schema": RESULTS_SCHEMA,
        "experiment": list(gin_files),
        "command": command,
        "replicas": run.strategy.num_replicas_in_sync,
        "versions": stack.versions(),
        "rows": [],
    }
    for row in experiment.rows:
        for spec in _with_parents(row):
            if spec.name not in finished:
                finished[spec.name] = finish(spec, run)
        results["rows"].append(row_of(row, finished, command))
        if run.is_chief:
            storage.write_json(run.work_dir / "results.json", results)
    run.leave_together()
    return results


def finish(spec: Row, run: Run) -> dict[str, Any]:
    """Trains a stage, or scores a row, whose parents are finished; or finds it finished.

    Waits while another process is at it.

    Returns:
        What its result.json holds.

    Raises:
        InputError: see `training.train`.
    """
    # Workers of one training go through all stages in step, and wait for nobody else.
    together = isinstance(run.strategy, tf.distribute.MultiWorkerMirroredStrategy)
    with contextlib.nullcontext() if together else run.lock(spec):
        return training.train(spec, run) if isinstance(spec, Stage) else spec.score(run)


def row_of(row: Row, finished: dict[str, dict[str, Any]], command: str) -> dict[str, Any]:
    """Returns a row of results.json; the schema is documented in docs/cross_task.md.

    Args:
        row: of the experiment.
        finished: what result.json holds of the row and of all it builds on, by name.
        command: that produced it.
    """
    result = finished[row.name]
    start = getattr(row, "start", None)
    embedding = result.get("embedding")
    if embedding is None and start is not None:
        embedding = finished[start.name].get("embedding")
    network = row.network
    chain = {spec.name for spec in _with_parents(row)}
    return {
        "method": row.method,
        "stage": row.name,
        "width": getattr(network.backbone, "width", None),
        "split": result["scored_on"],
        "images": result["images"],
        "seed": row.seed,
        "accuracy": result.get("accuracy"),
        **{name: result[name] for name in ("shots", "interval", "chosen") if name in result},
        "embedding": embedding,
        "seconds": result["seconds"],
        "seconds_with_parents": round(sum(finished[name]["seconds"] for name in chain), 1),
        "parameters": finished[network.name]["parameters"],
        "command": command,
    }
