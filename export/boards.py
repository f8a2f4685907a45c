"""Flash and RAM of microcontrollers."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

from refilled_tf.common.errors import require


class Budget(NamedTuple):
    """Bytes for a network (flash) and for its arena (ram); 0 where it is not known."""

    flash: int
    ram: int


# What is left beside a program. An ESP32-S3 has 512 kB of RAM, of which ESP-IDF leaves some 300,
# and a partition of 1 MB for program and network unless one makes it larger. The nRF52840 of an
# Arduino Nano 33 BLE has 256 kB and 1 MB.
TARGETS = {
    "esp32-s3": Budget(640 * 1024, 256 * 1024),
    "arduino-nano-33": Budget(640 * 1024, 128 * 1024),
    "generic": Budget(0, 0),
}


def budget_of(target: str, flash_kb: int | None, ram_kb: int | None) -> Budget:
    """Returns the budget of a --target.

    Args:
        target: one of `export.TARGETS`.
        flash_kb: --flash_kb, in 1024 bytes; None for the target's.
        ram_kb: --ram_kb, likewise.

    Raises:
        InputError: the target has none of its own, and not both are given.
    """
    known = TARGETS[target]
    flash = known.flash if flash_kb is None else 1024 * flash_kb
    ram = known.ram if ram_kb is None else 1024 * ram_kb
    require(
        bool(flash and ram),
        f"--target={target} has no budget of its own; give --flash_kb and --ram_kb, such as "
        "--flash_kb=512 --ram_kb=128",
    )
    return Budget(flash, ram)


def require_tflite_micro() -> None:
    """Raises InputError unless what measures networks for microcontrollers is installed."""
    require(
        importlib.util.find_spec("tflite_micro") is not None,
        "networks for microcontrollers are measured by tflite-micro, which is not installed: "
        "pip install -r requirements-micro.txt, on Linux and x86-64 (PyPI has no other)",
    )
