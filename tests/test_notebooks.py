"""Notebooks run from their first cell to their last, in a copy of the project."""

import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40


@pytest.mark.slow
def test_bring_your_own(tmp_path, monkeypatch):
    """In fewer steps than a reader gets."""
    for name in ("refilled_tf", "export", "gin"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    # What `python` is in its shell commands.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(ROOT / "notebooks/bring_your_own.ipynb", as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "the notebook is kept without outputs"
        cell.source = cell.source.replace(
            "--quick", f'--quick --gin_param="Recipe.steps = {STEPS}"'
        )
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()

    output = tmp_path / "runs/bring_your_own/output"
    assert f"Recipe.steps = {STEPS}" in (output / "distill.gin").read_text()
    assert (output / "report.html").exists()
    *_, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    printed = "".join(o.text for o in last.outputs if o.get("name") == "stdout")
    named = re.findall(r"^(\d): ([\d.]+)$", printed, re.M)
    # MediaPipe names all five classes, with probabilities.
    assert sorted(name for name, _ in named) == ["5", "6", "7", "8", "9"]
    assert sum(float(score) for _, score in named) == pytest.approx(1, abs=0.03)
