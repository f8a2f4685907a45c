"""Networks from files: what they make of our images is computed without the wrapper."""

from __future__ import annotations

import json
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf.common import settings, storage
from refilled_tf.common.errors import InputError
from refilled_tf.experiment import config
from refilled_tf.experiment.probe_row import Probe
from refilled_tf.experiment.training import count_parameters
from refilled_tf.models import networks
from refilled_tf.models.keras_files import Application, KerasFile

SIZE = 12


def _images(size=SIZE):
    return np.random.default_rng(0).uniform(0, 255, (3, size, size, 3)).astype(np.float32)


def _network(head=True, pool=True):
    """A convolution with batch norm, and maybe a classifier: 12×12 images to 5 numbers."""
    tf.keras.utils.set_random_seed(1)
    images = tf.keras.Input((SIZE, SIZE, 3))
    x = tf.keras.layers.Conv2D(5, 3, name="conv")(images)
    x = tf.keras.layers.BatchNormalization(name="norm")(x)
    if pool:
        x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    if head:
        x = tf.keras.layers.Dense(7, name="top")(x)
    network = tf.keras.Model(images, x)
    network.get_layer("norm").set_weights([np.full(5, v, np.float32) for v in (2, 1, 3, 4)])
    return network


def _saved(tmp_path, network, name="teacher.keras"):
    network.save(tmp_path / name)
    return str(tmp_path / name)


def _expected(network, pixels, layer="pool"):
    return tf.keras.Model(network.input, network.get_layer(layer).output)(pixels).numpy()


@pytest.mark.parametrize("name", ["teacher.keras", "teacher.h5", "teacher"])
def test_every_format_is_cut_below_the_last_dense_layer(tmp_path, name):
    network = _network()
    backbone = KerasFile(_saved(tmp_path, network, name)).build(SIZE)
    assert backbone.output_shape == (None, 5)
    np.testing.assert_allclose(backbone(_images()), _expected(network, _images()), atol=1e-4)
    assert KerasFile(str(tmp_path / name)).embedding_layer() == "pool"


def test_a_named_map_is_averaged_over_space(tmp_path):
    network = _network()
    teacher = KerasFile(_saved(tmp_path, network), layer="conv")
    assert teacher.embedding_layer() == "conv"
    backbone = teacher.build(SIZE)
    expected = _expected(network, _images(), "conv").mean(axis=(1, 2))
    np.testing.assert_allclose(backbone(_images()), expected, rtol=1e-4, atol=1e-3)


def test_without_a_dense_layer_it_is_the_output(tmp_path):
    network = _network(head=False)
    backbone = KerasFile(_saved(tmp_path, network)).build(SIZE)
    np.testing.assert_allclose(backbone(_images()), network(_images()), atol=1e-4)
    assert KerasFile(str(tmp_path / "teacher.keras")).embedding_layer() == "pool"


def test_layer_of_an_application_is_its_last_feature_map():
    """As Keras's source of MobileNetV2 calls it; no weights are read."""
    assert Application("MobileNetV2").embedding_layer() == "out_relu"
    assert Application("MobileNetV2", layer="block_3_expand_relu").embedding_layer() == (
        "block_3_expand_relu"
    )


def test_our_own_classifiers_give_their_embedding(tmp_path):
    network = _network(head=False)
    logits = tf.keras.layers.Dense(4, name="logits")(network.output)
    ours = tf.keras.Model(network.input, {"embedding": network.output, "logits": logits})
    backbone = KerasFile(_saved(tmp_path, ours)).build(SIZE)
    np.testing.assert_allclose(backbone(_images()), network(_images()), atol=1e-4)


# ImageNet's statistics as the papers print them: RGB mean and deviation, BGR mean.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
BGR_MEAN = np.array([103.939, 116.779, 123.68])


@pytest.mark.parametrize(
    ("kind", "pixels"),
    [
        ("none", lambda x: x),
        ("tf", lambda x: x / 127.5 - 1),
        ("torch", lambda x: (x / 255 - MEAN) / DEVIATION),
        ("caffe", lambda x: x[..., ::-1] - BGR_MEAN),
    ],
)
def test_preprocessing_and_colour_order(tmp_path, kind, pixels):
    network = _network()
    backbone = KerasFile(_saved(tmp_path, network), preprocessing=kind).build(SIZE)
    expected = _expected(network, pixels(_images()).astype(np.float32))
    np.testing.assert_allclose(backbone(_images()), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [8, 20])
