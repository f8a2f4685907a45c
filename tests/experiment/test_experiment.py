"""Rows, the stages they share, and what results.json holds."""

from __future__ import annotations

import dataclasses
import json
import shutil

import photos
import pytest
import tiny

from refilled_tf.common import storage
from refilled_tf.common.errors import InputError
from refilled_tf.data.image_folder import ImageFolder
from refilled_tf.data.task import Task
from refilled_tf.experiment import experiment, training
from refilled_tf.experiment.experiment import Experiment
from refilled_tf.experiment.probe_row import Probe
from refilled_tf.experiment.run import Run
from refilled_tf.models.mobilenet import MobileNet
from refilled_tf.objectives.cross_entropy import CrossEntropy

HOW = (["tiny.gin"], "python -m refilled_tf.train")
VANILLA = tiny.second(name="vanilla", method="Vanilla", objective=CrossEntropy())
PROBE = Probe("probe", "Teacher, 1NN", Task(tiny.DATA, "student"), tiny.teacher(), "1nn")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Runs three rows over two shared parents; returns (work_dir, results, trained names)."""
    work_dir = tmp_path_factory.mktemp("experiment")
    run = tiny.run_in(work_dir)
    trained = []
    build = training._build

    def counted(spec, *args):
        trained.append(spec.name)
        return build(spec, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_build", counted)
        results = experiment.finish_rows(Experiment((PROBE, VANILLA, tiny.second())), run, *HOW)
    return work_dir, results, trained


def test_shared_parents_are_trained_once(outcome):
    # Parents stand before their children; the probe trains nothing of its own.
    assert outcome[2] == ["teacher", "first", "vanilla", "second"]


def test_image_that_cannot_be_decoded_is_seen_before_the_teacher_trains(tmp_path):
    """Here one of the student's; once all is finished, nobody asks for it any more."""
    folder = photos.write_folder(tmp_path / "photos", range(4), count=40)
    tiny.truncate(next((folder / "3").iterdir()))
    data = dataclasses.replace(tiny.DATA, source=ImageFolder(str(folder)))
    stages = [tiny.teacher(task=Task(data, "teacher"))]
    stages.append(tiny.second(task=Task(data, "student"), teacher=stages[0], start=None))
    spec, run = Experiment((stages[1],)), tiny.run_in(tmp_path / "work")
    with pytest.raises(InputError, match=r"1 image\(s\) cannot be decoded: 3/"):
        experiment.check(spec, run)
    assert not (tmp_path / "work").exists()
    for stage in stages:
        storage.write_json(run.folder(stage) / "result.json", {})
    experiment.check(spec, run)


def test_stages_lists_each_once():
    stages = Experiment((PROBE, VANILLA, tiny.second())).stages()
    assert [spec.name for spec in stages] == ["teacher", "first", "vanilla", "second"]


def test_results_file_is_what_run_returns(outcome):
    work_dir, results, _ = outcome
    assert json.loads((work_dir / "results.json").read_text()) == results
    assert results["schema"] == 1
    assert (results["experiment"], results["command"]) == HOW
    assert [row["method"] for row in results["rows"]] == ["Teacher, 1NN", "Vanilla", "Second"]


def test_schema_of_a_row(outcome):
    types = {
        "method": str,
        "stage": str,
        "width": float | None,
        "split": str,
        "images": int,
        "seed": int,
        "accuracy": float | None,
        "embedding": dict | None,
        "seconds": float,
        "seconds_with_parents": float,
        "parameters": dict,
        "command": str,
    }
    for row in outcome[1]["rows"]:
        assert list(row) == list(types)
        for key, kind in types.items():
            assert isinstance(row[key], kind), key
        assert row["split"] == "test"
        # 30 % of the digits 5 to 9.
        assert row["images"] == len(training.load(Task(tiny.DATA, "student"), None).test.labels)
        assert 0 <= row["accuracy"] <= 1
        assert set(row["embedding"]) == {
            *("ncm", "1nn", "recall@1", "recall@2", "recall@4", "recall@8", "nmi")
        }
        assert all(isinstance(value, float) for value in row["embedding"].values())
        assert 0 <= row["seconds"] < row["seconds_with_parents"]


def test_parameters_are_those_of_the_network(outcome):
    # Convolution 3·3·3·4, batch norm 2·4 (+ 2·4 statistics), head 9·4·5 + 5.
    assert outcome[1]["rows"][-1]["parameters"] == {
        "trainable": 108 + 8 + 180 + 5,
        "batch_norm": 8,
    }


def test_embedding_of_a_two_stage_row_is_that_of_its_first_stage(outcome):
    work_dir, results, _ = outcome
    first = json.loads((work_dir / "stages" / "first" / "result.json").read_text())
    assert results["rows"][1]["embedding"] == first["embedding"]
    assert results["rows"][2]["embedding"] == first["embedding"]


