"""A table of the paper: experiments side by side, over several seeds, beside its numbers."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import gin

from refilled_tf import experiment as experiments
from refilled_tf import storage
from refilled_tf.errors import require
from refilled_tf.experiment import Experiment
from refilled_tf.report import markdown
from refilled_tf.stage import Run


@gin.register
@dataclasses.dataclass(frozen=True)
class Table:
    """What a table compares.

    Attributes:
        title: of the page.
        columns: for each column's label the experiment: a gin file and single settings. A label
            "GROUP, X" belongs to the curve GROUP at the place X of pictures. Where an experiment
            is of few-shot learning, its numbers of shots make the columns instead.
        axis: what X is.
        paper: for a method the paper's numbers, column by column, in percent; None where it has
            none.
        seeds: how many of Stage.seed 0, 1, …
    """

    title: str
    columns: Mapping[str, Sequence[str]]
    axis: str
    paper: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    seeds: int = 3

    def __post_init__(self):
        require(len(self.columns) > 0, "Table.columns is empty: it needs at least one experiment")
        require(self.seeds >= 1, f"Table.seeds={self.seeds} must be at least 1")


class Part(NamedTuple):
    """An experiment of a table: one column, one seed."""

    column: str
    seed: int
    experiment: Experiment


class Cell(NamedTuple):
    """What is known of a method in a column.

    Attributes:
        values: accuracies in percent, one for each finished seed.
        missing: seeds that are not finished.
        paper: its number in percent, if it has one.
        interval: half the width of the 95 % interval over few-shot tasks, in percent.
    """

    values: tuple[float, ...]
    missing: tuple[int, ...]
    paper: float | None = None
    interval: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Of the seeds; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class Grid(NamedTuple):
    """A collected table: cells[method, column]; a method has no cell where it has no row."""

    methods: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]

    @property
    def missing(self) -> list[str]:
        """What is not finished, in words."""
        return [
            f"{method} ({column}), seed {', '.join(map(str, cell.missing))}"
            for (method, column), cell in self.cells.items()
            if cell.missing
        ]


def parts(
    table: Table, seeds: int, load: Callable[[Sequence[str], Sequence[str]], Experiment]
) -> list[Part]:
    """Builds the experiments of a table, seed by seed.

    Args:
        table: what it compares.
        seeds: how many.
        load: `config.load_experiment`.
    """
    return [
        Part(column, seed, load([file], [*params, f"Stage.seed = {seed}"]))
        for seed in range(seeds)
        for column, (file, *params) in table.columns.items()
    ]


def collect(table: Table, experiments_of: Sequence[Part], where: Run) -> Grid:
    """Reads what is finished, and trains nothing.

    Args:
        table: for the paper's numbers.
        experiments_of: its parts.
        where: their work_dir.
    """
    values: dict[tuple[str, str], dict[int, dict | None]] = {}
    for part in experiments_of:
        for row in part.experiment.rows:
            column = part.column
            if (shots := getattr(row, "shots", None)) is not None:
                column = f"{shots}-shot" if len(table.columns) == 1 else f"{column}, {shots}"
            done = where.is_finished(row)
            result = storage.read_json(where.folder(row) / "result.json") if done else None
            values.setdefault((row.method, column), {})[part.seed] = result
    methods, columns = (tuple(dict.fromkeys(key[i] for key in values)) for i in range(2))
    cells = {}
    for (method, column), by_seed in values.items():
        done = [result for result in by_seed.values() if result is not None]
        paper = dict(zip(columns, table.paper.get(method, ()), strict=False)).get(column)
        interval = done[0].get("interval") if done else None
        cells[method, column] = Cell(
            tuple(100 * result["accuracy"] for result in done),
            tuple(seed for seed, result in by_seed.items() if result is None),
            paper,
            None if interval is None else 100 * interval,
        )
    return Grid(methods, columns, cells)


def text(cell: Cell | None) -> str:
    """Writes a cell: mean ± deviation over seeds (number of seeds, if some are missing)."""
    if cell is None or not cell.values:
        return ""
    spread = cell.interval if cell.deviation is None else cell.deviation
    written = f"{cell.mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
    count = len(cell.values)
    return written + (f" ({count} of {count + len(cell.missing)})" if cell.missing else "")


def beside(cell: Cell | None) -> str:
    """Writes the paper's number and what ours is above it."""
    if cell is None or cell.paper is None:
        return ""
    difference = f" ({cell.mean - cell.paper:+.2f})" if cell.values else ""
    return f"{cell.paper:.2f}{difference}"


def as_markdown(grid: Grid) -> str:
    """Lays the table out, with a column of the paper's numbers beside each that has some."""
    header, of_paper = ["Method"], {}
    for column in grid.columns:
        of_paper[column] = any(
            cell.paper is not None for (_, c), cell in grid.cells.items() if c == column
        )
        header += [column, "paper"] if of_paper[column] else [column]
    lines = []
    for method in grid.methods:
        line = [method]
        for column in grid.columns:
            cell = grid.cells.get((method, column))
            line += [text(cell), beside(cell)] if of_paper[column] else [text(cell)]
        lines.append(tuple(line))
    return markdown(tuple(header), lines)


def as_csv(grid: Grid) -> str:
    """Returns a line for each cell; accuracies in percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "column", "mean", "deviation", "seeds", "missing", "paper"])
    for (method, column), cell in grid.cells.items():
        mean = f"{cell.mean:.4f}" if cell.values else ""
        deviation = "" if cell.deviation is None else f"{cell.deviation:.4f}"
        paper = "" if cell.paper is None else cell.paper
        counts = len(cell.values), len(cell.missing)
        writer.writerow([method, column, mean, deviation, *counts, paper])
    return out.getvalue()


def unique(table_parts: Sequence[Part], where: Run) -> list[experiments.Row]:
    """Returns all that has to be finished, each once, parents first."""
    found: dict = {}
    for part in table_parts:
        for row in part.experiment.rows:
            for spec in experiments.with_parents(row):
                found.setdefault(where.folder(spec), spec)
    return list(found.values())
