"""The teacher's outputs for a few fixed views of every training image, kept on disk.

A stage then trains on these views alone, and reads what the teacher makes of them instead of
running it in every step.

FOLDER/key.json    what the outputs are of: teacher, images, augmentation, views
FOLDER/NAME.npy    one output [N, K, …] float16; appears when it is whole
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from refilled_tf.common import storage
from refilled_tf.common.errors import InputError, require
from refilled_tf.common.progress import bar_interval
from refilled_tf.common.settings import differences
from refilled_tf.data import batches, resizing
from refilled_tf.data.task import Data, Examples, Images
from refilled_tf.experiment.loading import load_network
from refilled_tf.experiment.run import Run
from refilled_tf.experiment.stage import Stage, TeacherCache
from refilled_tf.models import networks
from refilled_tf.models.onnx_files import OnnxLayer

# Views that the teacher sees at once.
BATCH_SIZE = 256


def views(stage: Stage, run: Run, examples: Examples) -> batches.Views | None:
    """Returns the views that a stage trains on, after the chief has asked its teacher about them.

    Args:
        stage: with a finished teacher.
        run: where.
        examples: its training images.

    Returns:
        The views with all outputs of the teacher that the objective may look at; None where the
        stage runs its teacher.

    Raises:
        InputError: as `build` and `load` say.
    """
    cache, data = stage.teacher_cache, stage.task.data
    if not cache.views:
        return None
    outputs: dict[str, np.ndarray] = {}
    for number, teacher in enumerate(stage.teachers):
        if networks.looks_up(teacher.backbone):
            known = {"embedding": teacher.backbone.embeddings(examples.keys)[:, np.newaxis]}
        else:
            folder = run.cache_folder(stage, teacher)
            network = networks.with_features(load_network(teacher, run), stage.objective.features)
            if run.is_chief:
                # Students of one teacher, which other processes may train, share its outputs.
                with run.lock(teacher):
                    build(folder, network, cache, examples, data)
            run.wait_for_all()
            known = load(folder, network, cache, examples, data).outputs
        outputs |= {networks.numbered(name, number): x for name, x in known.items()}
    numbers = _numbers(cache, examples, data) if cache.augmented else None
    return batches.Views(numbers, outputs, cache.jitter)


def build(
    folder: Path, teacher: tf.keras.Model, cache: TeacherCache, examples: Examples, data: Data
) -> None:
    """Adds the outputs of the teacher that a cache lacks.

    Args:
        folder: the cache's, which need not exist.
        teacher: network with named outputs.
        cache: how many views of an image, and which.
        examples: N images.
        data: image size and augmentation.

    Raises:
        InputError: the folder holds another cache, the disk has no room, or an output does not
            fit into float16.
    """
    key = _key(teacher, cache, examples, data)
    if (folder / "key.json").exists():
        _check(folder, key)
    else:
        # Without a key nobody knows what the outputs are of.
        shutil.rmtree(folder, ignore_errors=True)
        storage.write_json(folder / "key.json", key)
    missing = {name: x for name, x in teacher.output.items() if not _path(folder, name).exists()}
    if not missing:
        return
    for left_by_a_kill in folder.glob(".*.npy"):
        left_by_a_kill.unlink()
    shapes = {
        name: (len(examples.labels), cache.views, *x.shape[1:]) for name, x in missing.items()
    }
    needed = sum(2 * math.prod(shape) for shape in shapes.values()) / 1e9
    free = shutil.disk_usage(folder).free / 1e9
    require(
        needed < free,
        f"the teacher's outputs ({', '.join(missing)}) for teacher_cache.views={cache.views} take "
        f"{needed:.1f} GB, but {folder} has {free:.1f} GB left; fewer views take less, and 0 runs "
        "the teacher instead",
    )
    with contextlib.ExitStack() as whole_or_not_there:
        arrays: dict[str, np.memmap] = {}
        for name, shape in shapes.items():
            path = whole_or_not_there.enter_context(storage.replacing(_path(folder, name)))
            arrays[name] = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        _fill(arrays, tf.keras.Model(teacher.input, missing), cache, examples, data)


def load(
    folder: Path, teacher: tf.keras.Model, cache: TeacherCache, examples: Examples, data: Data
) -> batches.Views:
    """Opens what `build` has built, given the same arguments.

    Raises:
        InputError: the folder holds another cache, or a file is unreadable.
    """
    _check(folder, _key(teacher, cache, examples, data))
    outputs = {name: _open(_path(folder, name)) for name in teacher.output}
    return batches.Views(_numbers(cache, examples, data) if cache.augmented else None, outputs)


def _fill(
    arrays: dict[str, np.memmap],
    teacher: tf.keras.Model,
    cache: TeacherCache,
    examples: Examples,
    data: Data,
) -> None:
    numbers = _numbers(cache, examples, data)
    start = 0
    for part in ask(teacher, examples.images, numbers, data, cache.augmented):
        stop = start + len(next(iter(part.values())))
        for name, x in part.items():
            with np.errstate(over="ignore"):
                arrays[name][start:stop] = x
            require(
                bool(np.isfinite(arrays[name][start:stop]).all()),
                f"the teacher's {name!r} has values that are not finite in float16 (beyond "
                "±65504); teacher_cache.views = 0 runs the teacher in float32 instead",
            )
        start = stop
    for array in arrays.values():
        array.flush()


def ask(
    teacher: tf.keras.Model,
    images: Images,
    numbers: np.ndarray,
    data: Data,
    augmented: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Runs a teacher over views of images.

    Args:
        teacher: network with named outputs.
        images: [N, L, L, 3] uint8.
        numbers: [N, K, `random_numbers`] float32, what `batches.augmentation` makes K views by.
        data: image size and augmentation.
        augmented: False makes the one view the centre crop.

    Yields:
        {name: [n, K, …] float32} of some images after the others.
    """
    augment, views = batches.augmentation(data), numbers.shape[1]

    @tf.function
    def run(images, numbers):
        flat = tf.reshape(numbers, (-1, numbers.shape[-1]))
        if augmented:
            pixels = augment(tf.repeat(images, views, axis=0), flat)
        else:
            pixels = tf.cast(resizing.center_crop(images, data.crop_size), tf.float32)
        return teacher(resizing.resized(pixels, teacher.input_shape[1]), training=False)

    size = max(1, BATCH_SIZE // views)
    starts = range(0, len(numbers), size)
    for start in tqdm(starts, desc="teacher's views", mininterval=bar_interval()):
        part = slice(start, start + size)
        outputs = run(tf.constant(images[part]), tf.constant(numbers[part]))
        yield {name: x.numpy().reshape(-1, views, *x.shape[1:]) for name, x in outputs.items()}


def of_views(
    network: tf.keras.Model, examples: Examples, views: int, seed: int, data: Data
) -> np.ndarray:
    """Returns a network's embeddings [N, views, d] float32 of augmentations of N images.

    Args:
        network: images to {"embedding"}.
        examples: the images.
        views: of each.
        seed: of the augmentations.
        data: image size and augmentation.
    """
    numbers = _numbers(TeacherCache(views, seed), examples, data)
    parts = ask(network, examples.images, numbers, data)
    return np.concatenate([part["embedding"] for part in parts])


def _numbers(cache: TeacherCache, examples: Examples, data: Data) -> np.ndarray:
    """Draws the random numbers of all views: [N, K, `random_numbers`] float32 in [0, 1)."""
    random = np.random.default_rng(cache.seed)
    shape = len(examples.labels), cache.views, batches.random_numbers(data)
    return random.random(shape, dtype=np.float32)


def _key(
    teacher: tf.keras.Model, cache: TeacherCache, examples: Examples, data: Data
) -> dict[str, Any]:
    """Returns all that an output depends on, beside its name."""
    varied: dict[str, Any] = {} if data.min_crop is None else {"Data.min_crop": data.min_crop}
    if not cache.augmented:
        varied["teacher_cache.augmented"] = False
    for layer in teacher.submodules:
        if isinstance(layer, OnnxLayer):
            varied["teacher's ONNX file"] = layer.file.settings()
    return varied | {
        "teacher's weights": _digest(
            # By name, since their order may depend on which hidden layers are outputs.
            weight.numpy()
            for weight in sorted(teacher.weights, key=lambda weight: weight.name)
        ),
        "training images": _digest(
            # Those that are decoded only when they are asked for are known by their names.
            [
                examples.images
                if isinstance(examples.images, np.ndarray)
                else np.char.encode(examples.keys, "utf-8")
            ]
        ),
        "Data.view_size" if data.view_size else "Data.image_size": data.crop_size,
        "Data.pad": data.pad,
        "Data.flip": data.flip,
        "teacher_cache.views": cache.views,
        "teacher_cache.seed": cache.seed,
    }


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _check(folder: Path, key: dict[str, Any]) -> None:
    path = folder / "key.json"
    there = storage.read_json(path)
    differing = differences(there if isinstance(there, dict) else {}, key)
    require(
        not differing,
        f"the teacher's outputs in {folder} are of something else: {differing}. Delete that "
        "folder to have them computed again",
    )


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or unreadable ({error}); delete it to have it computed again"
        ) from error
