"""Stages that train on fixed views and read what the teacher makes of them.

Pixels and outputs are expected from NumPy crops and from the teacher itself; weights from a loop
that feeds both to a learner.
"""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf.common import settings
from refilled_tf.common.errors import InputError
from refilled_tf.data import batches
from refilled_tf.data.task import Task
from refilled_tf.experiment import config, loading, teacher_cache, training
from refilled_tf.experiment.stage import TeacherCache
from refilled_tf.models import networks
from refilled_tf.objectives.base import Learner
from refilled_tf.objectives.distillation import Distillation
from refilled_tf.objectives.fitnet import FitNet
from refilled_tf.objectives.local import LocalDistillation

VIEWS = 3
CACHE = TeacherCache(VIEWS)
# Rounding to float16: half a unit of its 11 binary digits, or of its smallest step, 2^-24.
RELATIVE, ABSOLUTE = 2.0**-11, 2.0**-25


def _data(spec):
    return training.load(spec.task, None)


def _pixels(spec):
    """All views of all training images, [N, K, 8, 8, 3], by NumPy."""
    data, images = spec.task.data, _data(spec).train.images
    numbers = np.random.default_rng(CACHE.seed).random((len(images), VIEWS, 3), np.float32)
    pad = ((0, 0), (data.pad, data.pad), (data.pad, data.pad), (0, 0))
    padded = np.pad(images, pad).astype(np.float32)
    room = padded.shape[1] - data.image_size + 1
    corners = (numbers[..., :2] * np.float32(room)).astype(int)
    size = data.image_size
    return np.array(
        [
            [image[top : top + size, left : left + size] for top, left in of_image]
            for image, of_image in zip(padded, corners, strict=True)
        ]
    )


def _teacher(run, features=()):
    return networks.with_features(loading.load_network(tiny.teacher(), run), features)


def _asked(network, pixels):
    """The network's outputs [N, K, …] for pixels [N, K, …]."""
    flat = networks.outputs_of(network, [pixels.reshape(-1, *pixels.shape[2:])])
    return {name: x.reshape(*pixels.shape[:2], *x.shape[1:]) for name, x in flat.items()}


def _what(run, spec, features=()):
    """The arguments of `build` and `load` beside the folder."""
    return _teacher(run, features), spec.teacher_cache, _data(spec).train, spec.task.data


def _built(run, spec, features=()):
    folder = run.cache_folder(spec, spec.teacher)
    teacher_cache.build(folder, *_what(run, spec, features))
    return folder


def _forbid_asking(monkeypatch):
    def fill(*args):
        raise AssertionError("asked the teacher")

    monkeypatch.setattr(teacher_cache, "_fill", fill)


# ---- what is stored ------------------------------------------------------------------------


def test_outputs_are_the_teachers_up_to_rounding(run):
    spec = tiny.first(teacher_cache=CACHE)
    # Not a multiple of the views that are asked about at once.
    images = _data(spec).train.images
    assert len(images) * VIEWS % teacher_cache.BATCH_SIZE != 0
    folder = _built(run, spec, ["conv"])
    views = teacher_cache.load(folder, *_what(run, spec, ["conv"]))
    assert set(views.outputs) == {"embedding", "logits", "conv"}
    for name, live in _asked(_teacher(run, ["conv"]), _pixels(spec)).items():
        cached = views.outputs[name]
        assert isinstance(cached, np.memmap)
        assert cached.dtype == np.float16
        assert cached.shape == live.shape
        # A millionth of the largest for sums in another order.
        bound = RELATIVE * np.abs(live) + ABSOLUTE + 1e-6 * np.abs(live).max()
        assert (np.abs(cached - live) <= bound).all(), name
        # The views of an image differ, so a mix-up of views would be seen.
        assert np.abs(live[:, 0] - live[:, 1]).max() > 100 * bound.max(), name


# ---- training on it ------------------------------------------------------------------------


def _live(run, spec):
    """Trains a learner, step by step, whose live teacher sees NumPy's pixels."""
    data, batch_size = _data(spec), spec.recipe.batch_size
    steps = len(data.train.labels) // batch_size
    tf.keras.utils.set_random_seed(spec.seed)
    if spec.objective.classifies:
        student = networks.classifier(spec.backbone, 8, len(data.class_names))
    else:
        student = networks.embedding_network(spec.backbone, 8)
    teacher = loading.load_network(tiny.teacher(), run)
    learner = Learner(student, spec.objective, teacher, None, spec.recipe.weight_decay, steps)
    learner.compile(optimizer=spec.recipe.optimizer(steps))
    pixels, train_step = _pixels(spec), tf.function(learner.train_step)
    for epoch in range(spec.recipe.total_epochs):
        order = batches.epoch_order(data.train.labels, batch_size, spec.seed, epoch)
        for step, rows in enumerate(order, start=epoch * steps):
            seed = (spec.seed, step)
            view = tf.random.stateless_uniform((batch_size,), seed, maxval=VIEWS, dtype=tf.int32)
            train_step((pixels[rows, view], data.train.labels[rows], rows))
    return student.get_weights()


