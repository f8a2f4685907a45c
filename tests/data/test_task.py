"""Tasks cut from made-up indices, from digits, from real data, and from a folder of images."""

from __future__ import annotations

import dataclasses
import re
import shutil

import gin
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from refilled_tf.common import gin_files
from refilled_tf.common.errors import InputError
from refilled_tf.data.image_folder import ImageFolder
from refilled_tf.data.sources import Digits, Index
from refilled_tf.data.splits import AlphabeticalHalves, ListedClasses, RandomHalves
from refilled_tf.data.task import Data, Task, load, select, student, teacher, validation

DIGITS = Data(
    source=Digits(),
    class_split=AlphabeticalHalves(),
    train_fraction=0.7,
    image_size=8,
    load_size=8,
)


def _index(counts=(10, 10, 10, 10), trained=5):
    """Classes a, b, …; the first `trained` images of each are the dataset's training split."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in counts])
    keys = np.array([f"{c}-{i:02d}" for c, i in zip(labels, positions, strict=True)])
    return Index(keys, labels, positions < trained, tuple("abcdefgh"[: len(counts)]))


def _keys(index, selection):
    return set(index.keys[selection.train]), set(index.keys[selection.test])


# --- select ---------------------------------------------------------------------------------


def test_own_split_is_kept_without_train_fraction():
    index = _index()
    data = dataclasses.replace(DIGITS, train_fraction=None)
    selection = select(Task(data, "student"), index)
    np.testing.assert_array_equal(selection.classes, [2, 3])
    assert selection.class_names == ("c", "d")
    train, test = _keys(index, selection)
    assert train == {f"{c}-{i:02d}" for c in (2, 3) for i in range(5)}
    assert test == {f"{c}-{i:02d}" for c in (2, 3) for i in range(5, 10)}


@pytest.mark.parametrize("name", ["a\nb", "a\r", ""])
def test_class_name_that_is_no_line_is_refused(name):
    """Exports list the classes in a file, one a line."""
    index = _index()._replace(class_names=("a", "b", "c", name))
    with pytest.raises(InputError, match=re.escape(f"class [{name!r}] is not a single line")):
        select(Task(DIGITS, "student"), index)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_train_fraction_partitions_each_class(role):
    index = _index((10, 20, 30, 11))
    selection = select(Task(DIGITS, role), index)
    train, test = _keys(index, selection)
    mine = (0, 1) if role == "teacher" else (2, 3)
    assert not train & test
    assert train | test == {k for k, c in zip(index.keys, index.labels, strict=True) if c in mine}
    # .7·10 = 7, .7·20 = 14, .7·30 = 21, .7·11 = 7.7 → 8
    counts = np.bincount(index.labels[selection.train], minlength=4)[list(mine)]
    assert list(counts) == ([7, 14] if role == "teacher" else [21, 8])


def test_num_classes_takes_the_first():
    selection = select(
        Task(dataclasses.replace(DIGITS, num_classes=6), "student"), _index((10,) * 8)
    )
    assert selection.class_names == ("d", "e", "f")


def test_images_per_class_are_nested_and_leave_test_alone():
    index = _index((30,) * 4)
    every, more, few = (
        _keys(index, select(Task(DIGITS, "student", count), index)) for count in (None, 12, 3)
    )
    assert len(few[0]) == 6
    assert len(more[0]) == 24
    assert few[0] < more[0] < every[0]
    assert few[1] == more[1] == every[1]


@pytest.mark.parametrize("count", [None, 10])
def test_holdout_splits_the_training_images_alone(count):
    index = _index((40,) * 4)
    plain = _keys(index, select(Task(DIGITS, "student", count), index))
    selection = select(Task(DIGITS, "student", count, holdout=0.2), index)
    train, validation = _keys(index, selection)
    assert train | validation == plain[0]
    assert not train & validation
    assert not (train | validation) & plain[1]
    # .8 of .7·40 = 28 is 22.4 → 22; .8 of 10 is 8.
    kept = 22 if count is None else 8
    np.testing.assert_array_equal(np.bincount(index.labels[selection.train])[2:], [kept] * 2)


def test_split_seed_changes_images_but_not_classes():
    index = _index((40,) * 4)
    first, other = (
        select(Task(dataclasses.replace(DIGITS, split_seed=s), "student"), index) for s in (0, 1)
    )
    assert first.class_names == other.class_names
    assert set(first.train) != set(other.train)


def _refused(match, index, role="student", count=None, holdout=0.0, **options):
    with pytest.raises(InputError, match=match) as caught:
        select(Task(dataclasses.replace(DIGITS, **options), role, count, holdout), index)
    assert "\n" not in str(caught.value)


def test_overlapping_classes_are_named():
    overlap = ListedClasses(("a", "b"), ("b", "c"))
    _refused("both have b", _index(), class_split=overlap)


def test_validation_takes_classes_of_its_own():
    index = _index((30,) * 6)
    listed = ListedClasses(("a", "b"), ("c", "d"), validation=("f", "e"))
    task = validation(dataclasses.replace(DIGITS, class_split=listed), images_per_class=5)
    selection = select(task, index)
    assert selection.class_names == ("e", "f")
    # Five of .7·30 = 21 train, 9 are test images.
    np.testing.assert_array_equal(np.bincount(index.labels[selection.train])[4:], [5, 5])
    np.testing.assert_array_equal(np.bincount(index.labels[selection.test])[4:], [9, 9])


def test_role_without_classes_is_named():
    match = r"Data\.class_split gives no validation classes; ListedClasses, "
    _refused(match, _index(), role="validation", class_split=RandomHalves())


def test_class_without_test_images_is_named():
    # Class d has five images, all in the dataset's training split.
    match = r"leaves class 'd' \(5 images\) without test images"
    _refused(match, _index((10, 10, 10, 5)), train_fraction=None)


def test_class_without_training_images_is_named():
    # .04·10 = .4 → 0
    match = r"leaves class 'c' \(10 images\).* without training images"
    _refused(match, _index(), train_fraction=0.04)


def test_class_without_validation_images_is_named():
    # .95 of .7·10 = 7 is 6.65 → 7, so none is held out.
    _refused(r"'c' .*without validation images.*student\.holdout", _index(), holdout=0.05)


@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_num_classes_beyond_the_data(count):
    wanted = rf"Data\.num_classes={count} must lie between 2 and the dataset's 4"
    _refused(wanted, _index(), num_classes=count)


def test_class_without_any_image_is_named():
    index = _index((10, 10, 10, 10))
    index = index._replace(class_names=("a", "b", "c", "d", "e", "f"))
    _refused(r"2 of the 6 classes have no images.*'e'.*Data\.num_classes=4", index)
    assert select(
        Task(dataclasses.replace(DIGITS, num_classes=4), "student"), index
    ).class_names == ("c", "d")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"load_size": 7}, "Data.load_size=7"),
        ({"image_size": 0}, "Data.image_size=0"),
        ({"train_fraction": 1.0}, "Data.train_fraction=1.0"),
        ({"train_fraction": 0}, "Data.train_fraction=0"),
        ({"on_corrupt": "ignore"}, "Data.on_corrupt='ignore'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_option_is_named(options, name):
    with pytest.raises(InputError) as caught:
        dataclasses.replace(DIGITS, **options)
    assert name in str(caught.value)


@pytest.mark.parametrize("holdout", [1.0, -0.1])
def test_holdout_must_be_a_share(holdout):
    with pytest.raises(InputError, match=rf"student\.holdout={holdout}"):
        student(DIGITS, holdout=holdout)


def test_images_per_class_must_be_positive():
    with pytest.raises(InputError, match=r"student\.images_per_class=0"):
        student(DIGITS, 0)


# --- load -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [teacher, student])
def test_digits_come_with_their_own_pixels_and_names(make):
    data = load(make(DIGITS))
    assert data.scored_on == "test"
    assert data.class_names == (tuple("01234") if make is teacher else tuple("56789"))
    digits = load_digits()
    for part in (data.train, data.test):
        assert part.labels.dtype == np.int32
        assert set(part.labels) == {0, 1, 2, 3, 4}
        rows = part.keys.astype(int)
        names = [data.class_names[label] for label in part.labels]
        assert names == [str(digit) for digit in digits.target[rows]]
        wanted = np.round(digits.images[rows] * 255 / 16)
        np.testing.assert_array_equal(part.images[..., 0], wanted)
    assert len(data.train.keys) + len(data.test.keys) == sum(
        digits.target < 5 if make is teacher else digits.target >= 5
    )


def test_holdout_is_called_validation():
    assert load(student(DIGITS, holdout=0.2)).scored_on == "validation"


def test_cub_student_gets_its_classes(cub):
    names = cub.index(None).class_names
    listed = ListedClasses(names[:2], (names[40], names[7]))  # put in the dataset's order
    task = student(Data(cub, listed, 50, 0.7, image_size=32, load_size=32), 4)
    data = load(task)
    assert data.class_names == (names[7], names[40])
    np.testing.assert_array_equal(np.bincount(data.train.labels), [4, 4])
    for part in (data.train, data.test):
        # CUB's files are named Class_Name_0046_18.jpg.
        for key, label in zip(part.keys, part.labels, strict=True):
            assert key.lower().startswith(data.class_names[label] + "_")
        assert part.images.shape == (len(part.keys), 32, 32, 3)
        assert part.images.std(axis=(1, 2, 3)).min() > 5  # no image is blank
    assert not set(data.train.keys) & set(data.test.keys)


def test_cifar100_task_keeps_the_datasets_split(cifar100, cifar100_index):
    data = Data(cifar100, RandomHalves(), image_size=32, load_size=32)
    sides = [select(make(data), cifar100_index) for make in (teacher, student)]
    assert not set(sides[0].class_names) & set(sides[1].class_names)
    for selection in sides:
        # 50 classes with 500 + 100 images each.
        assert (len(selection.train), len(selection.test)) == (25000, 5000)
        assert cifar100_index.trains[selection.train].all()
        assert not cifar100_index.trains[selection.test].any()


def _gin_data(name, *params):
    """Returns the data that a gin file describes."""
    gin.clear_config()
    gin.parse_config_files_and_bindings([str(gin_files.GIN_FOLDER / "data" / name)], params)
    data = gin.get_configurable(Data)()
    gin.clear_config()
    return data


def _few_shot(name, index):
    """Selects each role's part, and returns its classes."""
    data = _gin_data(name)
    parts = [select(make(data), index) for make in (teacher, validation, student)]
    classes = [set(part.class_names) for part in parts]
    assert len(set.union(*classes)) == sum(map(len, classes))  # they share none
    return data, parts, classes


