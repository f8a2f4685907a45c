"""The largest student that fits a microcontroller, found before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from export import micro_files, micro_model
from export.boards import Budget
from refilled_tf.common.errors import InputError
from refilled_tf.models import networks
from refilled_tf.models.networks import Backbone

WIDTHS = (0.1, 0.25, 0.35, 0.5, 0.75, 1.0)
SIZES = (48, 64, 96, 128)
_STEPS = 30  # after which batch norm's moving averages, of momentum .9, are those of the images


class Fit(NamedTuple):
    """A student of some width and image size, and what it needs.

    Attributes:
        width: the width multiplier.
        image_size: side of its images in pixels.
        flash: bytes of the network.
        ram: bytes of its arena, with the margin of `micro_files.reserved`.
    """

    width: float
    image_size: int
    flash: int
    ram: int

    def within(self, budget: Budget) -> bool:
        """Whether it fits."""
        return self.flash <= budget.flash and self.ram <= budget.ram


def fit(budget: Budget, make: Callable[[float], Backbone], classes: int) -> Fit:
    """Returns the student of the most multiplications that fits.

    Each is built untrained, quantised, and run by tflite-micro. Whatever its weights will be, they
    take as many bytes.

    Args:
        budget: what there is.
        make: a student from its width multiplier.
        classes: how many it tells apart.

    Raises:
        InputError: not even the smallest fits; it names what that needs.
    """
    pairs = candidates()
    for width, image_size in pairs:
        network = networks.classifier(make(width), image_size, classes)
        # A weight takes a byte at least.
        if network.count_params() <= budget.flash or (width, image_size) == pairs[-1]:
            found = measured(network, width)
            if found.within(budget):
                return found
    raise InputError(
        f"no student fits into {budget.flash // 1024} kB of flash and {budget.ram // 1024} kB of "
        f"RAM; the smallest, of width {found.width} at {found.image_size}×{found.image_size}, "
        f"needs --flash_kb={-(-found.flash // 1024)} --ram_kb={-(-found.ram // 1024)}"
    )


def candidates() -> list[tuple[float, int]]:
    """Returns widths and image sizes, those of the most multiplications first.

    These grow about with the squares of both.
    """
    pairs = itertools.product(WIDTHS, SIZES)
    return sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair), reverse=True)


def measured(network: tf.keras.Model, width: float) -> Fit:
    """Quantises a fresh classifier, runs it by tflite-micro, and prints what it needs."""
    image_size = network.input_shape[1]
    model = quantized(network)
    ram = micro_files.reserved(micro_model.arena_bytes(model))
    print(
        f"width {width} at {image_size}×{image_size}: {len(model) / 1024:,.0f} kB of flash, "
        f"{ram / 1024:,.0f} kB of RAM",
        flush=True,
    )
    return Fit(width, image_size, len(model), ram)


def quantized(network: tf.keras.Model, grey: bool = False) -> bytes:
    """Returns a fresh classifier as a .tflite file, as large as when it has learnt something.

    Args:
        network: pixels [B, S, S, 3] to {"embedding", "logits"}; its batch norm's statistics change.
        grey: whether the file's images have one channel.
    """
    size = network.input_shape[1]
    noise = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    # Without statistics of any images its activations are too small for integers.
    for _ in range(_STEPS):
        network(tf.cast(noise, tf.float32), training=True)
    seen = micro_model.as_seen(noise, size, size, grey)
    return micro_model.convert(micro_model.rewritten(network, grey), seen, len(seen))
