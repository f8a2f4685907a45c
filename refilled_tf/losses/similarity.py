"""Similarity distillation: how near an image is to each of a bank of others."""

from __future__ import annotations

import tensorflow as tf

from refilled_tf.losses._checks import check_positive


def similarity_kl(
    student: tf.Tensor,
    teacher: tf.Tensor,
    bank: tf.Tensor,
    *,
    tau_teacher: float,
    tau_student: float,
) -> tf.Tensor:
    """KL(softmax(ẑ_T · D / τ_T) ‖ softmax(ẑ_S · D / τ_S)) over the members of the bank D.

    Fang et al., "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021, Eq. 3.

    Args:
      student: float Tensor [B, d], l2-normalised.
      teacher: float Tensor [B, d], l2-normalised; gets no gradient.
      bank: float Tensor [A, d], l2-normalised; gets no gradient.
      tau_teacher: temperature of the teacher.
      tau_student: temperature of the student.

    Returns:
      float32 Tensor [B].

    Raises:
      ValueError: a temperature is not above zero.
    """
    check_positive(tau_teacher=tau_teacher, tau_student=tau_student)
    bank = tf.stop_gradient(bank)
    log_teacher, log_student = (
        tf.nn.log_softmax(tf.matmul(side, bank, transpose_b=True) / tau)
        for side, tau in ((tf.stop_gradient(teacher), tau_teacher), (student, tau_student))
    )
    return tf.reduce_sum(tf.exp(log_teacher) * (log_teacher - log_student), axis=-1)
