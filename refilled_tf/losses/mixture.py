"""Several teachers as one: their probabilities are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from refilled_tf.losses._checks import check_positive


def each_with_tau(
    embeddings: tf.Tensor | Sequence[tf.Tensor], tau: float | Sequence[float]
) -> list[tuple[tf.Tensor, float]]:
    """Pairs teachers with temperatures.

    Args:
      embeddings: one teacher's float Tensor [B, d], or a sequence of several teachers' [B, d_m].
      tau: one temperature for all, or a sequence of as many.

    Returns:
      (float32 Tensor without a gradient, temperature) of each teacher.

    Raises:
      ValueError: a temperature is not above zero, or there are more or fewer than teachers.
    """
    several = embeddings if isinstance(embeddings, list | tuple) else [embeddings]
    taus = tau if isinstance(tau, Sequence) else [tau] * len(several)
    if len(taus) != len(several):
        raise ValueError(f"tau_teacher={tau!r} must be one, or one for each of {len(several)}.")
    for each in taus:
        check_positive(tau_teacher=each)
    frozen = [tf.stop_gradient(tf.cast(each, tf.float32)) for each in several]
    return list(zip(frozen, taus, strict=True))


def log_mixture(
    log_probabilities: Sequence[tf.Tensor], weights: Sequence[float] | None = None
) -> tf.Tensor:
    """The log of the weighted mean of distributions, log sum_m w_m p_m.

    Args:
      log_probabilities: M float32 Tensors of one shape.
      weights: M numbers above zero, of which only the ratios count; None for equal ones.

    Returns:
      float32 Tensor of that shape; of a single distribution, itself.

    Raises:
      ValueError: a weight is not above zero, or there are more or fewer than distributions.
    """
    weights = weights or [1.0] * len(log_probabilities)
    if len(weights) != len(log_probabilities):
        raise ValueError(f"weights={weights!r} must be {len(log_probabilities)} numbers.")
    for weight in weights:
        check_positive(weight=weight)
    if len(weights) == 1:
        return log_probabilities[0]
    shares = tf.math.log(tf.constant(weights, tf.float32) / sum(weights))
    shifted = [x + share for x, share in zip(log_probabilities, tf.unstack(shares), strict=True)]
    return tf.reduce_logsumexp(tf.stack(shifted), axis=0)


def mixture_logits(
    logits: Sequence[tf.Tensor], weights: Sequence[float] | None = None
) -> tf.Tensor:
    """The logit of the weighted mean of Bernoulli probabilities: see `log_mixture`.

    Args:
      logits: M float32 Tensors of one shape.
      weights: as there.

    Returns:
      float32 Tensor of that shape, finite for finite logits; of a single one, itself.
    """
    if len(logits) == 1:
        return logits[0]
    yes = log_mixture([-tf.nn.softplus(-x) for x in logits], weights)
    no = log_mixture([-tf.nn.softplus(x) for x in logits], weights)
    return yes - no
