"""What objectives on hidden features share."""

from __future__ import annotations

import tensorflow as tf

from refilled_tf.errors import require
from refilled_tf.learners.base import Shapes


def inputs(shapes: Shapes) -> dict[str, tf.Tensor]:
    """Returns an adapter's inputs, one for each feature, under their names."""
    return {name: tf.keras.Input(shape[1:], name=name) for name, shape in shapes.items()}


def require_same_sizes(method: str, student: Shapes, teacher: Shapes) -> None:
    """Refuses features that differ in height or width.

    Args:
        method: the objective's name.
        student: shapes (None, h, w, c) by name.
        teacher: shapes of the same names.

    Raises:
        InputError: naming both shapes.
    """
    for name, shape in student.items():
        require(
            shape[1:3] == teacher[name][1:3],
            f"{method} compares {name!r} place by place, but it is {_text(shape)} in the student "
            f"and {_text(teacher[name])} in the teacher; choose other layers, or networks of the "
            "same resolution there",
        )


def _text(shape: tuple[int | None, ...]) -> str:
    """Returns such as 32×32×64."""
    return "×".join(str(size) for size in shape[1:])
