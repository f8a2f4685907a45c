"""VID-I: the teacher's features are predicted from the student's, with a learnt variance."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.losses.vid import gaussian_nll
from refilled_tf.objectives.base import GlobalBatch, Shapes
from refilled_tf.objectives.features import FeatureMatching, inputs, require_same_sizes

_FIRST_VARIANCE = 5.0
_LEAST_VARIANCE = 1e-5


@gin.register
@dataclasses.dataclass(frozen=True)
class VariationalInformation(FeatureMatching):
    """b · the teacher's negative log-likelihood under a Gaussian, summed over layers.

    Its mean is a regression on the student's features, its variance a number per channel; both
    are trained.

    Attributes:
        weight: b.
        layers: whose features, by their names in both networks.
    """

    parts: ClassVar[tuple[str, ...]] = ("variational",)

    weight: float = 1.0

    def adapter(self, student: Shapes, teacher: Shapes) -> tf.keras.Model:
        """Builds, for each layer, the mean [B, h, w, c_T] and the variance [c_T]."""
        require_same_sizes("VariationalInformation", student, teacher)
        features = inputs(student)
        means = {name: _regressor(x, teacher[name][-1]) for name, x in features.items()}
        variances = {_variance(name): ChannelVariance()(mean) for name, mean in means.items()}
        return tf.keras.Model(features, means | variances, name="gaussians")

    def layer_loss(self, batch: GlobalBatch, layer: str) -> tf.Tensor:
        """Returns the negative log-likelihood."""
        mean, variance = batch.adapted[layer], batch.adapted[_variance(layer)]
        return gaussian_nll(mean, variance, batch.teacher[layer])


class ChannelVariance(tf.keras.layers.Layer):
    """A trained variance per channel, σ² = softplus(α) + 1e-5, the same for every input.

    The input only says how many channels there are. It is float32 in any precision, since the
    loss divides by it.
    """

    def __init__(self):
        super().__init__(dtype="float32")

    def build(self, input_shape: tf.TensorShape) -> None:
        first = math.log(math.expm1(_FIRST_VARIANCE - _LEAST_VARIANCE))
        self.alpha = self.add_weight(
            "alpha", [input_shape[-1]], initializer=tf.keras.initializers.Constant(first)
        )

    def call(self, features: tf.Tensor) -> tf.Tensor:
        return tf.math.softplus(self.alpha) + _LEAST_VARIANCE


def _variance(layer: str) -> str:
    """The adapter's name for a layer's variance."""
    return f"{layer}_variance"


def _regressor(features: tf.Tensor, channels: int) -> tf.Tensor:
    """Turns [B, h, w, c_S] into [B, h, w, channels] by three 1×1 convolutions."""
    x = features
    for activation in ("relu", "relu", None):
        x = tf.keras.layers.Conv2D(channels, 1, use_bias=False, activation=activation)(x)
    return x
