"""Relationship matching on tuples: one softmax over a positive and all its near impostors.

The later improvement by the authors of REFILLED (Ye, Lu, Zhan, CVPR 2020) on their triplets.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from refilled_tf.losses._checks import check_positive
from refilled_tf.losses.distances import l2_normalize, pairwise_distances
from refilled_tf.losses.mixture import each_with_tau, log_mixture
from refilled_tf.losses.triplets import positive_pairs, same_class


def tuple_kl(
    student_embeddings: tf.Tensor,
    teacher_embeddings: tf.Tensor | Sequence[tf.Tensor],
    labels: tf.Tensor,
    *,
    tau_teacher: float | Sequence[float],
    tau_student: float,
    teacher_weights: Sequence[float] | None = None,
    margin: float = 0.2,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean KL between the teacher's and the student's softmax over tuples.

    A tuple is an ordered positive pair (i, j) with all impostors k for which
    0 < d_S(i, k) - d_S(i, j) <= margin, the distances being un-squared Euclidean between
    l2-normalised student embeddings. On either side the distribution is the softmax of
    [-d(i, j), -d(i, k1), -d(i, k2), ...] / tau. A pair without any such impostor is no tuple.
    The choice of impostors carries no gradient.

    All tuples are held at once as rows of the batch's width with a mask, so memory is O(P B)
    with P the number of ordered positive pairs (P ~ B^2 / C for C balanced classes).

    Args:
      student_embeddings: float Tensor [B, d_S].
      teacher_embeddings: float Tensor [B, d_T], or several teachers', whose distributions are
        averaged; gets no gradient.
      labels: Tensor [B], integers; or what `same_class` makes of them.
      tau_teacher: temperature of the teacher, or of each.
      tau_student: temperature of the student.
      teacher_weights: what each of several teachers counts; None for all the same.
      margin: how far beyond the positive an impostor may lie in the student's embedding.

    Returns:
      (loss, num_tuples): float32 scalars. Without any tuple the loss is 0 with zero gradient.
      The loss is finite for every finite input and NaN if the student holds a NaN.

    Raises:
      ValueError: a temperature or the margin is not above zero.
    """
    check_positive(tau_student=tau_student, margin=margin)
    student = l2_normalize(student_embeddings)
    teachers = each_with_tau(teacher_embeddings, tau_teacher)
    same = same_class(labels)
    pairs = positive_pairs(same)
    anchor, positive = pairs[:, 0], pairs[:, 1]

    distances = pairwise_distances(student)
    frozen = tf.stop_gradient(distances)
    gaps = tf.gather(frozen, anchor) - tf.gather_nd(frozen, pairs)[:, tf.newaxis]
    impostor = tf.logical_not(tf.gather(same, anchor)) & (gaps > 0.0) & (gaps <= margin)
    is_tuple = tf.reduce_any(impostor, axis=1)
    anchor, positive, impostor = (
        tf.boolean_mask(x, is_tuple) for x in (anchor, positive, impostor)
    )
    # The positive keeps its own column j, so a member's column is its place in the batch.
    member = impostor | tf.one_hot(positive, tf.shape(same)[0], True, False, dtype=tf.bool)

    def log_probabilities(matrix: tf.Tensor, tau: float) -> tf.Tensor:
        logits = -tf.gather(matrix, anchor) / tau
        # The lowest finite number, not -inf: exp of it is 0 all the same, but its products
        # and differences are no NaN, neither here nor in the gradient.
        return tf.nn.log_softmax(tf.where(member, logits, tf.float32.min))

    taught = [
        log_probabilities(pairwise_distances(l2_normalize(each)), tau) for each, tau in teachers
    ]
    log_teacher = log_mixture(taught, teacher_weights)
    log_student = log_probabilities(distances, tau_student)
    log_ratio = tf.where(member, log_teacher - log_student, 0.0)
    num_tuples = tf.cast(tf.size(anchor), tf.float32)
    loss = tf.reduce_sum(tf.exp(log_teacher) * log_ratio) / tf.maximum(num_tuples, 1.0)
    # As in triplet_kl: NaN must not pass for a batch without tuples.
    return loss + 0.0 * tf.reduce_sum(student), num_tuples
