"""The student for microcontrollers: the network rewritten, its integers, its memory, its C++.

The network is trained on scikit-learn's digits; these are grey, so that `--grey` loses nothing.
Where nothing else is said, expected values are what Keras gives for the same pixels. The C++ is
compiled with headers of our own in place of tflite-micro's (tflite_micro_stub): that shows that it
is C++ and does what it says with an interpreter's answers, not that it suits the library.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import commands
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from refilled_tf.common.errors import InputError
from refilled_tf.models import networks
from refilled_tf.models.mobilenet import MobileNet, MobileNetV2

pytest.importorskip("tflite_micro")

from export import micro_files, micro_model, microcontroller

STUB = Path(__file__).parent / "tflite_micro_stub"
SIX = {  # of MLPerf Tiny's MobileNet v1 .25 for visual wake words
    *("AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D"),
    *("FULLY_CONNECTED", "RESHAPE", "SOFTMAX"),
}
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")


@pytest.fixture(scope="module")
def micro_run(work_dir, tmp_path_factory):
    """The command, finished, and its folder."""
    folder = tmp_path_factory.mktemp("micro") / "made/by it"
    flags = [f"--work_dir={work_dir}", f"--output_dir={folder}", "--grey"]
    run = commands.run("export.microcontroller", *flags, timeout=600)
    assert run.returncode == 0, run.stderr
    return run, folder


@pytest.fixture(scope="module")
def folder(micro_run):
    return micro_run[1]


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "microcontroller.json").read_text())


@pytest.fixture(scope="module")
def images(model):
    """Test images as the network sees them, [N, S, S, 1] uint8."""
    size = model.stage.task.data.image_size
    return micro_model.as_seen(model.data.test.images, size, size, grey=True)


@pytest.fixture(scope="module")
def scores(folder, images):
    """What TFLite's own interpreter, by its reference kernels, makes of them, [N, C] int8."""
    interpreter = Interpreter(
        str(folder / "model.tflite"),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
    )
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (taken["dtype"], given["dtype"]) == (np.int8, np.int8)
    answers = []
    for image in images:
        interpreter.set_tensor(taken["index"], (image.astype(int) - 128).astype(np.int8)[None])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(given["index"])[0])
    return np.array(answers)


@pytest.fixture(scope="module")
def found(folder, images):
    """What tflite-micro makes of them, [N, C] int8."""
    return micro_model.micro_outputs((folder / "model.tflite").read_bytes(), images)


def _network(kind, size):
    """An untrained network that tells random images apart: its statistics are those of some.

    A momentum of 0 leaves the statistics of the last batch.
    """
    tf.keras.utils.set_random_seed(0)
    network = networks.classifier(kind(width=0.25, batch_norm_momentum=0.0), size, 3)
    network(tf.constant(_pixels(16, size), tf.float32), training=True)
    return network


def _pixels(count, size, channels=3):
    return np.random.default_rng(count).integers(0, 256, (count, size, size, channels), np.uint8)


def _logits(rewritten, images):
    network, scale, offset = rewritten
    return network(scale * images.astype(np.float32) + offset)["logits"].numpy()


# The float network.


@pytest.mark.parametrize(
    ("kind", "size", "paddings"),
    [
        # Halved: 64, 32, 16, 8, 4, 2. Zeros below and to the right are what "same" pads.
        (MobileNet, 64, 0),
        (MobileNetV2, 64, 0),
        # 33, 17, 9, 5, 3, 2 if odd sides are padded on both sides, as "same" and MobileNetV2 do.
        (MobileNetV2, 33, 0),
        # MobileNet pads odd sides as even ones: 33, 17, 8, 4, 2, 1; that of 17 has to stay.
        (MobileNet, 33, 1),
        # 48, 24, 12, 6, 3, 1: that of 3.
        (MobileNet, 48, 1),
    ],
)
def test_rewritten_network_calculates_the_same(kind, size, paddings):
    network = _network(kind, size)
    images = _pixels(8, size)
    expected = network(tf.constant(images, tf.float32))["logits"].numpy()
    assert expected.std(axis=0).min() > 1e-2  # else it would not tell images apart

    rewritten = micro_model.rewritten(micro_model.at_size(network, size))
    np.testing.assert_allclose(_logits(rewritten, images), expected, atol=1e-4)
    left = Counter(type(layer).__name__ for layer in rewritten.network.layers)
    assert left["ZeroPadding2D"] == paddings
    assert left["Rescaling"] == left["GlobalAveragePooling2D"] == 0


