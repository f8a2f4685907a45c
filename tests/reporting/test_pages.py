"""HTML pages: whole without a network, and text is text."""

from __future__ import annotations

import base64
import html.parser

import pytest
from PIL import Image

from refilled_tf.common import storage
from refilled_tf.reporting import pages
from refilled_tf.reporting.tables import Cell, Grid

FACTS = {"title": "A <b>bold</b> table", "command": "python -m x", "date": "2020-01-02"}
GRID = Grid(
    ("Student", "REFILLED"),
    ("1", "2"),
    {
        ("Student", "1"): Cell((50.0, 52.0), ()),
        ("REFILLED", "1"): Cell((60.0,), (1,), 62.5, above=(10.0, 2.5)),
    },
    "Student",
)


class _Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.open, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _read(path):
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


@pytest.fixture
def work_dir(tmp_path):
    for name, scale in (("table1", "cpu"), ("table4", "paper")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (3, 2), "red").save(tmp_path / name / "accuracy.png")
        settings = {"a.gin x = 1": "Recipe.epochs = 2  # <&>"}
        pages.write_table(tmp_path / name, FACTS | {"scale": scale}, GRID, settings)
    return tmp_path


def test_report_holds_all_tables_and_needs_no_network(work_dir):
    page = _read(pages.write_report(work_dir))
    # Each table has one of differences beneath it.
    assert page.tags.count("table") == 2 * page.tags.count("img") == 4
    picture = base64.b64encode((work_dir / "table1" / "accuracy.png").read_bytes()).decode()
    inside = [link for link in page.links if not link.startswith("#")]
    assert inside == [f"data:image/png;base64,{picture}"] * 2
    assert [link for link in page.links if link.startswith("#")] == ["#table1", "#table4"]


def test_picture_that_another_process_is_writing_is_left_out(work_dir):
    before = _read(pages.write_report(work_dir)).links
    (work_dir / "table1" / ".0123-curves.png").write_bytes(b"half of a")
    assert _read(pages.write_report(work_dir)).links == before


def test_text_is_escaped(work_dir):
    page = _read(work_dir / "table1" / "table1.html")
    assert "b" not in page.tags
    assert FACTS["title"] in page.text
    assert "Recipe.epochs = 2  # <&>" in page.text


def test_table_shows_number_spread_paper_and_what_is_missing(work_dir):
    text = "".join(_read(work_dir / "table1" / "table1.html").text)
    # The deviation of 50 and 52 is √2.
    for part in ("51.00 ± 1.41", "60.00 (1 of 2)", "62.50 (-2.50)", "REFILLED (1), seed 1"):
        assert part in text
    assert "Below a number: the paper's" in text
    assert "python -m x" in text


@pytest.mark.parametrize("ending", ["html", "md"])
def test_differences_are_shown_with_what_their_error_is(work_dir, ending):
    text = (work_dir / "table1" / f"table1.{ending}").read_text(encoding="utf-8")
    for part in ("Above Student", "+10.00 ± 2.50", pages.ABOVE):
        assert part in text


@pytest.mark.parametrize("ending", ["html", "md"])
def test_spread_is_named_for_what_it_is(work_dir, tmp_path, ending):
    """Seeds deviate; a mean over few-shot tasks has an interval."""
    text = (work_dir / "table1" / f"table1.{ending}").read_text(encoding="utf-8")
    assert "mean ± deviation over seeds" in text
    grid = Grid(("1NN",), ("1-shot",), {("1NN", "1-shot"): Cell((57.0,), (), interval=0.9)})
    pages.write_table(tmp_path / "table3", FACTS | {"scale": "cpu"}, grid, {})
    text = (tmp_path / "table3" / f"table3.{ending}").read_text(encoding="utf-8")
    assert "mean ± 95 % interval over tasks" in text
    assert "57.00 ± 0.90" in text


def test_small_scale_says_what_the_papers_numbers_are_for(work_dir):
    for ending in ("html", "md"):
        small, papers = (
            (work_dir / name / f"{name}.{ending}").read_text(encoding="utf-8")
            for name in ("table1", "table4")
        )
        assert "for orientation only" in small
        assert "for orientation only" not in papers


def test_table_without_papers_numbers_does_not_speak_of_them(tmp_path):
    (tmp_path / "mine").mkdir()
    grid = Grid(("Student",), ("1",), {("Student", "1"): Cell((50.0,), ())})
    pages.write_table(tmp_path / "mine", FACTS | {"scale": "cpu"}, grid, {})
    page = (tmp_path / "mine" / "mine.html").read_text(encoding="utf-8")
    assert "the paper's" not in page
    assert "Above" not in page


def test_report_takes_tables_from_before_there_were_differences(work_dir):
    path = work_dir / "table1" / "table1.json"
    content = storage.read_json(path)
    del content["differences"], content["reference"]
    storage.write_json(path, content)
    text = pages.write_report(work_dir).read_text(encoding="utf-8")
    assert text.count("Above Student") == 1


def test_report_of_nothing_says_so(tmp_path):
    assert "Nothing is finished yet." in _read(pages.write_report(tmp_path)).text
