"""From gin files to results: what every program that trains an experiment does."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refilled_tf.common import cluster, gin_files, storage
from refilled_tf.common.errors import require
from refilled_tf.experiment import config, experiment
from refilled_tf.experiment.experiment import Experiment
from refilled_tf.experiment.run import Run


def launch(
    files: Sequence[str],
    params: Sequence[str],
    work_dir: Path,
    data_dir: str | None,
    command: str,
) -> tuple[Experiment, Run, dict[str, Any]]:
    """Trains and scores an experiment, or goes on with it.

    Args:
        files: gin files that describe it, later ones over earlier ones.
        params: single settings, over the files.
        work_dir: where results go.
        data_dir: folder of prepared TFDS datasets; None for the experiment's.
        command: that did this.

    Returns:
        The experiment, where it ran, and what `experiment.finish_rows` returns.

    Raises:
        InputError: as `config.load_experiment`, `open_run` and `experiment.finish_rows` say.
    """
    spec = config.load_experiment(files, params)
    run = open_run(spec, work_dir, data_dir)
    if run.is_chief:
        storage.write_text(work_dir / gin_files.OPERATIVE, config.operative_config())
    return spec, run, experiment.finish_rows(spec, run, files, command)


def open_run(spec: Experiment, work_dir: Path, data_dir: str | None) -> Run:
    """Finds a place for an experiment, and prepares it.

    Args:
        spec: the experiment.
        work_dir: where results go.
        data_dir: folder of prepared TFDS datasets; None for the experiment's.

    Returns:
        Where to run it.

    Raises:
        InputError: as `check_work_dir`, `cluster.of_environment` and `experiment.make_ready` say.
    """
    check_work_dir(work_dir)
    together = spec.strategy == "multi_worker"
    with cluster.gathering(cluster.of_environment()) if together else contextlib.nullcontext():
        strategy = experiment.make_strategy(spec.strategy)
    run = Run(work_dir, data_dir or spec.data_dir, strategy)
    if run.is_chief:  # the only worker that writes
        storage.require_writable("--work_dir", work_dir)
    experiment.make_ready(spec, run)
    return run


def check_work_dir(work_dir: Path) -> None:
    """Rejects a place that is not a folder, or a folder with other things in it.

    Raises:
        InputError: naming the place.
    """
    existing = storage.nearest_existing(work_dir)
    require(existing.is_dir(), f"--work_dir={work_dir}: {existing} is not a folder")
    require(
        existing != work_dir
        or not any(work_dir.iterdir())
        or (work_dir / gin_files.OPERATIVE).is_file(),
        f"--work_dir={work_dir} holds other things than an experiment's results; take an empty "
        "or a new folder",
    )
