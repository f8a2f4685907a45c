"""A table of the paper: experiments side by side, over several seeds, beside its numbers."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from refilled_tf.common import storage
from refilled_tf.common.errors import require
from refilled_tf.experiment import predictions
from refilled_tf.experiment.experiment import Experiment, Row
from refilled_tf.experiment.loading import untrained_network
from refilled_tf.experiment.run import Run
from refilled_tf.experiment.stage import Stage
from refilled_tf.experiment.table import Table
from refilled_tf.models import networks
from refilled_tf.models.cost import Cost, cost_of
from refilled_tf.reporting.report import markdown

COSTS = "Millions, for an image"


class Part(NamedTuple):
    """An experiment of a table: one column, one seed."""

    column: str
    seed: int
    experiment: Experiment


class Cell(NamedTuple):
    """The results of a method in a column.

    Attributes:
        values: accuracies in percent, one for each finished seed.
        missing: seeds that are not finished.
        paper: its number in percent, if it has one.
        interval: half the width of the 95 % interval over few-shot tasks, in percent.
        above: what it is above the table's reference with the same seeds and images, and the
            standard error of that, in percent; None if they have none in common.
    """

    values: tuple[float, ...]
    missing: tuple[int, ...]
    paper: float | None = None
    interval: float | None = None
    above: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def spread(self) -> float | None:
        """The number behind ±: the deviation, or the interval of a single seed that has one."""
        return self.interval if self.deviation is None else self.deviation


class Grid(NamedTuple):
    """A collected table: cells[method, column]; a method has no cell where it has no row.

    `costs` is of the first teacher and the student of each column, as far as they are known.
    """

    methods: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    reference: str | None = None
    costs: Mapping[tuple[str, str], Cost] = {}

    @property
    def missing(self) -> list[str]:
        """Names the unfinished cells."""
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

    Raises:
        InputError: as `load` does, or a row is an embedding, which has no accuracy, or the paper's
            numbers do not fit the methods and columns.
    """
    built = [
        Part(column, seed, load([file], [*params, f"Stage.seed = {seed}"]))
        for seed in range(seeds)
        for column, (file, *params) in table.columns.items()
    ]
    for part in built:
        for row in part.experiment.rows:
            require(
                not isinstance(row, Stage) or row.objective.classifies,
                f"Table.columns[{part.column!r}]: the row {row.name!r} has no accuracy, as it ends "
                "in an embedding; accepted are classifiers, probes and trials",
            )
    methods, columns = _margins(table, built)
    for method, numbers in table.paper.items():
        require(
            method in methods and len(numbers) == len(columns),
            f"Table.paper[{method!r}] holds {len(numbers)} numbers; the columns are "
            f"{', '.join(columns)}, the methods {', '.join(methods)}",
        )
    require(
        table.reference is None or table.reference in methods,
        f"Table.reference={table.reference!r} must be one of {', '.join(methods)}",
    )
    return built


def _cell_of(table: Table, part: Part, row: Row) -> tuple[str, str]:
    """Returns the method and the column that a row of an experiment belongs to."""
    shots = getattr(row, "shots", None)
    if shots is None:
        return row.method, part.column
    return row.method, f"{shots}-shot" if len(table.columns) == 1 else f"{part.column}, {shots}"


