"""Fonts for class names in any script, of those that are installed here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

DEFAULT = "DejaVu Sans"  # matplotlib brings it


def able_to_write(texts: Iterable[str]) -> contextlib.AbstractContextManager[None]:
    """Has matplotlib draw texts in `families` of theirs, within a block."""
    return matplotlib.rc_context({"font.family": families(texts)})


def families(texts: Iterable[str]) -> list[str]:
    """Returns matplotlib's own font, and installed ones for the characters that it lacks.

    Args:
        texts: to be drawn.

    Returns:
        For "font.family", which matplotlib goes through for every character.
    """
    own = font_manager.findfont(DEFAULT)
    found, missing = [DEFAULT], {ord(x) for text in texts for x in text} - _characters(own)
    # The one with the most first, lest the names of one script come from several.
    fonts = _installed() if missing else ()
    for path, family in sorted(fonts, key=lambda font: -len(missing & _characters(font[0]))):
        if missing & _characters(path):
            found.append(family)
            missing -= _characters(path)
    return found


def drawable(names: Sequence[str]) -> list[str]:
    """Returns names as a picture can show them: "class 3" where no installed font has its glyphs.

    Debian's package fonts-noto-cjk has those of Chinese, Japanese and Korean.
    """
    own = _characters(font_manager.findfont(DEFAULT))
    known = (
        own.union(*(_characters(path) for path, _ in _installed()))
        if any(not own.issuperset(map(ord, name)) for name in names)
        else own
    )
    return [
        name if known.issuperset(map(ord, name)) else f"class {number}"
        for number, name in enumerate(names, start=1)
    ]


@functools.cache
def _installed() -> tuple[tuple[str, str], ...]:
    """Returns file and family of each font, those too that matplotlib's cache does not know yet.

    Without "Last Resort" fonts (matplotlib 3.11 and macOS have one), which draw a box for any
    character.
    """
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            try:
                font_manager.fontManager.addfont(path)
            except RuntimeError:  # FreeType cannot read it
                continue
    fonts = {
        font.fname: font.name
        for font in font_manager.fontManager.ttflist
        if not font.name.replace(" ", "").lstrip(".").startswith("LastResort")
    }
    return tuple(sorted(fonts.items()))


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """Returns which characters a font has glyphs of."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # it is gone, or damaged
        return frozenset()
