"""The distill command from a folder to its report, killed, repeated and changed."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import commands
import numpy as np
import onnx_graphs
import photos
import PIL.Image
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from scipy.special import softmax

from export import trained, versions
from refilled_tf import distill
from refilled_tf.common import storage
from refilled_tf.common.errors import InputError
from refilled_tf.data import batches, pixels
from refilled_tf.data.task import load
from refilled_tf.experiment import config, launch
from refilled_tf.models import networks
from refilled_tf.own_images import candidates, distill_config, students, teachers, tuning
from refilled_tf.reporting import distill_report

pytestmark = pytest.mark.slow

SMALL = ("--image_size=8", "--gin_param=Stage.backbone = @TinyNetwork()")


def _distill(images, teacher, output, *flags):
    options = (f"--images={images}", f"--teacher={teacher}", f"--output={output}")
    flags = (*options, *SMALL, "--gin_param=Recipe.steps = 40", *flags)
    return commands.run("refilled_tf.distill", *flags, timeout=1200)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder of photos and a teacher."""
    folder = tmp_path_factory.mktemp("given")
    return photos.write_folder(folder / "photos"), photos.write_teacher(folder / "teacher.keras")


@pytest.fixture(scope="module")
def done(given, tmp_path_factory):
    """The finished command and its output."""
    output = tmp_path_factory.mktemp("distilled") / "output"
    pool = photos.write_folder(tmp_path_factory.mktemp("pool") / "digits", range(5), 20)
    run = _distill(*given, output, "--tune=2", f"--unlabelled={pool}", "--data_dir=unused")
    assert run.returncode == 0, run.stderr
    return run, output, pool


def _results(output):
    return storage.read_json(output / "training/results.json")["rows"]


def test_tells_what_is_there_and_what_came_out(done):
    run, output, _ = done
    # 80 % of the 30 images of each of five classes.
    assert re.search(r"^5 +24 +6$", run.stdout, re.M)
    assert "5 classes, 120 + 30 images" in run.stdout
    assert "100 unlabelled images, without 0 that are tested on" in run.stdout
    rows = {row["stage"]: row for row in _results(output)}
    winner = _candidates(output)[0]["stage"]
    assert list(rows) == list(
        dict.fromkeys(["teacher_1nn", "teacher_lr", candidates.HEAD, candidates.REFERENCE, winner])
    )
    assert {row["images"] for row in rows.values()} == {30}
    last = run.stdout.strip().splitlines()[-1]
    mine = rows[winner]
    assert last.startswith(f"{mine['method']}: {100 * mine['accuracy']:.1f} % of 30 test ")
    assert f"Teacher, LR {100 * rows['teacher_lr']['accuracy']:.1f} %" in last


def _candidates(output):
    return storage.read_json(output / "candidates" / candidates.FILE)


def test_candidates_compete_on_held_out_images(done):
    run, output, _ = done
    found = {row["stage"]: row for row in _candidates(output)}
    assert sorted(found) == sorted(candidates.names(has_pool=True))
    # A fifth of 24 training images, 4.8 → 5, of each of five classes.
    assert {row["images"] for row in found.values()} == {25}
    accuracies = [row["accuracy"] for row in found.values()]
    assert accuracies == sorted(accuracies, reverse=True)
    steps = set()
    for name, row in found.items():
        folder = output / "candidates/stages" / name
        result = storage.read_json(folder / "result.json")
        assert result["scored_on"] == "validation"
        assert result["accuracy"] == row["accuracy"]
        settings = storage.read_json(folder / "stage.json")["settings"]
        if "Recipe.steps" in settings:
            steps.add(settings["Recipe.steps"])
    assert steps == {40}
    reference = found[candidates.REFERENCE]["accuracy"]
    for row in found.values():
        assert row["above"] == pytest.approx(row["accuracy"] - reference, abs=1e-6)
        assert re.search(
            rf"{re.escape(row['method'])} +\| +{100 * row['accuracy']:.1f} %", run.stdout
        )