def test_seconds_with_parents_add_up(outcome):
    work_dir, results, _ = outcome
    seconds = sum(
        json.loads((work_dir / "stages" / name / "result.json").read_text())["seconds"]
        for name in ("teacher", "first", "second")
    )
    assert results["rows"][2]["seconds_with_parents"] == pytest.approx(seconds, abs=0.051)


def test_width_is_the_networks():
    # TinyNetwork has no width multiplier, MobileNet has.
    finished = {
        "student": {
            "scored_on": "test",
            "images": 1,
            "seconds": 1.0,
            "accuracy": 0.5,
            "parameters": {},
        }
    }
    for backbone, width in ((MobileNet(width=0.25), 0.25), (tiny.TinyNetwork(), None)):
        spec = tiny.second(name="student", start=None, objective=CrossEntropy(), backbone=backbone)
        assert experiment.row_of(spec, finished, "")["width"] == width


def test_second_run_repeats_the_results_without_training(outcome, tmp_path, monkeypatch):
    work_dir, results, _ = outcome
    shutil.copytree(work_dir, tmp_path / "copy")
    monkeypatch.setattr(training, "_build", None)
    rows = (VANILLA, tiny.second())
    again = experiment.finish_rows(Experiment(rows), tiny.run_in(tmp_path / "copy"), *HOW)
    assert again["rows"] == results["rows"][1:]


def test_a_worker_leaves_once_the_results_are_written(outcome, tmp_path, monkeypatch):
    shutil.copytree(outcome[0], tmp_path / "copy")
    results = tmp_path / "copy" / "results.json"
    results.unlink()
    written = []
    monkeypatch.setattr(Run, "leave_together", lambda self: written.append(results.exists()))
    experiment.finish_rows(Experiment((VANILLA,)), tiny.run_in(tmp_path / "copy"), *HOW)
    assert written == [True]


def test_finished_rows_stay_when_a_later_one_fails(outcome, tmp_path):
    work_dir, results, _ = outcome
    shutil.copytree(work_dir, tmp_path / "copy")
    recipe = dataclasses.replace(tiny.RECIPE, learning_rate=1e30)
    diverging = tiny.second(name="diverging", recipe=recipe)
    with pytest.raises(InputError, match="'diverging'"):
        experiment.finish_rows(
            Experiment((VANILLA, diverging, tiny.second())),
            tiny.run_in(tmp_path / "copy"),
            *HOW,
        )
    left = json.loads((tmp_path / "copy" / "results.json").read_text())
    assert left["rows"] == [results["rows"][1]]


def test_check_refuses_before_anything_is_trained(tmp_path):
    # The teacher could be trained; the student, third in line, could not.
    recipe = dataclasses.replace(tiny.RECIPE, batch_size=100_000)
    spec = Experiment((tiny.second(recipe=recipe),))
    with pytest.raises(InputError, match="batch_size=100000 exceeds"):
        experiment.check(spec, tiny.run_in(tmp_path))
    assert not list(tmp_path.iterdir())


def test_logistic_regression_needs_two_images_of_a_class(tmp_path):
    task = Task(tiny.DATA, "student", images_per_class=1)
    row = dataclasses.replace(PROBE, task=task, classifier="logistic_regression")
    with pytest.raises(InputError, match=r"'probe'.* at least 2 .*student\.images_per_class"):
        experiment.check(Experiment((row,)), tiny.run_in(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "rows",
    [
        (tiny.second(), tiny.second(seed=1)),
        (tiny.second(), tiny.second(name="other", start=tiny.first(seed=1))),
        (tiny.second(), dataclasses.replace(PROBE, name="second")),
    ],
    ids=["rows", "parents", "a stage and a probe"],
)
def test_two_different_things_of_one_name_are_refused(rows):
    with pytest.raises(InputError, match=r"two different stages are named '(first|second)'"):
        Experiment(rows)


def test_empty_experiment_is_refused():
    with pytest.raises(InputError, match=r"Experiment\.rows is empty"):
        Experiment(())


def test_unknown_strategy_is_refused():
    with pytest.raises(InputError, match=r"Experiment\.strategy='tpu'"):
        Experiment((tiny.second(),), strategy="tpu")


def test_objective_that_needs_a_teacher_says_so():
    with pytest.raises(InputError, match=r"'first'.*RelationshipMatching.*Stage\.teacher"):
        tiny.first(teacher=None)


def test_mirrored_strategy_takes_all_devices():
    # conftest.py makes two.
    assert experiment.make_strategy("mirrored").num_replicas_in_sync == 2