def test_cifar_fs_is_its_authors(cifar100, cifar100_index):
    """64, 16 and 20 classes (Bertinetto et al., 2019, section 4.1), 600 images each."""
    data, parts, classes = _few_shot("cifar_fs.gin", cifar100_index)
    assert data.source == cifar100
    assert (data.image_size, data.load_size, data.pad) == (32, 32, 4)
    assert [len(each) for each in classes] == [64, 16, 20]
    assert set.union(*classes) == set(cifar100_index.class_names)
    # The first and last of each list of theirs.
    for each, members in zip(
        classes, [("apple", "wolf"), ("beaver", "tractor"), ("baby", "worm")], strict=True
    ):
        assert each.issuperset(members)
    for part in parts:
        rows = np.concatenate([part.train, part.test])
        np.testing.assert_array_equal(
            np.bincount(cifar100_index.labels[rows])[part.classes], np.full(len(part.classes), 600)
        )


def test_fc100_is_its_authors(cifar100, cifar100_index):
    """12, 4 and 4 superclasses of 5 classes (Oreshkin et al., 2018, supplement)."""
    data, parts, classes = _few_shot("fc100.gin", cifar100_index)
    assert data.source == cifar100
    assert [len(each) for each in classes] == [60, 20, 20]
    superclasses = [{cifar100_index.superclasses[c] for c in part.classes} for part in parts]
    assert [len(each) for each in superclasses] == [12, 4, 4]
    # Known members: of "people" and "aquatic mammals", which are UNSEEN, and of "fish" and
    # "large carnivores".
    assert classes[2] >= {"baby", "boy", "girl", "man", "woman", "beaver", "dolphin", "whale"}
    assert classes[0].issuperset({"shark", "trout"})
    assert classes[1].issuperset({"bear", "wolf"})


