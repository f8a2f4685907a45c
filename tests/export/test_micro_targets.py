"""Which student fits a microcontroller."""

from __future__ import annotations

import commands
import pytest

from export import boards
from refilled_tf.common.errors import InputError
from refilled_tf.models.mobilenet import MobileNet

pytest.importorskip("tflite_micro")

from export import micro_targets


@pytest.fixture
def two_sizes(monkeypatch):
    monkeypatch.setattr(micro_targets, "WIDTHS", (0.1,))
    monkeypatch.setattr(micro_targets, "SIZES", (48, 96))


def _fit(flash_kb, ram_kb):
    budget = boards.Budget(1024 * flash_kb, 1024 * ram_kb)
    return micro_targets.fit(budget, lambda width: MobileNet(width=width), classes=3)


def test_largest_that_fits_is_taken(two_sizes, capsys):
    """By hand: 48×48 has a quarter of the pixels of 96×96, and so about a quarter of its maps."""
    large = _fit(1000, 1000)
    assert (large.width, large.image_size) == (0.1, 96)
    small = _fit(1000, large.ram // 1024 - 1)
    assert small.image_size == 48
    assert small.flash == pytest.approx(large.flash, rel=0.05)  # the same weights
    assert 1 / 4 < small.ram / large.ram < 3 / 4  # a part of the arena is no map
    assert capsys.readouterr().out.count("kB of RAM") == 3


def test_budget_that_nothing_fits_names_the_smallest_that_would(two_sizes):
    with pytest.raises(
        InputError, match=r"of width 0\.1 at 48×48, needs --flash_kb=(\d+)"
    ) as error:
        _fit(1, 1)
    flash, ram = (int(part.split("=")[1]) for part in str(error.value).split()[-2:])
    assert _fit(flash, ram).image_size == 48


def test_candidates_come_by_multiplications():
    """Which grow with (width · size)²."""
    products = [width * size for width, size in micro_targets.candidates()]
    assert products == sorted(products, reverse=True)
    assert len(products) == len(micro_targets.WIDTHS) * len(micro_targets.SIZES)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target=generic"], "give --flash_kb and --ram_kb, such as"),
        (["--target=esp32-s3", "--width=0.5"], "--width=[0.5] is what --target=esp32-s3 chooses"),
        (["--target=esp32-s3", "--image_size=32"], "--image_size=32 is what --target="),
        (["--flash_kb=100"], "--flash_kb goes with a --target"),
    ],
)
def test_options_that_do_not_go_together(flags, said, tmp_path):
    given = [f"--images={commands.ROOT}", "--teacher=imagenet:MobileNet", f"--output={tmp_path}/o"]
    done = commands.run("refilled_tf.distill", *given, *flags)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
