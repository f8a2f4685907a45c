"""FitNet: the student's hidden features are to be the teacher's.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, with the regressor of the
field's benchmark (1×1 convolution, batch norm, ReLU).
"""

from __future__ import annotations

import tensorflow as tf


def regressor(features: tf.Tensor, channels: int) -> tf.Tensor:
    """Brings a student's features to the teacher's number of channels, by layers to be trained.

    Args:
      features: Keras tensor [B, h, w, c_S].
      channels: c_T.

    Returns:
      Keras tensor [B, h, w, c_T], not negative.
    """
    x = tf.keras.layers.Conv2D(channels, 1)(features)
    x = tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    return tf.keras.layers.ReLU()(x)


def hint(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """The mean squared difference of regressed and taught features.

    Args:
      student: float32 Tensor [B, h, w, c_T], after the regressor.
      teacher: float32 Tensor [B, h, w, c_T]; gets no gradient.

    Returns:
      float32 scalar.
    """
    return tf.reduce_mean(tf.math.squared_difference(student, tf.stop_gradient(teacher)))
