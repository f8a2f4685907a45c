"""Photos of one's own: a folder for every class.

FOLDER/CLASS/*                             Data.train_fraction draws the images that train
FOLDER/train/CLASS/*, FOLDER/test/CLASS/*  as they are; what is in val/ trains too, as validation
                                           images are held out of the training images where they
                                           are wanted; without test/, val/ takes its place
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import gin
import numpy as np
import tensorflow as tf

from refilled_tf.data import pixels
from refilled_tf.data.sources import Index, to_square
from refilled_tf.errors import InputError, require

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
SPLITS = ("train", "val", "test")
# Fewer than these leave next to nothing for both sides of a split.
FEW = 10


class Photo(NamedTuple):
    """A file that calls itself an image.

    Attributes:
        key: its path below the folder, with slashes.
        split: "train", "val" or "test"; "" where the folder has none.
        class_name: the folder it lies in.
        content: hash of its bytes.
        fault: why it is no image, as far as its header tells; "" if it may be one.
    """

    key: str
    split: str
    class_name: str
    content: str
    fault: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is in a folder.

    Attributes:
        photos: by key.
        others: paths below the folder of what is passed over: other files, and folders in a class.
    """

    photos: tuple[Photo, ...]
    others: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """In alphabetical order."""
        return tuple(sorted({photo.class_name for photo in self.photos}))

    @property
    def has_splits(self) -> bool:
        """Whether the folder says which images train."""
        return any(photo.split for photo in self.photos)

    @functools.cached_property
    def held_out(self) -> str:
        """The split that is scored."""
        return "test" if any(photo.split == "test" for photo in self.photos) else "val"

    def trains(self, photo: Photo) -> bool:
        """Whether a photo is one of those that may train."""
        return photo.split != self.held_out

    def copies(self) -> list[list[Photo]]:
        """Returns groups of files with the same content."""
        groups = collections.defaultdict(list)
        for photo in self.photos:
            if not photo.fault:
                groups[photo.content].append(photo)
        return [group for group in groups.values() if len(group) > 1]


@gin.register
@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder of JPEG, PNG, BMP, GIF (its first frame) or WebP images, see above.

    What has another suffix, or none, is an image too if its content is. Of files with the same
    content, only the first counts.

    Attributes:
        folder: where they are.
        on_crossing: what to do with a file whose content is in both the training and the test
            folder of a class: "error" stops, "train" leaves it out of the test.
        content: hash of all names and files, which is part of a stage's settings where the path is
            not.
    """

    folder: str
    on_crossing: str = "error"
    content: str = dataclasses.field(init=False)

    def __post_init__(self):
        require(
            self.on_crossing in ("error", "train"),
            f"ImageFolder.on_crossing={self.on_crossing!r} must be 'error' or 'train'",
        )
        names = "".join(f"{photo.key}\0{photo.content}\0" for photo in self.survey().photos)
        content = hashlib.sha256(names.encode()).hexdigest()[:16]
        object.__setattr__(self, "content", content)

    def survey(self) -> Survey:
        """Looks through the folder.

        Raises:
            InputError: it is none, or not laid out as above.
        """
        return _survey(self._root)

    def index(self, data_dir: str | None = None) -> Index:
        """Returns labels and keys; classes are in alphabetical order.

        Raises:
            InputError: a file is in two classes, or in both training and test.
        """
        survey = self.survey()
        left_out = set()
        for group in survey.copies():
            first, *rest = sorted(group, key=lambda photo: (not survey.trains(photo), photo.key))
            for photo in rest:
                both = f"{first.key} and {photo.key} under ImageFolder.folder={self.folder}"
                require(
                    photo.class_name == first.class_name,
                    f"{both} are the same file in two classes, {first.class_name!r} and "
                    f"{photo.class_name!r}; delete it from the one where it is wrong",
                )
                require(
                    survey.trains(photo) == survey.trains(first) or self.on_crossing == "train",
                    f"{both} are the same file in training and test, which makes the test too "
                    "easy; delete one, or have ImageFolder.on_crossing='train' leave it out of "
                    "the test",
                )
                left_out.add(photo.key)
        photos = [photo for photo in survey.photos if photo.key not in left_out]
        numbers = {name: number for number, name in enumerate(survey.class_names)}
        return Index(
            np.array([photo.key for photo in photos]),
            np.array([numbers[photo.class_name] for photo in photos], np.int32),
            np.array([survey.trains(photo) for photo in photos]),
            survey.class_names,
        )

    def images(self, keys, size: int, data_dir: str | None = None):
        """Decodes the images of `keys`, resized to size×size."""
        return read_images(self._root, keys, size)

    def encoded(self, keys, data_dir: str | None = None) -> Iterator[tuple[int, bytes]]:
        """Yields the files."""
        for row, key in enumerate(keys):
            yield row, (self._root / str(key)).read_bytes()

    @property
    def _root(self) -> Path:
        return Path(self.folder).expanduser().resolve()


def read_images(root: Path, keys: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the files of `keys` below a folder; see `Source.images`."""
    images = np.zeros((len(keys), size, size, 3), np.uint8)
    readable = np.zeros(len(keys), bool)

    def read(row: int) -> None:
        try:
            image = pixels.decode((root / str(keys[row])).read_bytes())
        except InputError:
            return
        images[row] = to_square(tf.constant(image), size).numpy()
        readable[row] = True

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        collections.deque(pool.map(read, range(len(keys))), maxlen=0)
    return images, readable


