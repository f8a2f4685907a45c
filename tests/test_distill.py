"""The distill command from a folder to its report, killed, repeated and changed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import photos
import pytest
import tiny
from ai_edge_litert.interpreter import Interpreter

from refilled_tf import config, storage, tuning
from refilled_tf.data.task import load

SMALL = ("--image_size=8", "--gin_param=Stage.backbone = @TinyNetwork()")


def _distill(images, teacher, output, *flags):
    options = (f"--images={images}", f"--teacher={teacher}", f"--output={output}")
    return subprocess.run(
        tiny.command("distill", *options, *SMALL, "--gin_param=Recipe.epochs = 2", *flags),
        cwd=tiny.ROOT,
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder of photos and a teacher."""
    folder = tmp_path_factory.mktemp("given")
    return photos.write_folder(folder / "photos"), photos.write_teacher(folder / "teacher.keras")


@pytest.fixture(scope="module")
def done(given, tmp_path_factory):
    """The finished command and its output."""
    output = tmp_path_factory.mktemp("distilled") / "output"
    run = _distill(*given, output, "--tune=2")
    assert run.returncode == 0, run.stderr
    return run, output


def _results(output):
    return storage.read_json(output / "training/results.json")["rows"]


def test_tells_what_is_there_and_what_came_out(done):
    run, output = done
    # 80 % of the 30 images of each of five classes.
    assert re.search(r"^5 +24 +6$", run.stdout, re.M)
    assert "5 classes, 120 + 30 images" in run.stdout
    rows = {row["method"]: row for row in _results(output)}
    assert list(rows) == ["Teacher, 1NN", "Teacher, LR", "Student", "REFILLED"]
    assert {row["images"] for row in rows.values()} == {30}
    last = run.stdout.strip().splitlines()[-1]
    assert last.startswith(f"REFILLED: {100 * rows['REFILLED']['accuracy']:.1f} % of 30 test images")
    assert f"Student {100 * rows['Student']['accuracy']:.1f} %" in last


def test_gin_file_is_what_was_trained(done):
    _, output = done
    spec = config.load_experiment([output / "distill.gin"])
    assert spec == config.load_work_dir(output / "training")
    first = (output / "distill.gin").read_text().splitlines()[0]
    assert f"refilled_tf.train --gin_file={output}/distill.gin" in first
    data = next(stage for stage in spec.stages() if stage.name == "refilled").task.data
    # The teacher's 12 pixels are cut out of 12·8/7.
    assert (data.image_size, data.view_size, data.load_size) == (8, 12, 14)


def test_trials_are_kept_and_the_best_is_trained(done):
    _, output = done
    trials = storage.read_json(output / "tuning" / tuning.TRIALS)
    assert [trial["name"] for trial in trials] == ["trial_000", "trial_001"]
    assert trials[0]["settings"] == tuning.FIRST
    for trial in trials:
        result = storage.read_json(output / "tuning/stages" / trial["name"] / "result.json")
        assert result["scored_on"] == "validation"
        # A fifth of 24 training images, 4.8 → 5, of each of five classes.
        assert result["images"] == trial["images"] == 25
        assert result["accuracy"] == trial["accuracy"]
    best = max(trials, key=lambda trial: trial["accuracy"])["settings"]
    spec = config.load_experiment([output / "distill.gin"])
    refilled = next(stage for stage in spec.stages() if stage.name == "refilled")
    assert refilled.recipe.learning_rate == best["Recipe.learning_rate"]
    assert refilled.objective.weight == best["LocalDistillation.weight"]
    assert refilled.start.objective.tau_teacher == best["RelationshipMatching.tau_teacher"]
    assert refilled.task.holdout == 0


def test_files_answer_as_was_scored(done):
    _, output = done
    spec = config.load_work_dir(output / "training")
    task = next(stage for stage in spec.stages() if stage.name == "refilled").task
    test = load(task).test
    interpreter = Interpreter(str(output / "tflite/refilled_none.tflite"))
    interpreter.allocate_tensors()
    (taken,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    # 14 pixels, of which the network's 8 stand for 12, are 9 of the student's.
    side = taken["shape"][1]
    assert side == round(14 * 8 / 12)
    from dataclasses import replace  # noqa: PLC0415

    smaller = replace(task, data=replace(task.data, load_size=int(side), view_size=None))
    test = load(smaller).test
    right = 0
    for image, label in zip(test.images, test.labels, strict=True):
        interpreter.set_tensor(taken["index"], image[None].astype(np.float32))
        interpreter.invoke()
        right += int(np.argmax(interpreter.get_tensor(answer["index"])[0]) == label)
    (row,) = (
        row
        for row in storage.read_json(output / "tflite/tflite.json")["rows"]
        if row["name"] == "refilled_none.tflite"
    )
    assert right / len(test.labels) == pytest.approx(row["accuracy"])


def test_report_needs_no_network_and_shows_the_numbers(done):
    run, output = done
    page = (output / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    for row in _results(output):
        assert f"<td>{row['method']}</td><td>{100 * row['accuracy']:.1f} %</td>" in page
    for row in json.loads((output / "tflite/tflite.json").read_text())["rows"]:
        assert f"<td>{row['bytes'] / 1000:.0f}</td>" in page
    assert "refilled_int8.tflite" in page
    assert "Recipe.epochs = 2" in page
    assert page.count("trial_00") >= 2


def test_same_command_finds_everything_done(done, given):
    run, output = done
    files = [path for path in output.rglob("*") if path.suffix in (".keras", ".tflite", ".pb")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = _distill(*given, output, "--tune=2")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == run.stdout.splitlines()[-1]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(files) == len(
        [path for path in output.rglob("*") if path.suffix in (".keras", ".tflite", ".pb")]
    )


def test_killed_run_goes_on(done, given, tmp_path):
    """Without the last stage, the exports and the report, as after a kill in that stage."""
    run, output = done
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    for name in ("training/stages/refilled", "saved_model", "tflite"):
        shutil.rmtree(copy / name)
    again = _distill(*given, copy, "--tune=2")
    assert again.returncode == 0, again.stderr
    end = run.stdout.splitlines()[-1].replace(str(output), str(copy))
    assert again.stdout.splitlines()[-1] == end
    assert (copy / "tflite/refilled_int8.tflite").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images=/nowhere/at/all"], "neither a folder nor the name of a TFDS dataset"),
        (["--images=no_such_birds"], "--images=no_such_birds is no folder, and .*not a dataset"),
        (["--teacher=nothing.keras"], "--teacher=nothing.keras: there is no such thing"),
        (["--tune=-1"], "--tune=-1"),
        (["--width=0"], "width"),
        (["--gin_param=Recipe.length = 3"], "length"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_option(given, tmp_path, flags, message):
    run = _distill(*given, tmp_path / "new", *flags)
    assert run.returncode == 1
    assert re.search(f"^error: .*{message}", run.stderr, re.M), run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "new" / "training").exists()


def test_other_options_do_not_overwrite(done, given):
    _, output = done
    before = (output / "distill.gin").read_text()
    run = _distill(*given, output, "--tune=2", "--gin_param=Stage.seed = 1")
    assert run.returncode == 1
    assert "take another --output" in run.stderr
    assert (output / "distill.gin").read_text() == before