def test_gin_file_is_what_was_trained(done):
    _, output, _ = done
    spec = config.load_experiment([output / "distill.gin"])
    assert spec == config.load_work_dir(output / "training")
    first = (output / "distill.gin").read_text().splitlines()[0]
    assert f"refilled_tf.train --gin_file={output}/distill.gin" in first
    assert first.endswith(" --data_dir=unused")
    data = spec.stages()[-1].task.data
    # The teacher's 12 pixels are cut out of 12·8/7.
    assert (data.image_size, data.view_size, data.load_size) == (8, 12, 14)


def test_teacher_can_be_fine_tuned_by_a_row_more(done):
    _, output, _ = done
    row = "Experiment.rows = [@fine_tune/Stage()]"
    *_, stage = config.load_experiment([output / "distill.gin"], [row]).stages()
    assert stage.name == "fine_tune"
    assert stage.backbone == config.load_work_dir(output / "training").stages()[0].backbone


def test_trials_are_kept_and_the_best_is_trained(done):
    _, output, _ = done
    trials = storage.read_json(output / "tuning" / tuning.TRIALS)
    assert [trial["name"] for trial in trials] == ["trial_000", "trial_001"]
    for trial in trials:
        result = storage.read_json(output / "tuning/stages" / trial["name"] / "result.json")
        assert result["scored_on"] == "validation"
        # A fifth of 24 training images, 4.8 → 5, of each of five classes.
        assert result["images"] == trial["images"] == 25
        assert result["accuracy"] == trial["accuracy"]
    best = max(trials, key=lambda trial: trial["accuracy"])["settings"]
    spec = config.load_experiment([output / "distill.gin"])
    chain = tuning.chain_of(spec.rows[-1])
    assert best.keys() == tuning.ranges_of(chain).keys()
    assert chain[-1].recipe.learning_rate == best["Recipe.learning_rate"]
    assert chain[-1].task.holdout == 0


