"""Base class of objectives on hidden features."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import tensorflow as tf

from refilled_tf.common.errors import require, require_not_negative
from refilled_tf.objectives.base import GlobalBatch, Objective, Shapes


@dataclasses.dataclass(frozen=True)
class FeatureMatching(Objective):
    """b · the sum, over hidden layers, of a method's loss.

    A method says `layer_loss` and the one name in `parts`; one that trains layers along with the
    student builds them in `adapter`.

    Attributes:
        weight: b.
        layers: whose features, by their names in both networks.
    """

    classifies: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True

    weight: float
    layers: tuple[str, ...] = ("f1", "f2", "f3")

    def __post_init__(self):
        require_not_negative(self, "weight")
        require(
            isinstance(self.layers, (tuple, list)) and len(self.layers) > 0,
            f"{type(self).__name__}.layers={self.layers!r} must be a tuple of names of layers, "
            "such as ('f2',)",
        )
        object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def features(self) -> tuple[str, ...]:
        """The layers."""
        return self.layers

    def adapter(self, student: Shapes, teacher: Shapes) -> tf.keras.Model | None:
        """Rejects features of different sizes; nothing is to be trained but the student."""
        require_same_sizes(type(self).__name__, student, teacher)
        return None

    def layer_loss(self, batch: GlobalBatch, layer: str) -> tf.Tensor:
        """Returns the scalar loss of one layer, without its weight."""
        raise NotImplementedError(f"{type(self).__name__} must say its loss")

    def __call__(self, batch: GlobalBatch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the weighted and the bare sum over layers."""
        loss = tf.add_n([self.layer_loss(batch, layer) for layer in self.layers])
        (name,) = self.parts
        return self.weight * loss, {name: loss}


def inputs(shapes: Shapes) -> dict[str, tf.Tensor]:
    """Returns an adapter's inputs, one for each feature, under their names."""
    return {name: tf.keras.Input(shape[1:], name=name) for name, shape in shapes.items()}


def require_same_sizes(method: str, student: Shapes, teacher: Shapes) -> None:
    """Rejects features that differ in height or width, or have none.

    Args:
        method: the objective's name.
        student: shapes (None, h, w, c) by name.
        teacher: shapes of the same names.

    Raises:
        InputError: naming both shapes.
    """
    for name, shape in student.items():
        other = teacher[name]
        require(
            len(shape) == len(other) == 4 and shape[1:3] == other[1:3],
            f"{method} needs features of the same height and width, but {name!r} is "
            f"{_text(shape)} in the student and {_text(other)} in the teacher; choose other "
            f"{method}.layers, or networks of the same resolution there",
        )


def _text(shape: tuple[int | None, ...]) -> str:
    """Returns such as 32×32×64."""
    return "×".join(str(size) for size in shape[1:])