def test_padding_is_what_tensorflow_pads():
    """Ones summed by a kernel of ones: how many zeros lie under its first and last place."""
    for size in range(3, 12):
        for kernel in (3, 5):
            for stride in (1, 2):
                ones = tf.ones([1, size, 1, 1])
                sums = tf.nn.conv2d(ones, tf.ones([kernel, 1, 1, 1]), [1, stride, 1, 1], "SAME")
                before, after = micro_model.same_padding(size, kernel, stride)
                wanted = [kernel - int(sums[0, end, 0, 0]) for end in (0, -1)]
                assert [before, after] == wanted, (size, kernel, stride)


def test_another_size_has_the_same_weights():
    """Beside a network that is built for that size."""
    network, images = _network(MobileNet, 64), _pixels(4, 96)
    other = networks.classifier(MobileNet(width=0.25), 96, 3)
    other.set_weights(network.get_weights())
    expected = other(tf.constant(images, tf.float32))["logits"]
    found = micro_model.at_size(network, 96)(tf.constant(images, tf.float32))["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_weights_of_one_size_take_no_other():
    images = tf.keras.Input((8, 8, 3))
    flat = tf.keras.layers.Flatten()(images)
    logits = tf.keras.layers.Dense(2, name="logits")(flat)
    network = tf.keras.Model(images, {"embedding": flat, "logits": logits})
    with pytest.raises(InputError, match=r"^--image_size=9: the network was trained on 8 pixels"):
        micro_model.at_size(network, 9)


def test_grey_network_does_what_the_other_does_with_three_equal_channels():
    network, grey = _network(MobileNet, 64), _pixels(8, 64, channels=1)
    expected = network(tf.constant(np.repeat(grey, 3, axis=-1), tf.float32))["logits"]
    rewritten = micro_model.rewritten(network, grey=True)
    assert rewritten.network.input_shape == (None, 64, 64, 1)
    np.testing.assert_allclose(_logits(rewritten, grey), expected, atol=1e-4)


def test_grey_needs_a_convolution_of_colours():
    images = tf.keras.Input((8, 8, 3))
    layer = tf.keras.layers.DepthwiseConv2D(3)(images)
    embedding = tf.keras.layers.GlobalAveragePooling2D()(layer)
    network = tf.keras.Model(images, {"embedding": embedding, "logits": embedding})
    with pytest.raises(InputError, match=r"^--grey: the network does not begin with"):
        micro_model.rewritten(network, grey=True)


def test_images_as_seen_by_hand():
    # Of 6×6 pixels the middle 4×4 are white; resizing white leaves white. Luma of red is .2989.
    images = np.zeros((1, 6, 6, 3), np.uint8)
    images[:, 1:5, 1:5] = 255
    np.testing.assert_array_equal(micro_model.as_seen(images, 4, 2, grey=False), 255)
    red = np.full((1, 4, 4, 3), [200, 0, 0], np.uint8)
    seen = micro_model.as_seen(red, 4, 4, grey=True)
    assert seen.shape == (1, 4, 4, 1)
    assert np.abs(seen.astype(float) - 0.2989 * 200).max() <= 1


# The integers.


def test_six_operators_are_enough(folder, results):
    """As TFLite's interpreter counts them."""
    interpreter = Interpreter(
        str(folder / "model.tflite"), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    counts = Counter(op["op_name"] for op in interpreter._get_ops_details())
    assert counts.keys() <= SIX
    assert results["operators"] == counts
    kinds = {tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    assert kinds == {np.int8, np.int32}


def test_a_pixel_enters_128_less(results):
    pixels = np.arange(256)
    values = pixels / 127.5 - 1  # MobileNet's rescaling
    scale, zero_point = results["input"]["scale"], results["input"]["zero_point"]
    entered = values / scale + zero_point
    # The zero point is rounded to an integer.
    np.testing.assert_allclose(entered, pixels - 128, atol=0.5 + 1e-4)
    column = pixels.astype(np.uint8)
    np.testing.assert_array_equal(micro_model.quantized(column), pixels - 128)
    assert results["output"] == {"scale": 1 / 256, "zero_point": -128}


def test_last_layer_has_one_scale(folder):
    """Not one for each class, which tflite-micro took for the first's until 2024."""
    interpreter = Interpreter(
        str(folder / "model.tflite"), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    (layer,) = (op for op in interpreter._get_ops_details() if op["op_name"] == "FULLY_CONNECTED")
    weights = next(t for t in interpreter.get_tensor_details() if t["index"] == layer["inputs"][1])
    assert len(weights["quantization_parameters"]["scales"]) == 1


def test_tflite_micro_answers_as_tflite(found, scores, model):
    assert found.dtype == np.int8
    off = np.abs(found.astype(int) - scores).max(axis=1)
    assert off[_shown(found, model)] <= 1
    # The two may round a logit otherwise, which moves a probability near one half by a few steps:
    # 4 was the most seen of 269 images.
    assert np.mean(off <= 1) > 0.95
    assert off.max() <= 8


def test_scores_are_what_another_interpreter_counts(micro_run, results, scores, model):
    labels = model.data.test.labels
    assert results["images"] == len(labels)
    right = np.mean(scores.argmax(axis=1) == labels)
    assert results["int8"]["accuracy"] == pytest.approx(right, abs=0.02)  # of equal scores
    # Grey digits lose nothing.
    assert results["float_accuracy"] == pytest.approx(model.result["accuracy"], abs=0.01)
    assert results["int8"]["accuracy"] > results["float_accuracy"] - 0.05
    process, folder = micro_run
    page = (folder / "README.md").read_text()
    share = f"{100 * results['int8']['accuracy']:.2f} %"
    assert f"{share} in int8 by tflite-micro" in process.stdout
    assert f"| in int8, by tflite-micro | {share[:-2]} |" in page
    assert f"{results['arena_bytes']:,} bytes" in page
    assert process.stdout.splitlines()[-1] == f"student (Student) is exported to {folder}"


def test_arena_is_the_least_that_runs(folder, results):
    content = (folder / "model.tflite").read_bytes()
    assert len(content) == results["bytes"]
    enough = results["arena_bytes"]
    assert micro_model._run_apart(content, enough).returncode == 0
    assert micro_model._run_apart(content, enough - 16).returncode != 0


def test_margin_by_hand():
    assert micro_files.reserved(103_520) == 112 * 1024  # 1.1 times as much are 111.2 kB
    assert micro_files.reserved(10_240) == 11 * 1024


def test_network_that_learnt_nothing_is_refused():
    """Its activations vanish, and tflite-micro ends its process."""
    network = networks.classifier(MobileNet(width=0.25), 32, 2)
    with pytest.raises(InputError, match=r"^tflite-micro cannot run this network of AVERAGE_POOL"):
        micro_model.convert(micro_model.rewritten(network), _pixels(2, 32), 2)


def test_unknown_operator_is_named():
    images = tf.keras.Input((8, 8, 3))
    large = tf.keras.layers.UpSampling2D()(images)
    embedding = tf.keras.layers.GlobalAveragePooling2D()(large)
    network = tf.keras.Model(images, {"embedding": embedding, "logits": embedding})
    with pytest.raises(InputError, match="needs the operator RESIZE_NEAREST_NEIGHBOR, which"):
        micro_model.convert(micro_model.rewritten(network), _pixels(2, 8), 2)


def test_calibration_is_judged_on_other_training_images(monkeypatch):
    """By hand: of 10 images, 5 judge; calibrated on 2 or 5 of the others, 5 agree better."""
    images = np.arange(10, dtype=np.uint8)[:, None, None, None]
    used, judged = [], []

    def convert(_, others, count):
        used.append((count, set(others.ravel().tolist())))
        return bytes([count])

    def outputs(content, seen, progress):
        judged.append(set(seen.ravel().tolist()))
        agreeing = {2: 2, 5: 4}[content[0]]
        return np.eye(2)[[0] * agreeing + [1] * (5 - agreeing)]

    monkeypatch.setattr(micro_model, "convert", convert)
    monkeypatch.setattr(micro_model, "micro_outputs", outputs)
    monkeypatch.setattr(
        micro_model, "float_probabilities", lambda _, seen: np.eye(2)[[0] * len(seen)]
    )
    content, fared = micro_model.calibrated(None, images, counts=(2, 100))
    assert content == bytes([5])
    assert fared == [(2, 0.4), (5, 0.8)]
    assert judged[0] == judged[1]
    assert [(count, len(others)) for count, others in used] == [(2, 5), (5, 5)]
    assert used[0][1] == used[1][1]
    assert not judged[0] & used[0][1]


def test_of_equal_calibrations_the_most_images_count():
    fared = [micro_model.Calibration(*each) for each in ((10, 0.9), (30, 0.9), (100, 0.8))]
    assert micro_model.best(fared).images == 30


# The C++.


def _compile(program, *sources, folder, options=()):
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", STUB]
    command += ["-I", folder / "classifier/src", *options, "-o", program, *sources]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@needs_compiler
def test_compiled_array_is_the_file(folder, tmp_path):
    (tmp_path / "print.cc").write_text("""
#include <cstdint>
#include <cstdio>
#include "model.h"
int main() {
  std::fwrite(refilled::kModel, 1, refilled::kModelLength, stdout);
  return reinterpret_cast<uintptr_t>(refilled::kModel) % 16;
}
""")
    sources = tmp_path / "print.cc", folder / "classifier/src/model.cc"
    _compile(tmp_path / "print", *sources, folder=folder)
    run = subprocess.run([tmp_path / "print"], capture_output=True)
    assert run.returncode == 0
    assert run.stdout == (folder / "model.tflite").read_bytes()


@needs_compiler
@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (0, 0, "This is what was expected."),
        (7, 0, "This is what was expected."),
        (20, 1, "A score is off by 20: this is not what was expected."),
    ],
)
def test_main_says_whether_the_answer_is_the_expected_one(
    answer, status, said, main, images, found, model, tmp_path
):
    """With an interpreter that answers what it is told, by so many steps off for one class."""
    shown = _shown(found, model)
    told = found[shown].astype(int)
    told[told.argmin()] += answer
    (tmp_path / "output.bin").write_bytes(told.astype(np.int8).tobytes())
    run = subprocess.run([main], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout.splitlines()[-1]) == (status, said)
    name = model.data.class_names[model.data.test.labels[shown]]
    assert f"The test picture shows {name} and is taken for {name}." in run.stdout
    given = np.frombuffer((tmp_path / "input.bin").read_bytes(), np.int8)
    expected = images[shown].ravel().astype(int) - 128
    np.testing.assert_array_equal(given[: expected.size], expected)


def _shown(found, model):
    """Returns the number of the test picture: the first that is classified rightly."""
    return int(np.argmax(found.argmax(axis=1) == model.data.test.labels))


@pytest.fixture(scope="module")
def main(folder, tmp_path_factory):
    program = tmp_path_factory.mktemp("main") / "main"
    source = folder / "classifier/src"
    _compile(
        program, folder / "main.cc", source / "classify.cc", source / "model.cc", folder=folder
    )
    return program


@needs_compiler
@pytest.mark.parametrize(
    ("file", "options"), [("main.cc", ["-DESP_PLATFORM"]), ("classifier/classifier.ino", [])]
)
def test_other_entries_compile(file, options, folder, tmp_path):
    options = [*options, "-c", "-x", "c++"]
    _compile(tmp_path / "entry.o", folder / file, folder=folder, options=options)


NAMES = (
    'a "quoted" \\ name\n',
    "what??/ or ??=",
    "Ærø, 鳥 and 6️⃣ 1",
    "%s",
    "*/ // {{ name }}",
)


@needs_compiler
def test_labels_are_what_they_were(tmp_path):
    template = micro_files._TEMPLATES.get_template("classifier/src/labels.h")
    (tmp_path / "labels.h").write_text(template.render(class_names=NAMES))
    (tmp_path / "print.cc").write_text("""
#include <cstdio>
#include <cstring>
#include "labels.h"
int main() {
  for (const char* name : refilled::kLabels) std::fwrite(name, 1, std::strlen(name) + 1, stdout);
}
""")
    options = ["-I", tmp_path, "-trigraphs"]
    _compile(tmp_path / "print", tmp_path / "print.cc", folder=tmp_path, options=options)
    run = subprocess.run([tmp_path / "print"], capture_output=True, check=True)
    assert run.stdout.decode().split("\0")[:-1] == list(NAMES)


# What is said, and failures.


@pytest.mark.parametrize(("lost", "warned"), [(4, False), (5, True)])
def test_loss_of_more_than_a_point_is_pointed_out(lost, warned, results, folder):
    changed = results | {"images": 400, "int8": results["int8"] | {"lost_images": lost}}
    nothing = {name: [0] for name in ("model", "test_picture", "test_scores")}
    files = micro_files.rendered(**changed, **nothing, class_names=["a"], test_class=0)
    said = f"int8 gets {lost} of 400 images fewer right than float32" in files["README.md"]
    assert (said, micro_files.loses_too_much(changed)) == (warned, warned)


def test_interrupted_export_leaves_nothing(folder, model, tmp_path, monkeypatch):
    def interrupted(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(micro_files.storage, "write_json", interrupted)
    made = (folder / "model.tflite").read_bytes(), [micro_model.Calibration(10, 1.0)]
    monkeypatch.setattr(micro_model, "calibrated", lambda *_: made)
    monkeypatch.setattr(micro_model, "arena_bytes", lambda _: 16)
    with pytest.raises(KeyboardInterrupt):
        micro_files.write(model, tmp_path / "out", None, True, "command")
    assert list(tmp_path.iterdir()) == []


def test_without_tflite_micro_the_way_to_install_it_is_named(work_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite_micro", None)  # as if it were not there
    with pytest.raises(InputError, match=r"tflite-micro, .*: pip install -r requirements-micro"):
        microcontroller.check(["export.microcontroller"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--image_size=0"], "--image_size=0 must be a whole number of at least 1"),
        (["--output_dir={tmp}/full"], "/full holds files already; name a new folder"),
        (["--output_dir={tmp}/full/file/out"], "/full/file is not a folder that can be written"),
        (["--work_dir={tmp}"], "is not the folder of a training"),
        (["more"], "unexpected argument ['more']; every option is a --flag"),
    ],
)
def test_command_ends_with_one_line_on_bad_input(flags, said, work_dir, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    standard = [f"--work_dir={work_dir}", f"--output_dir={tmp_path}/out"]
    run = commands.run("export.microcontroller", *standard, *flags)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert said in run.stderr
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
