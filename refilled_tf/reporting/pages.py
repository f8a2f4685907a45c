"""Tables and pictures as HTML pages that need no network: pictures lie inside the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from refilled_tf.common import stack, storage
from refilled_tf.reporting import tables
from refilled_tf.reporting.tables import Grid

CAPTIONS = {
    "accuracy.png": "Test accuracy; bars are the deviation over seeds, or of few-shot tasks the "
    "95 % interval.",
    "curves.png": "Training of the stages of one column, seed 0.",
    "embeddings.png": "t-SNE of test images of up to ten classes: the teacher's embedding, the "
    "student's after stage 1 and at the end, of one column, seed 0.",
    "answers.png": "What is taken for what: the first test image of up to ten classes, one column, "
    "seed 0; green is right. A teacher of other classes names one of its own.",
    "figure1.png": "What a teacher changes in the first gradient of the top layer, against the "
    "number of classes; bands are the deviation over seeds.",
}

ABOVE = (
    "Differences are taken image by image with the same seeds; ± is their standard error over "
    "test images and seeds."
)

PICTURES = "[!.]*.png"  # hidden ones are being written by another process

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def inline(path: Path) -> str:
    """Returns a PNG as a URI that holds it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def render(template: str, **values: Any) -> str:
    """Fills in a template of refilled_tf/reporting/templates/; text in values is escaped."""
    return _TEMPLATES.get_template(template).render(inline=inline, **values)


def write_table(
    folder: Path, facts: dict[str, str], grid: Grid, settings: Mapping[str, str]
) -> None:
    """Writes table1.md and table1.html, and table1.json for the report, into a folder table1.

    Args:
        folder: of the table; its pictures are shown in the page.
        facts: "title", "scale", "command" and "date".
        grid: the results.
        settings: for each experiment, by its gin file and parameters, all its settings.
    """
    has_paper = any(cell.paper is not None for cell in grid.cells.values())
    note = (
        "The small protocol for a CPU: the paper's numbers are of other data and longer training, "
        "and stand here for orientation only."
        if facts["scale"] == "cpu" and has_paper
        else ""
    )
    differences = tables.differences(grid)
    of_tasks = any(cell.spread != cell.deviation for cell in grid.cells.values())
    spread = "95 % interval over tasks" if of_tasks else "deviation over seeds"
    about = f"{facts['date']}; accuracy in percent, mean ± {spread}. {note}"
    paragraphs = [
        f"# {facts['title']}",
        f"```\n{facts['command']}\n```",
        about.strip(),
        tables.as_markdown(grid),
        ABOVE if differences else "",
        tables.costs_as_markdown(grid),
        f"Not finished: {'; '.join(grid.missing)}." if grid.missing else "",
    ]
    markdown = "\n\n".join(filter(None, paragraphs))
    storage.write_text(folder / f"{folder.name}.md", markdown + "\n")
    lines = [
        {
            "method": method,
            "cells": [
                {"text": tables.text(cell), "paper": tables.beside(cell)}
                for cell in (grid.cells.get((method, column)) for column in grid.columns)
            ],
        }
        for method in grid.methods
    ]
    content: dict[str, Any] = {"columns": grid.columns, "lines": lines, "missing": grid.missing}
    content |= {"note": note, "has_paper": has_paper, "spread": spread}
    content |= {"reference": grid.reference, "differences": differences}
    content |= {"costs": tables.costs(grid), "costs_of": tables.COSTS}
    storage.write_json(folder / f"{folder.name}.json", facts | content | {"settings": settings})
    storage.write_text(folder / f"{folder.name}.html", _page(facts["title"], [folder]))


def write_report(work_dir: Path) -> Path:
    """Writes report.html, with all tables and figures of a work_dir; returns its path."""
    shown = [*work_dir.glob(f"*/{PICTURES}"), *work_dir.glob("*/*.json")]
    folders = sorted({path.parent for path in shown})
    page = work_dir / "report.html"
    storage.write_text(page, _page("Cross-task distillation: results", folders))
    return page


def _page(title: str, folders: list[Path]) -> str:
    sections = []
    for folder in folders:
        file = folder / f"{folder.name}.json"
        content = storage.read_json(file) if file.exists() else {"title": folder.name.title()}
        shown = [(path, CAPTIONS.get(path.name, "")) for path in sorted(folder.glob(PICTURES))]
        sections.append(content | {"name": folder.name, "pictures": shown})
    facts = {"title": title, "sections": sections, "above": ABOVE, "versions": stack.versions()}
    return render("results.html", **facts)
