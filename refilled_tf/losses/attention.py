"""Attention transfer: the student is to look where the teacher looks.

Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, with mean squares
over channels, and the mean over places, as in the authors' published code.
"""

from __future__ import annotations

import tensorflow as tf

from refilled_tf.losses.distances import l2_normalize


def attention_maps(features: tf.Tensor) -> tf.Tensor:
    """Returns the attention map: the mean square over channels, as a vector of length one.

    Args:
      features: float Tensor [B, h, w, c].

    Returns:
      float32 Tensor [B, h·w]; zero, with a zero gradient, for an image whose features are zero.
    """
    activity = tf.reduce_mean(tf.square(tf.cast(features, tf.float32)), axis=-1)
    return l2_normalize(tf.reshape(activity, [tf.shape(activity)[0], -1]))


def attention_transfer(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """The mean squared difference of attention maps, over images and places.

    Args:
      student: float Tensor [B, h, w, c_S].
      teacher: float Tensor [B, h, w, c_T]; gets no gradient.

    Returns:
      float32 scalar.
    """
    taught = tf.stop_gradient(attention_maps(teacher))
    return tf.reduce_mean(tf.math.squared_difference(attention_maps(student), taught))
