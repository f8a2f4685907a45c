"""The table and the per-class report, read back; the picture, looked at."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from refilled_tf.reporting import report

ROW = {
    "method": "REFILLED",
    "width": 0.25,
    "accuracy": 0.12345,
    "embedding": {"ncm": 0.5, "1nn": 0.25, "recall@1": 1.0, "nmi": 0.125},
    "seconds": 12.4,
    "seconds_with_parents": 99.6,
}
# Of class a two of three are right, of b none, of c all; class d has no images.
LABELS = np.array([0, 0, 0, 1, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 2, 0, 2, 2, 2])
NAMES = ("a", "b", "c", "d")


def _cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_table_holds_every_figure():
    header, rule, row = _cells(report.table([ROW]))
    assert dict(zip(header, row, strict=True)) == {
        "Method": "REFILLED",
        "α": "0.25",
        "Accuracy": "12.35",  # 12.345 in percent with two digits
        "NCM": "50.00",
        "1NN": "25.00",
        "R@1": "100.00",
        "NMI": "12.50",
        "Seconds": "12",
        "with parents": "100",
    }
    assert all(set(cell) <= set("-:") and len(cell) >= 2 for cell in rule)


def test_table_leaves_blank_what_a_row_does_not_have():
    bare = {**ROW, "width": None, "accuracy": None, "embedding": None}
    assert _cells(report.table([bare]))[2] == ["REFILLED", *[""] * 6, "12", "100"]


def test_table_is_aligned():
    lines = report.table([ROW, {**ROW, "method": "Student (2×), longer than the header"}])
    assert len({len(line) for line in lines.splitlines()}) == 1
    assert len(lines.splitlines()) == 4


def test_classes_are_listed_worst_first():
    lines = report.per_class_accuracy(LABELS, PREDICTIONS, NAMES).splitlines()
    # Hand-counted; b and d tie at 0 and keep their order.
    assert [line.split() for line in lines] == [
        ["0.0%", "0/3", "b", "mostly", "taken", "for", "c"],
        ["0.0%", "0/0", "d"],
        ["66.7%", "2/3", "a", "mostly", "taken", "for", "c"],
        ["100.0%", "1/1", "c"],
    ]


@pytest.mark.filterwarnings("error::UserWarning:matplotlib")
def test_confusion_matrix_is_drawn_and_closed(tmp_path):
    path = tmp_path / "confusion.png"
    report.save_confusion_matrix(path, LABELS, PREDICTIONS, NAMES, "title")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    # The darkest of matplotlib's Blues, at 100 %, is (8, 48, 107): class c.
    assert np.any(np.abs(pixels.astype(int) - (8, 48, 107)).max(axis=-1) <= 2)
    assert not plt.get_fignums()
    assert list(tmp_path.iterdir()) == [path]


def test_dollars_in_names_are_no_formula(tmp_path):
    names = ["$1_vs_$5", "$\\nonsense$", "c"][: len(NAMES)]
    report.save_confusion_matrix(tmp_path / "x.png", LABELS, PREDICTIONS, names, "title")
    assert (tmp_path / "x.png").exists()


def test_confusion_matrix_is_normalised_by_the_true_class(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    report.save_confusion_matrix(tmp_path / "x.png", LABELS, PREDICTIONS, NAMES, "title")
    monkeypatch.undo()
    (figure,) = drawn
    wanted = [[200 / 3, 0, 100 / 3, 0], [100 / 3, 0, 200 / 3, 0], [0, 0, 100, 0], [0] * 4]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), wanted, rtol=1e-6)
    plt.close(figure)


def _few_shot(method, shots, accuracy):
    return {**ROW, "method": method, "shots": shots, "accuracy": accuracy, "interval": 0.01}


FEW_SHOT = [
    _few_shot("1NN", 5, 0.5),
    _few_shot("1NN", 1, 0.4),
    _few_shot("FEAT", 1, 0.45678),
]


def test_few_shot_table_has_a_column_for_each_number_of_shots():
    header, _, *lines = _cells(report.table(FEW_SHOT))
    assert header == ["Method", "1-shot", "5-shot"]
    assert lines == [["1NN", "40.00 ± 1.00", "50.00 ± 1.00"], ["FEAT", "45.68 ± 1.00", ""]]


def test_shots_picture_has_a_line_for_each_method(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    report.save_shots_picture(tmp_path / "shots.png", [ROW, *FEW_SHOT])
    monkeypatch.undo()
    (figure,) = drawn
    lines = [container.lines[0] for container in figure.axes[0].containers]
    drawn_points = [line.get_xydata().tolist() for line in lines]
    assert drawn_points[0] == [[1, 40], [5, 50]]
    np.testing.assert_allclose(drawn_points[1], [[1, 45.678]])
    assert [text.get_text() for text in figure.axes[0].get_legend().texts] == ["1NN", "FEAT"]
    assert Image.open(tmp_path / "shots.png").size[0] > 400
    plt.close(figure)
