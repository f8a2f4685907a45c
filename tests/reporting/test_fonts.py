"""Fonts for names that matplotlib's own font has no glyphs of."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from refilled_tf.reporting import fonts, report

# Of no script: private characters, which no font that is installed here is to know.
CAT, DOG = "\U000f1234", "\U000f1235"


def save_font(path, family, characters):
    """Saves a font whose every character is a black square."""
    pen = TTGlyphPen(None)
    for move, place in zip(
        (pen.moveTo, pen.lineTo, pen.lineTo, pen.lineTo),
        ((0, 0), (0, 1000), (1000, 1000), (1000, 0)),
        strict=True,
    ):
        move(place)
    pen.closePath()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({ord(character): "square" for character in characters})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A font that has one character, and two of boxes for any."""
    files = [
        save_font(tmp_path / "cats.ttf", "Cats", CAT),
        save_font(tmp_path / "boxes.ttf", "Last Resort Boxes", CAT + DOG),
        save_font(tmp_path / "mac.ttf", ".LastResort", CAT + DOG),
    ]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    fonts._installed.cache_clear()
    yield
    fonts._installed.cache_clear()


@pytest.fixture
def none_installed(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", lambda: ())


@pytest.mark.usefixtures("installed")
def test_an_installed_font_lends_what_the_default_lacks():
    assert fonts.families(["cat", "chêne", "λ"]) == [fonts.DEFAULT]
    assert fonts.families(["cat", CAT]) == [fonts.DEFAULT, "Cats"]
    assert fonts.drawable(["cat", CAT]) == ["cat", CAT]


@pytest.mark.usefixtures("installed")
def test_a_font_of_boxes_lends_nothing():
    assert fonts.families([CAT, DOG]) == [fonts.DEFAULT, "Cats"]
    assert fonts.drawable([CAT, DOG]) == [CAT, "class 2"]


@pytest.mark.usefixtures("none_installed")
def test_name_that_no_font_has_is_numbered():
    assert fonts.drawable(["cat", CAT]) == ["cat", "class 2"]
    assert fonts.families(["cat", CAT]) == [fonts.DEFAULT]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.usefixtures("installed")
def test_glyphs_are_in_the_picture(tmp_path):
    """By hand: 16 squares of 7 pt, 11.7 pixels at 120 dpi, are 2,180 black pixels.

    Those of an "o" are less than a third of it. Of a glyph that is missing, matplotlib warns.
    """
    label = np.array([0, 1])
    report.save_confusion_matrix(tmp_path / "x.png", label, label, ["o", CAT * 8], "title")
    report.save_confusion_matrix(tmp_path / "y.png", label, label, ["o", "o" * 8], "title")
    pictures = [Image.open(tmp_path / name).convert("L") for name in ("x.png", "y.png")]
    black = [np.sum(np.asarray(picture) < 20) for picture in pictures]
    assert black[0] > black[1] + 2180 * 2 / 3
    assert plt.rcParams["font.family"] == ["sans-serif"]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.usefixtures("none_installed")
def test_nothing_is_drawn_without_a_glyph(tmp_path):
    label = np.array([0, 1])
    report.save_confusion_matrix(tmp_path / "x.png", label, label, ["o", CAT], "title")
