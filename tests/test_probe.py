"""Teachers ranked on a folder of digits, and what is said of them.

The order is known beforehand: embeddings that hold the class, in more and more noise.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import commands
import numpy as np
import onnx_graphs
import PIL.Image
import pytest
import tensorflow as tf
import tiny

from refilled_tf import probe
from refilled_tf.common.errors import InputError
from refilled_tf.data.sources import Digits
from refilled_tf.data.task import select
from refilled_tf.own_images import distill_config, teachers

CLASSES, COUNT = 4, 15


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits 0-3 as DIR/CLASS/*.png, teachers of three qualities, one of them a network."""
    folder = tmp_path_factory.mktemp("probe")
    index, random = Digits().index(), np.random.default_rng(0)
    paths, labels = [], []
    for label in range(CLASSES):
        rows = np.flatnonzero(index.labels == label)[:COUNT]
        pixels, _ = Digits().images(index.keys[rows], 16)
        (folder / "images" / f"digit {label}").mkdir(parents=True)
        for number, image in enumerate(pixels):
            path = f"digit {label}/{number}.png"
            PIL.Image.fromarray(image).save(folder / "images" / path)
            paths.append(path)
            labels.append(label)
    noise = random.normal(size=(len(paths), CLASSES))
    for name, deviation in (("some", 0.8), ("nothing", 1e6)):
        embeddings = np.eye(CLASSES)[labels] + deviation * noise
        np.savez(folder / f"{name}.npz", paths=paths, embeddings=embeddings)
    # The pixels themselves: 1NN on scikit-learn's digits is right nearly always.
    images = tf.keras.Input((16, 16, 3))
    tf.keras.Model(images, tf.keras.layers.Flatten()(images)).save(folder / "pixels.keras")
    return folder


@pytest.fixture(scope="module")
def scores(folder):
    task = distill_config.task_of(str(folder / "images"), None)
    probe.require_foldable(task, 3, None)
    return {
        name: probe.score(name, teachers.parse(f"{folder}/{name}"), task, 16, 3, None)
        for name in ("nothing.npz", "pixels.keras", "some.npz")
    }


def test_teachers_are_ranked_by_quality(scores):
    names = [each.name for each in probe.ranked(list(scores.values()))]
    assert names == ["pixels.keras", "some.npz", "nothing.npz"]
    assert scores["pixels.keras"].mean("ncm") > 0.9
    assert 0.4 < scores["some.npz"].mean("ncm") < 0.9
    assert scores["nothing.npz"].mean("ncm") < 0.5
    assert all(set(s.accuracies) == {"ncm", "1nn", "linear"} for s in scores.values())


def test_onnx_teacher_is_ranked_as_its_keras_twin(folder, scores):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    network = tf.keras.models.load_model(folder / "pixels.keras")
    onnx_graphs.export(network, folder / "pixels.onnx")
    task = distill_config.task_of(str(folder / "images"), None)
    teacher = teachers.parse(f"{folder}/pixels.onnx", preprocessing="none")
    onnx = probe.score("pixels.onnx", teacher, task, 16, 3, None)
    keras = scores["pixels.keras"]
    assert onnx.size == keras.size
    for classifier in ("ncm", "1nn", "linear"):
        assert onnx.mean(classifier) == pytest.approx(keras.mean(classifier), abs=0.03)
    assert onnx.seconds > 0


def test_only_training_images_are_looked_at(folder):
    """A file that lacks the test images will do; one that lacks a training image will not."""
    task = distill_config.task_of(str(folder / "images"), None)
    index = task.data.source.index()
    train = select(task, index).train
    archive = dict(np.load(folder / "some.npz"))
    kept = np.isin(archive["paths"], index.keys[train])
    assert not kept.all()
    np.savez(folder / "train.npz", **{name: x[kept] for name, x in archive.items()})
    probe.score("", teachers.parse(f"{folder}/train.npz"), task, 16, 3, None)
    np.savez(folder / "less.npz", **{name: x[kept][1:] for name, x in archive.items()})
    with pytest.raises(InputError, match=r"less\.npz misses 1 of \d+ images"):
        probe.score("", teachers.parse(f"{folder}/less.npz"), task, 16, 3, None)


def _score(name, linear, size=2):
    return probe.Score(name, size, {"linear": np.array(linear)}, None)


def test_what_is_said():
    good, close = _score("a", [0.8, 0.82, 0.84]), _score("b", [0.75, 0.8, 0.85])
    weak, pixels = _score("c", [0.35, 0.4, 0.45]), _score("", [0.38, 0.39, 0.4], 768)
    said = probe.expectation([good, close, weak], pixels)
    assert "on a is right in 82.0 %, without a teacher in 39.0 %" in said
    assert "No better than pixels: c." in said
    assert "Within the noise of it: b;" in said
    said = probe.expectation([weak], pixels)
    assert "No teacher here knows these classes" in said
    assert "on c is right in 40.0 %, on 256 pixels without any teacher in 39.0 %" in said
    assert "noise" not in probe.expectation([good, _score("d", [0.5, 0.51, 0.52])], pixels)


def test_pixels_are_those_of_small_images(folder):
    """Digits are told apart by their pixels alone, and an equal network is no better."""
    task = distill_config.task_of(str(folder / "images"), None)
    pixels = probe.of_pixels(task, 3, None)
    assert pixels.size == 16 * 16 * 3
    assert pixels.mean("linear") > 0.9


