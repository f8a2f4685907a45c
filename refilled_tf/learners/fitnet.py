"""FitNet: a hidden layer of the student is regressed on the teacher's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin
import tensorflow as tf

from refilled_tf.learners.base import GlobalBatch, Objective, Shapes
from refilled_tf.learners.features import inputs, require_same_sizes
from refilled_tf.losses.fitnet import hint, regressor


@gin.register
@dataclasses.dataclass(frozen=True)
class FitNet(Objective):
    """b · the mean squared difference of hidden features, after a regressor on the student's.

    Attributes:
        weight: b.
        layer: whose features, by its name in both networks.
    """

    classifies: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("hint",)

    weight: float = 100.0
    layer: str = "f2"

    @property
    def features(self) -> tuple[str, ...]:
        """The one layer."""
        return (self.layer,)

    def adapter(self, student: Shapes, teacher: Shapes) -> tf.keras.Model:
        """Builds the regressor."""
        require_same_sizes("FitNet", student, teacher)
        features = inputs(student)
        regressed = regressor(features[self.layer], teacher[self.layer][-1])
        return tf.keras.Model(features, {self.layer: regressed}, name="regressor")

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the weighted and the bare loss."""
        loss = hint(batch.adapted[self.layer], batch.teacher[self.layer])
        return self.weight * loss, {"hint": loss}
