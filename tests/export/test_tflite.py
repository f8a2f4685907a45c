"""TFLite files of a small trained network: what they answer, what lies in them, when they fail.

The network is trained on scikit-learn's digits; where nothing else is said, expected values are
what that Keras network gives for the same pixels. MediaPipe's image classifier is the one that
phones and browsers run.
"""

import dataclasses
import json
import zipfile
from collections import Counter

import commands
import mediapipe
import numpy as np
import photos
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.python import BaseOptions, vision
from tensorflow.lite.tools import flatbuffer_utils

from export import tflite_files, tflite_model
from refilled_tf.common.errors import InputError
from refilled_tf.data import batches
from refilled_tf.data.task import Examples, TaskData
from refilled_tf.models import networks
from refilled_tf.models.keras_files import KerasFile

QUANTIZATIONS = ["none", "float16", "dynamic", "int8"]
# By how much an image's probabilities may be off. "none" and "float16" are compared with Keras in
# float32 and with weights in float16: seen of four trainings with TensorFlow 2.15 and 2.21 were
# 1.1e-5 and 4e-4. The others are compared with float32: twice what was seen of one network, .037
# for dynamic and .072 for int8. Processors round a training differently, and of another network
# quantisation hits a few images in a hundred harder.
MARGINS = {"none": 1e-4, "float16": 1e-3, "dynamic": 0.08, "int8": 0.15}


def _probabilities(model, network):
    images = batches.scoring_batches(model.data.test, model.stage.task.data.image_size)
    return tf.nn.softmax(networks.outputs_of(network, images)["logits"]).numpy()


@pytest.fixture(scope="session")
def probabilities(model):
    """What the Keras network gives for every test image, [N, 5]."""
    return _probabilities(model, model.network)


def _with_half_weights(network):
    """Returns a copy that computes in float32 with weights in float16, batch norm being folded.

    γ (w∗x - μ)/√(σ² + ε) + β is a convolution with γ w/√(σ² + ε); that product is what the file
    holds. To round it may move a probability by far more than float16 is exact: of the four
    trainings above by .009 to .019.
    """
    copy = tf.keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    for layer in copy.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            scale = gamma / np.sqrt(variance + layer.epsilon)
            convolution = next(x for x in copy.layers if x.output is layer.input)
            (kernel,) = convolution.get_weights()
            if isinstance(convolution, tf.keras.layers.DepthwiseConv2D):  # [h, w, C, 1]
                convolution.set_weights([_half(kernel * scale[:, np.newaxis])])
            else:
                convolution.set_weights([_half(kernel * scale)])
            one, zero = np.ones_like(gamma), np.zeros_like(gamma)
            layer.set_weights(
                [one * np.sqrt(1 + layer.epsilon), _half(beta - mean * scale), zero, one]
            )
        elif isinstance(layer, tf.keras.layers.Dense):
            layer.set_weights([_half(weights) for weights in layer.get_weights()])
    return copy


def _half(weights):
    return weights.astype(np.float16).astype(np.float32)


def _file(folder, quantize):
    return folder / f"student_{quantize}.tflite"


def _classify(content, images):
    """Asks MediaPipe; returns the names, best first, and the probabilities in the labels' order."""
    options = vision.ImageClassifierOptions(BaseOptions(model_asset_buffer=content))
    names, scores = [], []
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for image in images:
            picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image)
            (head,) = classifier.classify(picture).classifications
            names.append([category.category_name for category in head.categories])
            in_order = sorted(head.categories, key=lambda category: category.index)
            scores.append([category.score for category in in_order])
    return names, np.array(scores)


def _converted(content):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    return interpreter


def _ops(interpreter):
    return Counter(op["op_name"] for op in interpreter._get_ops_details())


# What they answer.


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_mediapipe_names_the_class_that_keras_gives(quantize, tflite_folder, model, probabilities):
    names, scores = _classify(_file(tflite_folder, quantize).read_bytes(), model.data.test.images)
    if quantize == "float16":
        probabilities = _probabilities(model, _with_half_weights(model.network))

    margin = MARGINS[quantize]
    close = np.abs(scores - probabilities).max(axis=1) <= margin
    assert np.mean(close) >= (0.97 if quantize in ("dynamic", "int8") else 1)
    # Where both of the two best are off by the margin, in the worst case, they may trade places.
    ranked = np.sort(probabilities, axis=1)
    clear = close & (ranked[:, -1] - ranked[:, -2] > 2 * margin)
    assert np.mean(clear) > 0.5
    expected = np.array(model.data.class_names)[probabilities.argmax(axis=1)]
    best = np.array([ordered[0] for ordered in names])
    np.testing.assert_array_equal(best[clear], expected[clear])
    # A network that had learnt nothing would give all images one name.
    assert set(best[clear]) == set(model.data.class_names)


