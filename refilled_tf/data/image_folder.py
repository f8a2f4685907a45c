"""Photos of one's own: a folder for every class.

FOLDER/CLASS/*                             Data.train_fraction draws the images that train
FOLDER/train/CLASS/*, FOLDER/test/CLASS/*  as they are; what is in val/ trains too, as validation
                                           images are held out of the training images where they
                                           are wanted; without test/, val/ takes its place

Training/, valid/, test_set/ and their like (`SPLITS`) are train/, val/ and test/; of train/train/,
as some archives have it, the inner one counts.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import gin
import numpy as np
import PIL.Image
import tensorflow as tf

from refilled_tf.common import settings, storage
from refilled_tf.common.errors import (
    SHOWN,
    InputError,
    details,
    gin_param,
    listed,
    require,
    require_choice,
)
from refilled_tf.data import pixels
from refilled_tf.data.resizing import to_square
from refilled_tf.data.sources import Index

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# Names of folders that say what is in them, in any case.
SPLITS = {
    "train": "train|training",
    "val": "val|valid|validation|eval|evaluation|dev",
    "test": "test|testing",
}
# What may stand around them, as in training_set/, test1/ and seg_train/.
AROUND = r"(?:(?:seg|data|images?)[ _-])?(?:{})(?:[ _-]?(?:set|data|images?))?(?:[ _-]?\d+)?"
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
    """Contents of a folder of images.

    Attributes:
        photos: by key.
        others: what is passed over: its path below the folder, and why.
    """

    photos: tuple[Photo, ...]
    others: tuple[tuple[str, str], ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes, in alphabetical order."""
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

    def twins(self) -> list[list[str]]:
        """Returns groups of classes whose names differ in case, blanks or Unicode form alone."""
        groups = collections.defaultdict(list)
        for name in self.class_names:
            groups[unicodedata.normalize("NFKC", name).casefold().strip()].append(name)
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
        on_conflict: what to do with a file whose content is in two classes: "error" stops, "skip"
            leaves it out of all.
        content: hash of all names and files, which is part of a stage's settings where the path is
            not.
    """

    folder: str = dataclasses.field(metadata=settings.NEVER)
    on_crossing: Literal["error", "train"] = "error"
    on_conflict: Literal["error", "skip"] = dataclasses.field(
        default="error", metadata=settings.IF_SET
    )
    content: str = settings.read_once(lambda self: self._content_hash())

    def __post_init__(self):
        require_choice(self, "on_crossing", "on_conflict")

    def _content_hash(self) -> str:
        names = "".join(f"{photo.key}\0{photo.content}\0" for photo in self.survey().photos)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def survey(self) -> Survey:
        """Looks through the folder.

        Raises:
            InputError: it is none, or not laid out as above.
        """
        return _survey(self._root)

    def index(self, data_dir: str | None = None) -> Index:
        """Returns labels and keys; classes are in alphabetical order.

        Raises:
            InputError: files are in two classes, or in both training and test; or a class that
                only trains is called as one that is only tested, but for case.
        """
        survey = self.survey()
        self._require_one_spelling(survey)
        left_out, conflicts, crossings = set(), [], []
        for group in survey.copies():
            first, *rest = sorted(group, key=lambda photo: (not survey.trains(photo), photo.key))
            names = sorted({photo.class_name for photo in group})
            if len(names) > 1:
                left_out |= {photo.key for photo in group}
                keys = " and ".join(photo.key for photo in (first, *rest))
                several = "two" if len(names) == 2 else len(names)
                conflicts.append(
                    f"{keys} are the same file in {several} classes, "
                    f"{' and '.join(map(repr, names))}"
                )
                continue
            left_out |= {photo.key for photo in rest}
            crossings += [
                f"{first.key} and {photo.key} are the same file in training and test"
                for photo in rest
                if survey.trains(photo) != survey.trains(first)
            ]
        self._require_none(
            conflicts if self.on_conflict == "error" else [],
            crossings if self.on_crossing == "error" else [],
        )
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

    def _require_none(self, conflicts: Sequence[str], crossings: Sequence[str]) -> None:
        """Rejects files that are in two classes, or in training and test, all at once."""
        faults = []
        if conflicts:
            skip = gin_param("ImageFolder.on_conflict", "skip")
            faults.append(
                f"{listed(conflicts, '; ')}. Delete each where it is wrong, or leave it out of all "
                f"classes by {skip}"
            )
        if crossings:
            train = gin_param("ImageFolder.on_crossing", "train")
            faults.append(
                f"{listed(crossings, '; ')}, which makes the test too easy. Delete one of each, or "
                f"leave it out of the test by {train}"
            )
        if faults:
            shortened = max(len(conflicts), len(crossings)) > SHOWN
            raise InputError(
                f"ImageFolder.folder={self.folder}: {'. '.join(faults)}",
                [*conflicts, *crossings] if shortened else (),
            )

    def _require_one_spelling(self, survey: Survey) -> None:
        """Rejects class names that differ between splits only in spelling: train/cat, test/Cat."""
        parts = collections.defaultdict(set)
        for photo in survey.photos:
            parts[photo.class_name].add(survey.trains(photo))
        torn = [
            " and ".join(map(repr, group))
            for group in survey.twins()
            if survey.has_splits and any(len(parts[name]) < 2 for name in group)
        ]
        require(
            not torn,
            f"ImageFolder.folder={self.folder}: {listed(torn, '; ')} differ in case, blanks or "
            "Unicode form alone, and one has only training or only test images; rename their "
            "folders to the same name",
            details(torn),
        )

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
    files: list[tuple[str, Path]] = []
    others: list[tuple[Path, str]] = []
    without: list[Path] = []
    parts = _split_folders(root)
    if parts != [("", root)]:
        others += [(path, _why_loose(path)) for path in _visible(root) if not path.is_dir()]
    for split, folder in parts:
        if split is None:
            others.append((folder, "they have no folders of classes"))
            continue
        for path in _visible(folder):
            if not path.is_dir():
                others.append((path, _why_loose(path)))
                continue
            count = len(files)
            for file in _visible(path):
                if _may_be_image(file):
                    files.append((split, file))
                else:
                    others.append((file, _why_passed_over(file, "they are no images")))
            if len(files) == count:
                without.append(path)
    _require_level(root, files, without)
    _require_images(root, without)
    for _, file in files:
        _require_utf8(root, file)
    _require_readable(root, [file for _, file in files])
    listing = tuple(
        (split, file.relative_to(root).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
        for split, file in files
    )
    names = sorted({Path(key).parent.name for _, key, *_ in listing})
    require(
        len(names) >= 2,
        f"ImageFolder.folder={root} holds the single class {names[0]!r}; at least two are needed, "
        "each a folder",
    )
    passed_over = tuple((file.relative_to(root).as_posix(), why) for file, why in others)
    return Survey(_examined(root, listing), passed_over)


def fault_in(file: Path) -> str | None:
    """Says why an image cannot be read, as far as its header tells.

    Returns:
        "" of one that may be read; None of a file that neither calls itself an image nor is one.
    """
    try:
        with file.open("rb") as content:  # of which the header is enough: it may be a long video
            pixels.opened(content)
        return ""
    except (OSError, InputError) as error:
        too_large = isinstance(error.__cause__, PIL.Image.DecompressionBombError)
        return str(error) if too_large or file.suffix.lower() in SUFFIXES else None


def _may_be_image(file: Path) -> bool:
    """Whether a file calls itself an image, or is one by its content."""
    if not file.is_file():
        return False
    return file.suffix.lower() in SUFFIXES or fault_in(file) is not None


def _why_loose(path: Path) -> str:
    """Says why a file that lies in no class's folder is passed over."""
    why = "they lie in no class's folder" if _may_be_image(path) else "they are no images"
    return _why_passed_over(path, why)


