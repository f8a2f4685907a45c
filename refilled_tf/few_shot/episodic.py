"""Training on tasks beforehand: a class-balanced batch seen as several few-shot tasks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import tensorflow as tf

from refilled_tf.common.errors import require, require_whole
from refilled_tf.data.recipe import Recipe
from refilled_tf.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class EpisodicObjective(Objective):
    """An objective whose batches are tasks.

    `Recipe.classes_per_batch` draws the classes of a batch and puts their images one after
    another: P classes make P / ways tasks. Of the images of a class the first `shots` are
    support, the others query.

    Attributes:
        ways: C, classes of a task.
        shots: K, support images a class.
        queries: Q, query images a class.
    """

    classifies: ClassVar[bool] = False

    ways: int = 5
    shots: int = 5
    queries: int = 15

    def __post_init__(self):
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1)):
            require_whole(f"{type(self).__name__}.{name}", getattr(self, name), least)

    def check_batches(self, recipe: Recipe, replicas: int) -> None:
        """Rejects batches that are no whole tasks."""
        name, classes = type(self).__name__, recipe.classes_per_batch or 0
        require(
            classes > 0 and classes % self.ways == 0,
            f"Recipe.classes_per_batch={recipe.classes_per_batch} must be a multiple of "
            f"{name}.ways={self.ways}",
        )
        images = classes * (self.shots + self.queries)
        require(
            recipe.batch_size == images,
            f"Recipe.batch_size={recipe.batch_size} must be {images}: {classes} classes with "
            f"{name}.shots={self.shots} and {name}.queries={self.queries} images each",
        )

    def support_and_query(self, batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Splits a batch of images or embeddings into tasks.

        Args:
            batch: [T·C·(K+Q), …].

        Returns:
            Support [T, C, K, …] and query [T, C, Q, …].
        """
        count = self.shots + self.queries
        tasks = tf.reshape(batch, (-1, self.ways, count, *batch.shape[1:]))
        return tasks[:, :, : self.shots], tasks[:, :, self.shots :]
