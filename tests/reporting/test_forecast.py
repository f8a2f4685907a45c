"""How long stages take, from one that is finished."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

from refilled_tf.common import storage
from refilled_tf.experiment import training
from refilled_tf.experiment.stage import TeacherCache
from refilled_tf.models.from_weights import FromWeights
from refilled_tf.objectives.cross_entropy import CrossEntropy
from refilled_tf.reporting.forecast import Forecast

STUDENT = tiny.second(name="student", objective=CrossEntropy(), start=None)
IMAGES = 400


@pytest.fixture
def forecast(tmp_path):
    """After a student that took 80 s for 2 epochs of 400 images: .1 s an image."""
    run = dataclasses.replace(tiny.run_in(tmp_path), pooled=True)
    facts = {"settings": STUDENT.settings(), "training_images": IMAGES}
    storage.write_json(run.folder(STUDENT) / "stage.json", facts)
    storage.write_json(run.folder(STUDENT) / "result.json", {"epochs": 2, "seconds": 80.0})
    return Forecast(run)


def test_like_stages_take_as_long_by_epochs_and_images(forecast):
    longer = dataclasses.replace(tiny.RECIPE, epochs=6)
    other = dataclasses.replace(STUDENT, seed=1, recipe=longer)
    images = len(training.load(STUDENT.task, None).train.labels)
    assert forecast.minutes(other) == pytest.approx(0.1 * 6 * images / 60)


@pytest.mark.parametrize(
    "spec",
    [
        tiny.first(),
        dataclasses.replace(STUDENT, backbone=tiny.TinyNetwork(filters=8)),
        dataclasses.replace(STUDENT, recipe=dataclasses.replace(tiny.RECIPE, batch_size=25)),
    ],
    ids=["objective", "network", "batch"],
)
def test_another_kind_of_stage_is_unknown(forecast, spec):
    assert forecast.minutes(spec) is None


@pytest.mark.parametrize(("views", "known"), [(0, False), (8, True)])
def test_a_cached_teacher_is_another_kind_than_one_that_is_run(tmp_path, views, known):
    run = dataclasses.replace(tiny.run_in(tmp_path), pooled=True)
    finished = tiny.first(teacher_cache=TeacherCache(4))
    facts = {"settings": finished.settings(), "training_images": IMAGES}
    storage.write_json(run.folder(finished) / "stage.json", facts)
    storage.write_json(run.folder(finished) / "result.json", {"epochs": 2, "seconds": 80.0})
    minutes = Forecast(run).minutes(tiny.first(teacher_cache=TeacherCache(views)))
    assert (minutes is not None) == known


def test_width_of_a_network_from_weights_counts(tmp_path):
    run = dataclasses.replace(tiny.run_in(tmp_path), pooled=True)

    (tmp_path / "weights").touch()

    def student(filters):
        backbone = FromWeights(tiny.TinyNetwork(filters), str(tmp_path / "weights"))
        return dataclasses.replace(STUDENT, backbone=backbone)

    facts = {"settings": student(4).settings(), "training_images": IMAGES}
    storage.write_json(run.folder(student(4)) / "stage.json", facts)
    storage.write_json(run.folder(student(4)) / "result.json", {"epochs": 2, "seconds": 80.0})
    forecast = Forecast(run)
    assert forecast.minutes(student(4)) is not None
    assert forecast.minutes(student(8)) is None


def test_measured_minutes_stand_in_for_what_is_unknown(tmp_path, forecast):
    run = dataclasses.replace(tiny.run_in(tmp_path), pooled=True)
    measured = Forecast(run, {"first": 7.5, "student": 9.0})
    assert measured.minutes(tiny.first()) == 7.5
    assert measured.minutes(STUDENT) == forecast.minutes(STUDENT)  # a like one is finished


def test_table_adds_up(forecast):
    images = len(training.load(STUDENT.task, None).train.labels)
    again = dataclasses.replace(STUDENT, seed=1)
    text = forecast.table([(STUDENT, 2), (again, 1), (tiny.first(), 1)])
    minutes = 0.1 * 2 * images / 60
    assert [line.split("|")[2:4] for line in text.splitlines()[2:5]] == [
        [f"{uses:>12} ", f"{state:>9} "]
        for uses, state in ((2, "finished"), (1, f"{minutes:.1f}"), (1, "unknown"))
    ]
    assert text.endswith(
        f"1 of 3 finished; the others take {minutes:.0f} minutes and, of 1, an unknown time"
    )