def test_files_answer_as_was_scored(done):
    _, output, _ = done
    spec = config.load_work_dir(output / "training")
    task = spec.stages()[-1].task
    name = f"{_candidates(output)[0]['stage']}_none.tflite"
    interpreter = Interpreter(str(output / "tflite" / name))
    interpreter.allocate_tensors()
    (taken,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    # 14 pixels, of which the network's 8 stand for 12, are 9 of the student's.
    side = taken["shape"][1]
    assert side == round(14 * 8 / 12)
    data = dataclasses.replace(task.data, load_size=int(side), view_size=None)
    test = load(dataclasses.replace(task, data=data)).test
    right = 0
    for image, label in zip(test.images, test.labels, strict=True):
        interpreter.set_tensor(taken["index"], image[None].astype(np.float32))
        interpreter.invoke()
        right += int(np.argmax(interpreter.get_tensor(answer["index"])[0]) == label)
    (row,) = (
        row
        for row in storage.read_json(output / "tflite/tflite.json")["rows"]
        if row["name"] == name
    )
    assert right / len(test.labels) == pytest.approx(row["accuracy"])


def test_report_needs_no_network_and_shows_the_numbers(done):
    _, output, _ = done
    page = (output / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    for row in _results(output):
        assert f"<td>{row['method']}</td><td>{100 * row['accuracy']:.1f} %</td>" in page
    for row in json.loads((output / "tflite/tflite.json").read_text())["rows"]:
        assert f"<td>{row['bytes'] / 1000:.0f}</td>" in page
    assert f"tflite/{_candidates(output)[0]['stage']}_int8.tflite" in page
    assert "Recipe.steps = 40" in page
    for row in _candidates(output):
        assert f"<td>{row['method']}</td><td>{100 * row['accuracy']:.1f} %</td>" in page
    assert page.count("trial_00") >= 2


def _report(output, *further, **changes):
    """Returns a report on what is finished in a folder, with further rows."""
    model = trained.load(output / "training", None, None)
    report = distill_report.Report(
        command="",
        rows=[*further, _results(output)[-1]],
        exported=model.stage.name,
        student="TinyNetwork",
        data=model.data,
        network=model.network,
        size=model.stage.task.data.image_size,
        notes=[],
        tflite=storage.read_json(output / "tflite/tflite.json"),
        candidates=[],
        trials=[],
        gin="",
        output=output,
    )
    return dataclasses.replace(report, **changes)


def test_report_names_the_teacher_and_its_own_scores(done, given):
    """Of the teacher: 5·5·16 numbers feed its Dense layer, of 12×12 pixels by a stride of 2."""
    _, output, _ = done
    page = (output / "report.html").read_text(encoding="utf-8")
    # The Flatten layer, as nothing says --teacher_layer; Jinja escapes the quotes.
    (layer,) = (
        each.name
        for each in tf.keras.models.load_model(given[1]).layers
        if isinstance(each, tf.keras.layers.Flatten)
    )
    said = f"The teacher is {given[1]}, with embeddings of 400 numbers, of layer '{layer}'"
    assert said in html.unescape(page)
    rows = {row["stage"]: 100 * row["accuracy"] for row in _results(output)}
    said = rf"Teacher, 1NN: {rows['teacher_1nn']:.1f} %.*Teacher, LR: {rows['teacher_lr']:.1f} %"
    assert re.search(said, page, re.S)


def test_report_shows_pictures_with_what_is_thought_of_them(done):
    _, output, _ = done
    report = _report(output)
    test, names = report.data.test, report.data.class_names
    crops = batches.scoring_batches(test, report.size)
    logits = networks.outputs_of(report.network, crops)["logits"]
    probabilities = softmax(logits, axis=1)
    right = int(np.sum(probabilities.argmax(axis=1) == test.labels))
    found = re.findall(
        r'alt="([^"]+)">\s*<figcaption>([^,(\n]+)(?:, taken for (\S+))?\s+\(([\d.]+) %\)',
        distill_report.html(report),
    )
    assert len(found) == min(12, right) + min(12, len(test.labels) - right)
    for key, true, taken_for, percent in found:
        (row,) = np.flatnonzero(test.keys == key)
        assert names[test.labels[row]] == true
        assert names[probabilities[row].argmax()] == (taken_for or true)
        assert float(percent) == pytest.approx(100 * probabilities[row].max(), abs=0.06)


def test_snippet_runs_where_paths_have_quotes(done, given, tmp_path, monkeypatch, capsys):
    _, output, _ = done
    copy = shutil.copytree(output, tmp_path / 'that\'s "mine" & yours')
    page = distill_report.html(_report(copy))
    program = html.unescape(re.search(r'<pre id="snippet">(.*?)</pre>', page, re.S)[1])
    # A photo of other proportions than those that the network takes.
    photo = PIL.Image.open(next((given[0] / "7").iterdir())).resize((60, 40))
    photo.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert re.search(r"category_name='[5-9]'", capsys.readouterr().out)


def _alpha(image):
    """Red in the left half, and hidden red in the right one."""
    image.paste((255, 0, 0, 255), (0, 0, 30, 40))
    image.paste((255, 0, 0, 0), (30, 0, 60, 40))
    return image


def _palette(image):
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (20, 10, 60, 40))
    return image


def _turned():
    exif = PIL.Image.Exif()
    exif[pixels.ORIENTATION] = 6
    return {"exif": exif}


GREY_16 = PIL.Image.fromarray(np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60))


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (_alpha(PIL.Image.new("RGBA", (60, 40))), "PNG", {}),
        (_alpha(PIL.Image.new("RGBA", (60, 40))), "WEBP", {"lossless": True, "exact": True}),
        (_alpha(PIL.Image.new("RGBA", (60, 40))).convert("LA"), "PNG", {}),
        (_palette(PIL.Image.new("P", (60, 40))), "PNG", {"transparency": 1}),
        (_palette(PIL.Image.new("P", (60, 40))), "GIF", {}),
        (GREY_16, "PNG", {}),
        (GREY_16.point(lambda x: x / 256).convert("L"), "JPEG", {}),
        (PIL.Image.new("CMYK", (60, 40), (0, 200, 100, 50)), "JPEG", {}),
        (_alpha(PIL.Image.new("RGBA", (60, 40))).convert("RGB"), "JPEG", _turned()),
    ],
)
def test_snippet_sees_the_pixels_that_training_sees(
    done, tmp_path, monkeypatch, image, kind, options
):
    """What it hands to MediaPipe, beside what `pixels.decode` says, resized in the same way."""
    _, output, _ = done
    image.save(tmp_path / "photo.jpg", kind, **options)
    monkeypatch.chdir(tmp_path)
    names = {}
    report = _report(output)
    exec(distill_report.snippet(report), names)
    side = report.data.test.images.shape[1]
    decoded = PIL.Image.fromarray(pixels.decode((tmp_path / "photo.jpg").read_bytes()))
    wanted = np.array(decoded.resize((side, side), PIL.Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(names["pixels"], wanted)


def test_snippet_lays_what_is_transparent_on_white(done, tmp_path, monkeypatch):
    _, output, _ = done
    monkeypatch.chdir(tmp_path)
    names = {}
    for image, value in (
        (PIL.Image.new("RGBA", (60, 40), (9, 9, 9, 0)), 255),
        (PIL.Image.fromarray(np.full((40, 60), 127 * 256 + 254, np.uint16)), 127),  # the high byte
    ):
        image.save(tmp_path / "photo.jpg", "PNG")
        exec(distill_report.snippet(_report(output)), names)
        assert (names["pixels"] == value).all()


def test_report_of_many_classes_lists_confusions_instead_of_a_matrix(done):
    """By hand: of 50 classes of two images, all of class 7 are taken for class 8."""
    _, output, _ = done
    report = _report(output)
    labels = np.repeat(np.arange(50), 2)
    answers = np.where(labels == 7, 8, labels)
    rows = np.zeros(100, int)
    test = report.data.test._replace(
        images=report.data.test.images[rows],
        labels=labels,
        keys=np.array([f"{row}.png" for row in range(100)]),
    )
    names = tuple(f"猫 {number}" for number in range(50))
    data = report.data._replace(test=test, train=report.data.train, class_names=names)
    found = distill_report.confusions(data, answers)
    assert found == [{"true": "猫 7", "taken_for": "猫 8", "count": 2, "test": 2}]
    images = tf.keras.Input((report.size, report.size, 3))
    logits = tf.keras.layers.Dense(50)(tf.keras.layers.Flatten()(images))
    network = tf.keras.Model(images, {"logits": logits})
    page = distill_report.html(dataclasses.replace(report, data=data, network=network))
    assert "All 50 classes</summary>" in page
    assert "The most frequent mistakes:" in page
    assert "Confusion matrix" not in page
    assert len(page) < 1_000_000


def test_row_that_is_an_embedding_has_no_accuracy_to_show(done):
    _, output, _ = done
    embedding = _results(output)[-1] | {"method": "Triplets", "stage": "triplet", "accuracy": None}
    report = _report(output, embedding)
    assert "<td>Triplets</td><td></td>\n<td></td>" in distill_report.html(report)
    assert "test images right; see" in distill_report.line(report)


def test_killed_run_goes_on(done, given, tmp_path):
    """Without the last stage, the exports and the report, as after a kill in that stage."""
    run, output, pool = done
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    winner = _candidates(output)[0]["stage"]
    for name in (f"training/stages/{winner}", "saved_model", "tflite"):
        shutil.rmtree(copy / name)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.keras")}
    again = _distill(*given, copy, "--tune=2", f"--unlabelled={pool}")
    assert again.returncode == 0, again.stderr
    end = run.stdout.splitlines()[-1].replace(str(output), str(copy))
    assert again.stdout.splitlines()[-1] == end
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (copy / f"tflite/{winner}_int8.tflite").exists()


def _settings(given, **options):
    images, teacher = given
    task = distill_config.task_of(str(images), None)
    what = {"student": students.parse("MobileNet", 0.25), "image_size": 8} | options
    return distill_config.settings(task, teachers.parse(str(teacher)), **what)


def test_folder_that_is_split_keeps_its_split(given, tmp_path):
    images, teacher = given
    for part in ("train", "test"):
        shutil.copytree(images, tmp_path / part)
    assert "Data.train_fraction = 0.8" in _settings(given)
    assert "Data.train_fraction = None" in _settings((tmp_path, teacher))


def test_images_are_surveyed_as_settings_say(given, tmp_path):
    """Of 32 test images of each of five classes 30 are training images too."""
    images, teacher = given
    shutil.copytree(images, tmp_path / "train")
    photos.write_folder(tmp_path / "test", count=32)

    def survey(*given):
        text = distill_config.gin_text((), _settings((tmp_path, teacher)), {}, given)
        output = tmp_path.with_name(f"{tmp_path.name}_output")
        return distill.survey(distill_config.task_in(text), None, output)

    with pytest.raises(InputError, match="same file in training and test"):
        survey()
    selection = survey("ImageFolder.on_crossing = 'train'")
    assert (len(selection.train), len(selection.test)) == (5 * 30, 5 * 2)


def test_lengths_fit_the_number_of_images():
    assert distill_config.lengths(300, 6_000, 8) == {
        "Recipe.steps": 6_000,
        "Recipe.batch_size": 32,
        "teacher_cache.views": 8,
        "teacher_cache.jitter": 0.25,
    }
    # All of ten images but the two that candidates are scored on.
    assert distill_config.lengths(8, 600, 2)["Recipe.batch_size"] == 8


def test_time_is_measured_where_training_goes_on(given, tmp_path):
    """A budget of a second leaves the fewest steps that there are."""
    lengths = distill_config.lengths(120, candidates.STEPS, 2)
    params = ["Stage.backbone = @TinyNetwork()"]
    text = distill_config.gin_text((), _settings(given), lengths, params)
    folder = tmp_path / "candidates"
    assert candidates.planned_steps(1 / 60, text, False, folder, None) == candidates.LEAST_STEPS
    launch.check_work_dir(folder)
    assert [path.name for path in (folder / "stages").glob("*/result.json")] == ["result.json"]


@pytest.mark.parametrize(("images", "views"), [(300, 8), (4_000, 4), (40_000, 2)])
def test_a_teacher_is_asked_about_some_16000_views(images, views):
    """By hand."""
    assert distill_config.views(images) == views


def test_batches_of_candidates_fit_small_classes(tmp_path):
    """By hand: of ten images 8 train, of which .8·8, rounded, are 6, and that in five classes."""
    task = distill_config.task_of(str(photos.write_folder(tmp_path, count=10)), None)
    assert len(candidates.training_rows(task, None)) == 5 * 6


def test_output_among_the_images_is_refused(given):
    images, teacher = given
    run = _distill(images, teacher, images / "output")
    assert run.returncode == 1
    assert f"--output={images}/output lies in --images={images}" in run.stderr
    assert not (images / "output").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_output_that_is_no_folder_is_refused_first(given, tmp_path, place):
    (tmp_path / "file").touch()
    run = _distill(*given, tmp_path / place)
    assert run.returncode == 1
    assert f"--output={tmp_path / place}" in run.stderr
    assert "Traceback" not in run.stderr


def test_setting_of_no_effect_is_refused_before_the_trials(given, tmp_path):
    run = _distill(*given, tmp_path / "out", "--tune=2", "--gin_param=tuple/Recipe.epochs = 3")
    assert run.returncode == 1
    assert "has no effect" in run.stderr
    assert not (tmp_path / "out").exists()


def test_setting_on_several_lines_stays_a_comment(given):
    param = "Recipe.milestones = (\n    0.5,)"
    text = distill_config.gin_text([f"Written by {param}"], _settings(given), {}, [param])
    config.load_text(text, [param])


def test_tfds_dataset_is_found_by_its_name():
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not (Path(folder) / "cifar100").is_dir():
        pytest.skip("TFDS_DATA_DIR does not have cifar100")
    source = distill_config.task_of("cifar100", None).data.source
    assert (source.key, source.splits) == ("id", ("train", "test"))


def test_student_from_weights_under_an_onnx_teacher(given, tmp_path):
    """To its report, with a MobileNetV2 of 32×32 pixels that somebody has trained."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    images, teacher = given
    whole = tf.keras.models.load_model(teacher)
    network = tf.keras.Model(whole.input, whole.layers[-2].output)
    onnx_graphs.export(network, tmp_path / "teacher.onnx")
    tf.keras.utils.set_random_seed(0)  # with some weights an export rounds by more than it may
    students.parse("MobileNetV2", 0.25).build(32).save(tmp_path / "student.keras")
    flags = (
        f"--images={images}",
        f"--teacher={tmp_path}/teacher.onnx",
        "--student=MobileNetV2",
        f"--student_weights={tmp_path}/student.keras",
        "--image_size=32",
        f"--output={tmp_path}/output",
        "--gin_param=Recipe.steps = 20",
    )
    run = commands.run("refilled_tf.distill", *flags)
    assert run.returncode == 1
    assert "give OnnxFile.preprocessing (--teacher_preprocessing)" in run.stderr
    assert not (tmp_path / "output").exists()
    run = commands.run("refilled_tf.distill", *flags, "--teacher_preprocessing=none", timeout=1200)
    assert run.returncode == 0, run.stderr
    methods = {row["method"] for row in _candidates(tmp_path / "output")}
    assert {"Pretrained, fine-tuned", "Pretrained, distilled"} <= methods
    rows = _results(tmp_path / "output")
    # onnxruntime's network is not Keras's, to put a head on it and export it.
    assert [row["stage"] for row in rows[:3]] == ["teacher_1nn", "teacher_lr", "student_kx"]
    assert {row["width"] for row in rows[2:]} == {0.25}
    winner = _candidates(tmp_path / "output")[0]["stage"]
    assert (tmp_path / f"output/tflite/{winner}_int8.tflite").exists()
    page = (tmp_path / "output/report.html").read_text(encoding="utf-8")
    assert "a\nMobileNetV2 of width 0.25, pretrained, that sees 32×32 pixels" in page


def test_bad_size(given):
    with pytest.raises(InputError, match=r"--image_size=0 must be positive"):
        _settings(given, image_size=0)


@pytest.mark.parametrize(
    ("widths", "params", "tune", "message"),
    [
        ([0.25, 0.0], [], 10, r"--width=0\.0 must be positive"),
        ([0.25, 0.5], [], 0, r"--width is given 2 times"),
        ([0.25], ["Recipe.learning_rate=.05"], 10, r"rate=\.05' is what --tune=10 chooses"),
    ],
)
def test_bad_choice(widths, params, tune, message):
    with pytest.raises(InputError, match=message):
        distill_config.check_choices(widths, params, tune)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("/nowhere/at/all", "--images=/nowhere/at/all is neither a folder nor the name"),
        ("no_such_birds", "--images=no_such_birds is no folder, and .* is not a dataset"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(InputError, match=message):
        distill_config.task_of(images, None)


def test_setting_that_is_unknown_or_of_no_effect_leaves_no_file(given, tmp_path):
    path = tmp_path / "distill.gin"
    for param in ("Recipe.length = 3", "tuple/Recipe.epochs = 3"):
        text = distill_config.gin_text((), _settings(given), {}, [param])
        with pytest.raises(InputError, match=r"length|has no effect"):
            distill.write_gin_file(path, text, [param], tmp_path / "training")
    assert not list(tmp_path.iterdir())


def test_rows_without_a_classifier_are_refused_before_training(given, tmp_path):
    images, teacher = given
    run = commands.run(
        "refilled_tf.distill",
        *(f"--images={images}", f"--teacher={teacher}", f"--output={tmp_path}"),
        "--gin_param=Experiment.rows = [@teacher_1nn/Probe()]",
    )
    assert run.returncode == 1
    assert "error: Experiment.rows has no classifier of the student's to export" in run.stderr
    assert not list(tmp_path.iterdir())


def test_first_look_names_all_that_is_odd(given, tmp_path, capsys):
    images, _ = given
    shutil.copytree(images, tmp_path / "photos")
    (tmp_path / "photos/5/empty.png").touch()
    shutil.copy(next((images / "6").iterdir()), tmp_path / "photos/7/six.png")
    task = distill_config.task_of(str(tmp_path / "photos"), None)
    with pytest.raises(InputError, match="same file in two classes, '6' and '7'"):
        distill.survey(task, None, tmp_path / "out")
    shown = capsys.readouterr().out
    assert "corrupt: 5/empty.png" in shown
    assert "7/six.png" in shown
    assert not (tmp_path / "out").exists()


def test_long_lists_are_shortened_and_whole_in_notes(given, tmp_path):
    images, teacher = given
    folder = shutil.copytree(images, tmp_path / "photos")
    for number, path in enumerate(sorted((folder / "6").iterdir())[:13]):
        shutil.copy(path, folder / f"7/six_{number:02d}.png")
        (folder / f"5/note_{number:02d}.txt").write_text("no image")
    flags = f"--images={folder}", f"--teacher={teacher}", f"--output={tmp_path}/out"
    run = commands.run("refilled_tf.distill", *flags)
    assert run.returncode == 1
    assert "no images: 5/note_00.txt" in run.stdout
    assert "… and 3 more, in notes.txt" in run.stdout
    assert run.stderr.count("are the same file in two classes, '6' and '7'") == 10
    assert "… and 3 more. Delete each" in run.stderr
    option = """--gin_param='ImageFolder.on_conflict = "skip"'"""
    assert option in run.stderr
    notes = (tmp_path / "out/notes.txt").read_text()
    assert all(f"5/note_{number:02d}.txt" in notes for number in range(13))
    assert notes.count("are the same file in two classes") == 13
    # What is advised is what a shell takes; 13 photos are left out of both classes, of 30 each.
    text = distill_config.gin_text(
        (), _settings((folder, teacher)), {}, [shlex.split(option)[0][12:]]
    )
    selection = distill.survey(distill_config.task_in(text), None, tmp_path / "out")
    assert len(selection.train) + len(selection.test) == 5 * 30 - 13


def test_other_options_do_not_overwrite(done, given):
    _, output, pool = done
    before = (output / "distill.gin").read_text()
    run = _distill(*given, output, f"--unlabelled={pool}", "--gin_param=Stage.seed = 1")
    assert run.returncode == 1
    assert "--output" in run.stderr or "--work_dir" in run.stderr
    assert (output / "distill.gin").read_text() == before


def test_images_that_came_later_are_named_and_trained(done, given, tmp_path):
    """A photo more: the old stays as it is until --retrain has what takes its place."""
    _, output, pool = done
    copy = shutil.copytree(output, tmp_path / "copy")
    images, _ = given
    rows = _results(copy)
    thirty_first = sorted(photos.write_folder(tmp_path / "more", [5], 31).rglob("*.png"))[-1]
    more = Path(shutil.copy(thirty_first, images / "5/more.png"))
    try:
        refused = _distill(*given, copy, "--tune=2", f"--unlabelled={pool}")
        assert (refused.returncode, refused.stdout.count("training/")) == (1, 0)
        assert refused.stderr.strip().splitlines()[-1] == (
            f"error: --output={copy} holds what was made before: 1 image was added to 5/. Add "
            "--retrain to train anew what that touches (the old stays until the new is there), or "
            "take another --output"
        )
        assert _results(copy) == rows
        anew = _distill(*given, copy, "--tune=2", f"--unlabelled={pool}", "--retrain")
    finally:
        more.unlink()
    assert anew.returncode == 0, anew.stderr
    # 80 % of 31 images are 25, by rounding, and 6.
    assert re.search(r"^5 +25 +6$", anew.stdout, re.M)
    assert not (copy / "previous").exists()
    assert len(versions.existing(copy / "saved_model")) == 2
    assert storage.read_json(copy / "images.json").keys() == {
        *storage.read_json(output / "images.json"),
        "5/more.png",
    }


def test_what_the_commonest_class_alone_would_get():
    """By hand: of 8 + 4 images "cat" is always said; 8 / 12, and on average (1 + 0) / 2."""
    classes = [
        {"name": "cat", "test": 8, "right": 8},
        {"name": "dog", "test": 4, "right": 0},
        {"name": "fox", "test": 0, "right": 0},
    ]
    found = distill_report.baseline(classes)
    assert found == {"name": "cat", "share": pytest.approx(2 / 3), "balanced": 0.5}
