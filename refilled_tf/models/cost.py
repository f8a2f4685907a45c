"""Size and calculations of a network."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

_PRODUCTS = ("Conv2D", "DepthwiseConv2dNative", "MatMul")


class Cost(NamedTuple):
    """A network's weights and multiplications.

    Attributes:
        weights: how many numbers it consists of, statistics of normalisations included.
        multiplications: of its convolutions and matrix products for one image, beside which the
            rest is little.
    """

    weights: int
    multiplications: int


def cost_of(network: tf.keras.Model) -> Cost:
    """Counts a network's weights and, by TensorFlow's profiler, its multiplications.

    Args:
        network: images of one size to named outputs.
    """
    image = tf.TensorSpec([1, *network.input_shape[1:]])
    run = tf.function(lambda images: network(images, training=False))
    profiler = tf.compat.v1.profiler
    counting = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    found = profiler.profile(
        run.get_concrete_function(image).graph,
        cmd="op",
        options=counting.with_empty_output().build(),
    )
    # A product and the sum that it goes into count as two.
    return Cost(network.count_params(), _operations(found) // 2)


def _operations(kind: Any) -> int:
    """Adds up a chain of kinds of operations, as the profiler nests them."""
    own = kind.float_ops if kind.name in _PRODUCTS else 0
    return own + sum(_operations(further) for further in kind.children)