HINT = Distillation(FitNet(weight=1.0, layers=("conv",)))


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """The weights of `tiny.first`, trained on views without a break."""
    work_dir = tmp_path_factory.mktemp("trained") / "work"
    shutil.copytree(finished, work_dir)
    spec = tiny.first(teacher_cache=CACHE)
    training.train(spec, tiny.run_in(work_dir))
    return tiny.saved_weights(work_dir, spec.name)


def test_training_is_that_of_a_live_teacher_on_the_same_pixels(trained, run):
    # They differ by the rounding of the outputs; fresh augmentations lead elsewhere.
    live = _live(run, tiny.first(teacher_cache=CACHE))
    assert tiny.largest_difference(trained, live) < 2e-3
    training.train(tiny.first(), run)
    assert tiny.largest_difference(trained, tiny.saved_weights(run.work_dir, "first")) > 2e-2


@pytest.mark.parametrize("objective", [LocalDistillation(), HINT], ids=["local", "hint"])
def test_other_objectives_train_as_with_a_live_teacher(objective, run):
    spec = tiny.first(objective=objective, teacher_cache=CACHE)
    training.train(spec, run)
    assert (
        tiny.largest_difference(tiny.saved_weights(run.work_dir, spec.name), _live(run, spec))
        < 2e-3
    )


def test_resumed_stage_is_the_unbroken_one(trained, run, monkeypatch):
    spec = tiny.first(teacher_cache=CACHE)
    tiny.train_until(1, spec, run)
    _forbid_asking(monkeypatch)
    training.train(spec, run)
    for a, b in zip(trained, tiny.saved_weights(run.work_dir, spec.name), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- sharing -------------------------------------------------------------------------------


def test_stages_share_a_cache_and_add_what_it_lacks(run, monkeypatch):
    first = tiny.first(teacher_cache=CACHE)
    second = tiny.second(teacher_cache=CACHE)
    hint = tiny.first(name="hint", objective=HINT, teacher_cache=CACHE)
    examples = _data(first).train
    folder = run.cache_folder(first, first.teacher)

    asked = teacher_cache.views(first, run, examples)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path.name for path in before} == {"key.json", "embedding.npy", "logits.npy"}
    with monkeypatch.context() as patch:
        _forbid_asking(patch)
        shared = teacher_cache.views(second, run, examples)
    np.testing.assert_array_equal(shared.numbers, asked.numbers)

    more = teacher_cache.views(hint, run, examples)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name for path in folder.iterdir() if path not in before} == {"conv.npy"}
    assert set(more.outputs) == {"embedding", "logits", "conv"}


@pytest.mark.parametrize(
    "change",
    [
        {"teacher_cache": TeacherCache(VIEWS + 1)},
        {"teacher_cache": TeacherCache(VIEWS, seed=1)},
        {"task": Task(tiny.DATA, "student", images_per_class=20)},
        {"task": Task(dataclasses.replace(tiny.DATA, pad=2), "student")},
    ],
)
def test_stages_of_other_views_have_their_own_cache(run, change):
    spec = tiny.first(teacher_cache=CACHE)
    other = dataclasses.replace(spec, **change)
    assert run.cache_folder(spec, spec.teacher) != run.cache_folder(other, spec.teacher)


def test_stages_of_other_jitter_share_their_cache(run):
    """The teacher is asked about the same views."""
    spec = tiny.first(teacher_cache=CACHE)
    other = dataclasses.replace(spec, teacher_cache=TeacherCache(VIEWS, jitter=0.5))
    assert run.cache_folder(spec, spec.teacher) == run.cache_folder(other, spec.teacher)
    assert settings.differences(spec.settings(), other.settings()) == (
        "TeacherCache.jitter = None there, 0.5 now"
    )


# ---- refusing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher_cache": TeacherCache(2)}, "teacher_cache.views = 3 there, 2 now"),
        ({"teacher_cache": TeacherCache(VIEWS, 1)}, "teacher_cache.seed = 0 there, 1 now"),
        ({"task": Task(tiny.DATA, "student", images_per_class=20)}, "training images = "),
        (
            {"task": Task(dataclasses.replace(tiny.DATA, pad=2), "student")},
            "Data.pad = 1 there, 2 now",
        ),
        (
            {"task": Task(dataclasses.replace(tiny.DATA, flip=True), "student")},
            "Data.flip = False there, True now",
        ),
    ],
)
def test_a_cache_of_other_views_is_refused(run, change, named):
    folder = _built(run, tiny.first(teacher_cache=CACHE))
    now = _what(run, tiny.first(**{"teacher_cache": CACHE, **change}))
    for use in (teacher_cache.build, teacher_cache.load):
        with pytest.raises(InputError) as caught:
            use(folder, *now)
        message = str(caught.value)
        assert named in message
        assert str(folder) in message
        # Nothing else is blamed.
        assert message.count(" there, ") == 1
        assert "\n" not in message


