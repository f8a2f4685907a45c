"""Training curves as they are read, and what pictures show."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import tiny
from PIL import Image

from refilled_tf.experiment.experiment import Experiment
from refilled_tf.objectives.cross_entropy import CrossEntropy
from refilled_tf.reporting import pictures
from refilled_tf.reporting.tables import Cell, Grid, Table


def test_embeddings_shown_are_those_of_a_method_of_two_stages():
    one_stage = tiny.second(name="student", objective=CrossEntropy(), start=None)
    assert pictures.embeddings_to_show(Experiment((one_stage,))) == []
    chosen = pictures.embeddings_to_show(Experiment((one_stage, tiny.second())))
    assert [stage.name for stage in chosen] == ["teacher", "first", "second"]


def test_accuracies_are_drawn_in_a_plot_for_each_group(tmp_path):
    columns = ("easy, 1", "easy, .5", "hard, 1", "hard, .5")
    cells = {("Student", column): Cell((50.0, 60.0), ()) for column in columns}
    table = Table("T", {column: ("x.gin",) for column in columns}, "width")
    widths = []
    for shown in (columns[:2], columns):
        path = tmp_path / f"{len(shown)}.png"
        pictures.save_accuracies(path, table, Grid(("Student",), shown, cells))
        image = np.asarray(Image.open(path).convert("RGB")).astype(int)
        # A line in the first colour of Matplotlib's cycle, C0.
        assert (np.abs(image - (31, 119, 180)).sum(axis=-1) < 30).any()
        widths.append(image.shape[1])
    assert widths[1] > 1.5 * widths[0]


def test_a_cell_without_results_is_left_out(tmp_path):
    table = Table("T", {"1": ("x.gin",)}, "width")
    grid = Grid(("Student",), ("1",), {("Student", "1"): Cell((), (0, 1))})
    pictures.save_accuracies(tmp_path / "a.png", table, grid)
    assert (tmp_path / "a.png").exists()


def test_a_method_has_the_colour_it_has_among_accuracies(tmp_path, monkeypatch):
    """In both plots, though stage 1, which comes first, has no training accuracy."""
    run = tiny.run_in(tmp_path)
    first, second = tiny.first(), tiny.second()
    for stage, names in ((first, "loss"), (second, "loss,train_accuracy")):
        run.folder(stage).mkdir(parents=True)
        lines = [f"epoch,{names}", *(f"{epoch}{',0.5' * names.count(',')},0.5" for epoch in (0, 1))]
        (run.folder(stage) / "history.csv").write_text("\n".join(lines))
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    pictures.save_curves(tmp_path / "curves.png", "", [first, second], run, ("A", second.method))
    (figure,) = drawn
    plt.close(figure)
    losses, accuracies = ({x.get_label(): x.get_color() for x in p.lines} for p in figure.axes)
    assert losses == {first.method: "black", second.method: pictures.COLORS[1]}
    assert accuracies == {second.method: pictures.COLORS[1]}
