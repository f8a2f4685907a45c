"""Made-up images in miniImageNet's layout, prepared by TFDS's command."""

from __future__ import annotations

import csv
import subprocess
import sys

import gin
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from refilled_tf.common import gin_files
from refilled_tf.common.errors import InputError
from refilled_tf.data import mini_imagenet
from refilled_tf.data.mini_imagenet import CLASSES, MiniImagenet
from refilled_tf.data.sources import TfdsSource
from refilled_tf.data.task import Data, load, student, teacher, validation

# In the numbers of the real parts. The last come first, so that part and label do not agree.
PARTS = {"train": CLASSES[36:], "val": CLASSES[20:36], "test": CLASSES[:20]}
SPLITS = {"train": "train", "val": "validation", "test": "test"}
SOURCE = TfdsSource(name="mini_imagenet", splits=tuple(SPLITS.values()), superclass="part")
COUNT = 6  # of which .9 are 5.4 → 5
# What `tfds build` runs; the command itself wants Apache Beam, even for datasets without it.
BUILD = """
import simple_parsing
from tensorflow_datasets.scripts.cli import build
simple_parsing.parse(build.Args).execute()
"""


def _rows(labels, count):
    return [(f"{label}{i:08d}.jpg", label) for label in labels for i in range(count)]


def _write(folder, parts, count):
    """Writes a csv file for every part, and plain images whose grey is twice their label."""
    (folder / "images").mkdir(parents=True)
    for part, labels in parts.items():
        rows = _rows(labels, count)
        _write_csv(folder / f"{part}.csv", [("filename", "label"), *rows])
        for name, label in rows:
            grey = 2 * CLASSES.index(label)
            Image.new("RGB", (9, 7), (grey, grey, grey)).save(folder / "images" / name)
    return folder


def _write_csv(path, lines):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)


@pytest.fixture(scope="module")
def manual_dir(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("manual") / "mini", PARTS, COUNT)


@pytest.fixture(scope="module")
def data_dir(manual_dir, tmp_path_factory):
    """Built by a process that, as `tfds`, does not find the project on Python's path."""
    folder = tmp_path_factory.mktemp("prepared")
    command = [sys.executable, "-c", BUILD, mini_imagenet.__file__]
    options = [f"--manual_dir={manual_dir}", f"--data_dir={folder}"]
    done = subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return str(folder)


def test_classes_are_100_wordnet_ids():
    assert len(CLASSES) == len(set(CLASSES)) == 100
    assert all(len(c) == 9 and c[0] == "n" and c[1:].isdigit() for c in CLASSES)
    assert list(CLASSES) == sorted(CLASSES)


@pytest.mark.parametrize("part", PARTS)
def test_images_are_the_bytes_of_their_files(data_dir, manual_dir, part):
    builder = tfds.builder("mini_imagenet", data_dir=data_dir)
    decoders = {"image": tfds.decode.SkipDecoding()}
    examples = list(tfds.as_numpy(builder.as_dataset(split=SPLITS[part], decoders=decoders)))
    listed = {example["image/filename"].decode(): example for example in examples}
    assert {name: CLASSES[each["label"]] for name, each in listed.items()} == dict(
        _rows(PARTS[part], COUNT)
    )
    for name, example in listed.items():
        assert example["image"] == (manual_dir / "images" / name).read_bytes()
        assert example["part"] == list(PARTS).index(part)


def test_source_reads_all_three_splits(data_dir):
    index = SOURCE.index(data_dir)
    assert index.class_names == CLASSES
    assert dict(zip(index.keys, [CLASSES[c] for c in index.labels], strict=True)) == dict(
        _rows(CLASSES, COUNT)
    )
    # Superclasses 0, 1 and 2 are train.csv, val.csv and test.csv.
    assert index.superclasses == (2,) * 20 + (1,) * 16 + (0,) * 64
    np.testing.assert_array_equal(index.trains, np.array(index.superclasses)[index.labels] == 0)

    images, readable = SOURCE.images(index.keys[::50], 5, data_dir)
    assert readable.all()
    wanted = 2 * index.labels[::50, np.newaxis, np.newaxis, np.newaxis]
    assert np.abs(images.astype(int) - wanted).max() <= 1  # JPEG's rounding


