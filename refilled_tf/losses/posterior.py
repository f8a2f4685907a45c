"""The posterior of a linear classifier on a frozen teacher's embedding."""

from __future__ import annotations

import tensorflow as tf

from refilled_tf.losses._checks import check_positive
from refilled_tf.losses.distances import l2_normalize


def probe_posterior(
    embeddings: tf.Tensor,
    weights: tf.Tensor,
    bias: tf.Tensor,
    fold: tf.Tensor,
    temperature: float,
) -> tf.Tensor:
    """Log softmax((x̂ · weights[fold] + bias[fold]) / T), with x̂ the l2-normalised embedding.

    Args:
      embeddings: float Tensor [B, d]; gets no gradient.
      weights: float Tensor [F, d, C], of F classifiers.
      bias: float Tensor [F, C].
      fold: integer Tensor [B]: which classifier judges each image.
      temperature: T.

    Returns:
      float32 Tensor [B, C].

    Raises:
      ValueError: the temperature is not above zero.
    """
    check_positive(temperature=temperature)
    unit = l2_normalize(tf.stop_gradient(embeddings))
    # By all classifiers, which takes less than to look up a [d, C] matrix for each image.
    logits = tf.einsum("bd,fdc->bfc", unit, weights) + bias
    return tf.nn.log_softmax(tf.gather(logits, fold, axis=1, batch_dims=1) / temperature)
