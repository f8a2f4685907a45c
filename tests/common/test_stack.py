"""Folders and files of other versions: begun/ is a work_dir of TensorFlow 2.15."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tensorflow as tf
import tiny

from refilled_tf.common import stack
from refilled_tf.common.errors import InputError
from refilled_tf.experiment import loading, training
from refilled_tf.experiment.run import check_folder, recorded_versions
from refilled_tf.models.keras_files import KerasFile

BEGUN = Path(__file__).resolve().parents[1] / "begun"
STAGES = {"teacher": tiny.teacher(), "first": tiny.first()}


@pytest.fixture
def begun(tmp_path):
    return tiny.run_in(shutil.copytree(BEGUN, tmp_path / "work"))


@pytest.mark.parametrize("name", STAGES)
def test_digest_is_that_of_other_versions(begun, name):
    facts = json.loads((begun.folder(STAGES[name]) / "stage.json").read_text())
    assert STAGES[name].digest() == facts["digest"]
    check_folder(STAGES[name], begun)


def test_stage_begun_with_other_versions_goes_on(begun, caplog):
    first = STAGES["first"]
    (then,) = recorded_versions(first, begun)
    history = begun.folder(first) / "history.csv"
    header, epoch = history.read_text().splitlines()
    with caplog.at_level(logging.WARNING, "absl"):
        training.train(STAGES["teacher"], begun)
        result = training.train(first, begun)

    # Nothing that was there is done again, and both epochs come to what 2.15 makes of them.
    assert history.read_text().splitlines()[:2] == [header, epoch]
    assert len(history.read_text().splitlines()) == 3
    wanted = json.loads((BEGUN / "unbroken.json").read_text())
    assert result["training"] == pytest.approx(wanted["training"], rel=1e-3)
    assert result["embedding"] == pytest.approx(wanted["embedding"], abs=0.01)

    now = stack.versions()
    differs = stack.changes(then) != ""
    said = [record.getMessage() for record in caplog.records if "since it was made" in record.msg]
    assert len(said) == (2 if differs else 0)
    assert all(f"tensorflow {then['tensorflow']} → {now['tensorflow']}" in each for each in said)
    assert recorded_versions(first, begun) == ([then] if then == now else [then, now])


def test_changes_by_hand(monkeypatch):
    now = {"python": "3.13.0", "tensorflow": "2.21.0", "numpy": "2.5.5"}
    monkeypatch.setattr(stack, "versions", lambda: now)
    assert stack.changes(now | {"python": "3.12.1"}) == ""
    assert stack.changes(now | {"numpy": "1.26.4"}) == "numpy 1.26.4 → 2.5.5"


# --- files of another Keras -------------------------------------------------------------------


def _network():
    images = tf.keras.Input((8, 8, 3))
    return tf.keras.Model(images, tf.keras.layers.GlobalAveragePooling2D()(images))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["network.keras", "network.h5", "network"])
def test_every_format_says_its_keras(tmp_path, name):
    _network().save(tmp_path / name)
    assert stack.keras_of(tmp_path / name) == stack.KERAS


@pytest.mark.parametrize("content", [None, b"", b"no network"])
def test_other_files_say_none(tmp_path, content):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    assert stack.keras_of(tmp_path / "file") is None
    assert stack.keras_of(tmp_path) is None


def _rewritten(path, version):
    """Writes a network as a Keras of that version would whose Conv2D has an option more."""
    _network().save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["metadata.json"] = json.dumps({"keras_version": version}).encode()
    files["config.json"] = files["config.json"].replace(b'"ragged"', b'"new": 1, "ragged"')
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("version", "remedy"), [("2.99.0", "From Python 3.12 on"), ("3.4.1", "Save it with Keras 2")]
)
def test_file_of_a_later_keras_is_refused_in_a_line(tmp_path, version, remedy):
    path = _rewritten(tmp_path / "teacher.keras", version)
    with pytest.raises(InputError) as caught:
        KerasFile(str(path)).build(8)
    start = f"KerasFile.file={path} was saved with Keras {version}, which this Keras {stack.KERAS} "
    assert str(caught.value).startswith(f"{start}cannot read. {remedy}")
    assert "\n" not in str(caught.value)


def test_file_of_an_earlier_keras_says_its_version(tmp_path):
    path = _rewritten(tmp_path / "teacher.keras", "2.2.4")
    message = (
        rf"Keras cannot read it .*saved with Keras 2\.2\.4, and this is {stack.KERAS}\. .*ONNX"
    )
    with pytest.raises(InputError, match=message):
        KerasFile(str(path)).build(8)


def test_what_no_version_explains_is_named_as_before(tmp_path):
    path = _rewritten(tmp_path / "teacher.keras", stack.KERAS)
    with pytest.raises(InputError, match="Keras cannot read it"):
        KerasFile(str(path)).build(8)


def test_stage_of_a_later_keras_is_not_to_be_deleted(begun):
    path = _rewritten(begun.folder(STAGES["teacher"]) / "model.keras", "2.99.0")
    with pytest.raises(InputError) as caught:
        loading.load_network(STAGES["teacher"], begun)
    assert str(caught.value).startswith(f"{path} was saved with Keras 2.99.0, which ")
    assert "delete" not in str(caught.value)


@pytest.mark.skipif(not importlib.util.find_spec("tf_keras"), reason="there is no Keras 3 here")
@pytest.mark.parametrize("name", ["teacher.keras", "teacher.h5"])
def test_real_file_of_keras_3_is_refused(tmp_path, name):
    program = (
        "import keras, sys; images = keras.Input((8, 8, 3)); "
        "keras.Model(images, keras.layers.Flatten()(images)).save(sys.argv[1])"
    )
    env = os.environ | {"TF_USE_LEGACY_KERAS": "0", "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-c", program, str(tmp_path / name)]
    subprocess.run(command, env=env, capture_output=True, check=True)
    with pytest.raises(InputError, match=rf"{name} was saved with Keras 3\.\d+\.\d+, which this"):
        KerasFile(str(tmp_path / name)).build(8)
