"""Networks of our own that start from weights that somebody has trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.common import settings
from refilled_tf.common.errors import InputError, one_line, require, require_built
from refilled_tf.common.stack import load_keras
from refilled_tf.models import keras_files
from refilled_tf.models.networks import Backbone

IMAGENET = "imagenet"


@runtime_checkable
class Published(Protocol):
    """A backbone that Keras has trained weights of."""

    def application(self, **options: Any) -> tf.keras.Model:
        """Returns Keras's own network of its width, without classifier."""


@gin.register
@dataclasses.dataclass(frozen=True)
class FromWeights:
    """A network that is the same in all but the weights that it starts from.

    Attributes:
        network: what it is, such as @MobileNetV2().
        weights: "imagenet", for what Keras downloads, or a .keras or .h5 file of a network of the
            same kind and width, with a classifier or without, for images in [-1, 1] where it is
            one of `tf.keras.applications`.
        content: hash of the file, which is part of a stage's settings where the path is not.
    """

    network: Backbone
    weights: str = dataclasses.field(metadata=settings.NEVER)
    content: str = settings.read_once(lambda self: self._content_hash())

    def __post_init__(self):
        require_built("FromWeights.network", self.network, Backbone, "@MobileNetV2()")
        require(
            self.weights != IMAGENET or isinstance(self.network, Published),
            f"FromWeights.weights='imagenet': Keras has none of {type(self.network).__name__}; "
            "give a file",
        )

    def _content_hash(self) -> str:
        if self.weights == IMAGENET:
            return IMAGENET
        return keras_files.content_hash(f"FromWeights.weights={self.weights}", self.weights)

    @property
    def width(self) -> float | None:
        """The width multiplier of the network; None where it has none."""
        return getattr(self.network, "width", None)

    def build(self, image_size: int) -> tf.keras.Model:
        """Builds the network, and gives it the weights.

        Raises:
            InputError: they can neither be downloaded nor read, or are another network's.
        """
        network = self.network.build(image_size)
        known = self._downloaded(image_size) if self.weights == IMAGENET else self._read()
        for number, weight in enumerate(network.weights):
            shape = known[number].shape if number < len(known) else "missing"
            require(
                shape == tuple(weight.shape),
                f"FromWeights.weights={self.weights} is of another network: its weight number "
                f"{number} is {shape}, but {weight.name} of {self.network} is "
                f"{tuple(weight.shape)}",
            )
        # A classifier's, which may be there too, come last.
        network.set_weights(known[: len(network.weights)])
        return network

    def _downloaded(self, image_size: int) -> list[np.ndarray]:
        assert isinstance(self.network, Published), "checked with the options"
        kind = type(self.network).__name__
        shape = (image_size, image_size, 3)
        try:
            return self.network.application(weights=IMAGENET, input_shape=shape).get_weights()
        except Exception as error:  # Keras raises what it finds, mostly a bare Exception.
            raise InputError(
                f"the ImageNet weights of {kind} of width {self.width} cannot be had "
                f"({one_line(error)}); where there is no network, save "
                f"tf.keras.applications.{kind} elsewhere as FILE.keras, and name that "
                "(--student_weights)"
            ) from error

    def _read(self) -> list[np.ndarray]:
        path = Path(self.weights).expanduser()
        what = f"FromWeights.weights={self.weights}"
        return load_keras(path, what, "a .keras or .h5 file is wanted").get_weights()