def _why_passed_over(path: Path, otherwise: str) -> str:
    if path.is_dir():
        return "they are folders in a class's folder"
    if path.is_symlink() and not path.exists():
        return "they are links to nothing"
    return otherwise if os.access(path, os.R_OK) else "they may not be read"


def _require_level(root: Path, files: Sequence, without: Sequence[Path]) -> None:
    """Rejects a folder one level above or below a folder of classes.

    Args:
        root: the folder.
        files: images that are where they should be.
        without: folders in the places of classes that hold no image themselves.
    """
    if files:
        return
    deeper = [(path, image) for path in without if (image := _image_below(path))]
    if len(deeper) == 1:
        ((path, image),) = deeper
        raise InputError(
            f"ImageFolder.folder={root} is one folder too high: its images lie deeper, such as "
            f"{image.relative_to(root).as_posix()}; give {shlex.quote(str(path))} instead "
            f"(--images={shlex.quote(str(path))})"
        )
    if deeper:
        raise InputError(
            f"ImageFolder.folder={root}: its images lie deeper than {root.name}/CLASS/*, such as "
            f"{deeper[0][1].relative_to(root).as_posix()}; give one of the folders "
            f"{listed([shlex.quote(str(path)) for path, _ in deeper])} instead (--images), or move "
            "what is in them one folder up",
            details([str(path) for path, _ in deeper]),
        )
    loose = [path for path in _visible(root) if _may_be_image(path)]
    require(
        not loose or bool(without),
        f"ImageFolder.folder={root} holds {len(loose)} images, such as "
        f"{loose[0].name if loose else ''}, and no folders; wanted is a folder for every class, "
        f"{root.name}/CLASS/*. If {root.name!r} is a class, give the folder above it instead "
        f"(--images={shlex.quote(str(root.parent))})",
    )
    require(
        bool(without),
        f"ImageFolder.folder={root} holds no images; wanted is a folder for every class, "
        f"{root.name}/CLASS/*, with files that end in {', '.join(SUFFIXES)}",
    )


