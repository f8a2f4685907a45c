"""Normalisation and pairwise distances whose values and gradients are always finite."""

from __future__ import annotations

import tensorflow as tf

# The Gram matrix gives a squared distance as a small difference of large numbers: below about
# this fraction of the two squared norms only rounding is left of it.
_COINCIDENT = 4 * 2.0**-23


def rescale(embeddings: tf.Tensor, axis: int | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Divides by the largest absolute entry, so that squares neither overflow nor vanish.

    No gradient flows through the divisor. The gradient is nevertheless exact for a caller whose
    result does not depend on the scale, or who multiplies a distance by the scale again.

    Args:
      embeddings: float Tensor of any shape.
      axis: the axis over which the largest entry is sought; None means over all of them.

    Returns:
      (scaled, scale): float32, `scaled` of the shape of `embeddings` with entries in [-1, 1],
      `scale` of the same rank and positive; it is 1 where all entries are zero.
    """
    embeddings = tf.cast(embeddings, tf.float32)
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(embeddings), axis=axis, keepdims=True))
    # Written as "less than", so that NaN is not mistaken for zero and stays visible.
    scale = tf.where(largest < 2.0**-126, tf.ones_like(largest), largest)
    return embeddings / scale, scale


def l2_normalize(embeddings: tf.Tensor) -> tf.Tensor:
    """Scales each vector to Euclidean length one.

    Unlike `tf.math.l2_normalize` there is no epsilon: a vector of any length but zero reaches
    length one.

    Args:
      embeddings: float Tensor [B, d] (or [..., d]: the last axis is normalised).

    Returns:
      float32 Tensor of the same shape. A zero vector stays zero and receives a zero gradient.
    """
    scaled, _ = rescale(embeddings, axis=-1)
    squares = tf.reduce_sum(tf.square(scaled), axis=-1, keepdims=True)
    is_zero = tf.equal(squares, 0.0)
    # The inner `where` keeps the infinite derivative of rsqrt at zero out of the graph, the
    # outer one makes the factor, and with it the gradient, zero.
    inverse = tf.math.rsqrt(tf.where(is_zero, tf.ones_like(squares), squares))
    return scaled * tf.where(is_zero, tf.zeros_like(inverse), inverse)


def pairwise_distances(embeddings: tf.Tensor) -> tf.Tensor:
    """Un-squared Euclidean distances between all rows.

    They come from the Gram matrix, in O(B^2) memory. Rows are centred on their mean first:
    distances do not change, but the common offset which features after a ReLU have no longer
    eats up the digits. Two rows closer than about a thousandth of their distance from the mean
    cannot be told apart this way in float32 and count as coincident.

    Args:
      embeddings: float Tensor [B, d].

    Returns:
      float32 Tensor [B, B]. Coincident points, and so the diagonal, are at distance exactly 0
      with gradient 0: of the subgradients of a norm at its kink, the one that moves nothing.
    """
    scaled, scale = rescale(embeddings)
    # A shift moves no distance, so nothing is lost by not differentiating the mean.
    centred = scaled - tf.stop_gradient(tf.reduce_mean(scaled, axis=0, keepdims=True))
    gram = tf.matmul(centred, centred, transpose_b=True)
    # From the Gram matrix's own diagonal, so that the distance of a row to itself is exactly 0.
    norms = tf.linalg.diag_part(gram)
    norms = norms[:, tf.newaxis] + norms[tf.newaxis, :]
    squares = norms - 2.0 * gram
    coincident = squares <= _COINCIDENT * norms
    roots = tf.sqrt(tf.where(coincident, tf.ones_like(squares), squares))
    return tf.where(coincident, tf.zeros_like(roots), roots) * scale
