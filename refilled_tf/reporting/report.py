"""Results as a person reads them: a table and a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sklearn.metrics import confusion_matrix

from refilled_tf.common import storage
from refilled_tf.reporting import fonts

matplotlib.use("agg")

import matplotlib.pyplot as plt


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows of results.json.

    Args:
        rows: as `experiment.finish_rows` returns them.

    Returns:
        A Markdown table: accuracies in percent, the stage-1 embedding's NCM, 1NN, Recall@1 and
        NMI (of the embedding a method starts from), time of the row and with its parents. Where
        rows are of few-shot learning, a column for each number of shots instead, with the half
        width of the 95 % interval.
    """
    shots = sorted({row["shots"] for row in rows if "shots" in row})
    if shots:
        return _few_shot_table(rows, shots)
    header = ("Method", "α", "Accuracy", "NCM", "1NN", "R@1", "NMI", "Seconds", "with parents")
    lines = []
    for row in rows:
        quality = row["embedding"] or {}
        lines.append(
            (
                row["method"],
                "" if row["width"] is None else f"{row['width']:g}",
                _percent(row["accuracy"]),
                *(_percent(quality.get(name)) for name in ("ncm", "1nn", "recall@1", "nmi")),
                f"{row['seconds']:.0f}",
                f"{row['seconds_with_parents']:.0f}",
            )
        )
    return markdown(header, lines)


def _few_shot_table(rows: list[dict[str, Any]], shots: list[int]) -> str:
    cells: dict[str, dict[int | None, str]] = {}
    for row in rows:
        cell = _percent(row["accuracy"])
        if "interval" in row:
            cell += f" ± {_percent(row['interval'])}"
        cells.setdefault(row["method"], {})[row.get("shots")] = cell
    header = ("Method", *(f"{k}-shot" for k in shots))
    lines = [(method, *(c.get(k, "") for k in shots)) for method, c in cells.items()]
    return markdown(header, lines)


def save_shots_picture(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws the accuracy of few-shot rows against the number of shots, as a PNG.

    Args:
        path: of the picture.
        rows: of results.json; those without shots are left out.
    """
    methods: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        if "shots" in row:
            point = row["shots"], 100 * row["accuracy"], 100 * row["interval"]
            methods.setdefault(row["method"], []).append(point)
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (method, points) in enumerate(methods.items()):
        shots, accuracies, intervals = zip(*sorted(points), strict=True)
        marker = "osD^vP*X"[number % 8]
        axes.errorbar(shots, accuracies, intervals, marker=marker, capsize=3, label=method)
    ticks = sorted({row["shots"] for row in rows if "shots" in row})
    axes.set_xscale("log")
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel("labelled images a class")
    axes.set_ylabel("accuracy, % (95 % interval)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with storage.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def markdown(header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """Lays a table out in Markdown; the first column to the left, the others to the right."""
    # The rule takes two characters, in a first column three.
    widths = [max(3, *(len(line[i]) for line in [header, *lines])) for i in range(len(header))]
    rule = tuple("-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths))

    def joined(line):
        name, *numbers = line
        cells = [name.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        return f"| {' | '.join(cells)} |"

    return "\n".join(joined(line) for line in [header, rule, *lines])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def per_class_accuracy(labels: np.ndarray, predictions: np.ndarray, class_names) -> str:
    """Formats the accuracy of every class, worst first.

    Args:
        labels: [N] int.
        predictions: [N] int.
        class_names: of length C.

    Returns:
        One line a class: accuracy, right of how many, name, most frequent mistake.
    """
    matrix = confusion_matrix(labels, predictions, labels=range(len(class_names)))
    right, total = np.diag(matrix), matrix.sum(axis=1)
    mistakes = matrix - np.diag(right)
    lines = []
    for c in np.argsort(right / np.maximum(total, 1), kind="stable"):
        worst = int(mistakes[c].argmax())
        taken = f"  mostly taken for {class_names[worst]}" if mistakes[c, worst] else ""
        share = 100 * right[c] / max(total[c], 1)
        lines.append(f"{share:6.1f}%  {right[c]:3d}/{total[c]:<3d}  {class_names[c]}{taken}")
    return "\n".join(lines)


def save_confusion_matrix(
    path: Path, labels: np.ndarray, predictions: np.ndarray, class_names, title: str
) -> None:
    """Draws the confusion matrix, rows normalised to the true class's images, as a PNG.

    Args:
        path: of the picture.
        labels: [N] int.
        predictions: [N] int.
        class_names: of length C; see `fonts.drawable`.
        title: above the picture.
    """
    count = len(class_names)
    matrix = confusion_matrix(labels, predictions, labels=range(count), normalize="true")
    side = max(4.5, 0.2 * count + 2.5)
    with fonts.able_to_write((*class_names, title)):
        names = fonts.drawable(class_names)
        figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
        picture = axes.imshow(100 * matrix, cmap="Blues", vmin=0, vmax=100)
        # A "$" in a name is no formula.
        axes.set_xticks(range(count), names, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=7, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(title, fontsize=9)
        figure.colorbar(picture, label="% of the true class's images", shrink=0.7)
        with storage.replacing(path) as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight")
        plt.close(figure)
