"""The end of a row: the last layer fitted anew, on the embedding as it has become."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import gin

from refilled_tf.common.errors import require_whole
from refilled_tf.objectives.base import Objective


@gin.register
@dataclasses.dataclass(frozen=True)
class Refit(Objective):
    """Takes the network of Stage.start, and fits its last layer by logistic regression.

    The regression is cross-validated and calibrated, see `linear_probe`. No recipe is needed.

    Attributes:
        views: on how many augmentations of each labelled image, beside the image itself.
    """

    trains: ClassVar[bool] = False
    refits: ClassVar[bool] = True

    views: int = 4

    def __post_init__(self):
        require_whole("Refit.views", self.views, least=0)
