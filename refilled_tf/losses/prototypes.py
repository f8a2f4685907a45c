"""Nearest-prototype logits, the common ground of ProtoNet and FEAT.

Source: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, Eq. 2:
a class's probability falls with the squared Euclidean distance to its prototype.
"""

from __future__ import annotations

import tensorflow as tf

from refilled_tf.losses._checks import check_positive


def prototype_logits(
    embeddings: tf.Tensor, prototypes: tf.Tensor, temperature: float = 1.0
) -> tf.Tensor:
    """Returns -‖embedding - prototype‖² / temperature.

    Args:
      embeddings: float Tensor [T, M, d], M of each of T tasks.
      prototypes: float Tensor [T, C, d].
      temperature: what squared distances are divided by.

    Returns:
      float32 Tensor [T, M, C].

    Raises:
      ValueError: the temperature is not above zero.
    """
    check_positive(temperature=temperature)
    embeddings, prototypes = (tf.cast(x, tf.float32) for x in (embeddings, prototypes))
    # As differences, which are few here: a Gram matrix would lose digits.
    gaps = embeddings[:, :, tf.newaxis] - prototypes[:, tf.newaxis]
    return -tf.reduce_sum(tf.square(gaps), axis=-1) / temperature


def task_cross_entropy(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The cross-entropy and the accuracy of tasks whose images come class by class.

    Args:
      logits: float Tensor [T, M, C], the images of class 0 first, then as many of class 1, ….

    Returns:
      Two [T] float32: the mean over each task's images of -log softmax(logits)[class], and the
      share of them whose class has the largest logit.
    """
    classes = logits.shape[-1]
    labels = tf.repeat(tf.range(classes), logits.shape[1] // classes)
    labels = tf.broadcast_to(labels, tf.shape(logits)[:2])
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    hits = tf.equal(tf.argmax(logits, -1, output_type=tf.int32), labels)
    return tf.reduce_mean(losses, 1), tf.reduce_mean(tf.cast(hits, tf.float32), 1)
