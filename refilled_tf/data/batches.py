"""Batches in an order, and with an augmentation, that are functions of seed and epoch alone.

Nothing here keeps state. A run that was killed sees the same images from its next epoch on as
an unbroken one, and any number of replicas or workers sees, together, the same global batches.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from refilled_tf.common.errors import require
from refilled_tf.data.recipe import Recipe
from refilled_tf.data.resizing import center_crop, cropped, resized
from refilled_tf.data.task import Data, Examples, Images


class Views(NamedTuple):
    """Fixed augmentations of every training image, and what is known of each.

    Attributes:
        numbers: [N, K, `random_numbers`] float32 in [0, 1), what `augmentation` makes K views of an
            image by; None where the only view is the centre crop, as it is scored.
        outputs: by name [N, K, …] float16 or float32, maybe memory maps: what a teacher makes of
            the views.
        jitter: how far what trains may lie from a view, as `TeacherCache.jitter`.
    """

    numbers: np.ndarray | None
    outputs: dict[str, np.ndarray]
    jitter: float = 0.0

    @property
    def per_image(self) -> int:
        """K."""
        return next(iter(self.outputs.values())).shape[1]

    def near(self, rows: tf.Tensor, views: tf.Tensor, own: tf.Tensor) -> tf.Tensor | None:
        """Makes random numbers of what trains beside a teacher's view.

        Args:
            rows: [b] int32, of the images.
            views: [b] int32, of each image.
            own: [b, `random_numbers`] float32 in [0, 1), of views of their own.

        Returns:
            [b, `random_numbers`] float32 in [0, 1); None for the centre crop.
        """
        known = None
        if self.numbers is not None:
            known = tf.gather_nd(self.numbers, tf.stack([rows, views], axis=1))
        if not self.jitter:
            return known
        centre = 0.5
        between = (1.0 - self.jitter) * (centre if known is None else known) + self.jitter * own
        # Between an image and its mirror image there is nothing.
        return tf.concat([between[:, :2], own[:, 2:3], between[:, 3:]], axis=1)

    def read(self, rows: tf.Tensor, views: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the outputs [b, …] float32 of views [b] int32 of images, rows [b] int32."""
        read = tf.numpy_function(
            lambda *places: [array[places] for array in self.outputs.values()],
            (rows, views),
            [tf.as_dtype(array.dtype) for array in self.outputs.values()],
            stateful=False,
        )
        return {
            name: tf.cast(tf.ensure_shape(x, (*rows.shape, *array.shape[2:])), tf.float32)
            for x, (name, array) in zip(read, self.outputs.items(), strict=True)
        }


def epoch_order(
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    classes_per_batch: int | None = None,
) -> np.ndarray:
    """Draws one epoch's batches.

    Args:
        labels: [N] int.
        batch_size: B.
        seed: of the run.
        epoch: number of the epoch; each has its own order.
        classes_per_batch: P; each batch then holds B/P images of P random classes (an image
            twice only where its class has fewer). None shuffles without regard to classes.

    Returns:
        [N // B, B] int32 rows. The remainder of a shuffled epoch is dropped: a smaller last
        batch would hold fewer positive pairs and other batch-norm statistics.

    Raises:
        InputError: the batch is larger than the data, or P does not divide it or exceeds the
            number of classes.
    """
    steps = len(labels) // batch_size
    require(
        steps > 0,
        f"Recipe.batch_size={batch_size} exceeds the {len(labels)} training images",
    )
    random = np.random.default_rng([seed, epoch])
    if classes_per_batch is None:
        order = random.permutation(len(labels))[: steps * batch_size]
        return order.reshape(steps, batch_size).astype(np.int32)

    rows_of = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    require(
        1 <= classes_per_batch <= len(rows_of) and batch_size % classes_per_batch == 0,
        f"Recipe.classes_per_batch={classes_per_batch} must divide "
        f"Recipe.batch_size={batch_size} and not exceed the {len(rows_of)} classes",
    )
    count = batch_size // classes_per_batch
    order = np.empty((steps, batch_size), np.int32)
    for batch in order:
        chosen = random.choice(len(rows_of), classes_per_batch, replace=False)
        batch[:] = np.concatenate(
            [random.choice(rows_of[c], count, replace=count > len(rows_of[c])) for c in chosen]
        )
    return order


