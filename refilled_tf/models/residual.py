"""Layers of the residual networks, which compute as those of the published Torch code.

Layers are named by their place in the network, so that the same network has the same names
whatever was built before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from refilled_tf.common.errors import require
from refilled_tf.models import networks
from refilled_tf.models.batch_norm import BatchNorm

# (x [B, h, w, c], channels, stride, name) to [B, h/stride, w/stride, channels].
Block = Callable[[tf.Tensor, int, int, str], tf.Tensor]


def input_images(image_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns images [B, S, S, 3] in [0, 255], and the same in [-1, 1]."""
    images = tf.keras.Input((image_size, image_size, 3), name="images")
    return images, tf.keras.layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(images)


def convolution(x: tf.Tensor, channels: int, size: int, stride: int, name: str) -> tf.Tensor:
    """Convolves without bias, all sides padded by size // 2; weights start as He-normal (fan out).

    Args:
        x: [B, h, w, c].
        channels: of the result.
        size: of the kernel, odd.
        stride: 1 or 2.
        name: of the layer.

    Returns:
        [B, ⌈h/stride⌉, ⌈w/stride⌉, channels].
    """
    padding = "same"
    if stride > 1 and size > 1:
        # "same" would pad even sizes at the bottom and the right alone.
        x = tf.keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    return tf.keras.layers.Conv2D(
        channels,
        size,
        stride,
        padding,
        use_bias=False,
        kernel_initializer=tf.keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        ),
        name=name,
    )(x)


def norm(x: tf.Tensor, momentum: float, name: str) -> tf.Tensor:
    """Batch norm with the statistics of the global batch."""
    return BatchNorm(momentum=momentum, epsilon=1e-5, name=name)(x)


def relu(x: tf.Tensor, name: str) -> tf.Tensor:
    """Returns max(x, 0)."""
    return tf.keras.layers.ReLU(name=name)(x)


def groups(x: tf.Tensor, counts: Sequence[int], channels: int, block: Block) -> tf.Tensor:
    """Stacks groups of blocks: each group halves the resolution and doubles the channels.

    The outputs of the first three are marked as "f1", "f2" and "f3".

    Args:
        x: [B, h, w, c].
        counts: blocks in each of G groups.
        channels: of the first group, which keeps the resolution.
        block: one residual block.

    Returns:
        [B, ⌈h/2^(G-1)⌉, ⌈w/2^(G-1)⌉, channels·2^(G-1)].
    """
    for group, count in enumerate(counts, start=1):
        for index in range(1, count + 1):
            stride = 2 if group > 1 and index == 1 else 1
            x = block(x, channels * 2 ** (group - 1), stride, f"group{group}_block{index}")
        if group <= 3:
            x = networks.mark(x, f"f{group}")
    return x


def blocks_per_group(option: str, depth: int, others: int) -> int:
    """Returns n of a network of 3 groups of n blocks of 2 layers, depth = 6n + others.

    Args:
        option: what the depth is set by, for the message.
        depth: number of layers.
        others: layers that the family counts beside those.

    Raises:
        InputError: there is no such n ≥ 1; names the nearest depths that have one.
    """
    n = max(1, int(depth - others) // 6)
    nearest = 6 * n + others
    require(
        depth == nearest,
        f"{option}={depth} must be 6n+{others}, n ≥ 1; the nearest are {nearest} and {nearest + 6}",
    )
    return n
