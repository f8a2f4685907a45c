"""Length, batches and learning rate of a training."""

from __future__ import annotations

import dataclasses
from typing import Literal

import gin
import tensorflow as tf

from refilled_tf.common import settings
from refilled_tf.common.errors import (
    require,
    require_choice,
    require_not_negative,
    require_positive,
    require_whole,
)


@gin.register
@dataclasses.dataclass(frozen=True)
class Recipe:
    """SGD with momentum, coupled L2 and a falling rate. The defaults are the paper's.

    Attributes:
        epochs: length of one cycle of the schedule.
        steps: of one cycle, dealt out evenly to its epochs, so that rows with batches of other
            kinds can be compared at equal steps; None makes an epoch a pass over the labelled
            images.
        cycles: how often the schedule is run through; 2 for the control that trains as long as
            both stages together.
        batch_size: B, of the global batch.
        unlabelled_share: share of a batch that comes from the task's unlabelled images, where it
            has some and the objective takes them.
        mixup: α; above 0, an unlabelled image is mixed with the next one of its batch, by a λ drawn
            from Beta(α, α), and student and teacher see the mixture (Beyer et al., CVPR 2022).
        classes_per_batch: P for class-balanced batches, whose labelled images are as many of each
            of P classes; None for plain shuffling.
        learning_rate: at the start of a cycle.
        embedding_rate: the rate of all layers below the top one, as a share of the top one's.
        schedule: "steps" drops the rate at milestones; "cosine" lowers it along half a cosine.
        milestones: of "steps": shares of a cycle's epochs after which the rate drops, ascending.
        decay_factor: what the rate is multiplied with at a milestone, or by the end of a cosine.
        momentum: of SGD.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: λ of ½·λ·‖w‖².
        precision: "float32", "mixed_float16" or "mixed_bfloat16". Distances and losses are
            computed in float32 in any case.
    """

    epochs: int = 200
    steps: int | None = dataclasses.field(default=None, metadata=settings.IF_SET)
    cycles: int = 1
    batch_size: int = 128
    unlabelled_share: float = dataclasses.field(default=0.75, metadata=settings.IF_SET)
    mixup: float = dataclasses.field(default=0.0, metadata=settings.IF_SET)
    classes_per_batch: int | None = None
    learning_rate: float = dataclasses.field(
        default=0.1, metadata=settings.searched(0.01, 0.1, 0.3)
    )
    embedding_rate: float = 1.0
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = (0.25, 0.5, 0.75)
    decay_factor: float = 0.2
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"

    def __post_init__(self):
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name in ("epochs", "cycles", "batch_size"):
            require_whole(f"Recipe.{name}", getattr(self, name))
        for name in ("steps", "classes_per_batch"):
            if getattr(self, name) is not None:
                require_whole(f"Recipe.{name}", getattr(self, name))
        require(
            self.steps is None or self.steps % self.epochs == 0,
            f"Recipe.steps={self.steps} must be a multiple of Recipe.epochs={self.epochs}",
        )
        require(
            0 < self.unlabelled_share < 1,
            f"Recipe.unlabelled_share={self.unlabelled_share} must lie between 0 and 1; without "
            "student.unlabelled there are no unlabelled images",
        )
        require_positive(self, "learning_rate", "decay_factor")
        require(
            0 <= self.embedding_rate <= 1,
            f"Recipe.embedding_rate={self.embedding_rate} must lie in [0, 1]",
        )
        require(0 <= self.momentum < 1, f"Recipe.momentum={self.momentum} must lie in [0, 1)")
        require_not_negative(self, "mixup", "weight_decay")
        require(
            all(0 < m < 1 for m in self.milestones)
            and list(self.milestones) == sorted(self.milestones),
            f"Recipe.milestones={self.milestones} must be ascending shares between 0 and 1",
        )
        require_choice(self, "schedule", "precision")

    @property
    def total_epochs(self) -> int:
        """Epochs of all cycles."""
        return self.epochs * self.cycles

    @property
    def unlabelled(self) -> int:
        """Unlabelled images of a batch, where the task has some."""
        return round(self.unlabelled_share * self.batch_size)

    def optimizer(self, steps_per_epoch: int) -> tf.keras.optimizers.Optimizer:
        """Builds SGD on this recipe's schedule, wrapped for loss scaling where float16 needs it.

        The L2 penalty belongs to the loss: neither Keras's `weight_decay` nor SGDW is coupled.
        """
        optimizer = tf.keras.optimizers.SGD(
            self.learning_rates(steps_per_epoch), self.momentum, self.nesterov
        )
        if self.precision == "mixed_float16":
            return tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
        return optimizer

    def learning_rates(
        self, steps_per_epoch: int
    ) -> tf.keras.optimizers.schedules.LearningRateSchedule:
        """Returns the rate as a function of the step.

        A milestone takes effect with the first step of its epoch, round(share · epochs), but not of
        a cycle's first.
        """
        if self.schedule == "cosine":
            return tf.keras.optimizers.schedules.CosineDecayRestarts(
                self.learning_rate,
                self.epochs * steps_per_epoch,
                t_mul=1.0,
                alpha=self.decay_factor,
            )
        drops = (0, *(max(1, round(share * self.epochs)) for share in self.milestones))
        boundaries, values = [], []
        for cycle in range(self.cycles):
            for drop, epoch in enumerate(drops):
                boundaries.append((cycle * self.epochs + epoch) * steps_per_epoch - 1)
                values.append(self.learning_rate * self.decay_factor**drop)
        # A boundary is the last step of the rate before it; the first one lies before step 0.
        return tf.keras.optimizers.schedules.PiecewiseConstantDecay(
            boundaries, [self.learning_rate, *values]
        )