def test_two_pictures_of_one_centre_get_the_same_answer(model):
    # Logits are the mean of red times 0 … 6: the answer tells what the network has seen.
    images = tf.keras.Input((4, 4, 3))
    red = tf.keras.layers.GlobalAveragePooling2D()(images)[:, :1]
    network = tf.keras.Model(images, {"embedding": red, "logits": red * tf.range(7.0)})
    small = _with(model, network, ["0", "eins", "deux ", "três", "четыре", "五", "6️⃣"])
    content = tflite_model.convert(small, ["none"])["none"]

    dark, bright = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    dark[2:6, 2:6] = bright[2:6, 2:6] = 2
    names, scores = _classify(content, [dark, bright])

    powers = np.exp(2.0 * np.arange(7))
    np.testing.assert_allclose(scores, [powers / powers.sum()] * 2, rtol=1e-5)
    assert names == [["6️⃣", "五", "четыре", "três", "deux ", "eins", "0"]] * 2


def _with(model, network, names):
    """A `Trained` whose network sees the middle 4×4 of 8×8 pixels, and some images of its."""
    data = dataclasses.replace(model.stage.task.data, image_size=4, load_size=8)
    stage = dataclasses.replace(model.stage, task=dataclasses.replace(model.stage.task, data=data))
    labels = np.arange(len(names), dtype=np.int32)
    # No pixel near black or white.
    pixels = np.random.default_rng(0).integers(64, 192, (len(names), 8, 8, 3), np.uint8)
    examples = Examples(pixels, labels, labels.astype(str))
    task_data = TaskData(examples, examples, tuple(names), "test")
    return model._replace(stage=stage, network=network, data=task_data)


def test_network_in_mixed_precision(model, probabilities):
    layers = tf.keras.models.clone_model(
        model.network,
        clone_function=lambda layer: layer.from_config(
            layer.get_config() | {"dtype": "mixed_float16"}
        ),
    )
    layers.set_weights(model.network.get_weights())
    content = tflite_model.convert(model._replace(network=layers), ["none"])["none"]
    _, scores = _classify(content, model.data.test.images[:20])
    np.testing.assert_allclose(scores, probabilities[:20], atol=1e-4)


def test_network_that_resizes_with_antialiasing_is_refused(model, tmp_path):
    """As a given teacher does, fine-tuned, whose own images are larger: here 12 to 8 pixels."""
    teacher = KerasFile(str(photos.write_teacher(tmp_path / "teacher.keras")))
    network = networks.classifier(teacher, model.stage.task.data.image_size, 5)
    with pytest.raises(InputError, match=r"--stage: .* resizes its images .* export\.saved_model"):
        tflite_model.convert(model._replace(network=network), ["none"])


# What lies in them.


def test_smaller_numbers_make_smaller_files(tflite_folder, model):
    sizes = [_file(tflite_folder, quantize).stat().st_size for quantize in QUANTIZATIONS]
    weights = model.network.count_params()
    # Bytes of a weight; the rest, names, shapes and scales of every tensor, is small.
    for size, width in zip(sizes, (4, 2, 1, 1), strict=True):
        assert 0.95 * width * weights < size < width * weights + 100_000
    assert sizes[0] > sizes[1] > max(sizes[2:])


def test_batch_norm_is_part_of_the_convolutions(tflite_folder, model):
    kinds = (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D)  # the latter is the former
    convolutions = sum(isinstance(layer, kinds) for layer in model.network.layers)
    ops = _ops(_converted(_file(tflite_folder, "none").read_bytes()))
    assert ops["CONV_2D"] + ops["DEPTHWISE_CONV_2D"] == convolutions
    assert (ops["MUL"], ops["ADD"]) == (1, 1)  # of the rescaling to [-1, 1]
    assert ops.keys() <= {
        *("CONV_2D", "DEPTHWISE_CONV_2D", "MUL", "ADD", "PAD", "STRIDED_SLICE"),
        *("MEAN", "FULLY_CONNECTED", "SOFTMAX", "DELEGATE"),
    }


