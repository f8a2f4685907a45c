"""Variational information distillation: the teacher's features are to be predictable.

Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
Eq. 5, for intermediate layers (VID-I).
"""

from __future__ import annotations

import tensorflow as tf


def gaussian_nll(mean: tf.Tensor, variance: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Negative log-likelihood of the teacher's features, averaged over all their entries.

    That is mean ½·[(t - μ)² / σ² + log σ²], the constant ½·log 2π left out; it may be negative.
    At its optimum a channel's variance is its mean squared error.

    Args:
      mean: float Tensor [B, h, w, c], μ, predicted from the student's features.
      variance: float Tensor [c], σ², positive.
      teacher: float Tensor [B, h, w, c], t; gets no gradient.

    Returns:
      float32 scalar.
    """
    mean, variance, teacher = (tf.cast(x, tf.float32) for x in (mean, variance, teacher))
    squares = tf.math.squared_difference(mean, tf.stop_gradient(teacher))
    errors = tf.reduce_mean(squares, axis=[0, 1, 2])
    return 0.5 * tf.reduce_mean(errors / variance + tf.math.log(variance))
