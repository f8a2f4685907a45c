"""Relational knowledge distillation, a comparison method.

Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019. The student is to
reproduce the distances (Eq. 6-8) and angles (Eq. 9-10) among the teacher's embeddings.
"""

from __future__ import annotations

import tensorflow as tf

from refilled_tf.losses.distances import l2_normalize, pairwise_distances, rescale


def _huber(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Mean Huber loss with delta 1: e^2 / 2 for an error |e| <= 1, |e| - 1/2 beyond."""
    error = tf.abs(student - teacher)
    quadratic = tf.minimum(error, 1.0)
    return tf.reduce_mean(0.5 * tf.square(quadratic) + (error - quadratic))


def _relative_distances(embeddings: tf.Tensor) -> tf.Tensor:
    """Pairwise distances in units of the mean of the positive ones: [B, B]."""
    distances = pairwise_distances(rescale(embeddings)[0])
    positive = tf.reduce_sum(tf.cast(distances > 0.0, tf.float32))
    mean = tf.reduce_sum(distances) / tf.maximum(positive, 1.0)
    return distances / tf.where(tf.equal(mean, 0.0), tf.ones_like(mean), mean)


def rkd_distance(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Distance-wise loss: Huber between pairwise distances, each divided by their mean.

    As in the authors' published code the unit is the mean over positive distances, is
    differentiated on the student's side, and the loss is the mean over all B^2 entries.

    Args:
      student: float Tensor [B, d_S], embeddings that are not normalised.
      teacher: float Tensor [B, d_T]; gets no gradient.

    Returns:
      float32 scalar. Where all embeddings of one side coincide, its distances are zero.
    """
    return _huber(_relative_distances(student), _relative_distances(tf.stop_gradient(teacher)))


def _angles(embeddings: tf.Tensor) -> tf.Tensor:
    """Cosine of the angle at i between j and k: [B, B, B], 0 where i coincides with j or k."""
    scaled, _ = rescale(embeddings)
    directions = l2_normalize(scaled[tf.newaxis, :, :] - scaled[:, tf.newaxis, :])
    return tf.matmul(directions, directions, transpose_b=True)


def rkd_angle(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Angle-wise loss: Huber between the cosines of all angles within triplets.

    With e_ij the unit vector from x_i to x_j the cosine at i is e_ij . e_ik, and the loss is
    the mean over all B^3 entries, degenerate ones included, as in the authors' published code.

    Memory is O(B^3 + B^2 d): the differences are formed, not taken from the Gram matrix,
    because a direction between near points would be mostly rounding there. At the usual
    B = 128 a [B, B, B] Tensor is 8 MB and one of [B, B, 1024] 64 MB.

    Args:
      student: float Tensor [B, d_S], embeddings that are not normalised.
      teacher: float Tensor [B, d_T]; gets no gradient.

    Returns:
      float32 scalar. Coincident points contribute zero cosines and a zero gradient.
    """
    return _huber(_angles(student), _angles(tf.stop_gradient(teacher)))
