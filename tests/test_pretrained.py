"""Teachers that come in a file: imported as a stage, asked live or through the cache.

Expected outputs are those of the network before it was saved.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_graphs
import pytest
import tensorflow as tf
import tiny

from refilled_tf.common import gin_files
from refilled_tf.common.errors import InputError
from refilled_tf.data import batches
from refilled_tf.data.task import Examples, Task
from refilled_tf.experiment import (
    checks,
    config,
    experiment,
    loading,
    teacher_cache,
    training,
)
from refilled_tf.experiment.loading import load_network
from refilled_tf.experiment.stage import Stage, TeacherCache
from refilled_tf.models import networks
from refilled_tf.models.embedding_files import EmbeddingFile
from refilled_tf.models.keras_files import KerasFile
from refilled_tf.models.onnx_files import OnnxFile
from refilled_tf.objectives.base import Learner
from refilled_tf.objectives.distillation import Distillation
from refilled_tf.objectives.local import LocalDistillation
from refilled_tf.objectives.pretrained import Pretrained
from refilled_tf.objectives.relationship import RelationshipMatching
from refilled_tf.objectives.rkd import RelationalDistillation

pytestmark = pytest.mark.slow

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
    return tf.keras.Model(images, tf.keras.layers.Dense(4, name="top")(x))


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "teacher.keras"
    network.save(path)
    return path


def _teacher(file, **changes):
    backbone = KerasFile(str(file), preprocessing="tf")
    options = {"name": "teacher", "task": TASK, "backbone": backbone, **changes}
    return Stage(method="Teacher", objective=Pretrained(), **options)


def _embeddings(network, pixels):
    flat = tf.keras.Model(network.input, network.get_layer("flat").output)
    return flat(pixels / 127.5 - 1).numpy()


def test_trusted_code_is_loaded_from_its_stage(tmp_path):
    images = tf.keras.Input((SIZE, SIZE, 3))
    scaled = tf.keras.layers.Lambda(lambda x: x / 255)(images)
    tf.keras.Model(images, tf.keras.layers.Flatten()(scaled)).save(tmp_path / "teacher.keras")
    backbone = KerasFile(str(tmp_path / "teacher.keras"), trusted=True)
    run, spec = tiny.run_in(tmp_path), _teacher(tmp_path / "teacher.keras", backbone=backbone)
    checks.check(spec, run)
    training.train(spec, run)
    pixels = training.load(TASK, None).test.images[:2].astype(np.float32)
    found = load_network(spec, run)(pixels)["embedding"]
    np.testing.assert_allclose(found, pixels.reshape(2, -1) / 255, rtol=1e-5)


def test_import_is_a_finished_stage(network, file, tmp_path):
    run, spec = tiny.run_in(tmp_path), _teacher(file)
    checks.check(spec, run)
    result = training.train(spec, run)
    assert run.is_finished(spec)
    images = training.load(TASK, None).test.images.astype(np.float32)
    loaded = loading.load_network(spec, run)
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
        checks.check(tiny.first(teacher=changed, task=TASK), run)


def test_a_wrong_layer_is_refused_before_anything_is_written(file, tmp_path):
    spec = _teacher(file, backbone=KerasFile(str(file), layer="avg"))
    with pytest.raises(InputError, match="candidates: top, flat, conv"):
        checks.check(spec, tiny.run_in(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_kd_wants_a_teacher_that_classifies(file, tmp_path):
    spec = tiny.first(objective=Distillation(kd_weight=1.0), teacher=_teacher(file), task=TASK)
    with pytest.raises(InputError, match="learnt the student's classes"):
        checks.check(spec, tiny.run_in(tmp_path))


# ---- the same crop at two resolutions ------------------------------------------------------


def test_each_network_sees_the_crop_at_its_own_size(network, file):
    teacher = networks.embedding_network(KerasFile(str(file), preprocessing="tf"), SIZE)
    student = networks.embedding_network(tiny.TinyNetwork(), 8)
    learner = Learner(student, RelationshipMatching(), teacher)
    learner.compile(optimizer=tiny.RECIPE.optimizer(1))
    crops = tf.random.stateless_uniform((5, SIZE, SIZE, 3), (0, 1), 0, 255)
    batch = learner.global_batch(crops, tf.range(5), tf.range(5), training=False)
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
    (small, *_), (crop, *_) = (
        next(iter(batches.training_batches(examples, DATA, order, 0, size=size)))
        for size in (None, SIZE)
    )
    expected = tf.image.resize(crop, (8, 8), antialias=True)
    np.testing.assert_allclose(small, expected, atol=1e-4)


@pytest.mark.parametrize("view_size", [7, 13])
def test_view_size_lies_between_image_and_load_size(view_size):
    with pytest.raises(InputError, match=f"Data.view_size={view_size} must lie between"):
        dataclasses.replace(DATA, view_size=view_size)


# ---- embeddings alone ----------------------------------------------------------------------

# As an embedding file knows no augmentation, the live teacher gets none: one view, the centre.
STILL = dataclasses.replace(DATA, load_size=16, pad=0, flip=False)
LIVE = dataclasses.replace(STILL, load_size=SIZE)


def _archive(path, network):
    """The network's embeddings of all images of the task LIVE."""
    data = training.load(Task(LIVE, "student"), None)
    known = {
        key: embedding
        for part in (data.train, data.test)
        for key, embedding in zip(
            part.keys, _embeddings(network, part.images.astype(np.float32)), strict=True
        )
    }
    np.savez(path, paths=list(known), embeddings=np.array(list(known.values())))
    return EmbeddingFile(str(path))


