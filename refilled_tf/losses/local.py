"""Local knowledge distillation, the second stage of REFILLED.

Source: Ye, Lu, Zhan, "Distilling Cross-Task Knowledge via Relationship Matching", CVPR 2020,
supplement Eq. 6. The teacher need not know the student's classes: its posterior is that of the
nearest class mean in its embedding, over the classes that occur in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from refilled_tf.losses._checks import check_positive
from refilled_tf.losses.distances import l2_normalize, rescale
from refilled_tf.losses.mixture import each_with_tau, log_mixture


def _class_counts(labels: tf.Tensor, num_classes: int | tf.Tensor) -> tf.Tensor:
    """Counts the examples of each class: float32 Tensor [C]."""
    ones = tf.ones_like(labels, dtype=tf.float32)
    return tf.math.unsorted_segment_sum(ones, labels, num_classes)


def class_centers(
    embeddings: tf.Tensor, labels: tf.Tensor, num_classes: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The l2-normalised mean embedding of each class.

    The mean is taken over the embeddings as they are; only its result is normalised.

    Args:
      embeddings: float Tensor [B, d].
      labels: integer Tensor [B] with values in [0, num_classes).
      num_classes: C.

    Returns:
      (centers, present): float32 Tensor [C, d] and bool Tensor [C]. A class without examples is
      not present and its centre is zero.
    """
    # The length of a centre is thrown away, so the scale may go before sums can overflow.
    scaled, _ = rescale(embeddings)
    counts = _class_counts(labels, num_classes)
    sums = tf.math.unsorted_segment_sum(scaled, labels, num_classes)
    means = sums / tf.maximum(counts, 1.0)[:, tf.newaxis]
    return l2_normalize(means), counts > 0.0


def local_kl(
    student_logits: tf.Tensor,
    teacher_embeddings: tf.Tensor | Sequence[tf.Tensor],
    labels: tf.Tensor,
    *,
    tau_teacher: float | Sequence[float] = 2.0,
    tau_student: float = 1.0,
    teacher_weights: Sequence[float] | None = None,
    centers: tf.Tensor | Sequence[tf.Tensor] | None = None,
) -> tf.Tensor:
    """KL(teacher || student) over the classes that occur in the batch.

    The teacher's logits are the inner products of its embedding, which is *not* normalised,
    with the normalised class centres; the student's are its classifier's, sliced to the
    classes present (Ye, Lu, Zhan, CVPR 2020, supplement Eq. 6). The divergence is summed over
    classes and averaged over the batch. There is no factor tau^2.

    Args:
      student_logits: float Tensor [B, C].
      teacher_embeddings: float Tensor [B, d], or several teachers', whose posteriors are averaged;
        gets no gradient.
      labels: integer Tensor [B] with values in [0, C); with `centers`, -1 for an unlabelled image.
      tau_teacher: temperature of the teacher, or of each.
      tau_student: temperature of the student.
      teacher_weights: what each of several teachers counts; None for all the same.
      centers: float Tensor [C, d], l2-normalised class centres, for instance of the whole
        training split, or several teachers'; they get no gradient. None computes them from this
        batch.

    Returns:
      float32 scalar, finite for logits and embeddings up to 1e30; 0 when the batch holds one
      class only.

    Raises:
      ValueError: a temperature is not above zero.
    """
    check_positive(tau_student=tau_student)
    student_logits = tf.cast(student_logits, tf.float32)
    teachers = each_with_tau(teacher_embeddings, tau_teacher)
    num_classes = tf.shape(student_logits)[1]
    if centers is None:
        centers = [class_centers(each, labels, num_classes)[0] for each, _ in teachers]
    elif not isinstance(centers, list | tuple):
        centers = [centers]
    classes = tf.where(_class_counts(labels, num_classes) > 0.0)[:, 0]

    def posterior(embeddings: tf.Tensor, tau: float, centers: tf.Tensor) -> tf.Tensor:
        known = tf.gather(tf.stop_gradient(tf.cast(centers, tf.float32)), classes)
        return nearest_center_posterior(embeddings, known, tau)

    taught = [posterior(*each, c) for each, c in zip(teachers, centers, strict=True)]
    log_teacher = log_mixture(taught, teacher_weights)
    return posterior_kl(log_teacher, tf.gather(student_logits, classes, axis=1), tau_student)


def nearest_center_posterior(embeddings: tf.Tensor, centers: tf.Tensor, tau: float) -> tf.Tensor:
    """The teacher's side of `local_kl`: log softmax(embedding . centre / tau).

    Args:
      embeddings: float Tensor [..., B, d].
      centers: float Tensor [..., C, d], l2-normalised.
      tau: temperature.

    Returns:
      float32 Tensor [..., B, C].
    """
    return tf.nn.log_softmax(tf.matmul(embeddings, centers, transpose_b=True) / tau)


def posterior_kl(log_teacher: tf.Tensor, student_logits: tf.Tensor, tau: float) -> tf.Tensor:
    """KL(teacher || student), summed over classes and averaged over the batch.

    Args:
      log_teacher: float32 Tensor [..., B, C] of log-probabilities.
      student_logits: float32 Tensor [..., B, C].
      tau: the student's temperature.

    Returns:
      float32 Tensor [...].
    """
    log_student = tf.nn.log_softmax(student_logits / tau)
    divergence = tf.exp(log_teacher) * (log_teacher - log_student)
    return tf.reduce_mean(tf.reduce_sum(divergence, axis=-1), axis=-1)


def decayed_weight(
    initial: float | tf.Tensor, epoch: int | tf.Tensor, rate: float = 0.05
) -> tf.Tensor:
    """The weight of `local_kl` in an epoch: initial * exp(-rate * epoch).

    The paper prints a recursion which taken literally grows a thousandfold each epoch; read as
    this decay with initial = 1000 * lambda it agrees in magnitude with the authors' code.

    Args:
      initial: the weight in epoch 0.
      epoch: counted from 0.
      rate: by how much the logarithm of the weight falls in an epoch.

    Returns:
      float32 scalar Tensor.
    """
    initial = tf.cast(initial, tf.float32)
    return initial * tf.exp(-tf.cast(rate, tf.float32) * tf.cast(epoch, tf.float32))
