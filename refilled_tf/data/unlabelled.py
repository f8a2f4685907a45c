"""Training images without labels: which they are, and how they are read.

A task names them as `unlabelled`: other tasks, whose training images count, and sources, whose
images all do. Labels that they may have are not read. An image that the task is scored on is taken
out: whatever file holds it, if its pixels are the same.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gin
import numpy as np
from absl import logging

from refilled_tf.common import settings, storage
from refilled_tf.common.errors import InputError, details, listed, require
from refilled_tf.data import image_folder, pixels
from refilled_tf.data.sources import Index, Source
from refilled_tf.data.task import Examples, Images, Task, read_index, select

# Decoded images of more bytes than these stay on disk as files and are decoded for every batch.
IN_MEMORY = 2_000_000_000


class Unlabelled(NamedTuple):
    """A task's unlabelled images.

    Attributes:
        examples: with labels of -1.
        scored: keys of those that are left out, as the task is scored on the same image.
    """

    examples: Examples
    scored: tuple[str, ...]


@gin.register
@dataclasses.dataclass(frozen=True)
class PhotoFolder:
    """All JPEG, PNG, BMP, GIF and WebP images in a folder, at any depth, as unlabelled images.

    What makes a file an image is its content, not its name.

    Attributes:
        folder: where they are. Hidden files and folders are passed over.
        content: hash of all paths and sizes, which is part of a stage's settings where the folder
            is not.
    """

    folder: str = dataclasses.field(metadata=settings.NEVER)
    content: str = settings.read_once(lambda self: self._content_hash())

    def _content_hash(self) -> str:
        digest = hashlib.sha256()
        for key, size in _listing(self._root):
            digest.update(f"{key}\0{size}\0".encode())
        return digest.hexdigest()[:16]

    def index(self, data_dir: str | None = None) -> Index:
        """Returns the keys, which are paths below the folder; all images train, of no class.

        Raises:
            InputError: there are no images.
        """
        faults = {key: image_folder.fault_in(self._root / key) for key, _ in _listing(self._root)}
        keys = [key for key, fault in faults.items() if fault == ""]
        lost = [f"{key} ({fault})" for key, fault in faults.items() if fault]
        require(
            bool(keys),
            f"PhotoFolder.folder={self.folder} holds no image at any depth"
            + (f" that can be read: {listed(lost)}" if lost else ""),
            details(lost),
        )
        if lost:
            logging.warning("%d unlabelled images cannot be read: %s", len(lost), ", ".join(lost))
        count = len(keys)
        return Index(np.array(keys), np.full(count, -1, np.int32), np.ones(count, bool), ())

    def images(self, keys, size: int, data_dir: str | None = None):
        """Decodes the images of `keys`, resized to size×size."""
        return image_folder.read_images(self._root, keys, size)

    def encoded(self, keys, data_dir: str | None = None) -> Iterator[tuple[int, bytes]]:
        """Yields the files."""
        for row, key in enumerate(keys):
            yield row, (self._root / str(key)).read_bytes()

    @property
    def _root(self) -> Path:
        return Path(self.folder).expanduser().resolve()


@functools.lru_cache(maxsize=2)
def load(task: Task, data_dir: str | None = None) -> Unlabelled:
    """Finds a task's unlabelled images, and decodes them unless they are too many to be held.

    Args:
        task: whose.
        data_dir: folder of prepared TFDS datasets; None for TFDS's own.

    Raises:
        InputError: a source is unreadable, or nothing is left of it.
    """
    scored = _Scored(task, data_dir)
    parts, left_out = [], []
    for place, part in enumerate(task.unlabelled):
        source = part.data.source if isinstance(part, Task) else part
        index = read_index(source, data_dir)
        keys = index.keys
        if isinstance(part, Task):
            keys = keys[select(part, index).train]
        among = scored.among(source, keys, data_dir)
        left_out += keys[among].tolist()
        keys = keys[~among]
        require(
            len(keys) > 0,
            f"{task.role}.unlabelled[{place}] holds no other images than the {len(among)} that the "
            "task is scored on",
        )
        parts.append(_examples(source, keys, task.data.load_size, data_dir))
    if left_out:
        logging.warning(
            "%d unlabelled images are left out, as the task is scored on them: %s",
            len(left_out),
            listed(left_out),
        )
    return Unlabelled(joined(parts), tuple(left_out))


def joined(parts: list[Examples]) -> Examples:
    """Puts examples one after another; in memory, if all parts are."""
    images: Images
    if all(isinstance(part.images, np.ndarray) for part in parts):
        images = np.concatenate([part.images for part in parts])
    else:
        images = _Stacked([part.images for part in parts])
    labels, keys = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("labels", "keys")
    )
    return Examples(images, labels, keys)


def _examples(source: Source, keys: np.ndarray, size: int, data_dir: str | None) -> Examples:
    """Reads images without a label; those that cannot be decoded are passed over with a warning."""
    images: Images
    if isinstance(source, PhotoFolder) and len(keys) * size * size * 3 > IN_MEMORY:
        images, readable = _Files(source, keys, size), np.ones(len(keys), bool)
    else:
        images, readable = source.images(keys, size, data_dir)
        if not readable.all():
            lost = keys[~readable].tolist()
            logging.warning("%d unlabelled images are damaged: %s", len(lost), ", ".join(lost))
            images, keys = images[readable], keys[readable]
    return Examples(images, np.full(len(keys), -1, np.int32), keys)


class _Files:
    """Images [N, S, S, 3] uint8 that are decoded each time when they are asked for."""

    def __init__(self, source: PhotoFolder, keys: np.ndarray, size: int):
        self.shape = (len(keys), size, size, 3)
        self._source, self._keys = source, keys

    def __getitem__(self, rows) -> np.ndarray:
        rows = np.arange(len(self._keys))[rows]
        images, readable = self._source.images(self._keys[rows], self.shape[1])
        for place in np.flatnonzero(~readable):
            # The next one that is whole: always the same, so that a resumed run sees it too.
            logging.log_first_n(logging.WARNING, "%s is damaged", 10, self._keys[rows[place]])
            images[place] = self[[(rows[place] + 1) % len(self._keys)]][0]
        return images


class _Stacked:
    """Several arrays of images one after another, whether in memory or not."""

    def __init__(self, parts: list[Images]):
        self._parts = parts
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (int(self._starts[-1]), *parts[0].shape[1:])

    def __getitem__(self, rows) -> np.ndarray:
        rows = np.arange(self.shape[0])[rows]
        of_part = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for number in np.unique(of_part):
            mine = of_part == number
            found[mine] = self._parts[number][rows[mine] - self._starts[number]]
        return found


class _Scored:
    """The images that a task is scored on, to be recognised by their files and by their pixels."""

    def __init__(self, task: Task, data_dir: str | None):
        source = task.data.source
        index = read_index(source, data_dir)
        # Where some training images are held out, these choose settings that the test then judges.
        tasks = {task, dataclasses.replace(task, holdout=0.0)}
        rows = np.unique(np.concatenate([select(each, index).test for each in tasks]))
        self._files, self._pixels, self._sizes = set(), set(), set()
        for _, encoded in source.encoded(index.keys[rows], data_dir):
            self._files.add(_hash(encoded))
            if (size := _size(encoded)) is not None:
                self._sizes.add(size)
                self._pixels.add(_pixels(encoded))

    def among(self, source: Source, keys: np.ndarray, data_dir: str | None) -> np.ndarray:
        """Returns which of a source's images are scored: [n] bool."""
        found = np.zeros(len(keys), bool)

        def look(each: tuple[int, bytes]) -> None:
            row, encoded = each
            found[row] = _hash(encoded) in self._files or (
                # Decoding takes time that the header of most images saves.
                _size(encoded) in self._sizes and _pixels(encoded) in self._pixels
            )

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            collections.deque(_in_order(pool, look, source.encoded(keys, data_dir)), maxlen=0)
        return found


