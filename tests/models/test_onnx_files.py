"""Networks in ONNX files against the Keras networks that they were exported from."""

from __future__ import annotations

import sys

import numpy as np
import onnx_graphs
import pytest
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.models import networks
from refilled_tf.models.keras_files import KerasFile
from refilled_tf.models.mobilenet import MobileNet
from refilled_tf.models.onnx_files import OnnxFile

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = 12


def _images(size=SIZE):
    return np.random.default_rng(0).uniform(0, 255, (3, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    """Images [B, 12, 12, 3] in whatever range to [B, 5]; a feature map before that."""
    tf.keras.utils.set_random_seed(1)
    images = tf.keras.Input((SIZE, SIZE, 3))
    x = tf.keras.layers.Conv2D(5, 3, activation="tanh", name="conv")(images)
    return tf.keras.Model(images, tf.keras.layers.GlobalAveragePooling2D(name="pool")(x))


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    return onnx_graphs.export(network, tmp_path_factory.mktemp("files") / "net.onnx")


def _refused(file, size=SIZE, **options):
    with pytest.raises(InputError) as error:
        OnnxFile(str(file), **{"preprocessing": "none", **options}).build(size)
    return str(error.value)


# ---- the same numbers ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_real_network_answers_as_its_keras_twin(tmp_path, layout):
    """A MobileNet whose statistics are of real activations, which random ones would shrink to 0."""
    tf.keras.utils.set_random_seed(0)
    twin = MobileNet(0.25, batch_norm_momentum=0.0).build(64)
    images = _images(64)
    for _ in range(30):  # a layer after another gets statistics of what the ones before make
        twin(images, training=True)
    expected = twin(images).numpy()
    assert expected.std() > 0.1
    path = onnx_graphs.export(twin, tmp_path / "net.onnx", layout)
    answer = OnnxFile(str(path), preprocessing="none").build(64)(images)
    assert answer.shape == (3, 256)
    np.testing.assert_allclose(answer, expected, atol=1e-4)


@pytest.mark.parametrize("preprocessing", ["none", "tf", "torch", "caffe"])
def test_preprocessing_is_that_of_keras(network, file, tmp_path, preprocessing):
    network.save(tmp_path / "net.keras")
    keras = KerasFile(str(tmp_path / "net.keras"), preprocessing=preprocessing).build(SIZE)
    ours = OnnxFile(str(file), preprocessing=preprocessing).build(SIZE)
    np.testing.assert_allclose(ours(_images()), keras(_images()), atol=1e-4)


def test_clip_is_normalised_by_its_own_mean(network, file):
    mean = np.array([0.48145466, 0.4578275, 0.40821073])  # openai/CLIP, clip.py
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    answer = OnnxFile(str(file), preprocessing="clip").build(SIZE)(_images())
    expected = network(((_images() / 255 - mean) / std).astype(np.float32))
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_metadata_say_the_same_as_the_option(network, tmp_path):
    text = {"mean": "0.485, 0.456, 0.406", "std": "0.229,0.224,0.225"}  # ImageNet's, as in "torch"
    path = onnx_graphs.export(network, tmp_path / "net.onnx", metadata=text)
    said = OnnxFile(str(path)).build(SIZE)(_images())
    given = OnnxFile(str(path), preprocessing="torch").build(SIZE)(_images())
    np.testing.assert_allclose(said, given, atol=1e-5)
    # The option goes before the metadata.
    plain = OnnxFile(str(path), preprocessing="none").build(SIZE)(_images())
    np.testing.assert_allclose(plain, network(_images()), atol=1e-5)


def test_images_are_resized_to_the_graphs_size(network, file):
    answer = OnnxFile(str(file), preprocessing="tf").build(20)(_images(20))
    small = tf.image.resize(_images(20), (SIZE, SIZE), antialias=True)
    np.testing.assert_allclose(answer, network(small / 127.5 - 1), atol=1e-4)


def _mean_graph(tmp_path, **options):
    """A graph that returns a map of the mean colour, [B, 3, 1, 1]."""
    return onnx_graphs.write(tmp_path / "mean.onnx", ["GlobalAveragePool"], **options)


@pytest.mark.parametrize(
    ("shape", "options", "size"),
    [
        (["B", 3, "H", "W"], {}, 20),
        (["B", 3, "H", "W"], {"input_size": 8}, 8),
        (["B", "C", "H", "W"], {"layout": "NCHW"}, 20),
        ([None, 3, None, None], {"input_size": 8}, 8),
        ([1, 3, 8, 8], {}, 8),  # as torch.onnx.export fixes the batch without dynamic_axes
    ],
)
def test_size_is_the_graphs_or_the_options_or_ours(tmp_path, shape, options, size):
    """The mean of a map that is resized without antialiasing would be another one."""
    file = OnnxFile(str(_mean_graph(tmp_path, shape=shape)), preprocessing="none", **options)
    answer = file.build(20)(_images(20))
    small = tf.image.resize(_images(20), (size, size), antialias=True)
    np.testing.assert_allclose(answer, np.mean(small, axis=(1, 2)), rtol=1e-5)


def test_half_precision_is_taken(tmp_path):
    file = OnnxFile(str(_mean_graph(tmp_path, dtype=np.float16)), preprocessing="tf")
    answer = file.build(8)(_images(8))
    assert answer.dtype == tf.float32
    expected = np.mean(_images(8) / 127.5 - 1, axis=(1, 2))
    np.testing.assert_allclose(answer, expected, atol=2e-3)  # ten binary digits


def test_an_output_is_chosen(tmp_path):
    nodes = [("GlobalAveragePool", "mean"), ("GlobalMaxPool", "most")]
    path = onnx_graphs.write(tmp_path / "two.onnx", nodes)
    answer = OnnxFile(str(path), layer="most", preprocessing="none").build(8)(_images(8))
    np.testing.assert_allclose(answer, _images(8).max((1, 2)), rtol=1e-5)
    assert "has several outputs; there are mean" in _refused(path)
    assert "no output 'third'; there are mean" in _refused(path, layer="third")
    named = [("GlobalAveragePool", "embedding"), ("GlobalMaxPool", "most")]
    path = onnx_graphs.write(tmp_path / "named.onnx", named)
    answer = OnnxFile(str(path), preprocessing="none").build(8)(_images(8))
    np.testing.assert_allclose(answer, _images(8).mean((1, 2)), rtol=1e-5)


def test_weights_in_a_second_file_are_part_of_the_content(network, tmp_path):
    path = onnx_graphs.export(network, tmp_path / "net.onnx")
    expected = OnnxFile(str(path), preprocessing="tf").build(SIZE)(_images())
    onnx.save(
        onnx.load(path),
        tmp_path / "two.onnx",
        save_as_external_data=True,
        location="two.onnx.data",
        size_threshold=100,  # the weights, and not what shapes are inferred by
    )
    two = OnnxFile(str(tmp_path / "two.onnx"), preprocessing="tf")
    np.testing.assert_array_equal(two.build(SIZE)(_images()), expected)
    data = (tmp_path / "two.onnx.data").read_bytes()
    (tmp_path / "two.onnx.data").write_bytes(bytes(len(data)))
    assert OnnxFile(str(tmp_path / "two.onnx")).content != two.content


def test_it_is_a_network_like_others(file):
    network = networks.embedding_network(OnnxFile(str(file), preprocessing="tf"), SIZE)
    assert network.output_shape == {"embedding": (None, 5)}
    assert network.weights == []
    both = networks.joined([network, network], 20)(_images(20))
    np.testing.assert_array_equal(both["embedding"], both["embedding_2"])


# ---- refusing ------------------------------------------------------------------------------


def test_without_onnxruntime_the_way_to_install_it_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not there
    other = OnnxFile(str(file), preprocessing="caffe", layout="NCHW")  # not opened before
    with pytest.raises(InputError, match=r"needs onnxruntime.*pip install -r req"):
        other.build(SIZE)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no graph")
    assert "onnxruntime cannot open it: " in _refused(tmp_path / "net.onnx")
    with pytest.raises(InputError, match=r"none\.onnx does not exist"):
        OnnxFile("none.onnx").content  # noqa: B018


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (["B", 16], np.float32, r"takes x ['B', 16] tensor(float); a teacher takes one batch of"),
        (["B", 3, 8, 8], np.int64, "takes x ['B', 3, 8, 8] tensor(int64); a teacher takes"),
        (["B", 1, 8, 8], np.float32, "takes ['B', 1, 8, 8], and not RGB images"),
        (["B", 3, 8, 9], np.float32, "takes ['B', 3, 8, 9]; a teacher takes square images"),
        (["B", "C", "H", "W"], np.float32, "give OnnxFile.layout (--teacher_layout=NCHW or"),
        (["B", 3, 8, 3], np.float32, "give OnnxFile.layout"),
        ([8, 3, 8, 8], np.float32, "cannot be run on images of 8×8 pixels: "),
    ],
)
def test_inputs_that_are_no_images_are_refused(tmp_path, shape, dtype, message):
    path = onnx_graphs.write(tmp_path / "net.onnx", ["Identity"], shape=shape, dtype=dtype)
    assert message in _refused(path)


def test_outputs_that_are_no_embeddings_are_refused(tmp_path):
    path = onnx_graphs.write(tmp_path / "net.onnx", ["Shape"])
    assert "its output y is [4] for 1 images" in _refused(path).replace("'", "")


def test_a_size_that_the_graph_does_not_take_is_refused(file):
    assert "takes 12 pixels, and not OnnxFile.input_size=14" in _refused(file, input_size=14)
    assert "input_size=0 must be a number of pixels" in _refused(file, input_size=0)


def test_layout_must_fit(file):
    assert "and not RGB images in the layout NHWC" in _refused(file, layout="NHWC")


def test_nobody_guesses_the_normalisation(file, network, tmp_path):
    assert "give OnnxFile.preprocessing (--teacher_preprocessing), one of none" in _refused(
        file, preprocessing=None
    )
    for text in ({"mean": "a,b,c", "std": "1,1,1"}, {"mean": "0,0,0", "std": "1,0,1"}):
        path = onnx_graphs.export(network, tmp_path / "net.onnx", metadata=text)
        assert "must be three numbers each" in _refused(path, preprocessing=None)
