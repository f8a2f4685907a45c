"""Unlabelled images: which they are, how batches hold them, and that none of them is scored.

Files are made here by Pillow; what must be found among them follows from how they were made.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny
from absl import logging

from refilled_tf.common.errors import InputError
from refilled_tf.data import batches, unlabelled
from refilled_tf.data.image_folder import ImageFolder
from refilled_tf.data.recipe import Recipe
from refilled_tf.data.sources import Digits
from refilled_tf.data.splits import SharedClasses
from refilled_tf.data.task import Data, Examples, Task, load
from refilled_tf.data.unlabelled import PhotoFolder

LABELS = np.repeat(np.arange(4), 10).astype(np.int32)
RECIPE = Recipe(batch_size=16, unlabelled_share=0.75)


def _noise(seed, size=16):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def _save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path):
    """Two classes of six noisy photos each, of which two are tests."""
    for c, name in enumerate(("cat", "dog")):
        for number in range(6):
            split = "test" if number < 2 else "train"
            path = tmp_path / "mine" / split / name / f"{number}.png"
            _save(path, _noise(10 * c + number))
    return tmp_path / "mine"


def _task(photos, *parts, **options):
    data = Data(ImageFolder(str(photos)), SharedClasses(), image_size=8, load_size=8)
    return Task(data, "student", unlabelled=parts, **options)


# --- batches --------------------------------------------------------------------------------


def test_a_batch_has_its_share_of_unlabelled_images_and_so_has_each_replica():
    order = batches.order(LABELS, 100, RECIPE, seed=0, first=0, steps=30)
    assert order.shape == (30, 16)
    is_unlabelled = order >= len(LABELS)
    # .75 of 16 is 12; in any quarter of a batch 3 of 4.
    np.testing.assert_array_equal(is_unlabelled.reshape(30, 4, 4).sum(axis=-1), 3)


def test_both_kinds_go_through_passes_of_their_own():
    order = batches.order(LABELS, 30, RECIPE, seed=0, first=0, steps=20)
    # 4 labelled images a step: a pass over 40 takes 10 steps. 12 unlabelled ones: 2 steps see 24 of
    # 30, no image twice.
    labelled = order[order < 40].reshape(2, 40)
    np.testing.assert_array_equal(np.sort(labelled, axis=1), [np.arange(40)] * 2)
    assert not np.array_equal(*labelled)
    further = order[order >= 40].reshape(10, 24)
    assert all(len(set(each)) == 24 for each in further.tolist())
    assert set(further.ravel()) == set(range(40, 70))


@pytest.mark.parametrize("first", [0, 1, 7, 10, 33])
def test_any_stretch_is_a_part_of_the_whole(first):
    whole = batches.order(LABELS, 50, RECIPE, seed=3, first=0, steps=40)
    part = batches.order(LABELS, 50, RECIPE, seed=3, first=first, steps=7)
    np.testing.assert_array_equal(part, whole[first : first + 7])


def test_without_unlabelled_images_passes_are_epochs():
    recipe = dataclasses.replace(RECIPE, classes_per_batch=4)
    order = batches.order(LABELS, 0, recipe, seed=1, first=2, steps=4)
    epochs = [batches.epoch_order(LABELS, 16, 1, epoch, 4) for epoch in (1, 2)]
    np.testing.assert_array_equal(order, np.concatenate(epochs))


def test_labelled_part_of_a_batch_may_be_balanced():
    recipe = dataclasses.replace(RECIPE, classes_per_batch=2)
    for rows in batches.order(LABELS, 50, recipe, seed=0, first=0, steps=10):
        _, counts = np.unique(LABELS[rows[rows < 40]], return_counts=True)
        assert counts.tolist() == [2, 2]


def test_too_few_unlabelled_images_are_refused():
    with pytest.raises(InputError, match=r"unlabelled_share=0.75 .*is 12 images, but there are 5"):
        batches.order(LABELS, 5, RECIPE, seed=0, first=0, steps=1)


# --- which images ---------------------------------------------------------------------------


def test_the_teachers_training_images_are_unlabelled_ones():
    task = Task(tiny.DATA, "student", unlabelled=(Task(tiny.DATA, "teacher"),))
    found = unlabelled.load(task)
    taught = load(Task(tiny.DATA, "teacher"))
    assert found.scored == ()
    assert set(found.examples.labels.tolist()) == {-1}
    np.testing.assert_array_equal(found.examples.keys, taught.train.keys)
    np.testing.assert_array_equal(found.examples.images, taught.train.images)


def test_scored_images_are_taken_out_of_all_that_is_there(caplog):
    """All digits, of which the student is scored on three tenths of 5 to 9."""
    task = Task(tiny.DATA, "student", unlabelled=(Digits(),))
    scored = load(task).test.keys
    with caplog.at_level(logging.WARNING):
        found = unlabelled.load(task)
    assert sorted(found.scored) == sorted(scored)
    assert len(found.examples.keys) == 1797 - len(scored)
    assert not set(found.examples.keys) & set(scored)
    assert f"{len(scored)} unlabelled images are left out" in caplog.text


def test_where_images_are_held_out_the_test_stays_out_too():
    held_out = Task(tiny.DATA, "student", holdout=0.2, unlabelled=(Digits(),))
    found = unlabelled.load(held_out)
    tested = load(Task(tiny.DATA, "student")).test.keys
    assert set(found.scored) == {*load(held_out).test.keys, *tested}


def test_scored_photos_are_known_by_file_and_by_pixels(photos, tmp_path):
    pool = tmp_path / "pool"
    copy = pool / "deep" / "er" / "copy.jpeg"  # of a PNG: the name does not matter
    copy.parent.mkdir(parents=True)
    copy.write_bytes((photos / "test" / "cat" / "0.png").read_bytes())
    _save(pool / "again.bmp", _noise(11))  # test/dog/1.png in another format
    _save(pool / "trained.png", _noise(15))  # train/dog/5.png may stay
    _save(pool / "other.png", _noise(99))
    found = unlabelled.load(_task(photos, PhotoFolder(str(pool))))
    assert sorted(found.scored) == ["again.bmp", "deep/er/copy.jpeg"]
    assert found.examples.keys.tolist() == ["other.png", "trained.png"]


def test_nothing_but_scored_images_is_an_error(photos, tmp_path):
    _save(tmp_path / "pool" / "a.png", _noise(0))
    with pytest.raises(InputError, match=r"student.unlabelled\[0\] holds no other images than the"):
        unlabelled.load(_task(photos, PhotoFolder(str(tmp_path / "pool"))))


def test_a_folder_of_photos_is_searched_by_content_at_any_depth(tmp_path):
    _save(tmp_path / "a" / "b" / "c" / "d.png", _noise(0))
    _save(tmp_path / "photo.dat", _noise(1), format="JPEG")
    _save(tmp_path / ".hidden" / "e.png", _noise(2))
    _save(tmp_path / "__MACOSX" / "f.png", _noise(3))
    (tmp_path / "notes.jpg").write_text("no image")
    index = PhotoFolder(str(tmp_path)).index()
    assert index.keys.tolist() == ["a/b/c/d.png", "photo.dat"]
    assert index.labels.tolist() == [-1, -1]


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds no image at any depth"):
        PhotoFolder(str(tmp_path)).index()
    with pytest.raises(InputError, match="is not a folder"):
        PhotoFolder(str(tmp_path / "absent")).index()


@pytest.mark.parametrize("name", ["large.png", "large"])
def test_photos_with_too_many_pixels_are_named(tmp_path, caplog, monkeypatch, name):
    PIL.Image.new("RGB", (60, 50)).save(tmp_path / name, "PNG")
    for number in range(2):
        _save(tmp_path / f"{number}.png", _noise(50 + number))
    (tmp_path / "notes.txt").write_text("")
    # Pillow refuses what has more than twice as many; the others have 16 × 16 or fewer.
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with caplog.at_level(logging.WARNING):
        index = PhotoFolder(str(tmp_path)).index()
    assert index.keys.tolist() == ["0.png", "1.png"]
    assert f"1 unlabelled images cannot be read: {name} (it has 0 megapixels, more" in caplog.text
    for number in range(2):
        (tmp_path / f"{number}.png").unlink()
    unlabelled._listing.cache_clear()
    with pytest.raises(InputError, match=rf"at any depth that can be read: {name} \(it has"):
        PhotoFolder(str(tmp_path)).index()


def test_damaged_photos_are_passed_over(photos, tmp_path, caplog):
    pool = tmp_path / "pool"
    for number in range(3):
        _save(pool / f"{number}.png", _noise(50 + number))
    tiny.truncate(pool / "1.png")
    with caplog.at_level(logging.WARNING):
        found = unlabelled.load(_task(photos, PhotoFolder(str(pool)))).examples
    assert found.keys.tolist() == ["0.png", "2.png"]
    assert "1 unlabelled images are damaged: 1.png" in caplog.text


# --- more than fit in memory ----------------------------------------------------------------


def test_images_that_are_decoded_for_every_batch_are_the_same(photos, tmp_path, monkeypatch):
    pool = tmp_path / "pool"
    for number in range(20):
        _save(pool / f"{number:02}.jpg", _noise(100 + number, 20))
    task = _task(photos, PhotoFolder(str(pool)), Task(_task(photos).data, "student"))

    def seen():
        unlabelled.load.cache_clear()
        examples = unlabelled.joined([load(task).train, unlabelled.load(task).examples])
        order = batches.order(
            examples.labels[:8], len(examples.labels) - 8, RECIPE, seed=0, first=0, steps=6
        )
        dataset = batches.training_batches(examples, task.data, order, seed=0)
        return [images for images, *_ in dataset.as_numpy_iterator()], examples.images

    held, array = seen()
    monkeypatch.setattr(unlabelled, "IN_MEMORY", 1000)
    streamed, lazy = seen()
    assert isinstance(array, np.ndarray)
    assert not isinstance(lazy, np.ndarray)
    assert lazy.shape == array.shape
    np.testing.assert_array_equal(held, streamed)
    np.testing.assert_array_equal(lazy[3:12], array[3:12])


def test_a_damaged_photo_gives_way_to_the_next_while_streaming(tmp_path, monkeypatch, photos):
    pool = tmp_path / "pool"
    for number in range(3):
        _save(pool / f"{number}.png", _noise(50 + number))
    tiny.truncate(pool / "1.png")
    monkeypatch.setattr(unlabelled, "IN_MEMORY", 10)
    images = unlabelled.load(_task(photos, PhotoFolder(str(pool)))).examples.images
    np.testing.assert_array_equal(images[np.array([1])], images[np.array([2])])


# --- mixup ----------------------------------------------------------------------------------


def test_unlabelled_images_are_mixed_with_the_next_and_labelled_ones_stay():
    """Image n has the single brightness 3·n, so a mixture says what it is of, and by which λ."""
    images = np.tile((3 * np.arange(40, dtype=np.uint8))[:, None, None, None], (1, 8, 8, 3))
    labels = np.where(np.arange(40) < 8, 0, -1).astype(np.int32)
    examples = Examples(images, labels, np.arange(40).astype(str))
    data = dataclasses.replace(tiny.DATA, pad=0)
    order = batches.order(labels[:8], 32, RECIPE, seed=0, first=0, steps=20)
    shares = []
    dataset = batches.training_batches(examples, data, order, seed=0, mixup=0.5)
    for rows, (mixed, *_) in zip(order, dataset.as_numpy_iterator(), strict=True):
        pixels = mixed[:, 4, 4, 0]
        is_labelled = rows < 8
        np.testing.assert_array_equal(pixels[is_labelled], 3.0 * rows[is_labelled])
        ours = 3.0 * rows[~is_labelled]
        mates = np.roll(ours, -1)
        shares.append((pixels[~is_labelled] - mates) / (ours - mates))
    shares = np.concatenate(shares)
    assert shares.min() >= -1e-4
    assert shares.max() <= 1 + 1e-4
    # Beta(.5, .5) has mean .5 and variance 1/8; of 240 draws, ± 4 deviations.
    assert shares.mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.125 / 240))
    assert shares.var() == pytest.approx(0.125, abs=0.03)


def test_replicas_together_mix_what_one_device_mixes():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    labels = np.where(np.arange(40) < 8, 0, -1).astype(np.int32)
    examples = Examples(images, labels, np.arange(40).astype(str))
    order = batches.order(labels[:8], 32, RECIPE, seed=0, first=0, steps=3)

    def batches_of(replicas):
        context = tf.distribute.InputContext(num_replicas_in_sync=replicas)
        dataset = batches.training_batches(
            examples, tiny.DATA, order, 0, context=context, mixup=0.2
        )
        return np.concatenate([images for images, *_ in dataset.as_numpy_iterator()])

    np.testing.assert_array_equal(batches_of(1), batches_of(2))