def _survey(root: Path) -> Survey:
    require(root.is_dir(), f"ImageFolder.folder={root} is not a folder")
    files, others = [], []
    for split, folder in _split_folders(root):
        for path in _visible(folder):
            if path.is_dir():
                for file in _visible(path):
                    (files if _may_be_image(file) else others).append((split, file))
                _require_images(root, path, files)
            else:
                others.append((split, path))
    for _, file in files:
        _require_utf8(root, file)
    listing = tuple(
        (split, file.relative_to(root).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
        for split, file in files
    )
    names = sorted({Path(key).parent.name for _, key, *_ in listing})
    require(
        bool(names),
        f"ImageFolder.folder={root} holds no images; wanted is a folder for every class, "
        f"{root.name}/CLASS/*, with files that end in {', '.join(SUFFIXES)}",
    )
    require(
        len(names) >= 2,
        f"ImageFolder.folder={root} holds the single class {names[0]!r}; at least two are needed, "
        "each a folder",
    )
    return Survey(
        _examined(root, listing), tuple(file.relative_to(root).as_posix() for _, file in others)
    )


def _may_be_image(file: Path) -> bool:
    """Whether a file calls itself an image, or is one by its content."""
    return file.is_file() and (file.suffix.lower() in SUFFIXES or pixels.is_image(file))


def _require_images(root: Path, folder: Path, files: Sequence[tuple[str, Path]]) -> None:
    """Refuses the folder of a class, if none of the images found so far is in it."""
    if files and files[-1][1].parent == folder:
        return
    there = [path.name for path in _visible(folder)]
    shown = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
    raise InputError(
        f"ImageFolder.folder={root}: class {folder.relative_to(root).as_posix()!r} has no image "
        f"that can be read; it holds {shown or 'nothing'}. Put JPEG, PNG, BMP, GIF or WebP files "
        "into it, or delete the folder"
    )


def _require_utf8(root: Path, file: Path) -> None:
    """Refuses a path that could not be written into a report or an export."""
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(file.relative_to(root))
        raise InputError(f"ImageFolder.folder={root}: {name!r} is not UTF-8; rename it") from error


def _split_folders(root: Path) -> list[tuple[str, Path]]:
    """Returns (split, folder of classes) of each; a class may well be named "train"."""
    there = [name for name in SPLITS if any(p.is_dir() for p in (root / name).glob("[!.]*"))]
    if not there:
        return [("", root)]
    strays = [path.name for path in _visible(root) if path.is_dir() and path.name not in there]
    require(
        "train" in there and len(there) > 1 and not strays,
        f"ImageFolder.folder={root} has the folders {', '.join(there + strays)}; wanted are either "
        "CLASS/* alone, or train/CLASS/* and test/CLASS/* and maybe val/CLASS/*",
    )
    return [(name, root / name) for name in there]


def _visible(folder: Path) -> list[Path]:
    # macOS puts a folder of that name into its archives.
    hidden = (".", "__MACOSX")
    return sorted(path for path in folder.iterdir() if not path.name.startswith(hidden))


@functools.lru_cache(maxsize=4)
def _examined(root: Path, listing: tuple[tuple[str, str, int, int], ...]) -> tuple[Photo, ...]:
    """Reads all files of a listing: split, key, size and time of change of each."""

    def examine(entry) -> Photo:
        split, key, *_ = entry
        encoded = (root / key).read_bytes()
        content = hashlib.sha256(encoded).hexdigest()
        return Photo(key, split, Path(key).parent.name, content, _fault(encoded))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(sorted(pool.map(examine, listing)))


def _fault(encoded: bytes) -> str:
    try:
        pixels.opened(encoded)
    except InputError as error:
        return str(error)
    return ""


def notes(survey: Survey) -> list[str]:
    """Returns what is odd in a folder: damaged files, copies, few images, other files."""
    found = []
    counts = collections.Counter(photo.class_name for photo in survey.photos)
    if few := [f"{name} ({counts[name]})" for name in survey.class_names if counts[name] < FEW]:
        found.append(f"few images, expect little of these classes: {', '.join(few)}")
    if faults := [f"{photo.key} ({photo.fault})" for photo in survey.photos if photo.fault]:
        found.append(f"corrupt: {', '.join(faults)}")
    if copies := [" = ".join(photo.key for photo in group) for group in survey.copies()]:
        found.append(f"the same file: {', '.join(copies)}")
    if survey.others:
        found.append(f"passed over, as they are no images: {', '.join(survey.others)}")
    return found
