"""Neuron selectivity transfer: the student's channels are to be distributed as the teacher's.

Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
2017, with the polynomial kernel of degree 2.
"""

from __future__ import annotations

import tensorflow as tf

from refilled_tf.losses.distances import l2_normalize


def neuron_selectivity(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """The squared maximum mean discrepancy between the channels of an image, averaged.

    A channel is a sample: its activations over space, as a vector of length one. With the kernel
    k(a, b) = (a·b)² the loss is mean k(t, t) + mean k(s, s) - 2 · mean k(s, t). The first term is
    constant; with it the loss is never negative, but for rounding, and 0 is reached.

    Memory is O(B · (c_S + c_T)²) beside the features.

    Args:
      student: float Tensor [B, h, w, c_S].
      teacher: float Tensor [B, h, w, c_T]; gets no gradient.

    Returns:
      float32 scalar. A channel that is zero everywhere gets a zero gradient.
    """
    student, teacher = _channels(student), tf.stop_gradient(_channels(teacher))
    return (
        _mean_kernel(teacher, teacher)
        + _mean_kernel(student, student)
        - 2.0 * _mean_kernel(student, teacher)
    )


def _channels(features: tf.Tensor) -> tf.Tensor:
    """[B, h, w, c] to [B, c, h·w], each row of length one."""
    # What is gathered from several replicas has no static shape.
    batch, _, _, channels = tf.unstack(tf.shape(features))
    flat = tf.reshape(features, [batch, -1, channels])
    return l2_normalize(tf.linalg.matrix_transpose(flat))


def _mean_kernel(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(tf.matmul(a, b, transpose_b=True)))