def test_too_few_images_are_named(folder):
    task = distill_config.task_of(str(folder / "images"), None)
    with pytest.raises(InputError, match=r"class 'digit \d' has 12 training images; --folds=13"):
        probe.require_foldable(task, 13, None)
    with pytest.raises(InputError, match="--folds=2 must be at least 3"):
        probe.require_foldable(task, 2, None)


def test_command_prints_the_table(folder):
    done = commands.run(
        "refilled_tf.probe",
        f"--images={folder}/images",
        *(f"--teacher={folder}/{name}" for name in ("some.npz", "pixels.keras")),
        "--image_size=16",
        "--folds=3",
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {folder}")]
    assert ["pixels.keras" in row for row in rows] == [True, False]
    assert "| no teacher: 16×16 pixels" in done.stdout
    assert "4 classes, 48 images that train, 3 folds" in done.stdout
    # It hands on what it sees, so it is of no use.
    assert "No teacher here knows these classes" in done.stdout
    assert "warning" not in done.stderr.lower()


def test_settings_of_the_images_are_those_of_distill(folder, tmp_path):
    images = shutil.copytree(folder / "images", tmp_path / "images")
    broken = next((images / "digit 1").iterdir())
    broken.write_bytes(broken.read_bytes()[:60])
    teacher = f"--teacher={folder}/pixels.keras"
    flags = f"--images={images}", teacher, "--image_size=16", "--folds=3"
    refused = commands.run("refilled_tf.probe", *flags)
    assert refused.returncode == 1
    assert """--gin_param='Data.on_corrupt = "skip"'""" in refused.stderr
    taken = commands.run("refilled_tf.probe", *flags, "--gin_param=Data.on_corrupt = 'skip'")
    assert taken.returncode == 0, taken.stderr
    assert "4 classes" in taken.stdout
    idle = commands.run("refilled_tf.probe", *flags, "--gin_param=tuple/Recipe.epochs = 3")
    assert idle.returncode == 1
    assert "has no effect" in idle.stderr


def test_options_are_spread_over_the_teachers():
    assert probe._one_for_each("teacher_layer", [], 2) == [None, None]
    assert probe._one_for_each("teacher_layer", ["", "flat"], 2) == [None, "flat"]
    with pytest.raises(InputError, match="--teacher_layer is given 1 times for 2 teachers"):
        probe._one_for_each("teacher_layer", ["flat"], 2)


def test_one_that_fails_does_not_cost_the_others(folder):
    """One that cannot be read, and one that lacks images, beside one that is whole."""
    (folder / "text.keras").write_text("no network")
    np.savez(folder / "short.npz", paths=["digit 0/0.png"], embeddings=[[1.0]])
    names = "text.keras", "some.npz", "short.npz"
    given = [f"--teacher={folder}/{name}" for name in names]
    done = commands.run("refilled_tf.probe", f"--images={folder}/images", *given, "--folds=3")
    assert done.returncode == 1
    assert f"| {folder}/some.npz" in done.stdout
    assert "error: 2 of 3 teachers are not scored" in done.stderr
    assert "text.keras: Keras cannot read it" in done.stderr
    assert "short.npz misses" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", ["probe", "distill"])
def test_both_commands_refuse_what_one_of_them_could_not_load(folder, tmp_path, program):
    images = tf.keras.Input((16, 16, 3))
    flat = tf.keras.layers.Flatten()(tf.keras.layers.Lambda(lambda x: x / 255)(images))
    tf.keras.Model(images, flat).save(tmp_path / "code.keras")
    flags = f"--images={folder}/images", f"--teacher={tmp_path}/code.keras", "--image_size=16"
    output = [f"--output={tmp_path}/out"] if program == "distill" else []
    refused = commands.run(f"refilled_tf.{program}", *flags, *output)
    assert refused.returncode == 1
    assert "code, which would run here: Lambda layer" in refused.stderr
    assert not (tmp_path / "out").exists()
    if program == "probe":
        taken = commands.run("refilled_tf.probe", *flags, "--trust_teacher", "--folds=3")
        assert taken.returncode == 0, taken.stderr


def test_all_damaged_images_are_named_somewhere(folder, tmp_path):
    """Of two teachers, who would both see them: each file once."""
    images = shutil.copytree(folder / "images", tmp_path / "images")
    damaged = [f"digit {number % 4}/{number // 4}.png" for number in range(13)]
    for name in damaged:
        tiny.truncate(images / name)
    teacher = f"--teacher={folder}/pixels.keras"
    run = commands.run(
        "refilled_tf.probe", f"--images={images}", teacher, teacher, "--image_size=16", "--folds=3"
    )
    assert run.returncode == 1
    assert "… and 3 more" in run.stderr
    file = Path(re.search(r"\((\S+) names all\)$", run.stderr.strip())[1])
    named = [line.split(" (it is damaged")[0] for line in file.read_text().splitlines()]
    file.unlink()
    # 80 % of each class train, and only those are looked at.
    task = distill_config.task_of(str(images), None)
    index = task.data.source.index()
    trains = index.keys[select(task, index).train]
    assert set(damaged) & set(trains) <= set(named) <= set(damaged)
    assert len(named) == len(set(named)) > 10


def test_unknown_teacher_ends_in_one_line(folder):
    done = commands.run("refilled_tf.probe", f"--images={folder}/images", "--teacher=none.keras")
    assert done.returncode == 1
    assert "error: --teacher=none.keras: there is no such thing; accepted are" in done.stderr
    assert "Traceback" not in done.stderr
