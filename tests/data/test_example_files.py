"""Files of tf.Examples; what is expected of them is what was written."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import records
import tiny

from refilled_tf.common.errors import InputError
from refilled_tf.data.sources import ExampleFiles
from refilled_tf.data.splits import SharedClasses
from refilled_tf.data.task import Data, load, student
from refilled_tf.experiment import config

SIZE = 4
# Label to name; the numbers need not be consecutive, and a class need not have a name.
NAMES = {1: "ash", 4: "chêne", 7: None}


def _pixels(value):
    return np.full((SIZE, SIZE, 3), value)


def _example(label, value):
    values = {"encoded": records.png(_pixels(value)), "label": label}
    return records.example(**values, **({"text": NAMES[label]} if NAMES[label] else {}))


@pytest.fixture
def folder(tmp_path):
    """Of each class two plain images to train on, in two files, and one to score.

    The value of an image's pixels is ten times its label, plus 0 and 1 in training, 2 in test.
    """
    for shard, name in enumerate(["train-0.gz", "train-1"]):
        records.write(tmp_path / name, [_example(c, 10 * c + shard) for c in NAMES])
    records.write(tmp_path / "test-0.gz", [_example(c, 10 * c + 2) for c in NAMES])
    return tmp_path


def _source(folder):
    return ExampleFiles([f"{folder}/train-*"], [f"{folder}/test-0.gz"])


def _facts(index):
    return set(zip(index.keys, index.labels, index.trains, strict=True))


def test_index_tells_labels_names_and_split(folder):
    index = _source(folder).index()
    assert index.class_names == ("ash", "chêne", "7")
    assert index.superclasses is None
    assert len(set(index.keys)) == 9
    np.testing.assert_array_equal(np.bincount(index.labels[index.trains]), [2, 2, 2])
    np.testing.assert_array_equal(np.bincount(index.labels[~index.trains]), [1, 1, 1])


def test_images_are_those_of_the_keys_in_any_order(folder):
    source = _source(folder)
    index = source.index()
    rows = np.array([8, 0, 5, 3])
    images, readable = source.images(index.keys[rows], SIZE)
    assert images.dtype == np.uint8
    assert readable.all()
    labels = np.array(list(NAMES))[index.labels[rows]]
    for image, label, trains in zip(images, labels, index.trains[rows], strict=True):
        assert len(np.unique(image)) == 1
        assert image[0, 0, 0] - 10 * label in ([0, 1] if trains else [2])


def test_keys_depend_on_the_images_alone(folder, tmp_path):
    """Not on the number, names, order and compression of the files."""
    everything = [_example(c, 10 * c + shard) for c in NAMES for shard in (0, 1)]
    records.write(tmp_path / "elsewhere/all", reversed(everything))
    other = ExampleFiles([f"{tmp_path}/elsewhere/*"], [f"{folder}/test-0.gz"])
    assert _facts(other.index()) == _facts(_source(folder).index())


def test_content_tells_images_apart_and_not_names(folder, tmp_path_factory):
    before = _source(folder)
    elsewhere = shutil.copytree(folder, tmp_path_factory.mktemp("moved") / "files")
    (elsewhere / "train-1").rename(elsewhere / "train-9")
    moved = _source(elsewhere)
    assert moved.content == before.content
    assert _stage(moved).digest() == _stage(before).digest()
    records.write(folder / "train-1", [_example(4, 44)])
    assert _source(folder).content != before.content
    assert _stage(_source(folder)).digest() != _stage(before).digest()


def _stage(source):
    data = Data(source, SharedClasses(), image_size=SIZE, load_size=SIZE)
    return tiny.teacher(task=student(data))


def test_patterns_that_overlap_read_a_file_once(folder):
    source = ExampleFiles([f"{folder}/train-*", f"{folder}/train-1"], [f"{folder}/test-*"])
    assert _facts(source.index()) == _facts(_source(folder).index())


def test_image_that_repeats_counts_as_often(folder):
    records.write(folder / "train-2", [_example(4, 40), _example(4, 40)])
    source = _source(folder)
    index = source.index()
    assert len(set(index.keys)) == len(index.keys) == 11
    images, _ = source.images(index.keys, SIZE)
    assert (images[:, 0, 0, 0] == 40).sum() == 3


@pytest.mark.parametrize("label", [1, 4])  # under its own label, and under another one
def test_image_in_train_and_test_is_refused(folder, label):
    records.write(folder / "train-2", [_example(label, 12), _example(7, 73)])
    with pytest.raises(InputError, match=r"ExampleFiles: 1 image\(s\) are in files of both"):
        _source(folder).index()


def test_task_takes_all_classes_and_the_files_split(folder):
    data = load(student(Data(_source(folder), SharedClasses(), image_size=SIZE, load_size=SIZE)))
    assert data.class_names == ("ash", "chêne", "7")
    assert sorted(data.train.images[:, 0, 0, 0]) == [10, 11, 40, 41, 70, 71]
    assert sorted(data.test.images[:, 0, 0, 0]) == [12, 42, 72]


def test_image_that_cannot_be_decoded_is_the_data_loaders_to_judge(folder):
    broken = records.png(_pixels(9))[:-20]
    records.write(folder / "train-2", [records.example(encoded=broken, label=7)])
    data = Data(_source(folder), SharedClasses(), image_size=SIZE, load_size=SIZE)
    with pytest.raises(InputError, match=r"1 image\(s\) cannot be decoded: train/"):
        load(student(data))


def test_gin_file_takes_the_students_images_alone(folder):
    """The teacher of digits_halves.gin keeps its digits."""
    patterns = [f"ExampleFiles.{s} = ['{folder}/{s}-*']" for s in ("train", "test")]
    experiment = config.load_experiment(["digits_halves.gin", "data/example_files.gin"], patterns)
    sources = {
        (stage.task.role, stage.task.data.source, stage.task.data.train_fraction)
        for stage in experiment.stages()
    }
    files = ExampleFiles([f"{folder}/train-*"], [f"{folder}/test-*"])
    plain = config.load_experiment(["digits_halves.gin"]).stages()[0].task.data
    assert sources == {("student", files, None), ("teacher", plain.source, plain.train_fraction)}


PNG = records.png(_pixels(9))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (records.example(label=1), r"train-2: record 0 has no image/encoded"),
        (records.example(encoded=PNG), r"train-2: record 0 has no image/class/label"),
        (records.example(encoded=PNG, label=-1), r"train-2: record 0 has no image/class/label"),
        (records.example(encoded=PNG, label=1.0), r"train-2 is not.*image/class/label"),
        (b"no example", r"train-2 is not a file of tf\.Examples: Could not parse"),
        (records.example(encoded=PNG, label=1, text="oak"), "label 1 has two names.*'ash'.*'oak'"),
        (records.example(encoded=PNG, label=2, text="ash"), r"several labels have .*'ash'"),
    ],
)
def test_bad_record_is_named(record, message, folder):
    records.write(folder / "train-2", [record])
    with pytest.raises(InputError, match=message) as caught:
        _source(folder).index()
    assert "\n" not in str(caught.value)


def test_file_of_anything_else_is_named(folder):
    (folder / "train-2").write_bytes(b"no records, but long enough for the length of one")
    with pytest.raises(InputError, match=r"train-2 is not a file of tf\.Examples"):
        _source(folder).index()


def test_truncated_file_is_named(folder):
    content = (folder / "train-0.gz").read_bytes()
    (folder / "train-0.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"train-0\.gz is not a file of tf\.Examples"):
        _source(folder).index()


def test_pattern_without_files_is_named(folder):
    with pytest.raises(InputError, match=r"ExampleFiles\.test: no file matches '.*/eval-\*'"):
        ExampleFiles([f"{folder}/train-*"], [f"{folder}/eval-*"]).index()


@pytest.mark.parametrize("train", ["train-*", []])
def test_patterns_are_a_list(train):
    with pytest.raises(InputError, match=r"ExampleFiles\.train=.* must be a list of patterns"):
        ExampleFiles(train, ["test-*"])
