"""Tables: what their cells say of a work_dir with known results."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

import pytest
import tiny

from refilled_tf import reproduce
from refilled_tf.common import gin_files, storage
from refilled_tf.common.errors import InputError
from refilled_tf.data.task import Task
from refilled_tf.experiment import config
from refilled_tf.experiment.experiment import Experiment
from refilled_tf.experiment.loading import untrained_network
from refilled_tf.experiment.probe_row import Probe
from refilled_tf.models.cost import Cost, cost_of
from refilled_tf.reporting import tables
from refilled_tf.reporting.tables import Cell, Part, Table

PROBE = Probe("probe", "1NN", Task(tiny.DATA, "student"), tiny.teacher(), "1nn")
TABLE = Table("Digits", {"a": ("a.gin",), "b": ("b.gin",)}, "x", {"Second": (60.0, None)})
HEADER = "image,class,predicted"
FILES = sorted((gin_files.GIN_FOLDER / "tables").glob("*.gin"))


def _second(column, seed):
    return tiny.second(seed=seed, task=Task(tiny.DATA, "student", {"a": 5, "b": 6}[column]))


@pytest.fixture
def grid(tmp_path):
    """Accuracies .5, .6, .7 in column a, .25 and two missing ones in b; one probe for all."""
    run = dataclasses.replace(tiny.run_in(tmp_path), pooled=True)
    parts = [
        Part(column, seed, Experiment((PROBE, _second(column, seed))))
        for seed in range(3)
        for column in "ab"
    ]
    finished = {("a", 0): 0.5, ("a", 1): 0.6, ("a", 2): 0.7, ("b", 1): 0.25}
    for (column, seed), accuracy in finished.items():
        path = run.folder(_second(column, seed)) / "result.json"
        storage.write_json(path, {"accuracy": accuracy})
    storage.write_json(run.folder(PROBE) / "result.json", {"accuracy": 0.125})
    return tables.collect(TABLE, parts, run)


def test_mean_and_deviation_are_those_of_the_seeds(grid):
    cell = grid.cells["Second", "a"]
    # The deviation of 50, 60, 70 about 60: √((100 + 0 + 100) / 2).
    assert (cell.mean, cell.deviation) == (pytest.approx(60), pytest.approx(10))
    assert cell.missing == ()
    assert tables.text(cell) == "60.00 ± 10.00"
    assert tables.beside(cell) == "60.00 (+0.00)"


def test_missing_seeds_are_named(grid):
    cell = grid.cells["Second", "b"]
    assert (cell.values, cell.missing, cell.deviation) == ((25.0,), (0, 2), None)
    assert tables.text(cell) == "25.00 (1 of 3)"
    assert grid.missing == ["Second (b), seed 0, 2"]


def test_one_result_for_all_seeds_has_no_deviation(grid):
    """Three times the same number would look like a measurement without any spread."""
    assert grid.cells["1NN", "a"] == Cell((12.5,), ())
    assert tables.text(grid.cells["1NN", "a"]) == "12.50"


def test_markdown_has_the_papers_column_where_there_are_numbers(grid):
    lines = [re.split(r" *\| *", line)[1:-1] for line in tables.as_markdown(grid).splitlines()]
    assert lines[0] == ["Method", "a", "paper", "b"]
    assert lines[2:] == [
        ["1NN", "12.50", "", "12.50"],
        ["Second", "60.00 ± 10.00", "60.00 (+0.00)", "25.00 (1 of 3)"],
    ]


def test_csv_has_a_line_for_each_cell(grid):
    lines = {
        (x["method"], x["column"]): x for x in csv.DictReader(io.StringIO(tables.as_csv(grid)))
    }
    assert lines.keys() == grid.cells.keys()
    assert lines["Second", "a"] == {
        "method": "Second",
        "column": "a",
        "mean": "60.0000",
        "deviation": "10.0000",
        "seeds": "3",
        "missing": "0",
        "paper": "60.0",
        "above": "",
        "error": "",
        "values": "50.0000 60.0000 70.0000",
    }
    assert lines["Second", "b"]["deviation"] == lines["Second", "b"]["paper"] == ""


@pytest.fixture
def compared(tmp_path):
    """Predictions of four images: Second has 3 right, Other has 1; the seeds 1 and 2 have none."""
    run = dataclasses.replace(tiny.run_in(tmp_path), pooled=True)
    rows = (tiny.second(), tiny.second(name="other", method="Other"), PROBE)
    for row, predicted in zip(rows, ("aaba", "bbab", None), strict=True):
        folder = run.folder(row)
        storage.write_json(folder / "result.json", {"accuracy": 0.5})
        if predicted:
            lines = [f"{image},a,{name}" for image, name in enumerate(predicted)]
            storage.write_text(folder / "predictions.csv", "\n".join([HEADER, *lines]))
    parts = [Part("a", 0, Experiment(rows))]
    table = dataclasses.replace(TABLE, columns={"a": ("a.gin",)}, paper={}, reference="Other")
    return table, parts, run


def test_methods_are_compared_with_the_reference(compared):
    """Differences 1, 1, -1, 1: about their mean ½ a variance of 3 / 3; the error is √(1 / 4)."""
    grid = tables.collect(*compared)
    assert grid.cells["Second", "a"].above == pytest.approx((50, 50))
    assert grid.cells["Other", "a"].above is grid.cells["1NN", "a"].above is None
    above = tables.as_markdown(grid).partition("\n\n")[2].splitlines()
    assert [re.split(r" *\| *", line)[1:-1] for line in (above[0], above[2])] == [
        ["Above Other", "a"],
        ["Second", "+50.00 ± 50.00"],
    ]
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(grid))))
    assert [(x["above"], x["error"]) for x in lines] == [
        ("50.0000", "50.0000"),
        ("", ""),
        ("", ""),
    ]


def test_networks_cost_what_they_cost(compared):
    """Of the rows that have a teacher; the probe alone has none."""
    table, parts, run = compared
    grid = tables.collect(table, parts, run)
    stage = tiny.second()
    expected = {
        ("Student", "a"): cost_of(untrained_network(stage)),
        ("Teacher", "a"): cost_of(untrained_network(stage.teachers[0])),
    }
    assert grid.costs == expected
    large = grid._replace(costs={("Teacher", "a"): Cost(1_250_000, 30_000_000)})
    assert tables.costs(large) == [
        ("Teacher: weights", "1.25"),
        ("Teacher: multiplications", "30.00"),
    ]


def test_other_images_are_not_compared(compared):
    table, parts, run = compared
    path = run.folder(parts[0].experiment.rows[1]) / "predictions.csv"
    path.write_text(path.read_text().replace("\n0,", "\n9,"))
    assert tables.differences(tables.collect(table, parts, run)) == []


def test_reference_must_be_a_method():
    table = dataclasses.replace(TABLE, paper={}, reference="Studnet")
    with pytest.raises(InputError, match=r"Table\.reference='Studnet' must be one of Second"):
        tables.parts(table, 1, lambda *_: Experiment((tiny.second(),)))


def test_few_shot_cell_shows_its_interval():
    assert tables.text(Cell((50.0,), (), 51.0, 0.75)) == "50.00 ± 0.75"


@pytest.mark.parametrize("paper", [{"Secnod": (1.0, 2.0)}, {"Second": (1.0,)}])
def test_paper_numbers_must_fit(paper):
    table = dataclasses.replace(TABLE, paper=paper)
    with pytest.raises(InputError, match=r"Table\.paper\['Sec.*columns are a, b.*methods Second"):
        tables.parts(table, 1, lambda *_: Experiment((tiny.second(),)))


def test_row_without_an_accuracy_is_refused():
    message = r"Table\.columns\['a'\]: the row 'first' has no accuracy, as it ends in an embedding"
    with pytest.raises(InputError, match=message):
        tables.parts(TABLE, 1, lambda *_: Experiment((tiny.second(), tiny.first())))


def test_pictured_column_must_be_there():
    with pytest.raises(InputError, match=r"Table\.pictured='c' must be one of a, b"):
        dataclasses.replace(TABLE, pictured="c")


def test_a_part_for_every_seed_and_column():
    asked = []

    def load(files, params):
        asked.append((files, params))
        return Experiment((tiny.second(),))

    parts = tables.parts(
        dataclasses.replace(TABLE, columns={"a": ("a.gin", "x.y = 1")}, paper={}), 2, load
    )
    assert asked == [(["a.gin"], ["x.y = 1", f"Stage.seed = {seed}"]) for seed in (0, 1)]
    assert [(part.column, part.seed) for part in parts] == [("a", 0), ("a", 1)]


@pytest.mark.usefixtures("named_files")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_table_file_fits_its_experiments(file):
    """Every setting takes effect, the paper's numbers fit, the first line runs the file."""
    table = config.load_table(file)
    seeds = [
        {spec.seed for spec in part.experiment.stages() if spec.name != "teacher"}
        for part in tables.parts(table, 2, config.load_experiment)
    ]
    assert seeds == [{0}] * len(table.columns) + [{1}] * len(table.columns)
    first_line = file.read_text(encoding="utf-8").splitlines()[0]
    name, scale = re.fullmatch(r"# .*reproduce --table=(\w+) --scale=(\w+)", first_line).groups()
    assert reproduce.table_file(name, scale) == file


PAPER = {  # The supplement's tables: a first and a last number of each.
    "table1": [("Student", 0, 70.04), ("REFILLED", -1, 67.10)],
    "table2": [("Student", 0, 74.87), ("REFILLED", -1, 73.15)],
    "table3": [("1NN", 0, 49.73), ("REFILLED, ConvNet-4 teacher", -1, 78.94)],
    "table4": [("Student", 0, 71.25), ("REFILLED^0.2", -1, 66.85)],
    "table5": [("Student", 0, 74.44), ("REFILLED^0.2", -1, 67.34)],
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_numbers_are_the_papers(name):
    table = config.load_table(gin_files.GIN_FOLDER / "tables" / f"{name}_paper.gin")
    for method, place, number in PAPER[name]:
        assert table.paper[method][place] == number
