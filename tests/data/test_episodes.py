"""Tasks drawn from made-up facts, from digits, and from images on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import time

import numpy as np
import pytest
from PIL import Image

from refilled_tf.common.errors import InputError
from refilled_tf.data.episodes import Episodes, Facts, facts, pool
from refilled_tf.data.image_folder import ImageFolder
from refilled_tf.data.sources import Digits
from refilled_tf.data.splits import AlphabeticalHalves, ListedClasses
from refilled_tf.data.task import Data, load, student, teacher

DIGITS = Data(Digits(), AlphabeticalHalves(), train_fraction=0.7, image_size=8, load_size=8)
EPISODES = Episodes(ways=4, queries=3, count=50)
TASKS_HASH = "7369c928424d732e"


def _facts(counts=(9, 8, 12, 10, 9, 30)):
    """Classes a, b, … with as many images as `counts` says."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    keys = np.array([f"{c}-{i:03d}" for c, n in enumerate(counts) for i in range(n)])
    return Facts(labels, keys, tuple("abcdefgh"[: len(counts)]))


def _keys(known, tasks):
    """Returns what a task is, whatever the order of the pool."""
    return tasks.classes.tolist(), known.keys[tasks.support].tolist(), known.keys[tasks.query]


def _assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shots", [1, 5])
def test_tasks_hold_distinct_images_of_their_classes(shots):
    known = _facts()
    tasks = EPISODES.draw(known, shots)
    assert tasks.classes.shape == (50, 4)
    assert tasks.support.shape == (50, 4, shots)
    assert tasks.query.shape == (50, 4, 3)
    assert {part.dtype for part in tasks} == {np.dtype(np.int32)}
    for classes, support, query in zip(*tasks, strict=True):
        assert len(set(classes)) == 4
        rows = np.concatenate([support, query], axis=1)
        assert len(np.unique(rows)) == 4 * (shots + 3)
        np.testing.assert_array_equal(known.labels[rows], np.tile(classes[:, None], shots + 3))


def test_classes_and_images_are_equally_likely():
    known = _facts((10,) * 6)
    tasks = dataclasses.replace(EPISODES, count=1200).draw(known, 2)
    # Each class is in 4/6 of 1200 tasks, its images have 2/10 of these: 800 and 160, ± 4.5
    # deviations of 16 and 11.
    np.testing.assert_allclose(np.bincount(tasks.classes.ravel()), 800, atol=73)
    np.testing.assert_allclose(np.bincount(tasks.support.ravel()), 160, atol=51)
    # A class has every place in a task, 200 times ± 4.5 deviations of 13.
    places = [np.bincount(column, minlength=6) for column in tasks.classes.T]
    np.testing.assert_allclose(places, 200, atol=58)


def test_more_shots_extend_the_support_of_the_same_task():
    known = _facts()
    one, five = (EPISODES.draw(known, shots) for shots in (1, 5))
    np.testing.assert_array_equal(one.classes, five.classes)
    np.testing.assert_array_equal(one.query, five.query)
    np.testing.assert_array_equal(one.support, five.support[..., :1])


def test_larger_count_adds_tasks():
    known = _facts()
    few, more = (dataclasses.replace(EPISODES, count=n).draw(known, 2) for n in (7, 20))
    _assert_same(few, [part[:7] for part in more])


def test_draw_depends_on_its_seed():
    known = _facts()
    first = EPISODES.draw(known, 2)
    _assert_same(first, EPISODES.draw(known, 2))
    other = dataclasses.replace(EPISODES, seed=1).draw(known, 2)
    assert not np.array_equal(first.classes, other.classes)
    # Seed and number are not merely added up.
    assert not np.array_equal(first.classes[1:], other.classes[:-1])


def test_draw_does_not_depend_on_the_order_of_the_pool():
    known = _facts()
    order = np.random.default_rng(0).permutation(len(known.keys))
    mixed = Facts(known.labels[order], known.keys[order], known.class_names)
    _assert_same(_keys(known, EPISODES.draw(known, 2)), _keys(mixed, EPISODES.draw(mixed, 2)))


