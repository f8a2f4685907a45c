"""Printed letters: a dataset that is drawn, for teachers of what people write by hand."""

from __future__ import annotations

import dataclasses
import functools
import string
from collections.abc import Iterator
from pathlib import Path

import gin
import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from refilled_tf.common.errors import require_whole
from refilled_tf.data.sources import Index, grey_files, grey_squares

# All that come with matplotlib and hold the letters from A to z.
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmtt10"),
)
POINTS = 40  # of the letter as it is first drawn
PAPER = 100  # side of what it is drawn on, in pixels, so that no letter is cut off
BOX, SIDE = 20, 28  # of the letter and of its image in the end, as in MNIST
BICUBIC = PIL.Image.Resampling.BICUBIC
CLASSES = tuple(string.ascii_uppercase + string.ascii_lowercase)


@gin.register
@dataclasses.dataclass(frozen=True)
class PrintedLetters:
    """The letters A to Z and a to z, white on black, in 21 fonts, as MNIST shows its digits.

    Each image has a font, a thickness of stroke, a rotation, a slant and a width of its own. The
    letter fills a box of 20 pixels and lies in 28×28 with its centre of mass in the middle. The
    same versions of Pillow and matplotlib draw the same pixels.

    Attributes:
        count: images of each letter.
        seed: of the draw.
    """

    count: int = 200
    seed: int = 0

    def __post_init__(self):
        require_whole("PrintedLetters.count", self.count)
        require_whole("PrintedLetters.seed", self.seed, 0)

    def index(self, data_dir: str | None = None) -> Index:
        """Returns the facts; there is no split, so all images train."""
        labels = np.repeat(np.arange(len(CLASSES), dtype=np.int32), self.count)
        numbers = np.tile(np.arange(self.count), len(CLASSES))
        keys = [f"{CLASSES[label]}/{n:05d}" for label, n in zip(labels, numbers, strict=True)]
        return Index(np.array(keys), labels, np.ones(len(keys), bool), CLASSES)

    def images(self, keys, size: int, data_dir: str | None = None):
        """Returns the letters of `keys`, resized to size×size, in three equal channels."""
        return grey_squares(self._drawn(keys), size)

    def encoded(self, keys, data_dir: str | None = None) -> Iterator[tuple[int, bytes]]:
        """Yields PNGs of 28×28 pixels."""
        yield from grey_files(self._drawn(keys))

    def _drawn(self, keys) -> np.ndarray:
        return np.stack([_draw(str(key), self.seed) for key in keys])


@functools.cache
def _font(name: str) -> PIL.ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return PIL.ImageFont.truetype(str(folder / f"{name}.ttf"), POINTS)


@functools.cache
def _draw(key: str, seed: int) -> np.ndarray:
    """Draws the image of a key such as "q/00042": [28, 28] uint8."""
    letter, _, number = key.partition("/")
    random = np.random.default_rng([seed, ord(letter), int(number)])
    font, stroke = _font(FONTS[random.integers(len(FONTS))]), random.uniform(0, 2)
    angle, slant = np.radians(random.uniform(-15, 15)), random.uniform(-0.4, 0.4)
    width = random.uniform(0.6, 1.2)

    paper, middle = PIL.Image.new("L", (PAPER, PAPER)), np.full(2, PAPER / 2)
    PIL.ImageDraw.Draw(paper).text(tuple(middle), letter, 255, font, "mm", stroke_width=stroke)
    # Where a pixel of the result comes from: (x, y) = back @ (x', y') + start.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back = np.array([[1 / width, slant], [0, 1]]) @ turn
    start = middle - back @ middle
    affine = (*back[0], start[0], *back[1], start[1])
    return _framed(paper.transform(paper.size, PIL.Image.Transform.AFFINE, affine, BICUBIC))


def _framed(drawing: PIL.Image.Image) -> np.ndarray:
    """Fits white on black into a box of 20 pixels, its centre of mass in the middle of 28×28."""
    ink = drawing.crop(drawing.getbbox())
    scale = BOX / max(ink.size)
    size = [max(1, round(side * scale)) for side in ink.size]
    ink = ink.resize(size, PIL.Image.Resampling.BOX)
    weight = np.asarray(ink, float)
    centre = [
        weight.sum(axis) @ (np.arange(side) + 0.5) / weight.sum()
        for axis, side in zip((0, 1), ink.size, strict=True)
    ]
    # A heavy end would push the other one over the edge.
    left, top = (
        int(np.clip(round(SIDE / 2 - c), 0, SIDE - side))
        for c, side in zip(centre, ink.size, strict=True)
    )
    image = PIL.Image.new("L", (SIDE, SIDE))
    image.paste(ink, (left, top))
    return np.asarray(image)
