"""Teachers as a command line names them: what each spec becomes, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf.common import gin_files
from refilled_tf.common.errors import InputError
from refilled_tf.experiment import config, experiment, loading
from refilled_tf.models.embedding_files import EmbeddingFile
from refilled_tf.models.keras_files import Application, KerasFile
from refilled_tf.models.onnx_files import OnnxFile
from refilled_tf.own_images import teachers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A training with a finished teacher, a network in a file, an archive of embeddings."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / "tiny.gin").write_text(tiny.GIN)
    rows = "Experiment.rows = [@teacher/Stage()]"
    spec, run = config.load_experiment([folder / "tiny.gin"], [rows]), tiny.run_in(folder / "run")
    (folder / "run").mkdir()
    (folder / "run" / gin_files.OPERATIVE).write_text(config.operative_config())
    experiment.finish_rows(spec, run, [], "")
    images = tf.keras.Input((12, 12, 3))
    flat = tf.keras.layers.Flatten(name="flat")(images)
    tf.keras.Model(images, tf.keras.layers.Dense(3)(flat)).save(folder / "net.keras")
    np.savez(folder / "file.npz", paths=["0000"], embeddings=[[1.0]])
    (folder / "net.onnx").write_bytes(b"opened later")
    (folder / "notes.txt").write_text("")
    return folder


def test_each_spec_is_what_it_says(folder):
    keras = teachers.parse(f"{folder}/net.keras", layer="flat", weights=None, preprocessing="tf")
    assert keras == KerasFile(f"{folder}/net.keras", "flat", "tf")
    assert teachers.parse(f"{folder}/file.npz") == EmbeddingFile(f"{folder}/file.npz")
    options = {"layer": "out_relu", "weights": f"{folder}/net.keras", "input_size": "96"}
    named = teachers.parse("imagenet:MobileNetV2", **options)
    assert named == Application("MobileNetV2", f"{folder}/net.keras", "out_relu", 96)
    options = {"layer": "e", "preprocessing": "clip", "layout": "NHWC", "input_size": "98"}
    graph = teachers.parse(f"{folder}/net.onnx", **options)
    assert graph == OnnxFile(f"{folder}/net.onnx", "e", "clip", "NHWC", 98)


def test_training_teaches_by_its_teacher_or_the_named_stage(folder):
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)), tf.float32)
    spec = config.load_work_dir(folder / "run").stages()[0]
    expected = loading.load_network(spec, tiny.run_in(folder / "run"))(images)["embedding"]
    for name in (f"{folder}/run", f"{folder}/run:teacher"):
        np.testing.assert_allclose(teachers.parse(name).build(8)(images), expected, rtol=1e-5)


def test_output_of_distill_stands_for_its_training(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "out/training")
    file = tmp_path / "out/training/stages/teacher/model.keras"
    for spec in (f"{tmp_path}/out", f"{tmp_path}/out:teacher"):
        assert teachers.parse(spec) == KerasFile(str(file))
    with pytest.raises(InputError, match=rf"finished are {tmp_path}/out:teacher"):
        teachers.parse(f"{tmp_path}/out:student")
    with pytest.raises(
        InputError, match=rf"that of this output .* is --work_dir={tmp_path}/out/tra"
    ):
        config.load_work_dir(tmp_path / "out")


@pytest.mark.parametrize("name", ["", "/1700000000"])
def test_export_for_a_server_says_what_to_give(folder, tmp_path, name):
    module = tf.Module()
    module.f = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None, 8, 8, 3])])
    tf.saved_model.save(module, f"{tmp_path}/out/saved_model/1700000000")
    spec = f"{tmp_path}/out/saved_model{name}"
    with pytest.raises(
        InputError, match=r"export for a server, .* give the --work_dir of the train"
    ):
        teachers.parse(spec)
    shutil.copytree(folder / "run", tmp_path / "out/training")
    with pytest.raises(
        InputError, match=rf"export for a server, .* give one of {tmp_path}/out:teac"
    ):
        teachers.parse(spec)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("none.keras", {}, "there is no such thing; accepted are a --work_dir of a training"),
        ("notes.txt", {}, "is none of what is accepted: .*imagenet:NAME"),
        ("run:student", {}, r"no finished stage 'student'; finished are .*run:teacher"),
        ("net.keras", {"weights": "x"}, "--teacher_weights=x does not go with --teacher="),
        ("file.npz", {"layer": "x"}, "--teacher_layer=x does not go with --teacher="),
        ("run", {"preprocessing": "tf"}, "--teacher_preprocessing=tf does not go with"),
        ("net.keras", {"preprocessing": "x"}, "must be one of none, tf, torch, caffe"),
        ("net.keras", {"layout": "NCHW"}, "--teacher_layout=NCHW does not go with --teacher="),
        ("net.onnx", {"weights": "x"}, "--teacher_weights=x does not go with --teacher="),
        ("net.onnx", {"layout": "CHWN"}, "OnnxFile.layout='CHWN' must be one of NCHW, NHWC"),
        ("net.onnx", {"preprocessing": "x"}, "must be one of none, tf, torch, caffe, clip"),
        ("net.onnx", {"input_size": "0"}, "--teacher_input_size=0 must be a number of pixels"),
        ("net.onnx", {"input_size": "x"}, "--teacher_input_size=x must be a number of pixels"),
    ],
)
def test_other_specs_are_refused(folder, spec, options, message):
    with pytest.raises(InputError, match=message):
        teachers.parse(f"{folder}/{spec}", **options)


def test_applications_are_listed():
    with pytest.raises(InputError, match=r"'Nothing' is no network .* there are DenseNet121, "):
        teachers.parse("imagenet:Nothing")
    with pytest.raises(InputError, match="--teacher_preprocessing=tf does not go with"):
        teachers.parse("imagenet:MobileNetV2", preprocessing="tf")


@pytest.mark.parametrize("file", ["net.keras", "file.npz", "net.onnx"])
def test_gin_lines_give_the_same_teacher(folder, file):
    options = {} if file == "file.npz" else {"layer": "flat", "preprocessing": "caffe"}
    if file == "net.onnx":
        options |= {"layout": "NCHW", "input_size": "224"}
    teacher = teachers.parse(f"{folder}/{file}", **options)
    spec = config.load_experiment(
        [folder / "tiny.gin", "models/pretrained_teacher.gin"],
        ["Experiment.rows = [@vanilla/Stage()]", *teachers.gin_lines(teacher)],
    )
    built = {each.name: each for each in spec.stages()}
    assert built["teacher"].backbone == teacher
    assert built["triplet"].teacher == built["teacher"]


def test_only_embeddings_alone_say_the_same_of_all_views(folder):
    said = teachers.cost(teachers.parse(f"{folder}/file.npz"))
    assert "file.npz knows each image as it is" in said
    assert "stands for those that students see" in said
    for spec in (f"{folder}/net.keras", f"{folder}/net.onnx", "imagenet:MobileNetV2"):
        assert teachers.cost(teachers.parse(spec)) is None
