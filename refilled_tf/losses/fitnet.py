"""FitNet: the student's hidden features are to be the teacher's.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.
"""

from __future__ import annotations

import tensorflow as tf


def hint(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """The mean squared difference of features.

    Args:
      student: float Tensor [B, h, w, c], brought to the teacher's channels.
      teacher: float Tensor [B, h, w, c]; gets no gradient.

    Returns:
      float32 scalar.
    """
    student, teacher = tf.cast(student, tf.float32), tf.cast(teacher, tf.float32)
    return tf.reduce_mean(tf.math.squared_difference(student, tf.stop_gradient(teacher)))