def test_images_of_another_size_are_resized(tmp_path, size):
    network = _network()
    backbone = KerasFile(_saved(tmp_path, network)).build(size)
    resized = tf.image.resize(_images(size), (SIZE, SIZE), antialias=True)
    np.testing.assert_allclose(backbone(_images(size)), _expected(network, resized), atol=1e-3)


def test_wrapped_network_is_saved_and_copied_whole(tmp_path):
    spec = KerasFile(_saved(tmp_path, _network()), preprocessing="caffe")
    # Of other sizes some outputs are next to zero, where rounding is a large share of them.
    network = networks.embedding_network(spec, 24)
    expected = network(_images(24))["embedding"]
    network.save(tmp_path / "wrapped.keras")
    loaded = tf.keras.models.load_model(tmp_path / "wrapped.keras", compile=False)
    np.testing.assert_allclose(loaded(_images(24))["embedding"], expected, rtol=1e-5)
    student = networks.classifier(spec, 8, 3)  # another size, as a fine-tuned teacher may have
    student.set_weights([np.zeros_like(w) for w in student.get_weights()])
    networks.copy_embedding_weights(loaded, student)
    fresh = networks.embedding_network(spec, 8)(_images(8))["embedding"]
    np.testing.assert_allclose(student(_images(8))["embedding"], fresh, rtol=1e-5)


def test_batch_norm_is_synchronised_and_preprocessing_frozen(tmp_path):
    network = networks.embedding_network(KerasFile(_saved(tmp_path, _network())), SIZE)
    assert network.get_layer("pretrained").get_layer("norm").synchronized
    assert not network.get_layer("preprocessing").trainable_weights


