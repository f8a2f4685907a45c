"""A table of the paper in one command: python -m refilled_tf.reproduce --table=1 --scale=cpu.

Trains every experiment of gin/tables/table1_cpu.gin, or goes on with it, and writes the table, as
Markdown, CSV and HTML, with pictures. Any number of processes, on one machine or several that share
the work_dir, may run the same command at once: each takes stages that nobody else is at.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import filelock
from absl import flags
from etils import epy

from refilled_tf import figure1
from refilled_tf.common import gin_files, storage
from refilled_tf.common.entry import command_line, no_arguments, run_main
from refilled_tf.common.errors import InputError, OutOfTimeError, require

with epy.lazy_imports():
    import tensorflow as tf

    from refilled_tf.experiment import config, experiment, stage
    from refilled_tf.experiment import run as runs
    from refilled_tf.reporting import forecast, pages, pictures, tables

FLAGS = flags.FLAGS

FIGURE = {"paper": "cifar100_wrn.gin", "cpu": "cifar100_figure1.gin"}
MARK = "scale.json"  # of a work_dir: the scale of its results
POLL_SECONDS = 5.0  # between two looks at stages that other processes are at


def check(argv: list[str]) -> None:
    """Rejects unknown tables, and a folder of the other scale."""
    no_arguments(argv)
    require(
        bool(FLAGS.table) or FLAGS.figure is not None,
        f"nothing to do: --table={'|'.join(names(FLAGS.scale))} or --figure=1",
    )
    for name in FLAGS.table:
        gin_files.check_names([table_file(name, FLAGS.scale)])
    check_work_dir(work_dir(), FLAGS.scale)


def work_dir() -> Path:
    """Returns the folder of all results."""
    return Path(FLAGS.work_dir or f"runs/reproduce_{FLAGS.scale}")


def main(_: list[str]) -> None:
    """Trains and collects what the flags ask for."""
    limit = FLAGS.max_minutes
    deadline = None if limit is None else time.monotonic() + 60 * limit
    strategy = experiment.make_strategy("mirrored")
    run = runs.Run(work_dir(), FLAGS.data_dir, strategy, pooled=True, deadline=deadline)
    # All of them, before the first trains for hours.
    plans = [plan_table(name, run) for name in FLAGS.table]
    figure = None if FLAGS.figure is None else plan_figure(run)
    if FLAGS.dry_run:
        for plan in plans:
            work = forecast.Forecast(plan.run, plan.table.minutes).table(plan.specs)
            print(f"{plan.table.title}: {len(plan.parts)} experiments\n\n{work}\n")
        if figure:
            teacher, run = figure
            print(f"Figure 1\n\n{forecast.Forecast(run).table([(teacher, 1)])}\n")
        return
    storage.write_json(work_dir() / MARK, FLAGS.scale)
    command, failed = command_line("refilled_tf.reproduce"), []
    for plan in plans:
        failed += reproduce_table(plan, command)
    if figure:
        failed += reproduce_figure(*figure)
    print(f"Report   {pages.write_report(work_dir())}")
    require(not failed, f"{len(failed)} stages failed, see above: {', '.join(failed)}")


def names(scale: str) -> list[str]:
    """Returns what --table may be at a scale: the files in gin/tables/, without their endings."""
    ending = f"_{scale}.gin"
    found = sorted((gin_files.GIN_FOLDER / "tables").glob(f"*{ending}"))
    return [path.name.removesuffix(ending).removeprefix("table") for path in found]


def table_file(name: str, scale: str) -> Path:
    """Returns the gin file that --table names.

    Raises:
        InputError: there is none at this scale.
    """
    if name.endswith(".gin"):
        require(Path(name).is_file(), f"--table={name} does not exist")
        return Path(name)
    known = names(scale)
    require(
        name in known,
        f"--table={name}: at --scale={scale} there are {', '.join(known)}, or a gin file",
    )
    stem = f"table{name}" if name.isdigit() else name
    return gin_files.GIN_FOLDER / "tables" / f"{stem}_{scale}.gin"


def check_work_dir(work_dir: Path, scale: str) -> None:
    """Rejects a folder of the other scale, with other things in it, or that cannot be written.

    Raises:
        InputError: naming the folder.
    """
    storage.require_writable("--work_dir", work_dir)
    mark = work_dir / MARK
    if not mark.exists():
        # Another process may be writing the mark, under a name that begins with a dot.
        require(
            not work_dir.exists() or not list(work_dir.glob("[!.]*")),
            f"--work_dir={work_dir} is there, but not of this command's making; take a new one",
        )
        return
    there = storage.read_json(mark)
    require(
        there == scale,
        f"--work_dir={work_dir} holds results of --scale={there}, which are not mixed with "
        f"--scale={scale}; take another",
    )


class TablePlan(NamedTuple):
    """The work for a table.

    Attributes:
        name: of its folder.
        table: what it compares.
        parts: its experiments.
        settings: of these, by the files and params they are made of, as gin text.
        run: with the experiments' data_dir.
    """

    name: str
    table: tables.Table
    parts: Sequence[tables.Part]
    settings: Mapping[str, str]
    run: runs.Run

    @property
    def specs(self) -> list[tuple[experiment.Row, int]]:
        """All stages and rows to finish, parents first, and how many experiments share each."""
        return tables.unique(self.parts, self.run)


def plan_table(name: str, run: runs.Run) -> TablePlan:
    """Builds a table's experiments, and refuses what cannot be trained.

    Raises:
        InputError: there is no such table, or as `tables.parts` and `placed` say.
    """
    file = table_file(name, FLAGS.scale)
    table, stem = config.load_table(file), file.stem.removesuffix(f"_{FLAGS.scale}")
    settings: dict[str, str] = {}

    def load(files, params):
        built = config.load_experiment(files, params)
        settings[" ".join([*files, *params])] = config.operative_config()
        return built

    parts = tables.parts(table, FLAGS.seeds or table.seeds, load)
    run = placed(name, [part.experiment for part in parts], run)
    return TablePlan(stem, table, parts, settings, run)


def placed(name: str, specs: Sequence[experiment.Experiment], run: runs.Run) -> runs.Run:
    """Returns where to run experiments, once it is seen that they can be trained there.

    Args:
        name: of what they are for.
        specs: the experiments.
        run: a run without their own data_dir.

    Raises:
        InputError: two want different folders of datasets, one wants several machines, or as
            `experiment.make_ready` says.
    """
    folders = {spec.data_dir for spec in specs}
    require(
        FLAGS.data_dir is not None or len(folders) == 1,
        f"{name}: its experiments differ in Experiment.data_dir: {folders}; give one --data_dir",
    )
    require(
        all(spec.strategy == "mirrored" for spec in specs),
        f"{name}: Experiment.strategy must be 'mirrored'; several machines share the work by "
        "running this command on one --work_dir",
    )
    run = dataclasses.replace(run, data_dir=FLAGS.data_dir or folders.pop())
    if not FLAGS.collect and not FLAGS.dry_run:
        for spec in specs:
            experiment.make_ready(spec, run)
    return run


def reproduce_table(plan: TablePlan, command: str) -> list[str]:
    """Trains what a table lacks, unless told not to, and writes the table.

    Returns:
        The names of stages that failed.
    """
    stem, table, parts, settings, run = plan
    failed = []
    if not FLAGS.collect:
        failed = finish_all([spec for spec, _ in plan.specs], run)
    grid = tables.collect(table, parts, run)
    print(f"\n{tables.as_markdown(grid)}\n")
    if grid.missing:
        print(f"{len(grid.missing)} cells are not finished, such as {grid.missing[0]}\n")
    facts = {
        "title": table.title,
        "scale": FLAGS.scale,
        "command": command,
        "date": datetime.date.today().isoformat(),
    }
    folder = run.work_dir / stem
    storage.write_text(folder / f"{stem}.csv", tables.as_csv(grid))
    pictures.save_all(folder, table, grid, parts, run)
    pages.write_table(folder, facts, grid, settings)
    print(f"Table    {folder / stem}.md, .csv, .html")
    return failed


def finish_all(specs: Sequence[experiment.Row], run: runs.Run) -> list[str]:
    """Trains all stages and scores all rows, together with whoever else works in the work_dir.

    A stage that fails costs only those that build on it. Ends early at the run's deadline.

    Args:
        specs: what to finish, parents first.
        run: a pooled run.

    Returns:
        The names of stages that failed.
    """
    failed: list[str] = []
    try:
        while left := _still_to_do(specs, failed, run):
            if not sum(_try(spec, failed, run) for spec in left):
                time.sleep(POLL_SECONDS)
    except OutOfTimeError:
        print("--max_minutes are over; the same command goes on from here")
    return failed


def _still_to_do(
    specs: Sequence[experiment.Row], failed: list[str], run: runs.Run
) -> list[experiment.Row]:
    """Returns what is neither finished nor failed; what builds on a failure fails with it."""
    left = []
    for spec in specs:
        name = run.folder(spec).name
        if name in failed or run.is_finished(spec):
            continue
        if any(run.folder(parent).name in failed for parent in spec.parents):
            failed.append(name)
        else:
            left.append(spec)
    return left


def _try(spec: experiment.Row, failed: list[str], run: runs.Run) -> bool:
    """Runs a stage or row if its parents are finished and no other process holds it.

    Returns:
        Whether this process has done anything.

    Raises:
        OutOfTimeError: the run's deadline has passed.
    """
    if run.deadline is not None and time.monotonic() > run.deadline:
        raise OutOfTimeError
    if not all(run.is_finished(parent) for parent in spec.parents):
        return False
    name = run.folder(spec).name
    try:
        with run.lock(spec).acquire(blocking=False):
            if run.is_finished(spec):
                return False
            print(name, flush=True)
            experiment.finish(spec, run)
    except filelock.Timeout:
        return False
    except (InputError, tf.errors.OpError) as error:  # the latter where memory does not suffice
        print(f"error: {name}: {str(error).splitlines()[0]}", file=sys.stderr)
        failed.append(name)
    return True


def plan_figure(run: runs.Run) -> tuple[stage.Stage, runs.Run]:
    """Builds the teacher of Figure 1, and refuses what cannot be trained.

    Returns:
        The teacher, and where to train it.

    Raises:
        InputError: as `placed` says.
    """
    spec = config.load_experiment([FIGURE[FLAGS.scale]])
    teacher = next(each for each in spec.stages() if each.name == "teacher")
    return teacher, placed("Figure 1", [spec], run)


def reproduce_figure(teacher: stage.Stage, run: runs.Run) -> list[str]:
    """Trains the teacher of Figure 1 and draws the figure.

    Returns:
        The names of stages that failed.
    """
    failed = []
    if not FLAGS.collect:
        failed = finish_all([teacher], run)
    if run.is_finished(teacher):
        print(figure1.reproduce(teacher, run, run.work_dir / "figure1"))
    else:
        print("Figure 1: its teacher is not finished")
    return failed


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_list("table", [], "Of the paper, such as 1, or of gin/tables/, or a gin file.")
    flags.DEFINE_enum("figure", None, ["1"], "The paper's Figure 1.")
    flags.DEFINE_enum("scale", "cpu", ["paper", "cpu"], "The paper's protocol, or a small one.")
    flags.DEFINE_integer("seeds", None, "How many; the table's own number if unset.", lower_bound=1)
    flags.DEFINE_string("work_dir", None, "Folder of all results; runs/reproduce_SCALE if unset.")
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS datasets; TFDS's own if unset.")
    flags.DEFINE_bool("collect", False, "Train nothing; write what is finished.")
    flags.DEFINE_bool("dry_run", False, "List what is to be trained and how long it may take.")
    flags.DEFINE_float("max_minutes", None, "Stop after the epoch under way then.", lower_bound=0.0)
    run_main(main, check, goes_on=True)
