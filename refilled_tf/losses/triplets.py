"""Relationship matching on triplets, the first stage of REFILLED.

Source: Ye, Lu, Zhan, "Distilling Cross-Task Knowledge via Relationship Matching", CVPR 2020,
supplement Eq. 2-4. The teacher's view of a triplet (anchor i, positive j, impostor k) is the
probability that i is nearer to j than to k; the student is to hold the same view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from refilled_tf.losses._checks import check_positive
from refilled_tf.losses.distances import l2_normalize, pairwise_distances
from refilled_tf.losses.mixture import each_with_tau, mixture_logits

FALLBACKS = ("skip", "farthest")


class Triplets(NamedTuple):
    """Positions in the batch, three int32 Tensors [T]; T depends on the batch."""

    anchor: tf.Tensor
    positive: tf.Tensor
    negative: tf.Tensor


def same_class(labels: tf.Tensor) -> tf.Tensor:
    """Returns the mask of pairs of one class.

    Args:
      labels: Tensor [B], integers (or anything `tf.equal` compares); or bool Tensor [B, B] that
        says it already, such as of `nearest_neighbors`.

    Returns:
      bool Tensor [B, B], True on the diagonal.

    Raises:
      ValueError: `labels` is known not to be a vector.
    """
    labels = tf.convert_to_tensor(labels)
    if labels.dtype == tf.bool and labels.shape.rank == 2:
        return labels
    labels.shape.assert_has_rank(1)
    return tf.equal(labels[:, tf.newaxis], labels[tf.newaxis, :])


def nearest_neighbors(distances: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the mask of pairs that are near each other, to take the place of classes.

    Args:
      distances: float Tensor [B, B], symmetric, zero on the diagonal.
      count: k < B.

    Returns:
      bool Tensor [B, B], symmetric, True on the diagonal and where one of two examples is among the
      other's k nearest; of equally distant ones the first in the batch.
    """
    distances = tf.linalg.set_diag(distances, tf.fill(tf.shape(distances)[:1], -1.0))
    _, nearest = tf.math.top_k(-distances, k=count + 1)
    near = tf.reduce_any(tf.one_hot(nearest, tf.shape(distances)[0], True, False, dtype=tf.bool), 1)
    return tf.logical_or(near, tf.transpose(near))


def positive_pairs(same: tf.Tensor) -> tf.Tensor:
    """All ordered pairs of two different examples of one class.

    Args:
      same: bool Tensor [B, B] from `same_class`.

    Returns:
      int32 Tensor [P, 2], sorted by the first column, then by the second.
    """
    different = tf.linalg.set_diag(same, tf.zeros_like(same[0]))
    return tf.cast(tf.where(different), tf.int32)


def semi_hard_triplets(distances: tf.Tensor, labels: tf.Tensor, fallback: str = "skip") -> Triplets:
    """Picks for each ordered positive pair the nearest impostor beyond the positive.

    For (i, j), i != j, y_i == y_j, that is the k with y_k != y_i and the smallest d(i, k) that
    is strictly above d(i, j); of several equally distant ones the first in the batch.

    Each anchor's impostors are sorted once and all its positives looked up in that order:
    O(B^2 log B) time, O(B^2) memory, no Tensor of B^3 entries. No gradient flows through.

    Args:
      distances: float Tensor [B, B]; entry (i, j) is the distance from anchor i to j.
      labels: Tensor [B], integers.
      fallback: what to do with a pair that has no impostor beyond the positive. "skip" drops
        the pair (the paper's text), "farthest" takes the farthest impostor, the first in the
        batch of several (the authors' published code). A batch of one class has no impostor to
        fall back on, so its pairs are dropped either way.

    Returns:
      `Triplets`, sorted by anchor, then by positive.

    Raises:
      ValueError: `fallback` is unknown.
    """
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback must be one of {FALLBACKS}, got {fallback!r}.")
    distances = tf.stop_gradient(tf.cast(distances, tf.float32))
    same = same_class(labels)
    pairs = positive_pairs(same)
    anchor, positive = pairs[:, 0], pairs[:, 1]
    batch = tf.shape(distances)[0]

    # top_k puts the lower index first among equals, which settles ties. NaN has no place in an
    # order (sorting it is undefined behaviour), so it is treated as no impostor.
    excluded = tf.logical_or(same, tf.math.is_nan(distances))
    descending, order = tf.math.top_k(tf.where(excluded, -float("inf"), -distances), k=batch)
    impostors = -descending
    ends = tf.searchsorted(impostors, tf.fill([batch, 1], float("inf")), side="left")
    num_impostors = tf.gather(ends[:, 0], anchor)

    # Looked up are only the positives of each anchor, moved side by side: [B, most positives].
    counts = tf.math.unsorted_segment_sum(tf.ones_like(anchor), anchor, batch)
    starts = tf.cumsum(counts, exclusive=True)
    column = tf.range(tf.shape(anchor)[0]) - tf.gather(starts, anchor)
    slots = tf.stack([anchor, column], axis=1)
    width = tf.maximum(tf.reduce_max(counts), 1)
    lookup = tf.scatter_nd(slots, tf.gather_nd(distances, pairs), [batch, width])
    rank = tf.gather_nd(tf.searchsorted(impostors, lookup, side="right"), slots)

    keep = rank < num_impostors
    if fallback == "farthest":
        last = tf.stack([tf.range(batch), tf.maximum(ends[:, 0] - 1, 0)], axis=1)
        farthest = tf.gather_nd(impostors, last)[:, tf.newaxis]
        first_farthest = tf.searchsorted(impostors, farthest, side="left")[:, 0]
        rank = tf.where(keep, rank, tf.gather(first_farthest, anchor))
        keep = num_impostors > 0

    anchor, positive, rank = (tf.boolean_mask(x, keep) for x in (anchor, positive, rank))
    negative = tf.gather_nd(order, tf.stack([anchor, rank], axis=1))
    return Triplets(anchor, positive, negative)


