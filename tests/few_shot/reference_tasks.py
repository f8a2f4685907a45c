"""Small tasks of random images, shared by the tests of learners."""

from __future__ import annotations

import numpy as np

from refilled_tf.data.episodes import Tasks
from refilled_tf.data.task import Examples
from refilled_tf.few_shot.base import Pool

WAYS, SHOTS, QUERIES = 3, 2, 4
_PER_CLASS = SHOTS + QUERIES


def tasks_of(count: int) -> Tasks:
    """Returns tasks that share no image: the rows of `pool_of` in their order."""
    rows = np.arange(count * WAYS * _PER_CLASS).reshape(count, WAYS, _PER_CLASS)
    return Tasks(np.zeros((count, WAYS), int), rows[:, :, :SHOTS], rows[:, :, SHOTS:])


def pool_of(count: int, size: int) -> Pool:
    """Returns the images of so many tasks; those of a class have a colour in common."""
    random = np.random.default_rng(0)
    colours = random.uniform(50, 200, (count * WAYS, 1, 1, 1, 3))
    noise = random.normal(0, 40, (count * WAYS, _PER_CLASS, size, size, 3))
    images = np.clip(colours + noise, 0, 255).astype(np.uint8).reshape(-1, size, size, 3)
    keys = np.arange(len(images)).astype(str)
    return Pool(Examples(images, np.zeros(len(images), np.int32), keys), size)


class FixedPool:
    """A pool whose embeddings are given."""

    def __init__(self, embeddings: np.ndarray):
        self._embeddings = embeddings

    def embeddings(self, network) -> np.ndarray:
        return self._embeddings