def _image_below(folder: Path) -> Path | None:
    """Returns the first image below a folder, at any depth."""
    for path in _visible(folder):
        if found := _image_below(path) if path.is_dir() else path if _may_be_image(path) else None:
            return found
    return None


def _require_images(root: Path, without: Sequence[Path]) -> None:
    """Rejects classes without an image.

    Args:
        root: the folder.
        without: their folders.
    """
    faults = []
    for folder in without:
        name, image = folder.relative_to(root).as_posix(), _image_below(folder)
        there = [path.name for path in _visible(folder)]
        shown = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
        if image:
            shown += f"; images that lie deeper, such as {image.relative_to(root).as_posix()}"
        faults.append(
            f"class {name!r} has no image that can be read; it holds {shown or 'nothing'}"
        )
    if faults:
        raise InputError(
            f"ImageFolder.folder={root}: {listed(faults, '; ')}. Put JPEG, PNG, BMP, GIF or WebP "
            f"files into {'it' if len(faults) == 1 else 'each'}, or delete the folder",
            details(faults),
        )


def _require_readable(root: Path, files: Sequence[Path]) -> None:
    """Rejects files that this user may not read."""
    closed = [file.relative_to(root).as_posix() for file in files if not os.access(file, os.R_OK)]
    if closed:
        raise InputError(
            f"ImageFolder.folder={root}: {len(closed)} image(s) may not be read: {listed(closed)}; "
            f"allow it by chmod -R u+rX {shlex.quote(str(root))}",
            details(closed),
        )


def _require_utf8(root: Path, file: Path) -> None:
    """Rejects a path that could not be written into a report or an export."""
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(file.relative_to(root))
        raise InputError(f"ImageFolder.folder={root}: {name!r} is not UTF-8; rename it") from error


def split_named(name: str) -> str | None:
    """Returns "train", "val" or "test" if a folder's name says so."""
    return next(
        (
            split
            for split, names in SPLITS.items()
            if re.fullmatch(AROUND.format(names), name.casefold())
        ),
        None,
    )