def test_cub_for_few_shot_learning():
    """On made-up images of as many classes as CUB has."""
    index = _index((10,) * 200)._replace(class_names=tuple(f"{c:03d}" for c in range(200)))
    data, _, classes = _few_shot("cub_fs.gin", index)
    assert data.source == _gin_data("cub.gin", "Data.class_split = @RandomHalves()").source
    assert (data.image_size, data.load_size) == (84, 92)
    assert [len(each) for each in classes] == [100, 50, 50]


# --- a folder of one's own ------------------------------------------------------------------

COLORS = {"chêne": (200, 10, 10), "elm": (10, 200, 10), "fir": (10, 10, 200), "oak": (99,) * 3}


@pytest.fixture
def folder(tmp_path):
    """Four classes of plain colours, four JPEG and PNG images to train on, two to test."""
    for split, count in (("train", 4), ("test", 2)):
        for name, color in COLORS.items():
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                suffix = ".png" if i % 2 else ".jpg"
                # Of different sizes, lest two be the same file.
                Image.new("RGB", (24 + i, 18 + len(split)), color).save(place / f"{i}{suffix}")
    return tmp_path / "images"


def _folder_data(folder, **options):
    return Data(
        class_split=ListedClasses(("elm", "oak"), ("chêne", "fir")),
        **{"source": ImageFolder(str(folder)), "image_size": 8, "load_size": 8, **options},
    )