def test_restored_network_drops_what_the_unbroken_one_does(tmp_path):
    """Dropout of a file's own, also in a network within a network."""
    inner = tf.keras.Sequential([tf.keras.Input((SIZE, SIZE, 3)), tf.keras.layers.Dropout(0.5)])
    images = tf.keras.Input((SIZE, SIZE, 3))
    flat = tf.keras.layers.Flatten()(inner(images))
    file = _saved(tmp_path, tf.keras.Model(images, tf.keras.layers.Dropout(0.5)(flat)))

    def fresh():
        tf.keras.utils.set_random_seed(3)
        network = networks.embedding_network(KerasFile(file), SIZE)
        return tf.train.Checkpoint(network=network), network

    checkpoint, network = fresh()
    first = network(_images(), training=True)["embedding"].numpy()
    path = checkpoint.save(tmp_path / "checkpoint")
    second = network(_images(), training=True)["embedding"].numpy()
    assert (first != second).any()
    checkpoint, resumed = fresh()
    checkpoint.restore(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(resumed(_images(), training=True)["embedding"], second)


def test_what_a_file_has_frozen_trains_and_nested_batch_norm_is_synchronised(tmp_path):
    """As after transfer learning: a frozen network with a new top."""
    base = _network(head=False)
    base.trainable = False
    images = tf.keras.Input((SIZE, SIZE, 3))
    file = _saved(tmp_path, tf.keras.Model(images, tf.keras.layers.Dense(7)(base(images))))
    network = networks.embedding_network(KerasFile(file), SIZE)
    # 3·3·3·5 + 5 of the convolution, 2·5 and 2·5 of batch norm; the preprocessing has its own 12.
    assert count_parameters(network) == {"trainable": 150, "batch_norm": 10}
    assert network.get_layer("pretrained").get_layer(base.name).get_layer("norm").synchronized
    expected = base(_images()).numpy()
    np.testing.assert_allclose(network(_images())["embedding"], expected, rtol=1e-5)


def test_content_tells_files_apart_and_not_paths(tmp_path):
    first = KerasFile(_saved(tmp_path, _network()))
    other = _network()
    other.get_layer("top").set_weights([np.zeros((5, 7)), np.zeros(7)])
    second = KerasFile(_saved(tmp_path, other, "other.keras"))
    (tmp_path / "copy.keras").write_bytes((tmp_path / "teacher.keras").read_bytes())
    assert KerasFile(str(tmp_path / "copy.keras")).content == first.content != second.content


def test_content_is_read_once_however_often_gin_refers_to_the_file(tmp_path, monkeypatch):
    file, read, blocks = _saved(tmp_path, _network()), [], storage.blocks
    monkeypatch.setattr(
        storage, "blocks", lambda opened: read.append(opened.name) or blocks(opened)
    )
    spec = config.load_text(
        f"{tiny.GIN}include 'models/pretrained_teacher.gin'\nKerasFile.file = '{file}'\n",
        ["Experiment.rows = [@teacher_1nn/Probe(), @fine_tune/Stage(), @refilled/Stage()]"],
    )
    given = [each.teacher if isinstance(each, Probe) else each for each in spec.specs()]
    backbones = {id(each.backbone) for each in given if isinstance(each.backbone, KerasFile)}
    assert len(backbones) > 2  # gin makes one for each reference
    for each in spec.specs():
        each.settings()
    assert read == [file]


def test_a_dense_layer_inside_is_no_classifier(tmp_path):
    images = tf.keras.Input((SIZE, SIZE, 3))
    x = tf.keras.layers.Dense(4)(images)
    network = tf.keras.Model(images, tf.keras.layers.GlobalAveragePooling2D()(x))
    backbone = KerasFile(_saved(tmp_path, network)).build(SIZE)
    np.testing.assert_allclose(backbone(_images()), network(_images()), rtol=1e-4, atol=1e-3)


# ---- tf.keras.applications -----------------------------------------------------------------

APPLICATIONS = tf.keras.applications


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """MobileNetV2 without its classifier, on 96×96 pixels, and a folder of its weights."""
    tf.keras.utils.set_random_seed(0)
    whole = APPLICATIONS.MobileNetV2(weights=None)
    options = {"include_top": False, "pooling": "avg", "weights": None}
    network = APPLICATIONS.MobileNetV2(**options, input_shape=(96, 96, 3))
    network.set_weights(whole.get_weights()[:-2])
    folder = tmp_path_factory.mktemp("weights")
    whole.save_weights(folder / "whole.h5")
    network.save_weights(folder / "without.h5")
    return network, folder


@pytest.mark.parametrize("file", ["whole.h5", "without.h5"])
def test_application_does_its_own_preprocessing(mobilenet, file):
    network, folder = mobilenet
    spec = Application("MobileNetV2", str(folder / file), input_size=96)
    resized = tf.image.resize(_images(80), (96, 96)).numpy()
    expected = network(APPLICATIONS.mobilenet_v2.preprocess_input(resized))
    np.testing.assert_allclose(spec.build(80)(_images(80)), expected, rtol=1e-3, atol=1e-5)


def test_application_takes_the_size_it_was_trained_on(mobilenet):
    spec = Application("MobileNetV2", str(mobilenet[1] / "whole.h5"))
    assert spec.build(48).get_layer("pretrained").input_shape == (None, 224, 224, 3)
    named = Application("MobileNetV2", spec.weights, layer="block_3_expand_relu", input_size=32)
    assert named.build(48).output_shape == (None, 144)  # 6 · 24 channels, averaged over space


def test_unknown_application_lists_what_there_is():
    with pytest.raises(InputError, match=r"'MobileNetV9' is no network .* MobileNetV2, "):
        Application("MobileNetV9")


def test_weights_of_another_network_are_refused(mobilenet):
    spec = Application("MobileNet", str(mobilenet[1] / "whole.h5"), input_size=32)
    with pytest.raises(InputError, match=r"whole\.h5 holds no weights of MobileNet, neither"):
        spec.build(32)


def test_missing_network_names_the_option(monkeypatch):
    def fail(*args, **kwargs):
        raise Exception("URL fetch failure")

    # As Keras raises where there is no way out.
    module = sys.modules[tf.keras.utils.get_file.__module__]
    monkeypatch.setattr(module, "get_file", fail)
    with pytest.raises(InputError, match=r"cannot be downloaded \(URL .*--teacher_weights"):
        Application("MobileNetV2", input_size=96).build(96)


# ---- refusing ------------------------------------------------------------------------------


def _refused(file, **options):
    with pytest.raises(InputError) as error:
        KerasFile(str(file), **options).build(SIZE)
    return str(error.value)


def test_wrong_layer_lists_the_candidates(tmp_path):
    message = _refused(_saved(tmp_path, _network()), layer="avg")
    assert "no layer 'avg'" in message
    assert "pool, norm, conv" in message


def test_missing_file_is_named(tmp_path):
    assert f"{tmp_path / 'none.keras'} does not exist" in _refused(tmp_path / "none.keras")


def test_unknown_preprocessing_lists_what_there_is(tmp_path):
    assert "none, tf, torch, caffe" in _refused(tmp_path, preprocessing="imagenet")


def test_file_of_something_else_is_named(tmp_path):
    (tmp_path / "text.keras").write_text("no network")
    assert "text.keras: Keras cannot read it" in _refused(tmp_path / "text.keras")


def test_saved_model_without_layers_is_refused(tmp_path):
    module = tf.Module()
    module.f = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None, 8, 8, 3])])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    assert "file of its embeddings" in _refused(tmp_path / "saved")


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((8, 8, 1), "[None, 8, 8, 1]"),
        ((8, 6, 3), "[None, 8, 6, 3]"),
        ((4, 8, 8, 3), "[None, 4, 8, 8, 3]"),
        ((10,), "[None, 10]"),
    ],
)
def test_wrong_input_is_refused_with_its_shape(tmp_path, shape, text):
    images = tf.keras.Input(shape)
    network = tf.keras.Model(images, tf.keras.layers.Flatten()(images))
    message = _refused(_saved(tmp_path, network))
    assert text in message
    assert "[None, S, S, 3]" in message


