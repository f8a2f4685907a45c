"""The teacher cache's benchmark on the tiny network."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

from benchmarks import teacher_cache as benchmark
from refilled_tf.common.errors import InputError
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.relationship import RelationshipMatching

RECIPE = dataclasses.replace(tiny.RECIPE, epochs=1)


def _row():
    """Both stages of REFILLED on the digits, one epoch each."""
    teacher = tiny.teacher(recipe=RECIPE)
    start = tiny.first(teacher=teacher, recipe=RECIPE, objective=RelationshipMatching(weight=1.0))
    return tiny.second(
        teacher=teacher, start=start, recipe=RECIPE, objective=LocalDistillation(weight=1.0)
    )


def test_speed_has_a_row_for_each_stage():
    first, second = benchmark.measure_speed(_row(), 2, 1, None)
    assert len(first) == len(second) == len(benchmark.SPEED_HEADER)
    assert (first[0], second[0]) == ("First", "Second")
    assert float(first[4]) == float(second[4]) > 0


def test_speed_cells_by_hand():
    # 6 s of building are 4 epochs of 1.5 s saved.
    cells = benchmark.speed_cells("Stage 1", 2.0, 0.5, 6.0)
    assert cells == ["Stage 1", "2.0", "0.5", "4.00", "6.0", "4.0"]
    assert benchmark.speed_cells("Stage 1", 1.0, 1.0, 6.0)[-1] == "never"


@pytest.mark.slow
def test_accuracy_trains_both_stages_on_the_views(monkeypatch):
    stages = []
    check = benchmark.experiment.check

    def spy(spec, where):
        stages.extend(spec.stages())
        check(spec, where)

    monkeypatch.setattr(benchmark.experiment, "check", spy)
    ((views, ncm, accuracy),) = benchmark.measure_accuracy(_row(), [2], None)
    assert views == "2"
    assert 0 <= float(ncm) <= 100
    assert 0 <= float(accuracy) <= 100
    # The teacher trains as ever.
    assert [(each.name, each.teacher_cache.views) for each in stages] == [
        *(("teacher", 0), ("first_2", 2), ("second_2", 2))
    ]
    assert stages[-1].start == stages[1]


def test_accuracy_cells_by_hand():
    first = {"embedding": {"ncm": 0.123}, "accuracy": None}
    second = {"embedding": {"ncm": 0.123}, "accuracy": 0.3456}
    assert benchmark.accuracy_cells(0, first, second) == ["live", "12.30", "34.56"]
    assert benchmark.accuracy_cells(4, first, second)[0] == "4"


def test_table():
    assert benchmark.table(("A", "B"), [["x", "1"]]) == "| A | B |\n| --- | ---: |\n| x | 1 |"


def test_numbers_of_views():
    assert benchmark.numbers_of_views(["0", "1", "4"]) == [0, 1, 4]


@pytest.mark.parametrize("views", [["-1"], ["four"], ["4", "0"], []])
def test_wrong_views_are_named(views):
    with pytest.raises(InputError, match=f"--views={','.join(views)} must be"):
        benchmark.numbers_of_views(views)