def bernoulli_kl(teacher_logits: tf.Tensor, student_logits: tf.Tensor) -> tf.Tensor:
    """KL(Bernoulli(sigmoid(t)) || Bernoulli(sigmoid(s))), element by element.

    Log-probabilities are softplus of the logits, never logarithms of probabilities, so the
    result is finite however certain either side is. Its derivative with respect to s is
    sigmoid(s) - sigmoid(t).

    Args:
      teacher_logits: float Tensor of any shape; no gradient flows to it.
      student_logits: float Tensor of the same shape.

    Returns:
      float32 Tensor of the same shape.
    """
    teacher = tf.stop_gradient(tf.cast(teacher_logits, tf.float32))
    student = tf.cast(student_logits, tf.float32)
    # -log sigmoid(x) = softplus(-x)
    yes = tf.nn.softplus(-student) - tf.nn.softplus(-teacher)
    no = tf.nn.softplus(student) - tf.nn.softplus(teacher)
    return tf.sigmoid(teacher) * yes + tf.sigmoid(-teacher) * no


def triplet_kl(
    student_embeddings: tf.Tensor,
    teacher_embeddings: tf.Tensor | Sequence[tf.Tensor],
    labels: tf.Tensor,
    *,
    tau_teacher: float | Sequence[float] = 2.0,
    tau_student: float = 1.0,
    teacher_weights: Sequence[float] | None = None,
    fallback: str = "skip",
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean KL between the teacher's and the student's view of the student's semi-hard triplets.

    Both embeddings are l2-normalised and p_ijk = sigmoid((d(i, k) - d(i, j)) / tau) with the
    un-squared Euclidean distance d (Ye, Lu, Zhan, CVPR 2020, supplement Eq. 2-4). Triplets are
    mined in the student's embedding (`semi_hard_triplets`), without a gradient through the
    choice. With one temperature on both sides and a weight of 500 this is the authors'
    published code.

    Args:
      student_embeddings: float Tensor [B, d_S].
      teacher_embeddings: float Tensor [B, d_T], or several teachers', whose p_ijk are averaged; the
        widths may differ. Gets no gradient.
      labels: Tensor [B], integers; or what `same_class` makes of them.
      tau_teacher: temperature of the teacher, or of each; the paper takes 2 across tasks, 4 on
        one task.
      tau_student: temperature of the student; the paper does not smooth it.
      teacher_weights: what each of several teachers counts; None for all the same.
      fallback: see `semi_hard_triplets`.

    Returns:
      (loss, num_triplets): float32 scalars. A batch without any triplet has loss 0 with zero
      gradient. The loss is finite for every finite input and NaN if the student holds a NaN.

    Raises:
      ValueError: a temperature is not above zero, or `fallback` is unknown.
    """
    check_positive(tau_student=tau_student)
    student = l2_normalize(student_embeddings)
    teachers = each_with_tau(teacher_embeddings, tau_teacher)
    distances = pairwise_distances(student)
    anchor, positive, negative = semi_hard_triplets(distances, labels, fallback)
    # One gather for both sides of the gap: its gradient is a [B, B] Tensor, so one, not two.
    index = tf.stack([tf.stack([anchor, negative], axis=1), tf.stack([anchor, positive], axis=1)])

    def logits(matrix: tf.Tensor, tau: float) -> tf.Tensor:
        to_negative, to_positive = tf.unstack(tf.gather_nd(matrix, index), num=2)
        return (to_negative - to_positive) / tau

    taught = [logits(pairwise_distances(l2_normalize(each)), tau) for each, tau in teachers]
    divergence = bernoulli_kl(
        mixture_logits(taught, teacher_weights), logits(distances, tau_student)
    )
    num_triplets = tf.cast(tf.size(anchor), tf.float32)
    loss = tf.reduce_sum(divergence) / tf.maximum(num_triplets, 1.0)
    # NaN is beyond no positive: without this a student that has diverged would look like a
    # batch without triplets. Unit vectors cannot overflow, so otherwise this is exactly zero.
    return loss + 0.0 * tf.reduce_sum(student), num_triplets
