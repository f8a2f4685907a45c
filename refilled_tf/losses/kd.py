"""Knowledge distillation: the student learns the teacher's softened posterior.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

import tensorflow as tf

from refilled_tf.losses._checks import check_positive


def kd(student: tf.Tensor, teacher: tf.Tensor, temperature: float) -> tf.Tensor:
    """T² · KL(softmax(z_T / T) ‖ softmax(z_S / T)).

    Summed over classes, averaged over the batch. T² keeps the size of the gradient where the
    temperature changes.

    Args:
      student: float Tensor [B, C], logits.
      teacher: float Tensor [B, C], logits; gets no gradient.
      temperature: T.

    Returns:
      float32 scalar.

    Raises:
      ValueError: the temperature is not above zero.
    """
    check_positive(temperature=temperature)
    teacher = tf.stop_gradient(tf.cast(teacher, tf.float32))
    log_teacher = tf.nn.log_softmax(teacher / temperature)
    log_student = tf.nn.log_softmax(tf.cast(student, tf.float32) / temperature)
    divergence = tf.reduce_sum(tf.exp(log_teacher) * (log_teacher - log_student), axis=1)
    return temperature**2 * tf.reduce_mean(divergence)