def _two_stages(run, teacher, task, suffix, **options):
    """Trains both stages; returns all logged numbers and the final weights."""
    first = tiny.first(name=f"first{suffix}", teacher=teacher, task=task, **options)
    second = tiny.second(
        name=f"second{suffix}",
        teacher=teacher,
        start=first,
        task=task,
        objective=LocalDistillation(centers="global"),
        **options,
    )
    logs = {}
    for spec in (first, second):
        checks.check(spec, run)
        result = training.train(spec, run)
        logs |= {f"{spec.objective} {k}": v for k, v in result["training"].items()}
    return logs, tiny.saved_weights(run.work_dir, second.name)


def test_embedding_file_trains_as_the_live_teacher(network, file, tmp_path):
    run, task = tiny.run_in(tmp_path), Task(LIVE, "student")
    archive = Stage(
        "archive", "", task, _archive(tmp_path / "t.npz", network), objective=Pretrained()
    )
    live = _teacher(file, task=task)
    scores = [training.train(each, run)["embedding"] for each in (live, archive)]
    assert scores[0] == pytest.approx(scores[1])
    logs, weights = _two_stages(run, live, task, "")
    looked_up, same = _two_stages(run, archive, task, "_archive")
    assert logs == pytest.approx(looked_up, rel=1e-4, abs=1e-4)
    for one, other in zip(weights, same, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("change", [{}, {"pad": 3}, {"min_crop": 0.5}], ids=str)
def test_the_one_view_is_the_centre(change):
    """What training sees of an embedding file's images is what scoring sees."""
    data = dataclasses.replace(STILL, **change)
    examples = training.load(Task(data, "student"), None).train
    order = np.arange(9, dtype=np.int32)[np.newaxis]
    known = {"embedding": np.zeros((len(examples.labels), 1, 2), np.float32)}
    views = batches.Views(None, known)
    dataset = batches.training_batches(examples, data, order, 0, views=views, size=SIZE)
    ((images, *_),) = dataset
    (expected,) = batches.scoring_batches(Examples(*(x[:9] for x in examples)), SIZE)
    np.testing.assert_array_equal(images, expected)


def test_archive_that_misses_images_is_refused_before_training(tmp_path):
    np.savez(tmp_path / "t.npz", paths=["0000"], embeddings=np.zeros((1, 2)))
    archive = EmbeddingFile(str(tmp_path / "t.npz"))
    teacher = Stage("archive", "", TASK, archive, objective=Pretrained())
    run = tiny.run_in(tmp_path / "work")
    for spec in (teacher, tiny.first(teacher=teacher, task=TASK)):
        with pytest.raises(InputError, match=r"t\.npz misses \d+ of \d+ images: \d{4}, \d{4}, "):
            checks.check(spec, run)
    # It has the one view that it has.
    spec = tiny.first(teacher=teacher, teacher_cache=TeacherCache(2))
    assert spec.teacher_cache == TeacherCache(1, augmented=False)
    spec = tiny.first(teacher=teacher, teacher_cache=TeacherCache(2, jitter=0.5))
    assert spec.teacher_cache == TeacherCache(1, augmented=False, jitter=0.5)


# ---- a network that onnxruntime runs -------------------------------------------------------

AUGMENTED = dataclasses.replace(DATA, load_size=SIZE + 2, flip=True)


@pytest.fixture(scope="module")
def graph(network, tmp_path_factory):
    """The same network, cut below its classifier, as an ONNX file of images [B, 3, 12, 12]."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    embedding = tf.keras.Model(network.input, network.get_layer("flat").output)
    path = tmp_path_factory.mktemp("graphs") / "teacher.onnx"
    return OnnxFile(str(onnx_graphs.export(embedding, path)), preprocessing="tf")


@pytest.mark.parametrize("views", [0, 3], ids=["live", "cached"])
@pytest.mark.parametrize("devices", [1, 2])
def test_onnx_teaches_as_its_keras_twin(graph, file, tmp_path, devices, views):
    run, task = tiny.run_in(tmp_path, devices), Task(AUGMENTED, "student")
    weights = []
    for name, backbone in (("onnx", graph), ("keras", KerasFile(str(file), preprocessing="tf"))):
        teacher = _teacher(file, name=f"{name}_teacher", task=task, backbone=backbone)
        spec = tiny.first(name=name, teacher=teacher, task=task, teacher_cache=TeacherCache(views))
        for each in (teacher, spec):
            checks.check(each, run)
            training.train(each, run)
        weights.append(tiny.saved_weights(tmp_path, name))
    # Outputs that differ by a rounding may differ by one of float16 in the cache.
    assert tiny.largest_difference(*weights) < (2e-3 if views else 1e-4)


def test_training_under_an_onnx_teacher_goes_on_bit_by_bit(graph, file, tmp_path):
    task = Task(AUGMENTED, "student")
    teacher = _teacher(file, task=task, backbone=graph)
    spec = tiny.first(teacher=teacher, task=task)
    weights = []
    for name in ("unbroken", "killed"):
        run = tiny.run_in(tmp_path / name, devices=2)
        training.train(teacher, run)
        if name == "killed":
            tiny.train_until(1, spec, run)
        training.train(spec, run)
        weights.append(tiny.saved_weights(run.work_dir, "first"))
    assert tiny.largest_difference(*weights) == 0


def test_onnx_and_keras_teach_together(graph, file, tmp_path):
    run, task = tiny.run_in(tmp_path, devices=2), Task(LIVE, "student")
    ours, theirs = _second_teacher(run), _teacher(file, task=task)
    twin = _teacher(file, name="twin", task=task, backbone=graph)
    weights = []
    for name, teachers in (("keras", (theirs, ours)), ("onnx", (twin, ours))):
        training.train(teachers[0], run)
        spec = tiny.second(
            name=name,
            teacher=teachers,
            start=None,
            task=task,
            objective=LocalDistillation(centers="global", tau_teacher=(2.0, 1.0)),
        )
        training.train(spec, run)
        weights.append(tiny.saved_weights(tmp_path, name))
    assert tiny.largest_difference(*weights) < 1e-4


def test_onnx_stage_saves_no_network_and_a_changed_file_is_refused(graph, network, tmp_path):
    run = tiny.run_in(tmp_path / "work")
    file = onnx_graphs.export(network, tmp_path / "teacher.onnx")
    spec = _teacher(file, backbone=OnnxFile(str(file), preprocessing="tf"))
    result = training.train(spec, run)
    assert run.is_finished(spec)
    assert not (run.folder(spec) / "model.keras").exists()
    assert 0.2 < result["embedding"]["ncm"] <= 1
    onnx_graphs.export(tf.keras.models.clone_model(network), file)
    changed = _teacher(file, backbone=OnnxFile(str(file), preprocessing="tf"))
    with pytest.raises(InputError, match=r"OnnxFile.content = '\w+' there, '\w+' now"):
        checks.check(changed, run)


def test_cache_is_of_the_graph_that_was_asked(graph, tmp_path):
    """A graph has no weights by which one would know it."""
    examples, cache = training.load(TASK, None).train, TeacherCache(1)
    asked = networks.embedding_network(graph, SIZE)
    teacher_cache.build(tmp_path, asked, cache, examples, DATA)
    other = networks.embedding_network(dataclasses.replace(graph, preprocessing="torch"), SIZE)
    with pytest.raises(InputError, match="teacher's ONNX file"):
        teacher_cache.load(tmp_path, other, cache, examples, DATA)


def test_an_onnx_network_is_not_to_be_trained(graph, file, tmp_path):
    spec = tiny.second(backbone=graph, start=None, teacher=_teacher(file), task=TASK)
    with pytest.raises(InputError, match="is to train a network of OnnxFile, which has no weights"):
        checks.check(spec, tiny.run_in(tmp_path))


# ---- several teachers ----------------------------------------------------------------------

SEVERAL = (2.0, 1.0)


def _second_teacher(run):
    """One of our own, of 8×8 pixels, on the student's classes."""
    spec = tiny.teacher(name="ours", task=Task(LIVE, "student"))
    training.train(spec, run)
    return spec


@pytest.mark.parametrize("views", [0, 1])
def test_several_teachers_train_as_their_embeddings(network, file, tmp_path, views):
    """Two networks, live and cached, and an archive with a network: the same numbers."""
    run, task = tiny.run_in(tmp_path), Task(LIVE, "student")
    ours, theirs = _second_teacher(run), _teacher(file, task=task)
    archive = Stage(
        "archive", "", task, _archive(tmp_path / "t.npz", network), objective=Pretrained()
    )
    for spec in (theirs, archive):
        training.train(spec, run)
    trained = []
    for name, teachers, cache in (
        ("networks", (theirs, ours), TeacherCache(views)),
        ("mixed", (archive, ours), TeacherCache()),
        ("alone", theirs, TeacherCache()),
    ):
        objective = RelationshipMatching(
            weight=10.0,
            tau_teacher=(2.0, 0.5) if name != "alone" else 2.0,
            teacher_weights=SEVERAL if name != "alone" else None,
        )
        spec = tiny.first(
            name=name, teacher=teachers, task=task, objective=objective, teacher_cache=cache
        )
        checks.check(spec, run)
        training.train(spec, run)
        trained.append(np.concatenate([w.ravel() for w in tiny.saved_weights(tmp_path, name)]))
    np.testing.assert_allclose(trained[0], trained[1], atol=2e-3)  # cached outputs are float16
    assert np.abs(trained[0] - trained[2]).max() > 2e-2


def test_global_batch_of_several_on_two_devices(network, file, tmp_path):
    """Both replicas together take the steps that one device takes."""
    weights = []
    for devices in (1, 2):
        run = tiny.run_in(tmp_path / str(devices), devices)
        ours, theirs = _second_teacher(run), _teacher(file, task=Task(LIVE, "student"))
        training.train(theirs, run)
        spec = tiny.second(
            teacher=(theirs, ours),
            start=None,
            task=Task(LIVE, "student"),
            objective=LocalDistillation(centers="global", tau_teacher=(2.0, 1.0)),
        )
        training.train(spec, run)
        weights.append(tiny.saved_weights(run.work_dir, spec.name))
    for one, both in zip(*weights, strict=True):
        np.testing.assert_allclose(one, both, atol=1e-4)


def test_what_several_teachers_cannot_do_is_refused(file):
    one, other = _teacher(file), dataclasses.replace(_teacher(file), name="other")
    with pytest.raises(InputError, match=r"RelationalDistillation takes one teacher, .* names 2"):
        tiny.first(teacher=(one, other), objective=RelationalDistillation())
    for options in ({"tau_teacher": (1.0,)}, {"teacher_weights": (1.0, 2.0, 3.0)}):
        with pytest.raises(InputError, match="must be one for each of 2 teachers"):
            tiny.first(teacher=(one, other), objective=RelationshipMatching(**options))
    with pytest.raises(InputError, match="must be above zero"):
        tiny.second(teacher=one, objective=LocalDistillation(teacher_weights=(0.0,)))
    with pytest.raises(InputError, match="one of them twice"):
        tiny.first(teacher=(one, one))


def test_order_of_teachers_is_a_setting(file):
    one, other = _teacher(file), dataclasses.replace(_teacher(file), name="other")
    digests = {tiny.first(teacher=pair).digest() for pair in ((one, other), (other, one))}
    assert len(digests) == 2
    assert tiny.first(teacher=(one,)) == tiny.first(teacher=one)


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
    rows = {
        row["stage"]: row for row in experiment.finish_rows(spec, run, ["tiny"], "command")["rows"]
    }
    assert list(rows) == [row.split("/")[0] for row in ROWS]
    assert all(row["accuracy"] > 0.2 for row in rows.values())
    (tmp_path / "work" / gin_files.OPERATIVE).write_text(config.operative_config())
    assert config.load_work_dir(tmp_path / "work") == spec


def test_several_teachers_as_the_docs_write_them(network, file, tmp_path):
    text = (tiny.ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    (block,) = [part for part in text.split("```") if "second/Stage.name" in part]
    network.save(tmp_path / "other.keras")
    (tmp_path / "tiny.gin").write_text(
        f"{tiny.GIN}\ninclude 'models/pretrained_teacher.gin'\nKerasFile.file = '{file}'\n"
        + block.replace("SECOND.keras", str(tmp_path / "other.keras"))
    )
    spec = config.load_experiment([tmp_path / "tiny.gin"])
    stages = {each.name: each for each in spec.stages()}
    assert list(stages) == ["student", "teacher", "second", "triplet", "refilled"]
    assert [each.name for each in stages["refilled"].teachers] == ["teacher", "second"]
    assert stages["second"].backbone.file == str(tmp_path / "other.keras")
    assert stages["refilled"].objective.teacher_weights == (3.0, 1.0)
    rows = experiment.finish_rows(spec, tiny.run_in(tmp_path / "work"), ["tiny"], "command")["rows"]
    assert [row["stage"] for row in rows] == ["student", "refilled"]