def test_int8_is_of_integers_alone_and_takes_bytes_as_they_are(tflite_folder):
    interpreter = _converted(_file(tflite_folder, "int8").read_bytes())
    kinds = {tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    assert kinds == {np.uint8, np.int8, np.int32}
    assert not {"DEQUANTIZE", "CAST"} & _ops(interpreter).keys()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (taken["dtype"], taken["quantization"]) == (np.uint8, (1.0, 0))
    assert (given["dtype"], given["quantization"]) == (np.uint8, (1 / 256, 0))


def test_int8_takes_bytes_as_they_are_whatever_training_images_span(model):
    images = tf.keras.Input((4, 4, 3))
    pooled = tf.keras.layers.GlobalAveragePooling2D()(images)
    logits = tf.keras.layers.Dense(3, kernel_initializer="ones")(pooled)
    network = tf.keras.Model(images, {"embedding": pooled, "logits": logits})
    content = tflite_model.convert(_with(model, network, "abc"), ["int8"])["int8"]
    (taken,) = _converted(content).get_input_details()
    assert taken["quantization"] == (1.0, 0)


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_metadata_tell_how_to_use_the_file(quantize, tflite_folder, model):
    path = _file(tflite_folder, quantize)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode() == "5\n6\n7\n8\n9\n"
        assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED

    buffer = _metadata_buffer(path.read_bytes())
    assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(buffer, 0)
    found = schema.ModelMetadataT.InitFromPackedBuf(buffer)
    assert (found.name, found.minParserVersion) == (b"refilled", b"1.0.0")
    assert found.version.decode() == model.stage.digest()
    description = found.description.decode()
    images = len(model.data.test.labels)
    assert f"{100 * model.result['accuracy']:.2f} % of {images} test images" in description
    assert description.startswith("Tells 5 classes of Digits() apart")

    (graph,) = found.subgraphMetadata
    (image,), (probabilities,) = graph.inputTensorMetadata, graph.outputTensorMetadata
    assert image.content.contentProperties.colorSpace == schema.ColorSpaceType.RGB
    (unit,) = image.processUnits
    assert (list(unit.options.mean), list(unit.options.std)) == ([0.0], [1.0])
    (labels,) = probabilities.associatedFiles
    assert labels.name == b"labels.txt"
    assert labels.type == schema.AssociatedFileType.TENSOR_AXIS_LABELS


def _metadata_buffer(content):
    """Finds the metadata through TensorFlow's own reader of the format."""
    parsed = flatbuffer_utils.convert_bytearray_to_object(content)
    (entry,) = [each for each in parsed.metadata if each.name == b"TFLITE_METADATA"]
    return parsed.buffers[entry.buffer].data.tobytes()


def test_same_network_gives_the_same_file(tflite_folder, model):
    content = tflite_model.convert(model, ["none"])["none"]
    assert content == _file(tflite_folder, "none").read_bytes()


# What is said of them.


def test_table_is_what_another_interpreter_counts(tflite_run, model, probabilities):
    process, tflite_folder = tflite_run
    results = json.loads((tflite_folder / "tflite.json").read_text())
    page = (tflite_folder / "tflite.md").read_text()
    assert page in process.stdout
    assert process.stdout.splitlines()[-1] == f"student (Student) is exported to {tflite_folder}"
    assert results["images"] == len(model.data.test.labels)
    assert results["versions"]["tensorflow"] == tf.__version__

    keras, *rows = results["rows"]
    assert keras["name"] == "Keras"
    assert keras["accuracy"] == pytest.approx(model.result["accuracy"])
    assert (keras["agreement"], keras["lost_images"]) == (1.0, 0)
    classes, labels = probabilities.argmax(axis=1), model.data.test.labels
    for row, quantize in zip(rows, QUANTIZATIONS, strict=True):
        path = _file(tflite_folder, quantize)
        assert (row["name"], row["bytes"]) == (path.name, path.stat().st_size)
        # TensorFlow's kernels may round otherwise, which may move an image in fifty.
        found, images = _answers(tf.lite.Interpreter, path, model.data.test.images), len(labels)
        for share, wanted in (("accuracy", labels), ("agreement", classes)):
            fewest, most = _hits(found, wanted)
            assert fewest / images - 0.02 <= row[share] <= most / images + 0.02
        assert row["lost_images"] == round((keras["accuracy"] - row["accuracy"]) * images)
        # The worst of all images is one that a rounding moves far: asked of the same kernels.
        found = _answers(Interpreter, path, model.data.test.images)
        difference = np.abs(found - probabilities).max()
        assert row["largest_difference"] == pytest.approx(difference, abs=1e-4)
        assert row["milliseconds"].keys() == {"1", "2"}
        line = next(line for line in page.splitlines() if path.name in line)
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        assert cells[2:4] == [f"{100 * row['accuracy']:.2f}", f"{100 * row['agreement']:.2f}"]
        assert cells[5:] == [f"{row['milliseconds'][threads]:.2f}" for threads in "12"]


def _hits(found, wanted):
    """Counts answers that are right, and those that might be: int8 may hold two classes equal."""
    best = found == found.max(axis=1, keepdims=True)
    right = best[np.arange(len(wanted)), wanted]
    return np.sum(right & (best.sum(axis=1) == 1)), np.sum(right)


def _answers(interpreter, path, images):
    answers = interpreter(str(path)).get_signature_runner()
    dtype = answers.get_input_details()["image"]["dtype"]
    found = [answers(image=image[None].astype(dtype))["probabilities"][0] for image in images]
    return np.array(found) / (256 if dtype == np.uint8 else 1)


def test_comparison_by_hand():
    # Four images of class 0. The conversion loses the first two, gains the third, keeps the last.
    wanted = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    found = np.array([[0.1, 0.9], [0.4, 0.6], [0.7, 0.3], [0.6, 0.4]])
    assert tflite_files.compare(np.zeros(4, int), wanted, found) == {
        "accuracy": 0.5,
        "agreement": 0.25,
        "largest_difference": pytest.approx(0.8),
        "lost_images": 1,
        # Losses 1, 1, -1, 0 have the mean 1/4 and the variance 3/4 - 1/16 = 11/16; of 4, 11/4.
        "standard_error": pytest.approx((11 / 4) ** 0.5),
    }


@pytest.mark.parametrize(("lost", "warned"), [(4, False), (5, True)])
def test_loss_of_more_than_a_point_is_pointed_out(lost, warned, tflite_folder):
    results = json.loads((tflite_folder / "tflite.json").read_text()) | {"images": 400}
    for row in results["rows"]:
        row.update(lost_images=0)
    results["rows"][-1].update(lost_images=lost, standard_error=2.24)
    warning = f"Warning: student_int8.tflite gets {lost} of 400 images fewer right than Keras"
    page = tflite_files.text(results)
    assert (warning in page, "is 2.2 images" in page) == (warned, warned)


# Failures.


def test_interrupted_conversion_leaves_nothing(model, tmp_path, monkeypatch):
    with_metadata = tflite_model._with_metadata

    def interrupted(content, trained, quantize):
        if quantize == "float16":
            raise KeyboardInterrupt
        return with_metadata(content, trained, quantize)

    monkeypatch.setattr(tflite_model, "_with_metadata", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tflite_files.write(model, ["none", "float16"], tmp_path / "out", "command")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(model, tflite_folder, tmp_path, monkeypatch):
    (tmp_path / "out/student_none.tflite").mkdir(parents=True)
    content = _file(tflite_folder, "none").read_bytes()
    monkeypatch.setattr(tflite_model, "convert", lambda trained, names: {"none": content})
    with pytest.raises(InputError, match=r"--output_dir=.*out cannot be written: .*Is a directory"):
        tflite_files.write(model, ["none"], tmp_path / "out", "command")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["student_none.tflite"]


@pytest.mark.parametrize("names", ["int4", "none,none", "none,int4", ""])
def test_quantizations_that_are_refused(names, tmp_path):
    known = "none,float16,dynamic,int8, each once"
    flags = [f"--work_dir={tmp_path}", f"--output_dir={tmp_path}", f"--quantize={names}"]
    done = commands.run("export.tflite", *flags)
    assert f"error: --quantize={names} must name one or more of {known}" in done.stderr


def test_output_dir_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    flags = [f"--work_dir={tmp_path}", f"--output_dir={tmp_path}/file/out"]
    done = commands.run("export.tflite", *flags)
    assert f": {tmp_path}/file is not a folder that can" in done.stderr


def test_command_ends_with_one_line_on_bad_input(work_dir, tmp_path):
    out = tmp_path / "out"
    run = commands.run(
        "export.tflite", f"--work_dir={work_dir}", f"--output_dir={out}", "--quantize=int4,none"
    )
    assert run.returncode == 1
    known = "none,float16,dynamic,int8"
    assert run.stderr == (
        f"error: --quantize=int4,none must name one or more of {known}, each once\n"
    )
    assert not out.exists()