@pytest.mark.parametrize(
    ("make", "part"), [(teacher, "train"), (validation, "val"), (student, "test")]
)
def test_gin_file_gives_every_role_its_part(data_dir, make, part):
    gin.clear_config()
    gin.parse_config_file(str(gin_files.GIN_FOLDER / "data/mini_imagenet.gin"))
    data = gin.get_configurable(Data)()
    gin.clear_config()
    assert data.source == SOURCE
    loaded = load(make(data), data_dir)
    assert loaded.class_names == tuple(sorted(PARTS[part]))
    assert loaded.train.images.shape == (5 * len(PARTS[part]), 92, 92, 3)
    np.testing.assert_array_equal(np.bincount(loaded.train.labels), [5] * len(PARTS[part]))
    np.testing.assert_array_equal(np.bincount(loaded.test.labels), [1] * len(PARTS[part]))


def test_missing_dataset_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError) as caught:
        SOURCE.index(str(tmp_path))
    where = f"--data_dir={tmp_path} --manual_dir=DIR"
    command = f"python -m refilled_tf.prepare --dataset=mini_imagenet {where}"
    assert command in str(caught.value)
    assert "\n" not in str(caught.value)


# --- mistakes -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A few images, to be spoilt."""
    parts = {"train": CLASSES[:2], "val": CLASSES[2:4], "test": CLASSES[4:6]}
    return _write(tmp_path / "mini", parts, 2)


def _build(folder, tmp_path):
    settings = tfds.download.DownloadConfig(manual_dir=folder)
    MiniImagenet(data_dir=tmp_path / "prepared").download_and_prepare(download_config=settings)


def _refused(folder, tmp_path, error, match):
    with pytest.raises(error, match=match):
        _build(folder, tmp_path)


def test_folder_without_mistakes_is_built(folder, tmp_path):
    _build(folder, tmp_path)
    splits = MiniImagenet(data_dir=tmp_path / "prepared").info.splits
    assert {name: split.num_examples for name, split in splits.items()} == dict.fromkeys(
        SPLITS.values(), 4
    )


def test_missing_folder_says_what_to_put_there(tmp_path):
    wanted = r"nowhere does not exist(?s:.*)images/(?s:.*)train\.csv, val\.csv and\s+test\.csv"
    _refused(tmp_path / "nowhere", tmp_path, AssertionError, wanted)


@pytest.mark.parametrize("part", PARTS)
def test_missing_csv_file_is_named(folder, tmp_path, part):
    (folder / f"{part}.csv").unlink()
    _refused(folder, tmp_path, FileNotFoundError, rf"there is no .*/mini/{part}\.csv")


def test_missing_images_are_named(folder, tmp_path):
    (folder / "images").rename(folder / "pictures")
    _refused(folder, tmp_path, FileNotFoundError, "there is no folder .*/mini/images")


def test_missing_image_is_named_with_its_csv_file(folder, tmp_path):
    name = f"{CLASSES[3]}00000001.jpg"
    (folder / "images" / name).unlink()
    match = rf"there is no .*/mini/images/{name}, which .*/mini/val\.csv names"
    _refused(folder, tmp_path, FileNotFoundError, match)


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([("file", "class"), *_rows(CLASSES[:2], 2)], "begin with the line filename,label"),
        (_rows(CLASSES[:2], 2), "begin with the line filename,label"),
        ([], "begin with the line filename,label"),
        ([("filename", "label")], "lists no images"),
        (
            [("filename", "label"), *_rows(CLASSES[:1], 2), ("a.jpg", "goose")],
            r"line 4: 'goose' is not one of miniImageNet's 100 classes.*n01532829",
        ),
        ([("filename", "label"), ("a.jpg",)], "line 2: None is not one of"),
    ],
    ids=["columns", "no header", "empty", "header alone", "label", "no label"],
)
def test_bad_csv_file_is_named(folder, tmp_path, lines, match):
    _write_csv(folder / "train.csv", lines)
    _refused(folder, tmp_path, ValueError, rf"/mini/train\.csv.*{match}")


def test_class_in_two_parts_is_named(folder, tmp_path):
    _write_csv(folder / "val.csv", [("filename", "label"), *_rows(CLASSES[1:3], 2)])
    match = rf"the class {CLASSES[1]} is in train\.csv and in .*/mini/val\.csv"
    _refused(folder, tmp_path, ValueError, match)
