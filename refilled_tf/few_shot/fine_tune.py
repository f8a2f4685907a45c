"""Fine-tuning: cross-entropy on a task's support."""

from __future__ import annotations

import dataclasses

import gin

from refilled_tf.few_shot.adaptation import Adaptation


@gin.register
@dataclasses.dataclass(frozen=True)
class FineTune(Adaptation):
    """A new classifier, and as much of the network below it as `first` says."""
