"""Orders, augmentation and dealing out of batches, on made-up images whose pixels differ."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.data.batches import (
    Views,
    augmentation,
    epoch_order,
    random_flip,
    scoring_batches,
    training_batches,
)
from refilled_tf.data.sources import Digits
from refilled_tf.data.splits import AlphabeticalHalves
from refilled_tf.data.task import Data, Examples

LABELS = np.repeat(np.arange(5), [20, 21, 22, 23, 24]).astype(np.int32)


def _data(image_size=8, load_size=8, pad=0, flip=True, min_crop=None):
    return Data(
        Digits(),
        AlphabeticalHalves(),
        image_size=image_size,
        load_size=load_size,
        pad=pad,
        flip=flip,
        min_crop=min_crop,
    )


def _examples(count, size):
    """Noise in 1 … 255: nothing but padding is black, no two windows are alike."""
    images = np.random.default_rng(0).integers(1, 256, (count, size, size, 3), np.uint8)
    return Examples(images, np.arange(count, dtype=np.int32), np.arange(count).astype(str))


def _collect(dataset):
    """Stacks all elements: images, labels and, where there are views, each of their outputs.

    Labels are the rows everywhere here, so the rows go unseen.
    """
    elements = [
        (images, labels, *tf.nest.flatten(taught))
        for images, labels, rows, *taught in dataset.as_numpy_iterator()
        if np.array_equal(labels, rows)
    ]
    return tuple(np.stack(parts) for parts in zip(*elements, strict=True))


# --- order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes_per_batch", [None, 4])
def test_order_is_a_function_of_seed_and_epoch(classes_per_batch):
    first = epoch_order(LABELS, 20, 3, 7, classes_per_batch)
    np.testing.assert_array_equal(first, epoch_order(LABELS, 20, 3, 7, classes_per_batch))
    assert not np.array_equal(first, epoch_order(LABELS, 20, 3, 8, classes_per_batch))
    assert not np.array_equal(first, epoch_order(LABELS, 20, 4, 7, classes_per_batch))
    # Seed and epoch are not merely added up.
    assert not np.array_equal(first, epoch_order(LABELS, 20, 7, 3, classes_per_batch))


def test_remainder_is_dropped_and_no_image_repeats():
    order = epoch_order(LABELS, 32, 0, 0)
    assert order.shape == (3, 32)  # 110 // 32
    assert order.dtype == np.int32
    assert len(np.unique(order)) == 96
    # Over epochs the remainder falls on other images, so all take part.
    seen = np.concatenate([epoch_order(LABELS, 32, 0, epoch).ravel() for epoch in range(10)])
    assert len(np.unique(seen)) == 110


def test_whole_data_as_one_batch():
    assert sorted(epoch_order(LABELS, 110, 0, 0)[0]) == list(range(110))


def test_balanced_batches_hold_equal_shares_of_some_classes():
    order = epoch_order(LABELS, 20, 0, 0, classes_per_batch=4)
    assert order.shape == (5, 20)
    for batch in order:
        counts = np.bincount(LABELS[batch], minlength=5)
        assert sorted(counts) == [0, 5, 5, 5, 5]
        assert len(np.unique(batch)) == 20  # classes have enough images, so none is drawn twice


def test_balanced_batches_repeat_images_only_of_small_classes():
    labels = np.repeat([0, 1], [3, 30])
    for batch in epoch_order(labels, 12, 0, 0, classes_per_batch=2):
        np.testing.assert_array_equal(np.bincount(labels[batch]), [6, 6])
        large = batch[labels[batch] == 1]
        assert len(np.unique(large)) == 6


@pytest.mark.parametrize(
    ("batch_size", "classes_per_batch", "option"),
    [
        (111, None, r"Recipe\.batch_size=111 exceeds the 110"),
        (20, 6, r"Recipe\.classes_per_batch=6"),  # only five classes
        (20, 3, r"Recipe\.classes_per_batch=3"),  # does not divide 20
        (20, 0, r"Recipe\.classes_per_batch=0"),
    ],
)
def test_impossible_order_names_the_option(batch_size, classes_per_batch, option):
    with pytest.raises(InputError, match=option):
        epoch_order(LABELS, batch_size, 0, 0, classes_per_batch)


# --- augmentation ---------------------------------------------------------------------------


def _offsets(augmented, original, pad, flips):
    """Finds by search the (top, left, flipped) that cut `augmented` out of the padded original."""
    padded = np.pad(original, ((pad, pad), (pad, pad), (0, 0)))
    size = len(augmented)
    room = len(padded) - size + 1
    return [
        (top, left, flip)
        for top in range(room)
        for left in range(room)
        for flip in flips
        if np.array_equal(
            augmented[:, ::-1] if flip else augmented,
            padded[top : top + size, left : left + size],
        )
    ]


@pytest.mark.parametrize(
    ("image_size", "load_size", "pad", "flip"),
    [(8, 8, 0, False), (8, 8, 2, True), (9, 12, 0, True), (8, 20, 1, False), (32, 32, 4, True)],
)
def test_every_image_is_a_window_of_its_padded_original(image_size, load_size, pad, flip):
    examples = _examples(16, load_size)
    order = np.stack([np.random.default_rng(i).permutation(16) for i in range(8)])
    data = _data(image_size, load_size, pad, flip)
    images, labels = _collect(training_batches(examples, data, order, seed=1))

    np.testing.assert_array_equal(labels, order)  # the labels are the rows
    assert images.dtype == np.float32
    assert images.shape == (8, 16, image_size, image_size, 3)
    found = []
    for image, row in zip(images.reshape(-1, *images.shape[2:]), order.ravel(), strict=True):
        offsets = _offsets(image, examples.images[row], pad, (False, True) if flip else (False,))
        assert len(offsets) == 1
        found += offsets
    tops, lefts, flips = np.array(found).T
    room = load_size + 2 * pad - image_size
    if room:
        # 128 uniform draws of at most 15 values leave one out with a chance below 1 in 400.
        assert set(tops) == set(lefts) == set(range(room + 1))
        assert not np.array_equal(tops, lefts)
    if flip:
        assert 40 < flips.sum() < 88  # 64 ± 4.2 standard deviations of 5.7


def test_crops_of_varied_size_are_resized_windows():
    # Brightness 10·row + 2·column + 1 is linear, and stays so under any bilinear resizing: a window
    # from (t, l) of side s, in shares of the 15 steps between 16 pixels, must go in 7 even steps
    # from 150·t + 30·l + 1 by 150·s downwards and by 30·s to the right.
    rows, columns = np.mgrid[:16, :16]
    image = np.repeat((10 * rows + 2 * columns + 1)[..., None], 3, axis=-1).astype(np.uint8)
    data = _data(image_size=8, load_size=16, flip=False, min_crop=0.25)
    numbers = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.25, 0, 0.5], [0.3, 0.9, 0, 1]], "f")
    made = augmentation(data)(tf.constant(np.stack([image] * 4)), tf.constant(numbers))
    # side .25 at the top left; the same at the bottom; .625 with the rest shared out; the whole
    windows = [(0, 0, 0.25), (0.75, 0, 0.25), (0.1875, 0.09375, 0.625), (0, 0, 1)]
    down, right = np.mgrid[:8, :8] / 7
    for crop, (top, left, side) in zip(made.numpy(), windows, strict=True):
        expected = 150 * (top + side * down) + 30 * (left + side * right) + 1
        np.testing.assert_allclose(crop[..., 1], expected, atol=1e-3)


@pytest.mark.parametrize(("load_size", "image_size"), [(92, 84), (96, 48), (100, 96)])
def test_the_whole_image_as_a_crop_has_no_black_edge(load_size, image_size):
    data = _data(image_size, load_size, flip=False, min_crop=1.0)
    white = np.full((2, load_size, load_size, 3), 255, np.uint8)
    numbers = np.random.default_rng(0).random((2, 4), np.float32)
    crops = augmentation(data)(tf.constant(white), tf.constant(numbers))
    np.testing.assert_allclose(crops, 255, rtol=1e-5)


def test_crops_of_varied_size_differ_from_step_to_step():
    data = _data(image_size=8, load_size=16, min_crop=0.5)
    images, _ = _collect(training_batches(_examples(4, 16), data, np.tile(np.arange(4), (3, 1)), 0))
    assert images.shape == (3, 4, 8, 8, 3)
    assert len(np.unique(images.reshape(12, -1), axis=0)) == 12


def test_offsets_are_uniform():
    """A border offset is as likely as one in the middle: 1/3 each of 900, ± 4 deviations."""
    examples = _examples(30, 8)
    order = np.tile(np.arange(30), (30, 1))
    images, _ = _collect(training_batches(examples, _data(6, 8, 0, False), order, seed=0))
    tops = [
        _offsets(image, examples.images[row], 0, (False,))[0][0]
        for step in images
        for row, image in enumerate(step)
    ]
    np.testing.assert_allclose(np.bincount(tops), 300, atol=57)


def test_flip_is_what_could_take_its_place():
    random = np.random.default_rng(0)
    images = tf.constant(random.uniform(0, 255, (64, 3, 5, 3)), tf.float32)
    numbers = tf.constant(
        np.r_[0, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), random.random(61)], tf.float32
    )
    expected = tf.where(numbers[:, None, None, None] > 0.5, images[:, :, ::-1], images)
    np.testing.assert_array_equal(random_flip()(images, numbers), expected)


def test_augmentation_depends_on_seed_and_step():
    examples, order = _examples(8, 16), np.tile(np.arange(8), (2, 1))
    images, again, other = (
        _collect(training_batches(examples, _data(8, 16), order, seed))[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, other)
    assert not np.array_equal(images[0], images[1])


def test_augmentation_is_repeatable_after_other_random_numbers():
    examples, order = _examples(8, 16), np.arange(8)[np.newaxis]
    first, _ = _collect(training_batches(examples, _data(8, 16), order, seed=5))
    tf.random.set_seed(99)
    tf.random.uniform((3,))
    second, _ = _collect(training_batches(examples, _data(8, 16), order, seed=5))
    np.testing.assert_array_equal(first, second)


# --- fixed views ----------------------------------------------------------------------------


def _views(count, views):
    """Random views, and outputs that no two of them share."""
    random = np.random.default_rng(1)
    shapes = {"embedding": (count, views, 4), "f1": (count, views, 2, 2, 3)}
    outputs = {name: random.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    return Views(random.random((count, views, 3), dtype=np.float32), outputs)


def test_batches_hold_views_and_their_outputs():
    examples, views = _examples(16, 8), _views(16, 3)
    random = np.random.default_rng(0)
    order = np.stack([random.permutation(16) for _ in range(20)]).astype(np.int32)
    dataset = training_batches(examples, _data(8, 8, 2), order, seed=1, first_step=4, views=views)
    seen = np.zeros((16, 3), int)
    for rows, (images, labels, _, taught) in zip(order, dataset.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(labels, rows)
        assert {x.dtype for x in taught.values()} == {np.dtype(np.float32)}
        # The outputs say which view it is.
        same = views.outputs["embedding"][rows] == taught["embedding"][:, np.newaxis]
        chosen = np.argmax(same.all(axis=-1), axis=-1)
        for name, x in taught.items():
            np.testing.assert_array_equal(x, views.outputs[name][rows, chosen])
        numbers = views.numbers[rows, chosen]
        for image, row, (top, left, flip) in zip(images, rows, numbers, strict=True):
            window = (int(5 * top), int(5 * left), bool(flip > 0.5))
            assert _offsets(image, examples.images[row], 2, (False, True)) == [window]
        np.add.at(seen, (rows, chosen), 1)
    # Each view of an image has a third of 20 steps; each of all images a third of 320, ± 4
    # deviations.
    assert (seen > 0).all()
    np.testing.assert_allclose(seen.sum(axis=0), 320 / 3, atol=34)


def test_one_view_is_the_same_in_every_step():
    order = np.tile(np.arange(8, dtype=np.int32), (3, 1))
    dataset = training_batches(_examples(8, 8), _data(8, 8, 2), order, seed=0, views=_views(8, 1))
    first, *others = (images for images, *_ in dataset.as_numpy_iterator())
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_views_are_drawn_anew_in_every_step_and_for_every_seed():
    examples, order = _examples(8, 8), np.tile(np.arange(8, dtype=np.int32), (2, 1))

    def images(seed):
        dataset = training_batches(examples, _data(8, 8, 2), order, seed, views=_views(8, 4))
        return [images for images, *_ in dataset.as_numpy_iterator()]

    (first, second), (again, _), (other, _) = images(0), images(0), images(1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("jitter", "offsets"),
    # A view lies at int(5 · .3) = 1; what trains at int(5 · ((1 - jitter) · .3 + jitter · u)) for
    # u in [0, 1): from 5 · .15 to 5 · .65 by half of the way, anywhere by all of it.
    [(0.0, {1}), (0.5, {0, 1, 2, 3}), (1.0, {0, 1, 2, 3, 4})],
)
def test_jitter_takes_what_trains_so_far_from_the_teachers_view(jitter, offsets):
    outputs = {"embedding": np.arange(8, dtype=np.float16).reshape(8, 1, 1)}
    views = Views(np.full((8, 1, 3), 0.3, np.float32), outputs, jitter)
    assert _seen(views) == (offsets, offsets, {False, True} if jitter else {False})


@pytest.mark.parametrize(("jitter", "offsets"), [(0.5, {1, 2, 3}), (1.0, {0, 1, 2, 3, 4})])
def test_jitter_of_a_centre_crop_is_around_the_centre(jitter, offsets):
    """By half of the way: int(5 · (.25 + .5 · u))."""
    outputs = {"embedding": np.arange(8, dtype=np.float16).reshape(8, 1, 1)}
    assert _seen(Views(None, outputs, jitter)) == (offsets, offsets, {False, True})


def _seen(views):
    """Trains on 8 images of 8 pixels, padded by 2; returns all tops, lefts and flips of 60 steps.

    Each of the fewest, {0} of jitter .5, is a tenth of all draws: 480 miss it once in 10^21.
    """
    examples, order = _examples(8, 8), np.tile(np.arange(8, dtype=np.int32), (60, 1))
    found = []
    for images, labels, _, taught in training_batches(
        examples, _data(8, 8, 2), order, 0, 0, None, views
    ):
        np.testing.assert_array_equal(taught["embedding"][:, 0], labels)
        for image, row in zip(images.numpy(), labels.numpy(), strict=True):
            (window,) = _offsets(image, examples.images[row], 2, (False, True))
            found.append(window)
    return tuple(map(set, zip(*found, strict=True)))


# --- resuming and dealing out ---------------------------------------------------------------


def test_resumed_batches_are_the_tail_of_the_unbroken_ones():
    examples, data = _examples(24, 12), _data(8, 12, 1)
    labels = np.repeat([0, 1, 2], 8)
    order = np.concatenate([epoch_order(labels, 8, 0, epoch) for epoch in range(4)])
    images, rows = _collect(training_batches(examples, data, order, seed=2))

    tail = np.concatenate([epoch_order(labels, 8, 0, epoch) for epoch in (2, 3)])
    resumed = training_batches(examples, data, tail, seed=2, first_step=6)
    for whole, part in zip((images, rows), _collect(resumed), strict=True):
        np.testing.assert_array_equal(whole[6:], part)


@pytest.mark.parametrize(
    "views",
    [None, _views(24, 3), _views(24, 3)._replace(jitter=0.5)],
    ids=["fresh", "views", "near views"],
)
@pytest.mark.parametrize(("pipelines", "replicas"), [(2, 2), (1, 2), (2, 4)])
def test_pipelines_together_give_the_global_batches(pipelines, replicas, views):
    """Consecutive elements belong to consecutive replicas, pipeline after pipeline."""
    examples, data = _examples(24, 12), _data(8, 12, 1)
    order = np.random.default_rng(0).permutation(24).reshape(3, 8).astype(np.int32)
    whole = _collect(training_batches(examples, data, order, 2, 5, views=views))

    local = replicas // pipelines
    parts = []
    for i in range(pipelines):
        context = tf.distribute.InputContext(
            num_input_pipelines=pipelines, input_pipeline_id=i, num_replicas_in_sync=replicas
        )
        dataset = training_batches(examples, data, order, 2, 5, context, views)
        assert dataset.element_spec[0].shape == (8 // replicas, 8, 8, 3)
        parts.append(_collect(dataset))
    for array, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        # [steps · local, b, …] of each pipeline to [steps, B, …] of all.
        pieces = [p.reshape(3, local * p.shape[1], *p.shape[2:]) for p in pieces]
        np.testing.assert_array_equal(array, np.concatenate(pieces, axis=1))


# --- scoring --------------------------------------------------------------------------------


@pytest.mark.parametrize(("load_size", "margin"), [(8, 0), (12, 2), (11, 1)])
def test_scoring_takes_the_centre_in_order(load_size, margin):
    examples = _examples(7, load_size)
    batches = list(scoring_batches(examples, 8, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert all(batch.dtype == np.float32 for batch in batches)
    window = slice(margin, margin + 8)
    np.testing.assert_array_equal(
        np.concatenate(batches), examples.images[:, window, window].astype(np.float32)
    )
