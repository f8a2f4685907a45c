"""The commands: one line and a non-zero exit on bad input, and what good input leaves.

Bad input is given to the command line's entry point inside this process, which has two devices;
a subprocess would take seconds for each.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import commands
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
import tiny
from absl import flags, logging
from absl.testing import flagsaver

from refilled_tf import train
from refilled_tf.common import gin_files, stack
from refilled_tf.common.entry import run_main
from refilled_tf.experiment import config
from refilled_tf.experiment.run import Run
from refilled_tf.reporting import pictures

TIME_LIMIT = 120


@pytest.fixture
def gin_file(tmp_path):
    path = tmp_path / "tiny.gin"
    # What makes operations deterministic would do so for the whole process.
    path.write_text(tiny.GIN + "Experiment.deterministic = False\n")
    return path


@pytest.fixture
def fails(tmp_path, monkeypatch, capsys):
    """Returns a function: the command's flags to the one line on stderr."""
    monkeypatch.chdir(tmp_path)
    verbosity = logging.get_verbosity()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            with pytest.raises(SystemExit) as caught:
                run_main(train.main, train.check)
        assert caught.value.code not in (0, None)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return captured.err

    yield run
    logging.set_verbosity(verbosity)


def test_several_machines_without_tf_config(fails, gin_file, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = "--gin_param=Experiment.strategy = 'multi_worker'"
    err = _one_line(fails(f"--gin_file={gin_file}", strategy, f"--work_dir={tmp_path / 'runs'}"))
    assert "TF_CONFIG is not set; several machines need TF_CONFIG on each, such as" in err
    assert not (tmp_path / "runs").exists()


def _one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert err.endswith(lines[0] + "\n")
    return lines[0]


def test_no_gin_file(fails):
    assert "--gin_file is missing" in _one_line(fails())


def test_missing_gin_file(fails):
    assert "--gin_file=nowhere.gin does not exist" in _one_line(fails("--gin_file=nowhere.gin"))


def test_misspelt_flag(fails):
    # absl's own words.
    assert "Unknown command line flag 'gin_fil'" in fails("--gin_fil=x")


def test_positional_argument(fails, gin_file):
    err = _one_line(fails(f"--gin_file={gin_file}", "runs"))
    assert "unexpected argument" in err
    assert "runs" in err


BAD_SETTINGS = {
    "unknown name": ("Recipe.epoch = 3", ["epoch", "Recipe"]),
    "unknown class": ("Receipt.epochs = 3", ["Receipt"]),
    "no Python value": ("Recipe.epochs = three", ["three"]),
    "width": ("student/MobileNet.width = 0.0", ["MobileNet.width=0.0"]),
    "negative width": ("student/MobileNet.width = -1.0", ["MobileNet.width=-1.0"]),
    "batch smaller than replicas": ("Recipe.batch_size = 1", ["batch_size=1", "2 replicas"]),
    "batch no multiple of replicas": ("Recipe.batch_size = 51", ["batch_size=51", "2 replicas"]),
    "batch larger than data": ("Recipe.batch_size = 5000", ["batch_size=5000", "images"]),
    "more classes than the data": ("Data.num_classes = 11", ["num_classes=11", "10"]),
    "overlapping classes": (
        "Data.class_split = @ListedClasses()\n"
        "ListedClasses.teacher = ('1', '2')\nListedClasses.student = ('2', '3')",
        ["overlap", " 2;"],
    ),
    "unknown classes": (
        "Data.class_split = @ListedClasses()\n"
        "ListedClasses.teacher = ('1', '2')\nListedClasses.student = ('eleven', '3')",
        ["eleven"],
    ),
    "dataset not prepared": (
        "Data.source = @TfdsSource()\nTfdsSource.name = 'cifar100'\nTfdsSource.key = 'id'",
        ["cifar100", "not prepared", "empty"],
    ),
    "unknown dataset": (
        "Data.source = @TfdsSource()\nTfdsSource.name = 'cifar_hundred'",
        ["cifar_hundred"],
    ),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_setting(fails, gin_file, tmp_path, case):
    settings, words = BAD_SETTINGS[case]
    if "width" in case:
        settings += "\nstudent/Stage.backbone = @student/MobileNet()"
    gin_file.write_text(gin_file.read_text() + settings)
    (tmp_path / "empty").mkdir()
    work_dir = tmp_path / "work"
    err = _one_line(
        fails(
            f"--gin_file={gin_file}",
            f"--work_dir={work_dir}",
            f"--data_dir={tmp_path / 'empty'}",
        )
    )
    for word in words:
        assert word in err
    # Nothing is left behind that would have to be deleted before the next try.
    assert not work_dir.exists()


def test_dataset_folder_by_gin(fails, gin_file, tmp_path):
    """The error names the folder that was looked into: the setting's, unless a flag is given."""
    gin_file.write_text(gin_file.read_text() + BAD_SETTINGS["dataset not prepared"][0])
    arguments = [f"--gin_file={gin_file}", f"--work_dir={tmp_path / 'work'}"]
    arguments.append(f"--gin_param=Experiment.data_dir = '{tmp_path / 'by_gin'}'")
    assert "by_gin" in _one_line(fails(*arguments))
    assert "by_flag" in _one_line(fails(*arguments, f"--data_dir={tmp_path / 'by_flag'}"))


def test_unused_gin_param(fails, gin_file):
    err = _one_line(fails(f"--gin_file={gin_file}", "--gin_param=TfdsSource.name = 'cifar10'"))
    assert "TfdsSource.name" in err
    assert "no effect" in err


def test_work_dir_is_a_file(fails, gin_file, tmp_path):
    place = tmp_path / "place"
    place.write_text("mine")
    err = _one_line(fails(f"--gin_file={gin_file}", f"--work_dir={place}"))
    assert f"--work_dir={place}: {place} is not a folder" in err
    assert place.read_text() == "mine"


def test_work_dir_below_a_file(fails, gin_file, tmp_path):
    place = tmp_path / "place"
    place.write_text("mine")
    err = _one_line(fails(f"--gin_file={gin_file}", f"--work_dir={place / 'runs'}"))
    assert f": {place} is not a folder" in err


def test_work_dir_that_cannot_be_written(fails, gin_file, tmp_path, monkeypatch):
    """To root, who may run these tests, every folder of a disk is writable."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path or mode != os.W_OK)
    err = _one_line(fails(f"--gin_file={gin_file}", f"--work_dir={tmp_path / 'runs'}"))
    assert f"{tmp_path} is not a folder that can be written" in err


def test_work_dir_holds_other_things(fails, gin_file, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    (place / "thesis.tex").write_text("mine")
    err = _one_line(fails(f"--gin_file={gin_file}", f"--work_dir={place}"))
    assert f"--work_dir={place} holds other things" in err
    assert [path.name for path in place.iterdir()] == ["thesis.tex"]


# ---- subprocesses: a run, and evaluations of it --------------------------------------------


def _command(module, *arguments, cwd):
    where = {"cwd": cwd, "timeout": TIME_LIMIT, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return commands.run(f"refilled_tf.{module}", *arguments, **where)


def _error_of(done):
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    return _one_line(done.stderr)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the folder of a run and the finished process."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.gin").write_text(tiny.GIN + "student.images_per_class = 20\n")
    flags = ("--gin_file=tiny.gin", "--data_dir=data", "--work_dir=work")
    done = _command("train", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_run_prints_the_table_and_leaves_results(trained):
    folder, done = trained
    results = json.loads((folder / "work" / "results.json").read_text())
    assert [row["stage"] for row in results["rows"]] == ["student", "refilled"]
    for row in results["rows"]:
        assert f"{100 * row['accuracy']:.2f}" in done.stdout
    assert results["experiment"] == ["tiny.gin"]
    command = " -m refilled_tf.train --gin_file=tiny.gin --data_dir=data --work_dir=work"
    assert results["command"].endswith(command)
    assert "python -m refilled_tf.evaluate --work_dir=work --data_dir=data\n" in done.stdout
    assert results["replicas"] == 1
    assert results["versions"] == stack.versions()
    assert (folder / "work" / gin_files.OPERATIVE).is_file()


def test_picture_shows_what_is_in_the_predictions(trained, monkeypatch):
    folder, done = trained
    work = folder / "work"
    assert "Picture  work/answers.png\n" in done.stdout
    assert matplotlib.image.imread(work / "answers.png").std() > 0.05

    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    stages = pictures.classifiers(config.load_work_dir(work))
    assert [stage.name for stage in stages] == ["teacher", "student", "refilled"]
    pictures.save_answers(work / "a.png", stages, Run(work, None, tf.distribute.get_strategy()))
    (figure,) = figures
    methods = [text.get_text() for text in figure.axes[0].texts if text.get_ha() == "right"]
    assert methods == [stage.method for stage in stages]
    for number, digit in enumerate("56789"):
        answers = [text for text in figure.axes[number].texts if text.get_ha() == "center"]
        assert answers[0].get_text() in "01234"  # the teacher's own
        assert answers[0].get_color() == "black"
        for stage, text in zip(stages[1:], answers[1:], strict=True):
            lines = (work / "stages" / stage.name / "predictions.csv").read_text().splitlines()
            first = next(line.split(",")[2] for line in lines if line.split(",")[1] == digit)
            assert text.get_text() == first
            assert text.get_color() == (pictures.RIGHT if first == digit else pictures.WRONG)


def test_evaluate(trained):
    folder, _ = trained
    picture = folder / "work" / "stages" / "refilled" / "confusion.png"
    assert not picture.exists()
    done = _command(
        "evaluate", "--work_dir=work", "--stage=refilled", "--stage=triplet", cwd=folder
    )
    assert done.returncode == 0, done.stderr

    result = json.loads((picture.parent / "result.json").read_text())
    assert f"accuracy {100 * result['accuracy']:.2f}\n" in done.stdout
    # One line a class, "  50.0%   27/54   5 …": shares and counts agree with the whole.
    lines = [line.split() for line in done.stdout.splitlines() if "%  " in line]
    assert sorted(line[2] for line in lines) == list("56789")
    counts = np.array([line[1].split("/") for line in lines], int)
    assert counts.sum(axis=0)[1] == result["images"]
    assert counts.sum(axis=0)[0] / result["images"] == pytest.approx(result["accuracy"])
    for line, (right, total) in zip(lines, counts, strict=True):
        assert line[0] == f"{100 * right / total:.1f}%"
    # An embedding has no classes to be confused: its scores, and no picture.
    ncm = json.loads((folder / "work/stages/triplet/result.json").read_text())["embedding"]["ncm"]
    assert f"ncm {100 * ncm:.2f}" in done.stdout
    assert not (folder / "work/stages/triplet/confusion.png").exists()

    pixels = matplotlib.image.imread(picture)
    assert min(pixels.shape[:2]) >= 300
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def test_evaluate_training_images(trained):
    folder, _ = trained
    done = _command("evaluate", "--work_dir=work", "--split=train", cwd=folder)
    assert done.returncode == 0, done.stderr
    scored = re.findall(r"^== (\w+): .*?, (\d+) training images$", done.stdout, re.M)
    # All classifiers; 5 classes × 20 images, the teacher's 5 with all of theirs.
    assert [name for name, _ in scored] == ["student", "teacher", "refilled"]
    assert {name: count for name, count in scored if name != "teacher"} == dict.fromkeys(
        ("student", "refilled"), "100"
    )
    _, last = done.stdout.split("== refilled")
    counts = [line.split()[1].split("/") for line in last.splitlines() if "%  " in line]
    right, total = np.array(counts, int).sum(axis=0)
    assert total == 100
    assert f"accuracy {100 * right / total:.2f}\n" in last
    assert (folder / "work" / "stages" / "refilled" / "confusion_train.png").exists()
    flags = ("--work_dir=work", "--stage=triplet", "--split=train")
    assert "triplet is an embedding" in _error_of(_command("evaluate", *flags, cwd=folder))
    err = _error_of(_command("evaluate", "--work_dir=work", "refilled", cwd=folder))
    assert "unexpected argument ['refilled']" in err


def test_evaluate_of_what_is_not_there(trained, tmp_path):
    folder, _ = trained
    err = _error_of(_command("evaluate", f"--work_dir={tmp_path}", cwd=folder))
    assert f"--work_dir={tmp_path} is not the folder of a training" in err

    err = _error_of(_command("evaluate", "--work_dir=work", "--stage=refiled", cwd=folder))
    assert "refiled" in err
    assert "student, teacher, triplet, refilled" in err


def test_evaluate_of_an_unfinished_stage(trained, tmp_path):
    # As a kill leaves it: settings, but no network yet.
    for part in (gin_files.OPERATIVE, "stages/teacher/stage.json"):
        path = tmp_path / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((trained[0] / "work" / part).read_bytes())
    err = _error_of(_command("evaluate", f"--work_dir={tmp_path}", "--stage=teacher", cwd=tmp_path))
    assert "'teacher' is not finished" in err
    assert str(Path("stages") / "teacher") in err
