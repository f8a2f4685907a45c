"""Embeddings that were computed elsewhere: a teacher without a network, a `Lookup`."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import gin
import numpy as np

from refilled_tf.common import settings
from refilled_tf.common.errors import InputError, details, listed, require
from refilled_tf.models.keras_files import content_hash


@gin.register
@dataclasses.dataclass(frozen=True)
class EmbeddingFile:
    """A teacher's embeddings of un-augmented images, in a NumPy archive.

    The archive has two arrays: "paths" [N] strings, the images' keys in their dataset (of a folder
    of images, their paths below it), and "embeddings" [N, d] of any type of numbers:
    `np.savez(file, paths=paths, embeddings=embeddings)`.

    Attributes:
        file: the .npz file.
        content: its hash, which is part of a stage's settings where the path is not.
    """

    file: str = dataclasses.field(metadata=settings.NEVER)
    content: str = settings.read_once(
        lambda self: content_hash(f"EmbeddingFile.file={self.file}", self.file)
    )

    def embeddings(self, keys: np.ndarray) -> np.ndarray:
        """Looks images up.

        Args:
            keys: [n] of images in their dataset.

        Returns:
            [n, d] float32.

        Raises:
            InputError: the file is no such archive, misses some of the images, or has numbers that
                are not finite.
        """
        rows, embeddings = _read(self)
        missing = [key for key in keys if key not in rows]
        require(
            not missing,
            f"EmbeddingFile.file={self.file} misses {len(missing)} of {len(keys)} images: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; it has {len(rows)}, "
            f"such as {next(iter(rows), 'none')!r}",
            details(missing, 3),
        )
        return embeddings[[rows[key] for key in keys]]


# Keyed by content too, so that a changed file is read anew.
@functools.lru_cache(maxsize=4)
def _read(file: EmbeddingFile) -> tuple[dict[str, int], np.ndarray]:
    """Returns the row of every path, and the embeddings [N, d] float32."""
    what = f"EmbeddingFile.file={file.file}"
    try:
        with np.load(Path(file.file).expanduser()) as archive:
            paths, embeddings = archive["paths"], archive["embeddings"]
    except Exception as error:  # NumPy raises whatever the zip reader raised.
        raise InputError(
            f"{what} is no NumPy archive of two arrays, 'paths' and 'embeddings': "
            f"{' '.join(str(error).split())}"
        ) from error
    require(
        paths.ndim == 1 and paths.dtype.kind in "US",
        f"{what}: 'paths' is {list(paths.shape)} {paths.dtype}; wanted are [N] strings",
    )
    require(
        embeddings.ndim == 2 and len(embeddings) == len(paths) and embeddings.dtype.kind in "fiu",
        f"{what}: 'embeddings' is {list(embeddings.shape)} {embeddings.dtype} for {len(paths)} "
        "paths; wanted are [N, d] numbers, a row for every path",
    )
    if paths.dtype.kind == "S":
        paths = np.char.decode(paths, "utf-8")
    embeddings = embeddings.astype(np.float32)
    bad = paths[~np.isfinite(embeddings).all(axis=1)].tolist()
    require(
        not bad,
        f"{what}: {len(bad)} embeddings have NaN or infinite numbers: {listed(bad)}",
        details(bad),
    )
    rows = {path: row for row, path in enumerate(paths.tolist())}
    require(len(rows) == len(paths), f"{what}: {len(paths) - len(rows)} of its paths repeat")
    return rows, embeddings
