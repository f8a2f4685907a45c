"""No objective: a network whose weights are known already."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin

from refilled_tf.objectives.base import Objective


@gin.register
@dataclasses.dataclass(frozen=True)
class Pretrained(Objective):
    """Keeps the stage's backbone as it comes, such as a `KerasFile`; no recipe is needed."""

    classifies: ClassVar[bool] = False
    trains: ClassVar[bool] = False
