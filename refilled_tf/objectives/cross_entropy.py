"""Training without distillation: the teacher, the fine-tuned teacher, Student and Vanilla."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.objectives.base import GlobalBatch, Objective


@gin.register
@dataclasses.dataclass(frozen=True)
class CrossEntropy(Objective):
    """The mean cross-entropy of the labels."""

    parts: ClassVar[tuple[str, ...]] = ("train_accuracy",)

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the loss and the batch's accuracy."""
        loss = cross_entropy(batch.student["logits"], batch.labels)
        return loss, {"train_accuracy": accuracy(batch.student["logits"], batch.labels)}


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the mean over the batch of -log softmax(logits)[label].

    Args:
        logits: [B, C] float32.
        labels: [B] int.

    Returns:
        Scalar float32.
    """
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def accuracy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the share of labels that are the top logit: [B, C], [B] to a scalar in [0, 1]."""
    hits = tf.equal(tf.argmax(logits, -1, output_type=labels.dtype), labels)
    return tf.reduce_mean(tf.cast(hits, tf.float32))
