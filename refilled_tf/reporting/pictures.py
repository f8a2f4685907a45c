"""Pictures of results: accuracies, training curves, embeddings, answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from sklearn.manifold import TSNE

from refilled_tf.common import storage
from refilled_tf.data import batches
from refilled_tf.data.task import Examples, load, read_index, select
from refilled_tf.experiment import experiment
from refilled_tf.experiment.loading import loaded, outputs, read_history
from refilled_tf.experiment.run import Run
from refilled_tf.experiment.stage import Stage
from refilled_tf.models import networks
from refilled_tf.reporting import fonts
from refilled_tf.reporting.tables import Grid, Part, Table

matplotlib.use("agg")

import matplotlib.pyplot as plt

MARKERS = "osD^vP*X<>hd"
_TAB20 = matplotlib.color_sequences["tab20"]
COLORS = (*_TAB20[::2], *_TAB20[1::2])  # strong ones first
RIGHT, WRONG = "tab:green", "tab:red"
LONGEST = 12  # of a class's name, in letters
DASHES = ("--", ":", "-.")
CLASSES = 10  # in a picture of images: as many as there are colours to tell apart


def save_all(folder: Path, table: Table, grid: Grid, parts: Sequence[Part], run: Run) -> None:
    """Draws what the finished stages allow: the accuracies, curves, embeddings and answers."""
    save_accuracies(folder / "accuracy.png", table, grid)
    pictured = table.pictured or parts[0].column
    spec = next(part.experiment for part in parts if part.column == pictured)
    stages = [s for s in spec.stages() if run.is_finished(s) and s.recipe]
    if stages:
        save_curves(folder / "curves.png", pictured, stages, run, grid.methods)
    shown = embeddings_to_show(spec)
    if shown and all(run.is_finished(stage) for stage in shown):
        save_embeddings(folder / "embeddings.png", pictured, shown, run)
    stages = [stage for stage in classifiers(spec) if run.is_finished(stage)]
    if stages:
        save_answers(folder / "answers.png", stages, run)


def save_accuracies(path: Path, table: Table, grid: Grid) -> None:
    """Draws accuracy against the columns, in even steps, one plot for each group of columns."""
    groups: dict[str, dict[str, str]] = {}
    places: dict[str, int] = {}
    for column in grid.columns:
        group, _, label = column.rpartition(", ")
        groups.setdefault(group, {})[label] = column
        places.setdefault(label, len(places))
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1 + 6 * len(groups), 5), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for plot, (group, columns) in zip(axes[0], groups.items(), strict=True):
        for number, method in enumerate(grid.methods):
            points = [
                (places[label], cell.mean, cell.spread or 0.0)
                for label, column in columns.items()
                if (cell := grid.cells.get((method, column))) is not None and cell.values
            ]
            if points:
                x, means, spreads = zip(*points, strict=True)
                marker = MARKERS[number % len(MARKERS)]
                bars = spreads if any(spreads) else None
                color = COLORS[number % len(COLORS)]
                plot.errorbar(x, means, bars, color=color, marker=marker, capsize=3, label=method)
        plot.set_xticks(list(places.values()), list(places))
        plot.set_xlabel(table.axis)
        plot.set_title(group)
        plot.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy, %")
    if axes[0, -1].get_legend_handles_labels()[0]:
        axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def save_curves(
    path: Path, title: str, stages: Sequence[Stage], run: Run, methods: Sequence[str]
) -> None:
    """Draws the loss without weight penalty, and training accuracy, of finished stages.

    Stages that are one of `methods` have its colour, as in the picture of accuracies; teachers and
    first stages are dashed.
    """
    names = {"loss": "loss of each method's own", "train_accuracy": "training accuracy"}
    figure, axes = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
    figure.suptitle(title)
    dashes = itertools.cycle(DASHES)
    for stage in stages:
        file = run.folder(stage) / "history.csv"
        if not file.exists():
            continue
        history = read_history(file)
        style = {"label": stage.method, "lw": 1.3}
        if stage.method in methods:
            style["color"] = COLORS[methods.index(stage.method) % len(COLORS)]
        else:
            style |= {"color": "black", "ls": next(dashes)}
        # Long ones beneath, since Student's longer self takes the same steps at first.
        style["zorder"] = 2 + 1 / len(history["epoch"])
        for plot, name in zip(axes, names, strict=True):
            if name in history:
                plot.plot(history["epoch"] + 1, history[name], **style)
    for plot, label in zip(axes, names.values(), strict=True):
        plot.set_xlabel("epoch")
        plot.set_ylabel(label)
        plot.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    lines = {line.get_label(): line for line in axes[0].lines}
    axes[1].legend(lines.values(), lines, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def embeddings_to_show(spec: experiment.Experiment) -> list[Stage]:
    """Returns a two-stage method's teacher, stage 1 and stage 2, the last such in the table."""
    chains = [
        [*row.start.teachers, row.start, row]
        for row in spec.rows
        if isinstance(row, Stage)
        and row.teachers
        and row.start
        and row.start.teachers
        # A teacher that only looks images up knows none of the test.
        and not row.start.looks_up
    ]
    return chains[-1] if chains else []


