"""Tables of results: experiments side by side, over several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import gin

from refilled_tf.common.errors import require


@gin.register
@dataclasses.dataclass(frozen=True)
class Table:
    """A comparison of methods over columns and seeds.

    Attributes:
        title: of the page.
        columns: for each column's label the experiment: a gin file and single settings. A label
            "GROUP, X" belongs to the curve GROUP at the place X of pictures. Where an experiment
            is of few-shot learning, its numbers of shots make the columns instead.
        axis: what X is.
        paper: for a method the paper's numbers, column by column, in percent; None where it has
            none.
        reference: the method that the others are compared with, image by image; None for no
            comparison.
        seeds: how many of Stage.seed 0, 1, …
        pictured: label of the column whose training curves and embeddings are shown; None for the
            first.
        minutes: that stages took on 2 CPU cores when they were measured, by their names; what
            --dry_run goes by until the work_dir holds a finished stage of the kind.
    """

    title: str
    columns: Mapping[str, Sequence[str]]
    axis: str
    paper: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    reference: str | None = None
    seeds: int = 3
    pictured: str | None = None
    minutes: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        require(len(self.columns) > 0, "Table.columns is empty: it needs at least one experiment")
        require(self.seeds >= 1, f"Table.seeds={self.seeds} must be at least 1")
        require(
            self.pictured is None or self.pictured in self.columns,
            f"Table.pictured={self.pictured!r} must be one of {', '.join(self.columns)}",
        )