def order(
    labels: np.ndarray, unlabelled: int, recipe: Recipe, seed: int, first: int, steps: int
) -> np.ndarray:
    """Draws the batches of any stretch of a training.

    Labelled and unlabelled images are gone through in passes of their own, of which those of
    labelled images are `epoch_order`'s; a pass drops the images that do not fill a batch. A batch
    alternates between the two kinds, so that each replica gets its share of both.

    Args:
        labels: [N] int.
        unlabelled: M, the number of unlabelled images; may be 0.
        recipe: size and kind of a batch.
        seed: of the run.
        first: number of the first step.
        steps: how many.

    Returns:
        [steps, B] int32 rows; those from N on are of unlabelled images.

    Raises:
        InputError: as `epoch_order` says, or a batch takes more than M unlabelled images.
    """
    count = recipe.unlabelled if unlabelled else 0
    require(
        unlabelled >= count,
        f"Recipe.unlabelled_share={recipe.unlabelled_share} of Recipe.batch_size="
        f"{recipe.batch_size} is {count} images, but there are {unlabelled} unlabelled ones",
    )
    labelled = recipe.batch_size - count

    def of_labels(number: int) -> np.ndarray:
        return epoch_order(labels, labelled, seed, number, recipe.classes_per_batch)

    def of_unlabelled(number: int) -> np.ndarray:
        random = np.random.default_rng([seed, number, 1])
        rows = random.permutation(unlabelled)[: unlabelled // count * count]
        return len(labels) + rows.reshape(-1, count).astype(np.int32)

    taken = _stretch(of_labels, first, steps)
    if not count:
        return taken
    blocks = math.gcd(labelled, count)
    both = (taken, _stretch(of_unlabelled, first, steps))
    return np.concatenate([x.reshape(steps, blocks, -1) for x in both], 2).reshape(steps, -1)


def _stretch(draw: Callable[[int], np.ndarray], first: int, steps: int) -> np.ndarray:
    """Returns some of the steps that passes 0, 1, … of equal length make one after another."""
    length = len(draw(0))
    passes = range(first // length, -(-(first + steps) // length))
    start = first - passes.start * length
    return np.concatenate([draw(number) for number in passes])[start : start + steps]


def random_numbers(data: Data) -> int:
    """Returns how many random numbers make a view of an image."""
    return 3 if data.min_crop is None else 4


def augmentation(data: Data) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Makes the augmentation: padding, a crop, a flip.

    keras-cv's RandomCrop resamples, which can skip a row or column of pixels, so the crop is cut
    out here.

    Args:
        data: crop size and augmentation.

    Returns:
        A function of images [b, load_size, load_size, 3] and numbers [b, `random_numbers`]
        float32 in [0, 1), for top, left, flip and, perhaps, size, that returns
        [b, crop_size, crop_size, 3] float32.
    """
    flip, size = random_flip(), data.crop_size

    def augment(images, numbers):
        batch = tf.cast(images, tf.float32)
        batch = tf.pad(batch, ((0, 0), (data.pad,) * 2, (data.pad,) * 2, (0, 0)))
        if data.min_crop is None:
            corners = tf.cast(numbers[:, :2] * (batch.shape[1] - size + 1), tf.int32)
            side = tf.range(size)
            batch = tf.gather(batch, corners[:, :1] + side, axis=1, batch_dims=1)
            batch = tf.gather(batch, corners[:, 1:] + side, axis=2, batch_dims=1)
        else:
            side = data.min_crop + (1 - data.min_crop) * numbers[:, 3:]
            corners = numbers[:, :2] * (1 - side)
            # Not to the very edge: rounded, it would lie beyond the image, where all is black.
            boxes = tf.minimum(tf.concat([corners, corners + side], axis=1), 1 - 1e-6)
            batch = cropped(batch, boxes, size)
        if data.flip:
            batch = flip(batch, numbers[:, 2])
        return tf.ensure_shape(batch, (images.shape[0], size, size, 3))

    return augment


def random_flip() -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Makes the flip, by numbers handed to it: a generator would restart with the process.

    All that is used of keras-cv, whose last release is of 2024. Where an environment cannot have
    it any more, `tf.where(numbers[:, None, None, None] > 0.5, images[:, :, ::-1], images)` does
    the same, as tests/data/test_batches.py checks.

    Returns:
        A function of images [b, h, w, 3] and numbers [b] float32 in [0, 1) that returns the images,
        left and right exchanged where the number is above 1/2.
    """
    # The layer asks for TensorFlow's global generator, which must have a seed when ops are
    # deterministic; nothing is drawn from it.
    tf.random.set_global_generator(tf.random.Generator.from_seed(0))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which backend it has
        import keras_cv
    layer = keras_cv.layers.RandomFlip()

    def flip(images, numbers):
        sides = numbers[:, tf.newaxis]
        return layer.augment_images(
            images, {"flip_horizontals": sides, "flip_verticals": tf.zeros_like(sides)}
        )

    return flip


def training_batches(
    examples: Examples,
    data: Data,
    order: np.ndarray,
    seed: int,
    first_step: int = 0,
    context: tf.distribute.InputContext | None = None,
    views: Views | None = None,
    size: int | None = None,
    mixup: float = 0.0,
) -> tf.data.Dataset:
    """Builds the augmented batches of one input pipeline.

    The random numbers of an image depend on the seed, the step and the image's place in the
    global batch. With `views` they choose one of its views, and with their jitter one near it.

    Args:
        examples: the training images.
        data: image size and augmentation.
        order: [steps, B] rows, as `order` gives them, of all steps to come.
        seed: of the augmentation.
        first_step: number of `order`'s first step since the beginning of the training.
        context: the place of this pipeline among workers and replicas; None for the only one.
        views: the augmentations that a teacher knows; None for fresh ones in every step.
        size: side S to which crops are resized; None for Data.image_size.
        mixup: α of `Recipe.mixup`, which goes with fresh augmentations.

    Returns:
        Dataset of (images [b, S, S, 3] float32 in [0, 255], labels [b] int32, rows [b] int32) and,
        with `views`, as a fourth {name: [b, …] float32} of their outputs; b = B / replicas.
        Consecutive elements belong to consecutive replicas.
    """
    context = context or tf.distribute.InputContext()
    steps, batch_size = order.shape
    replicas = context.num_replicas_in_sync
    per_replica = batch_size // replicas
    local = replicas // context.num_input_pipelines
    mine = np.arange(local) + context.input_pipeline_id * local
    rows, mates = (
        each.reshape(steps, replicas, per_replica)[:, mine].reshape(-1, per_replica)
        for each in (order, _mates(order, examples.labels))
    )

    take, labels = _reader(examples.images), tf.constant(examples.labels)
    augment = augmentation(data)

    def batch(rows, mates, step, start):
        def part(drawn):
            """Returns this replica's part of what is drawn for the global batch."""
            return tf.gather(drawn, start + tf.range(per_replica))

        def draw(*shape, salt=0, **kind):
            seeds = tf.stack([seed + salt, step])
            return part(tf.random.stateless_uniform((batch_size, *shape), seeds, **kind))

        loaded, taught, count = take(rows), [], random_numbers(data)
        if views is None:
            numbers = draw(count)
        else:
            chosen = draw(maxval=views.per_image, dtype=tf.int32)
            taught = [views.read(rows, chosen)]
            numbers = views.near(rows, chosen, draw(count, salt=1 << 22))
        if numbers is None:
            crops = tf.cast(center_crop(loaded, data.crop_size), tf.float32)
        else:
            crops = augment(loaded, numbers)
            if mixup:
                share = part(_beta(mixup, batch_size, [seed, step]))
                share = tf.where(tf.equal(rows, mates), 1.0, share)[:, None, None, None]
                crops = share * crops + (1.0 - share) * augment(take(mates), numbers)
        return resized(crops, size or data.image_size), tf.gather(labels, rows), rows, *taught

    elements = (
        rows,
        mates,
        np.repeat(np.arange(first_step, first_step + steps, dtype=np.int32), local),
        np.tile((mine * per_replica).astype(np.int32), steps),
    )
    dataset = tf.data.Dataset.from_tensor_slices(elements)
    dataset = dataset.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _mates(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns what to mix each image of `order` with: the next unlabelled one, or itself."""
    mates = order.copy()
    # Which places are for unlabelled images is the same in all batches.
    places = np.flatnonzero(labels[order[0]] < 0)
    mates[:, places] = order[:, np.roll(places, -1)]
    return mates


def _beta(alpha: float, count: int, seed: list) -> tf.Tensor:
    """Draws [count] float32 from Beta(α, α), as shares of Gamma(α) numbers."""
    first, second = (
        tf.random.stateless_gamma((count,), tf.stack([seed[0] + salt, seed[1]]), alpha)
        for salt in (1 << 20, 1 << 21)
    )
    return first / (first + second)


def _reader(images: Images) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of rows [b] int32 to [b, L, L, 3] uint8."""
    if isinstance(images, np.ndarray):
        held = tf.constant(images)
        return lambda rows: tf.gather(held, rows)

    def take(rows: tf.Tensor) -> tf.Tensor:
        read = tf.numpy_function(images.__getitem__, [rows], tf.uint8, stateful=False)
        return tf.ensure_shape(read, (*rows.shape, *images.shape[1:]))

    return take


def scoring_batches(examples: Examples, size: int, batch_size: int = 256) -> Iterator:
    """Yields the un-augmented centre crops in their order.

    Args:
        examples: N images.
        size: side S of the crop, Data.crop_size.
        batch_size: the last batch may be smaller.

    Yields:
        [b, S, S, 3] float32 in [0, 255].
    """
    cropped = center_crop(examples.images, size)
    for start in range(0, len(cropped), batch_size):
        yield cropped[start : start + batch_size].astype(np.float32)
