"""Photos and a teacher for those who test with images of their own: digits in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits


def write_folder(folder: Path, classes=range(5, 10), count: int = 30) -> Path:
    """Writes digits as FOLDER/DIGIT/NUMBER.png, 8×8 pixels."""
    digits = load_digits()
    for digit in classes:
        (folder / str(digit)).mkdir(parents=True)
        for row in np.flatnonzero(digits.target == digit)[:count]:
            pixels = np.round(digits.images[row] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(digit) / f"{row:04d}.png")
    return folder


def write_teacher(path: Path) -> Path:
    """Saves a network for 12×12 pixels that looks at them through random filters."""
    tf.keras.utils.set_random_seed(0)
    network = tf.keras.Sequential(
        [
            tf.keras.Input((12, 12, 3)),
            tf.keras.layers.Rescaling(1 / 255),
            tf.keras.layers.Conv2D(16, 3, 2, activation="relu"),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(4),
        ]
    )
    network.save(path)
    return path
