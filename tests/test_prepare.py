"""Preparing a dataset by the command: miniImageNet from generated files, and what can be wrong."""

from __future__ import annotations

import commands
import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image

from refilled_tf import prepare
from refilled_tf.common.errors import InputError
from refilled_tf.data.mini_imagenet import CLASSES


@pytest.fixture
def manual_dir(tmp_path):
    """One image of one class in each of the three parts."""
    folder = tmp_path / "manual"
    (folder / "images").mkdir(parents=True)
    for part, label in zip(("train", "val", "test"), CLASSES, strict=False):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{label}.jpg")
        (folder / f"{part}.csv").write_text(f"filename,label\n{label}.jpg,{label}\n")
    return folder


def _run(*flags):
    return commands.run("refilled_tf.prepare", *flags)


def test_command_prepares_what_a_source_can_read(manual_dir, tmp_path):
    done = _run("--dataset=mini_imagenet", f"--manual_dir={manual_dir}", f"--data_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "mini_imagenet") in done.stdout
    builder = tfds.builder("mini_imagenet", data_dir=tmp_path)
    labels = [
        example["label"]
        for split in ("train", "validation", "test")
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    ]
    np.testing.assert_array_equal(labels, [0, 1, 2])


def test_mistake_is_one_line_without_traceback(manual_dir, tmp_path):
    (manual_dir / "val.csv").unlink()
    done = _run("--dataset=mini_imagenet", f"--manual_dir={manual_dir}", f"--data_dir={tmp_path}")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "val.csv" in line
    assert "Traceback" not in done.stderr


def test_missing_manual_files_are_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"mini_imagenet.*images/.*train\.csv"):
        prepare.prepare("mini_imagenet", str(tmp_path), None)


@pytest.mark.parametrize(
    "dataset", ["no_such_birds", "cifar100:9.9.9", "cifar100/no_config", "cifar 100"]
)
def test_unknown_dataset_is_named(dataset, tmp_path):
    with pytest.raises(InputError, match=f"--dataset={dataset}"):
        prepare.prepare(dataset, str(tmp_path), None)


def test_data_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--data_dir=.*file is not a folder that can be written"):
        prepare.check_folders(str(tmp_path / "file"), None)


@pytest.mark.parametrize(
    "error", [requests.exceptions.ProxyError("no way out"), tfds.download.DownloadError("404")]
)
def test_download_that_fails_is_one_line(error, tmp_path, monkeypatch):
    class Builder:
        def download_and_prepare(self, download_config):
            raise error

    monkeypatch.setattr(tfds, "builder", lambda *args, **kwargs: Builder())
    with pytest.raises(InputError, match=f"--dataset=cifar100: {error}"):
        prepare.prepare("cifar100", str(tmp_path), None)


def test_manual_dir_must_be_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"--manual_dir=.*nowhere is not a folder"):
        prepare.check_folders(str(tmp_path), str(tmp_path / "nowhere"))