def _split_folders(root: Path) -> list[tuple[str | None, Path]]:
    """Returns (split, folder of classes) of each; a class may well be named "train".

    The split is None of a test folder without classes, whose place another folder takes.
    """
    folders = [path for path in _visible(root) if path.is_dir()]
    called = {path: split for path in folders if (split := split_named(path.name))}
    inner = {path: _unwrapped(path) for path in called}
    there = [path for path in called if any(each.is_dir() for each in _visible(inner[path]))]
    without = [path for path in called if path not in there and _image_below(path)]
    if not there:
        _require_classes(root, [inner[path] for path in without])
        return [("", root)]
    splits = [called[path] for path in there]
    strays = [path for path in folders if path not in there]
    names = ", ".join(path.name for path in (*there, *strays))
    twice = [path.name for path in there if splits.count(called[path]) > 1]
    require(
        not twice,
        f"ImageFolder.folder={root} has both {' and '.join(twice)}; put their images into one",
    )
    if "train" in splits and strays == without:
        if len(there) > 1:
            return [
                *((called[path], inner[path]) for path in there),
                *((None, path) for path in without),
            ]
        if without:
            train, other = inner[there[0]], without[0]
            raise InputError(
                f"ImageFolder.folder={root}: {other.name}/ has images but no folders of classes, "
                f"so that nothing can be scored on them. Give {shlex.quote(str(train))} instead "
                f"(--images={shlex.quote(str(train))}), whose images are then split by a seed"
            )
    advice = ""
    if splits == ["train"] and not strays:
        train = inner[there[0]]
        advice = (
            f". Give {shlex.quote(str(train))} instead "
            f"(--images={shlex.quote(str(train))}), whose images are then split by a seed"
        )
    elif neither := [path.name for path in strays if path not in called]:
        advice = f". Rename {listed(neither)} to one of these, or move it out of {root.name}/"
    require(
        "train" in splits and len(there) > 1 and not strays,
        f"ImageFolder.folder={root} has the folders {names}; wanted are either "
        f"CLASS/* alone, or train/CLASS/* and test/CLASS/* and maybe val/CLASS/*{advice}",
    )
    return [(called[path], inner[path]) for path in there]


def _unwrapped(folder: Path) -> Path:
    """Returns FOLDER/NAME if that is what a folder of this name has in place of images."""
    inside = _visible(folder)
    if [path.name.casefold() for path in inside] != [folder.name.casefold()]:
        return folder
    return _unwrapped(inside[0]) if inside[0].is_dir() else folder


def _require_classes(root: Path, splits: Sequence[Path]) -> None:
    """Rejects train/* and test/*: their names say that they are no classes.

    Args:
        root: the folder.
        splits: those in it that are named as splits are, and hold images in no class's folder.
    """
    if len(splits) < 2:
        return
    first, *_ = sorted(splits, key=lambda path: split_named(path.name) != "train")
    names = " and ".join(f"{path.name}/" for path in splits)
    image = _image_below(first)
    raise InputError(
        f"ImageFolder.folder={root}: {names} have images (such as "
        f"{image.relative_to(root).as_posix() if image else first.name}) but no folders of "
        "classes, so that nothing says what is in an image. Wanted are either CLASS/* alone, or "
        "train/CLASS/* and test/CLASS/*: make a folder for each class in "
        f"{shlex.quote(str(first))}, move its images there, and give --images="
        f"{shlex.quote(str(first))}, whose images are then split by a seed. If these are classes, "
        "rename their folders"
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not storage.is_hidden(path.name))


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


def notes(survey: Survey, shown: int | None = SHOWN, where: str = "") -> list[str]:
    """Returns what is odd in a folder: damaged files, copies, few images, other files.

    Args:
        survey: of the folder.
        shown: of many files, how many are named; None names all.
        where: said of the others.
    """
    counts = collections.Counter(photo.class_name for photo in survey.photos)
    names = survey.class_names
    found = {
        "few images, expect little of these classes": [
            f"{name} ({counts[name]})" for name in names if counts[name] < FEW
        ],
        "classes of their own, though they differ in case, blanks or Unicode form alone": [
            " and ".join(group) for group in survey.twins()
        ],
        "taken for a class, though it is called as training or test images are": [
            name for name in names if not survey.has_splits and split_named(name)
        ],
        "corrupt": [f"{photo.key} ({photo.fault})" for photo in survey.photos if photo.fault],
        "the same file": [" = ".join(photo.key for photo in group) for group in survey.copies()],
    }
    for key, why in survey.others:
        found.setdefault(f"passed over, as {why}", []).append(key)
    return [
        f"{what}: {listed(items, shown=shown)}"
        + (where if len(items) > (shown or len(items)) else "")
        for what, items in found.items()
        if items
    ]