def test_folder_is_a_dataset(folder):
    data = load(student(_folder_data(folder)))
    assert data.class_names == ("chêne", "fir")
    assert (len(data.train.keys), len(data.test.keys)) == (8, 4)
    for split, part in (("train", data.train), ("test", data.test)):
        for key, label, image in zip(part.keys, part.labels, part.images, strict=True):
            name = data.class_names[label]
            assert key.startswith(f"{split}/{name}/")
            # A plain colour stays one, but for JPEG's rounding.
            assert np.abs(image.astype(int) - COLORS[name]).max() <= 3


def test_folder_split_does_not_depend_on_where_it_lies(folder, tmp_path):
    copy = tmp_path / "elsewhere" / "deep"
    shutil.copytree(folder, copy)
    here, there, slashed = (
        load(student(_folder_data(place, train_fraction=0.5)))
        for place in (folder, copy, f"{copy}/")
    )
    assert set(here.train.keys) == set(there.train.keys) == set(slashed.train.keys)
    assert set(here.test.keys) == set(there.test.keys) == set(slashed.test.keys)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_truncated_image_is_named(folder):
    _truncate(folder / "train/fir/2.jpg")
    with pytest.raises(
        InputError, match=r"1 image\(s\) cannot be decoded: train/fir/2\.jpg \(it is no"
    ):
        load(student(_folder_data(folder)))
    # The teacher has nothing to do with it.
    assert len(load(teacher(_folder_data(folder))).train.keys) == 8


def test_corrupt_images_can_be_left_out(folder, caplog):
    _truncate(folder / "train/fir/2.jpg")
    (folder / "test/chêne/1.png").write_bytes(b"no image")
    data = load(student(_folder_data(folder, on_corrupt="skip")))

    warning = next(r.getMessage() for r in caplog.records if "skipped" in r.getMessage())
    assert "2 image(s)" in warning
    assert "train/fir/2.jpg" in warning
    assert "test/chêne/1.png" in warning

    assert "train/fir/2.jpg" not in data.train.keys
    assert "test/chêne/1.png" not in data.test.keys
    assert (len(data.train.keys), len(data.test.keys)) == (7, 3)
    for part in (data.train, data.test):
        assert len(part.images) == len(part.labels) == len(part.keys)
        for key, label, image in zip(part.keys, part.labels, part.images, strict=True):
            name = key.split("/")[1]
            assert data.class_names[label] == name
            assert np.abs(image.astype(int) - COLORS[name]).max() <= 3