def test_embedding_of_a_wrong_rank_is_refused(tmp_path):
    images = tf.keras.Input((4, 4, 3))
    rows = tf.keras.layers.Reshape((4, 12), name="rows")(images)
    network = tf.keras.Model(images, tf.keras.layers.Flatten(name="flat")(rows))
    message = _refused(_saved(tmp_path, network), layer="rows")
    assert "[None, 4, 12]" in message
    assert "flat" in message


# ---- code in files -------------------------------------------------------------------------


def _with_lambda(path):
    """A network that writes `path` whenever its Lambda layer is built."""
    images = tf.keras.Input((SIZE, SIZE, 3))
    touch = lambda x, path: (open(path, "w").close(), x / 255)[1]  # noqa: E731
    x = tf.keras.layers.Lambda(touch, name="scale", arguments={"path": str(path)})(images)
    return tf.keras.Model(images, tf.keras.layers.Flatten(name="flat")(x))


def _nested(path):
    inner = _with_lambda(path)
    images = tf.keras.Input((SIZE, SIZE, 3))
    return tf.keras.Model(images, tf.keras.layers.Dense(2)(inner(images)))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("make", [_with_lambda, _nested])
@pytest.mark.parametrize("name", ["teacher.keras", "teacher.h5", "teacher"])
def test_code_in_a_file_is_not_run_unless_trusted(tmp_path, name, make):
    """That of Lambda layers, in every format; a load that is allowed does run it."""
    trace = tmp_path / "trace"
    file = _saved(tmp_path, make(trace), name)
    trace.unlink()
    message = _refused(file)
    assert "Lambda layer 'scale'" in message
    assert "--trust_teacher" in message
    assert not trace.exists()
    backbone = KerasFile(file, trusted=True).build(SIZE)
    assert trace.exists()
    expected = _images().reshape(3, -1) / 255
    np.testing.assert_allclose(backbone(_images()), expected, rtol=1e-5)


def test_classes_of_other_packages_are_code(tmp_path):
    """Keras would import the package, which runs it."""
    file = tmp_path / "teacher.keras"
    _saved(tmp_path, _network())
    with zipfile.ZipFile(file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    config["config"]["layers"][1] |= {"module": "antigravity", "class_name": "Blur"}
    files["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert "holds code, which would run here: Blur of antigravity" in _refused(file)
    assert "antigravity" not in sys.modules


class _Times(tf.keras.layers.Layer):
    """A layer that is not Keras's own."""

    def build(self, shape):
        self.factor = self.add_weight("factor", shape=(), initializer="ones")

    def call(self, x):
        return x * self.factor


def test_layers_that_do_not_survive_saving_are_refused(tmp_path):
    """As a SavedModel, a layer of any class can be run, but not built anew."""
    images = tf.keras.Input((SIZE, SIZE, 3))
    x = tf.keras.layers.Flatten()(_Times(name="times")(images))
    message = _refused(_saved(tmp_path, tf.keras.Model(images, x), "teacher"))
    assert "not Keras's own are _Times (times)" in message
    assert "file of its embeddings" in message


def test_trust_is_no_setting(tmp_path):
    """Or the same teacher's trainings would not go on."""
    file = _saved(tmp_path, _network())
    assert settings.flatten(KerasFile(file)) == settings.flatten(KerasFile(file, trusted=True))
