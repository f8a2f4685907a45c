"""Teachers that come in a file: imported as a stage, asked live or through the cache.

Expected outputs are those of the network before it was saved.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf import config, experiment, stage, training
from refilled_tf.data import batches
from refilled_tf.data.task import Task
from refilled_tf.errors import InputError
from refilled_tf.learners.base import Learner
from refilled_tf.learners.distillation import Distillation
from refilled_tf.learners.pretrained import Pretrained
from refilled_tf.learners.relationship import RelationshipMatching
from refilled_tf.models import networks
from refilled_tf.models.keras_files import KerasFile
from refilled_tf.stage import Stage, TeacherCache

# The teacher takes 12×12 pixels in [-1, 1], the student 8×8. One view alone can be cut of an image.
SIZE = 12
DATA = dataclasses.replace(tiny.DATA, load_size=SIZE, view_size=SIZE, pad=0)
TASK = Task(DATA, "student")


@pytest.fixture(scope="module")
def network():
    tf.keras.utils.set_random_seed(3)
    images = tf.keras.Input((SIZE, SIZE, 3))
    x = tf.keras.layers.Conv2D(6, 3, 2, activation="relu", name="conv")(images)
    x = tf.keras.layers.Flatten(name="flat")(x)
    return tf.keras.Model(images, tf.keras.layers.Dense(4)(x))


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "teacher.keras"
    network.save(path)
    return path


def _teacher(file, **changes):
    options = {"backbone": KerasFile(str(file), preprocessing="tf"), **changes}
    return Stage("teacher", "Teacher", TASK, objective=Pretrained(), **options)


def _embeddings(network, pixels):
    flat = tf.keras.Model(network.input, network.get_layer("flat").output)
    return flat(pixels / 127.5 - 1).numpy()


def test_import_is_a_finished_stage(network, file, tmp_path):
    run, spec = tiny.run_in(tmp_path), _teacher(file)
    stage.check(spec, run)
    result = training.train(spec, run)
    assert run.is_finished(spec)
    images = training.load(TASK, None).test.images.astype(np.float32)
    loaded = stage.load_network(spec, run)
    np.testing.assert_allclose(loaded(images)["embedding"], _embeddings(network, images), atol=1e-4)
    # 5·5·6 numbers; weights of the convolution alone train.
    assert loaded.output_shape == {"embedding": (None, 150)}
    assert result["parameters"]["trainable"] == 3 * 3 * 3 * 6 + 6
    assert 0.2 < result["embedding"]["ncm"] <= 1


def test_a_changed_file_is_refused(network, tmp_path):
    run = tiny.run_in(tmp_path / "work")
    network.save(tmp_path / "teacher.keras")
    training.train(_teacher(tmp_path / "teacher.keras"), run)
    spec = tiny.first(teacher=_teacher(tmp_path / "teacher.keras"), task=TASK)
    training.train(spec, run)
    other = tf.keras.models.clone_model(network)
    other.save(tmp_path / "teacher.keras")
    changed = _teacher(tmp_path / "teacher.keras")
    with pytest.raises(InputError, match=r"KerasFile.content = '\w+' there, '\w+' now"):
        training.train(changed, run)
    with pytest.raises(InputError, match="parent teacher"):
        stage.check(tiny.first(teacher=changed, task=TASK), run)


def test_a_wrong_layer_is_refused_before_anything_is_written(file, tmp_path):
    spec = _teacher(file, backbone=KerasFile(str(file), layer="avg"))
    with pytest.raises(InputError, match="candidates: dense, flat, conv"):
        stage.check(spec, tiny.run_in(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_kd_wants_a_teacher_that_classifies(file, tmp_path):
    spec = tiny.first(objective=Distillation(kd_weight=1.0), teacher=_teacher(file), task=TASK)
    with pytest.raises(InputError, match="learnt the student's classes"):
        stage.check(spec, tiny.run_in(tmp_path))


# ---- the same crop at two resolutions ------------------------------------------------------


def test_each_network_sees_the_crop_at_its_own_size(network, file):
    teacher = networks.embedding_network(KerasFile(str(file), preprocessing="tf"), SIZE)
    student = networks.embedding_network(tiny.TinyNetwork(), 8)
    learner = Learner(student, RelationshipMatching(), teacher)
    learner.compile(optimizer=tiny.RECIPE.optimizer(1))
    crops = tf.random.stateless_uniform((5, SIZE, SIZE, 3), (0, 1), 0, 255)
    batch = learner.global_batch(crops, tf.range(5), training=False)
    np.testing.assert_allclose(batch.teacher["embedding"], _embeddings(network, crops), atol=1e-4)
    small = tf.image.resize(crops, (8, 8), antialias=True)
    np.testing.assert_allclose(batch.student["embedding"], student(small)["embedding"], atol=1e-5)


def test_scored_student_sees_the_centre_view_resized():
    data = dataclasses.replace(tiny.DATA, load_size=16, view_size=SIZE)
    examples = training.load(Task(data, "student"), None).test
    student = networks.embedding_network(tiny.TinyNetwork(), 8)
    given = networks.outputs_of(student, batches.scoring_batches(examples, data.crop_size))
    centre = examples.images[:, 2:14, 2:14].astype(np.float32)
    small = tf.image.resize(centre, (8, 8), antialias=True)
    np.testing.assert_allclose(given["embedding"], student(small)["embedding"], atol=1e-5)


def test_cached_teacher_trains_as_the_live_one(file, tmp_path):
    run = tiny.run_in(tmp_path)
    training.train(_teacher(file), run)
    weights = []
    for name, cache in (("live", TeacherCache()), ("cached", TeacherCache(views=2))):
        spec = tiny.first(name=name, teacher=_teacher(file), task=TASK, teacher_cache=cache)
        training.train(spec, run)
        weights.append(tiny.saved_weights(tmp_path, name))
    # The cache rounds to float16, half a unit of 11 binary digits.
    for live, cached in zip(*weights, strict=True):
        np.testing.assert_allclose(live, cached, atol=2e-3)


def test_pixels_of_a_step_are_no_larger_than_needed():
    examples = training.load(TASK, None).train
    order = batches.epoch_order(examples.labels, 50, 0, 0)
    for size, side in ((None, 8), (SIZE, SIZE)):
        dataset = batches.training_batches(examples, DATA, order, 0, size=size)
        assert dataset.element_spec[0].shape == (50, side, side, 3)
    (small, _), (crop, _) = (
        next(iter(batches.training_batches(examples, DATA, order, 0, size=size)))
        for size in (None, SIZE)
    )
    expected = tf.image.resize(crop, (8, 8), antialias=True)
    np.testing.assert_allclose(small, expected, atol=1e-4)


@pytest.mark.parametrize("view_size", [7, 13])
def test_view_size_lies_between_image_and_load_size(view_size):
    with pytest.raises(InputError, match=f"Data.view_size={view_size} must lie between"):
        dataclasses.replace(DATA, view_size=view_size)


# ---- in gin --------------------------------------------------------------------------------

STAGES = ("fine_tune", "student", "vanilla", "refilled")
ROWS = ("teacher_1nn/Probe", "teacher_lr/Probe", *(f"{name}/Stage" for name in STAGES))


def test_overlay_on_an_ordinary_experiment(file, tmp_path):
    (tmp_path / "tiny.gin").write_text(tiny.GIN)
    params = [
        f"Experiment.rows = [{', '.join(f'@{row}()' for row in ROWS)}]",
        f"KerasFile.file = '{file}'",
        "KerasFile.preprocessing = 'tf'",
        "Data.load_size = 12",
        "Data.view_size = 12",
        "teacher_cache.views = 2",
    ]
    files = [tmp_path / "tiny.gin", "models/pretrained_teacher.gin"]
    spec, run = config.load_experiment(files, params), tiny.run_in(tmp_path / "work")
    experiment.check(spec, run)
    rows = {row["stage"]: row for row in experiment.run(spec, run, ["tiny"], "command")["rows"]}
    assert list(rows) == [row.split("/")[0] for row in ROWS]
    assert all(row["accuracy"] > 0.2 for row in rows.values())
    (tmp_path / "work" / config.OPERATIVE).write_text(config.operative_config())
    assert config.load_work_dir(tmp_path / "work") == spec