def _margins(table: Table, built: Sequence[Part]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the methods and the columns, in their order."""
    cells = [_cell_of(table, part, row) for part in built for row in part.experiment.rows]
    methods, columns = (tuple(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    return methods, columns


def collect(table: Table, built: Sequence[Part], run: Run) -> Grid:
    """Reads what is finished, and trains nothing.

    Args:
        table: for the paper's numbers.
        built: its parts.
        run: their work_dir.
    """
    methods, columns = _margins(table, built)
    seeds_of: dict[tuple[str, str], dict[Path, int]] = {}
    for part in built:
        for row in part.experiment.rows:
            # What no seed changes, such as a probe of the one teacher, counts once.
            folders = seeds_of.setdefault(_cell_of(table, part, row), {})
            folders.setdefault(run.folder(row), part.seed)
    cells, finished = {}, {}
    for (method, column), folders in seeds_of.items():
        done = {seed: f for f, seed in folders.items() if (f / "result.json").exists()}
        results = [storage.read_json(folder / "result.json") for folder in done.values()]
        interval = results[0].get("interval") if results else None
        finished[method, column] = done
        cells[method, column] = Cell(
            tuple(100 * result["accuracy"] for result in results),
            tuple(seed for seed in folders.values() if seed not in done),
            dict(zip(columns, table.paper.get(method, ()), strict=False)).get(column),
            None if interval is None else 100 * interval,
        )
    for (method, column), cell in cells.items():
        if table.reference is not None and method != table.reference:
            above = _above(finished[method, column], finished.get((table.reference, column), {}))
            cells[method, column] = cell._replace(above=above)
    return Grid(methods, columns, cells, table.reference, _costs(table, built))


def _costs(table: Table, built: Sequence[Part]) -> dict[tuple[str, str], Cost]:
    """Measures a teacher and its student for each column: {("Teacher" or "Student", column): …}."""
    costs: dict[tuple[str, str], Cost] = {}
    for part in built:
        for row in part.experiment.rows:
            _, column = _cell_of(table, part, row)
            sides = [("Student", row.network), *(("Teacher", t) for t in row.network.teachers[:1])]
            for side, stage in sides if len(sides) == 2 else ():
                if networks.in_keras(stage.backbone) and (side, column) not in costs:
                    costs[side, column] = cost_of(untrained_network(stage))
    return costs


def costs(grid: Grid) -> list[tuple[str, ...]]:
    """Returns lines of a network's measure and, in each column, how many millions it has of it."""
    lines = []
    for kind in ("Teacher", "Student"):
        found = [grid.costs.get((kind, column)) for column in grid.columns]
        for measure in Cost._fields if any(found) else ():
            values = ("" if x is None else f"{getattr(x, measure) / 1e6:.2f}" for x in found)
            lines.append((f"{kind}: {measure}", *values))
    return lines


def costs_as_markdown(grid: Grid) -> str:
    """Lays out what the networks cost; "" where none is known."""
    lines = costs(grid)
    return markdown((COSTS, *grid.columns), lines) if lines else ""


def _above(ours: Mapping[int, Path], reference: Mapping[int, Path]) -> tuple[float, float] | None:
    """Compares finished stages of two methods, by their seeds; see `Cell.above`."""
    seeds = ours.keys() & reference.keys()
    sides = [[folders[seed] for seed in seeds] for folders in (ours, reference)]
    found = predictions.difference(*sides)
    return None if found is None else (100 * found[0], 100 * found[1])


def text(cell: Cell | None) -> str:
    """Writes a cell: mean ± spread (number of seeds, if some are missing)."""
    if cell is None or not cell.values:
        return ""
    written = f"{cell.mean:.2f}" + ("" if cell.spread is None else f" ± {cell.spread:.2f}")
    count = len(cell.values)
    return written + (f" ({count} of {count + len(cell.missing)})" if cell.missing else "")


def beside(cell: Cell | None) -> str:
    """Writes the paper's number and what ours is above it."""
    if cell is None or cell.paper is None:
        return ""
    difference = f" ({cell.mean - cell.paper:+.2f})" if cell.values else ""
    return f"{cell.paper:.2f}{difference}"


def difference(cell: Cell | None) -> str:
    """Writes what a cell is above the reference ± the standard error of that."""
    if cell is None or cell.above is None:
        return ""
    return "{:+.2f} ± {:.2f}".format(*cell.above)


def differences(grid: Grid) -> list[tuple[str, ...]]:
    """Returns lines of a method's name and its `difference` in each column, where it has any."""
    lines = [
        (method, *(difference(grid.cells.get((method, column))) for column in grid.columns))
        for method in grid.methods
    ]
    return [line for line in lines if any(line[1:])]


def as_markdown(grid: Grid) -> str:
    """Lays the table out, with a column of the paper's numbers beside each that has some.

    Beneath it, where the table has a reference, a second one of differences from it.
    """
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
    written = markdown(tuple(header), lines)
    if above := differences(grid):
        written += "\n\n" + markdown((f"Above {grid.reference}", *grid.columns), above)
    return written


def as_csv(grid: Grid) -> str:
    """Returns a line for each cell; accuracies in percent, at last those of the seeds.

    "above" and "error" are those of `Cell.above`.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = "method,column,mean,deviation,seeds,missing,paper,above,error,values"
    writer.writerow(header.split(","))
    for (method, column), cell in grid.cells.items():
        mean = f"{cell.mean:.4f}" if cell.values else ""
        deviation = "" if cell.deviation is None else f"{cell.deviation:.4f}"
        paper = "" if cell.paper is None else cell.paper
        counts = len(cell.values), len(cell.missing)
        above = ["", ""] if cell.above is None else [f"{value:.4f}" for value in cell.above]
        values = " ".join(f"{value:.4f}" for value in cell.values)
        writer.writerow([method, column, mean, deviation, *counts, paper, *above, values])
    return out.getvalue()


def unique(table_parts: Sequence[Part], run: Run) -> list[tuple[Row, int]]:
    """Returns all that has to be finished, parents first, and how many experiments share it."""
    found: dict[Path, Row] = {}
    uses: Counter[Path] = Counter()
    for part in table_parts:
        specs = {run.folder(spec): spec for spec in part.experiment.specs()}
        found |= specs
        uses.update(specs.keys())
    return [(spec, uses[folder]) for folder, spec in found.items()]