def test_a_cache_of_another_teacher_is_refused(run, monkeypatch):
    spec = tiny.first(teacher_cache=CACHE)
    folder = _built(run, spec)
    network = loading.load_network(tiny.teacher(), run)
    network.set_weights([1.01 * weight for weight in network.get_weights()])
    network.save(run.folder(tiny.teacher()) / "model.keras")
    _forbid_asking(monkeypatch)
    with pytest.raises(InputError, match="teacher's weights = ") as caught:
        training.train(spec, run)
    assert str(folder) in str(caught.value)
    assert str(caught.value).count(" there, ") == 1
    assert not (run.folder(spec) / "result.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_an_unreadable_key_is_refused(run, content):
    spec = tiny.first(teacher_cache=CACHE)
    path = _built(run, spec) / "key.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        training.train(spec, run)
    assert str(path.parent) in str(caught.value)


def test_outputs_without_a_key_do_not_count(run):
    spec = tiny.first(teacher_cache=CACHE)
    folder = _built(run, spec)
    right = (folder / "embedding.npy").read_bytes()
    (folder / "key.json").unlink()
    np.save(folder / "embedding.npy", np.zeros((3, 3), np.float16))
    _built(run, spec)
    assert (folder / "embedding.npy").read_bytes() == right


def test_a_truncated_output_is_refused(run):
    spec = tiny.first(teacher_cache=CACHE)
    path = _built(run, spec) / "embedding.npy"
    tiny.truncate(path)
    with pytest.raises(InputError) as caught:
        training.train(spec, run)
    assert str(path) in str(caught.value)


def test_a_build_that_fails_leaves_nothing_half_written(run, monkeypatch):
    spec = tiny.first(teacher_cache=CACHE)
    fill = teacher_cache._fill

    def fill_and_stop(*args):
        fill(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "_fill", fill_and_stop)
        with pytest.raises(KeyboardInterrupt):
            _built(run, spec)
    folder = run.cache_folder(spec, spec.teacher)
    assert {path.name for path in folder.iterdir()} == {"key.json"}
    # What a kill leaves is cleared away.
    (folder / ".123-embedding.npy").write_bytes(b"half")
    _built(run, spec)
    names = {path.name for path in folder.iterdir()}
    assert names == {"key.json", "embedding.npy", "logits.npy"}


def test_outputs_too_large_for_float16_are_refused(run):
    spec = tiny.first(teacher_cache=CACHE)
    teacher, *others = _what(run, spec)
    top = teacher.get_layer("logits")
    top.set_weights([1e6 * weight for weight in top.get_weights()])
    folder = run.cache_folder(spec, spec.teacher)
    with pytest.raises(InputError, match=r"'logits'.*float16.*teacher_cache\.views = 0"):
        teacher_cache.build(folder, teacher, *others)
    assert {path.name for path in folder.iterdir()} == {"key.json"}


def test_a_full_disk_is_reported_before_work_starts(run, monkeypatch):
    spec = tiny.first(teacher_cache=CACHE)
    usage = shutil.disk_usage(run.work_dir)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    _forbid_asking(monkeypatch)
    with pytest.raises(InputError, match=r"teacher_cache\.views=3 take .* GB left"):
        _built(run, spec)


# ---- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"views": -1},
        {"views": 1.5},
        {"views": 1, "seed": -1},
        {"views": 1, "jitter": 1.5},
        {"views": 1, "jitter": -0.5},
    ],
)
def test_impossible_settings_are_named(bad):
    name, value = list(bad.items())[-1]
    with pytest.raises(InputError, match=rf"teacher_cache\.{name}={value}"):
        TeacherCache(**bad)


def test_a_teacher_that_is_run_sees_what_trains():
    assert TeacherCache(0, jitter=0.5) == TeacherCache()


def test_the_cache_is_a_setting_of_stages_with_a_teacher():
    for make in (tiny.first, tiny.second):
        live, cached = make(), make(teacher_cache=CACHE)
        assert settings.differences(live.settings(), cached.settings()) == (
            "TeacherCache.views = 0 there, 3 now"
        )
    assert tiny.teacher(teacher_cache=CACHE) == tiny.teacher()


@pytest.mark.parametrize(
    ("param", "cached"),
    [
        ("teacher_cache.views = 4", {"triplet", "refilled"}),
        ("triplet/teacher_cache.views = 4", {"triplet"}),
    ],
)
def test_one_setting_switches_it_on(tmp_path, param, cached):
    path = tmp_path / "tiny.gin"
    path.write_text(tiny.GIN)
    stages = config.load_experiment([path], [param]).stages()
    assert {each.name for each in stages if each.teacher_cache.views == 4} == cached
    assert {each.name for each in stages if each.teacher_cache.views == 0} == {
        *{"teacher", "student", "triplet", "refilled"} - cached
    }