def _in_order(pool: concurrent.futures.Executor, work: Callable, items: Iterator) -> Iterator:
    """Does `pool.map` on an iterator that is not read ahead of the work: files are large."""
    waiting: collections.deque = collections.deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= 64:
            yield waiting.popleft().result()
    yield from (each.result() for each in waiting)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _size(encoded: bytes) -> frozenset[int] | None:
    """Returns the sides of an image, whichever way it is turned; None of what is no image."""
    try:
        return frozenset(pixels.opened(encoded).size)
    except InputError:
        return None


def _pixels(encoded: bytes) -> bytes:
    """Returns a hash of what an image shows; of what is damaged, of its file."""
    try:
        return _hash(np.ascontiguousarray(pixels.decode(encoded)).tobytes())
    except InputError:
        return _hash(encoded)


@functools.lru_cache(maxsize=4)
def _listing(root: Path) -> tuple[tuple[str, int], ...]:
    """Returns path and size of every file below a folder, in alphabetical order."""
    require(root.is_dir(), f"PhotoFolder.folder={root} is not a folder")
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not storage.is_hidden(name)]
        for name in files:
            path = Path(folder, name)
            if not storage.is_hidden(name) and path.is_file():
                found.append((path.relative_to(root).as_posix(), path.stat().st_size))
    return tuple(sorted(found))