def save_embeddings(path: Path, title: str, stages: Sequence[Stage], run: Run) -> None:
    """Draws t-SNE pictures of the same test images in the embeddings of several stages.

    The images are those of the last stage's task, of its first `CLASSES` classes.
    """
    data = stages[-1].task
    images = load(data, run.data_dir)
    rows = np.flatnonzero(images.test.labels < CLASSES)
    labels = images.test.labels[rows]
    with fonts.able_to_write(images.class_names):
        names = fonts.drawable(images.class_names)
        figure, axes = plt.subplots(
            1, len(stages), figsize=(5 * len(stages), 5), squeeze=False, layout="constrained"
        )
        figure.suptitle(f"{title}: test images of the student's classes")
        for plot, stage in zip(axes[0], stages, strict=True):
            embedding = outputs(stage, run, data, "test")["embedding"][rows]
            embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
            perplexity = min(30, (len(rows) - 1) / 3)
            flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(embedding)
            for label in np.unique(labels):
                mine = labels == label
                plot.scatter(
                    *flat[mine].T,
                    s=9,
                    color=matplotlib.colormaps["tab10"](label),
                    label=names[label],
                )
            plot.set_title("Teacher" if stage in stages[-1].teachers else stage.method)
            plot.set_xticks([])
            plot.set_yticks([])
        legend = axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)  # a "$" in a class's name is no formula
        _save(figure, path)


def classifiers(spec: experiment.Experiment) -> list[Stage]:
    """Returns the stages whose answers are worth a look: teachers, then rows, each once."""
    rows = [row for row in spec.rows if isinstance(row, Stage)]
    stages = [*(teacher for row in rows for teacher in row.teachers), *rows]
    return list({stage.name: stage for stage in stages if stage.objective.classifies}.values())


def save_answers(path: Path, stages: Sequence[Stage], run: Run) -> None:
    """Draws an image of each class and what several classifiers take it for.

    A teacher of other classes answers with one of its own. The images are those of the last stage's
    task: of each of its first `CLASSES` classes the first that is scored.
    """
    task = stages[-1].task
    data = load(task, run.data_dir)
    rows = np.unique(data.test.labels, return_index=True)[1][:CLASSES]
    examples = _taken(data.test, rows)
    crops = np.concatenate([*batches.scoring_batches(examples, task.data.crop_size)])
    names = [
        select(each.task, read_index(each.task.data.source, run.data_dir)).class_names
        for each in stages
    ]
    with fonts.able_to_write(itertools.chain.from_iterable(names)):
        figure, axes = plt.subplots(
            1, len(rows), figsize=(3 + len(rows), 1.6 + 0.3 * len(stages)), squeeze=False,
            gridspec_kw={"top": 0.98, "bottom": 0.3 * len(stages) / (1.6 + 0.3 * len(stages)),
                         "left": 2.4 / (3 + len(rows)), "right": 0.98},
        )  # fmt: skip
        for plot, crop in zip(axes[0], crops, strict=True):
            plot.imshow(crop / 255)
            plot.set_axis_off()
        for line, stage in enumerate(stages):
            own = stage.task.role == task.role
            logits = networks.outputs_of(loaded(stage, run), [crops])["logits"]
            shown = fonts.drawable(names[line])
            below = {"y": -0.2 - 0.32 * line, "va": "top", "fontsize": 10}
            axes[0, 0].text(
                x=-0.2, s=stage.method, ha="right", **below, transform=axes[0, 0].transAxes
            )
            for plot, label, answer in zip(
                axes[0], examples.labels, logits.argmax(-1), strict=True
            ):
                color = "black" if not own else RIGHT if answer == label else WRONG
                plot.text(
                    x=0.5, s=_short(shown[answer]), ha="center", color=color, **below,
                    transform=plot.transAxes, parse_math=False,
                )  # fmt: skip
        _save(figure, path)


def _short(name: str) -> str:
    """Returns a class's name, or the part of it that fits below its image."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _taken(examples: Examples, rows: np.ndarray) -> Examples:
    return Examples(*(part[rows] for part in examples))


def _save(figure: plt.Figure, path: Path) -> None:
    with storage.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