def test_tasks_never_change():
    """Pinned on first writing: published numbers hold only for these very tasks."""
    tasks = Episodes(count=20).draw(_facts((30,) * 8), 5)
    text = ",".join(str(row) for part in tasks for row in part.ravel())
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == TASKS_HASH


def test_hundreds_of_tasks_are_drawn_quickly():
    """600 tasks of miniImageNet's 20 test classes with 600 images each."""
    keys = np.array([f"n{i:016d}.jpg" for i in range(12000)])
    known = Facts(np.repeat(np.arange(20), 600), keys, tuple(map(str, range(20))))
    started = time.perf_counter()
    tasks = Episodes().draw(known, 30)
    assert time.perf_counter() - started < 5  # a tenth of a second where nothing else runs
    assert tasks.support.shape == (600, 5, 30)


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [("ways", 1, 2), ("queries", 0, 1), ("count", 0, 1), ("seed", -1, 0)],
)
def test_bad_option_is_named(option, value, least):
    wanted = rf"Episodes\.{option}={value} must be a whole number of at least {least}"
    with pytest.raises(InputError, match=wanted):
        Episodes(**{option: value})


def test_task_without_support_is_refused():
    with pytest.raises(InputError, match="shots=0"):
        EPISODES.draw(_facts(), 0)


def test_more_ways_than_classes_are_refused():
    with pytest.raises(InputError, match=r"Episodes\.ways=7 exceeds the 6 classes"):
        dataclasses.replace(EPISODES, ways=7).draw(_facts(), 1)


def test_class_with_too_few_images_is_named():
    """Whether a task has drawn it or not."""
    known, single = _facts(), dataclasses.replace(EPISODES, count=1)
    single.draw(known, 5)
    match = r"class 'b' has 8 images.*Episodes\.queries=3 and shots=6 need 9"
    with pytest.raises(InputError, match=match) as caught:
        single.draw(known, 6)
    assert "\n" not in str(caught.value)


# --- pools ----------------------------------------------------------------------------------


def test_pool_is_all_images_of_the_classes():
    task = student(DIGITS)
    examples, known = pool(task), facts(task)
    np.testing.assert_array_equal(examples.keys, known.keys)
    np.testing.assert_array_equal(examples.labels, known.labels)
    assert known.class_names == tuple("56789")
    index = Digits().index()
    assert set(examples.keys) == set(index.keys[index.labels >= 5])
    data = load(task)
    for key, image in ((part.keys[0], part.images[0]) for part in (data.train, data.test)):
        np.testing.assert_array_equal(examples.images[list(examples.keys).index(key)], image)


def test_task_of_digits_shows_what_its_labels_say():
    """scikit-learn's digits are numbered in the order of their keys."""
    task = student(DIGITS)
    targets = Digits().index().labels[pool(task).keys.astype(int)]
    tasks = Episodes(ways=3, count=10).draw(facts(task), 2)
    for rows in (tasks.support, tasks.query):
        np.testing.assert_array_equal(
            targets[rows] - 5, np.broadcast_to(tasks.classes[..., None], rows.shape)
        )


def test_pool_lacks_no_image(tmp_path):
    for name in ("elm", "fir", "oak", "yew"):
        for key in (f"train/{name}/0.png", f"train/{name}/1.png", f"test/{name}/2.png"):
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            # Of different sizes, lest two be the same file.
            size = 8 + len(list(tmp_path.rglob("*.png")))
            Image.new("RGB", (size, 8)).save(tmp_path / key)
    (tmp_path / "train/oak/1.png").write_bytes(b"no image")
    listed = ListedClasses(("elm", "fir"), ("oak", "yew"))
    source = ImageFolder(str(tmp_path))
    data = Data(source, listed, image_size=8, load_size=8, on_corrupt="skip")
    match = r"1 image\(s\) cannot be decoded.*train/oak/1\.png; Data\.on_corrupt='skip' does not"
    with pytest.raises(InputError, match=match):
        pool(student(data))
    assert len(pool(teacher(data)).keys) == 6
