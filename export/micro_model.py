"""A classifier as tflite-micro runs it: int8 in and out, on images that are resized already.

image          [1, S, S, c] int8, a pixel less 128; c is 3 (RGB) or 1 (grey)
probabilities  [1, C] int8, 256ths less 128, in the order of the class names

A microcontroller's program holds each operator that its network needs, so the network is rewritten
to need few: see `rewritten`.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from tflite_micro.python.tflite_micro import runtime
from tqdm import tqdm

from export import conversion
from refilled_tf.common.errors import InputError, one_line, require
from refilled_tf.common.progress import bar_interval
from refilled_tf.data import resizing
from refilled_tf.models import networks

# What MicroMutableOpResolver calls the operators that networks for images consist of.
OPERATORS = {
    "ADD": "AddAdd",
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "FULLY_CONNECTED": "AddFullyConnected",
    "HARD_SWISH": "AddHardSwish",
    "LEAKY_RELU": "AddLeakyRelu",
    "LOGISTIC": "AddLogistic",
    "MAX_POOL_2D": "AddMaxPool2D",
    "MEAN": "AddMean",
    "MUL": "AddMul",
    "PAD": "AddPad",
    "QUANTIZE": "AddQuantize",
    "RELU": "AddRelu",
    "RELU6": "AddRelu6",
    "RESHAPE": "AddReshape",
    "RESIZE_BILINEAR": "AddResizeBilinear",
    "SOFTMAX": "AddSoftmax",
    "STRIDED_SLICE": "AddStridedSlice",
    "SUB": "AddSub",
}
ALIGNMENT = 16  # bytes, of the arena
AMPLE = 1 << 26  # bytes, for networks that no microcontroller would have room for
CALIBRATION_IMAGES = (10, 30, 100, 300)
JUDGED_IMAGES = 200

Layer: TypeAlias = tf.keras.layers.Layer
# With TensorFlow 2.15 the second is no kind of the first.
CONVOLUTIONS = (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D)


class Rewritten(NamedTuple):
    """A float network that needs few operators.

    Attributes:
        network: scale · pixels + offset, [B, S, S, c] float32, to {"embedding", "logits"}.
        scale: of the pixels, 0 to 255.
        offset: what is added to them.
    """

    network: tf.keras.Model
    scale: float
    offset: float


class Quantization(NamedTuple):
    """Scale and zero point of a tensor: q stands for scale · (q - zero_point)."""

    scale: float
    zero_point: int


class Calibration(NamedTuple):
    """One choice of calibration images.

    Attributes:
        images: how many.
        agreement: the share of other training images that get the float network's class.
    """

    images: int
    agreement: float


# Images.


def as_seen(images: np.ndarray, crop: int, size: int, grey: bool) -> np.ndarray:
    """Returns images as a microcontroller's camera has to hand them over.

    Args:
        images: [N, L, L, 3] uint8.
        crop: side of the centre that the network was trained on.
        size: side S of what it sees here.
        grey: whether it sees their luma alone.

    Returns:
        [N, S, S, 3 or 1] uint8.
    """
    seen = tf.constant(resizing.center_crop(images, crop))
    if size != crop:
        seen = resizing.to_uint8(resizing.resized(tf.cast(seen, tf.float32), size))
    return (tf.image.rgb_to_grayscale(seen) if grey else seen).numpy()


def quantized(images: np.ndarray) -> np.ndarray:
    """Returns bytes 0 to 255 as int8, 128 less."""
    return (images ^ 0x80).view(np.int8)


# The float network.


def at_size(network: tf.keras.Model, size: int) -> tf.keras.Model:
    """Returns the same layers on images of another size, in float32.

    Args:
        network: images [B, L, L, 3] to named outputs.
        size: side S of the images.

    Raises:
        InputError: its weights or layers are of one size of images.
    """
    images = tf.keras.Input((size, size, 3), name="images")
    try:
        copy = tf.keras.models.clone_model(
            network,
            input_tensors=images,
            clone_function=lambda layer: networks.rebuilt(layer, dtype="float32"),
        )
        copy.set_weights(network.get_weights())
    except ValueError as error:  # Keras's, of shapes
        raise InputError(
            f"--image_size={size}: the network was trained on {network.input_shape[1]} pixels and "
            f"cannot take so many: {one_line(error)}"
        ) from error
    return copy


def rewritten(network: tf.keras.Model, grey: bool = False) -> Rewritten:
    """Writes a network anew in fewer operators, calculating the same.

    Rescaling of pixels becomes part of how the input is quantised. Padding in front of a strided
    convolution becomes that convolution's own wherever "same" pads as much; elsewhere it stays.
    The mean of a map is an average pooling as large as the map. Of grey images the first
    convolution sees three equal channels: its kernel, summed over them, sees one.

    Args:
        network: pixels [B, S, S, 3] float32 in [0, 255] to {"embedding", "logits"}.
        grey: whether the images have a single channel.

    Raises:
        InputError: `grey`, and the network does not start with a convolution.
    """
    stem, rescaling = _stem(network), _rescaling(network)
    require(
        stem is not None or not grey,
        "--grey: the network does not begin with a convolution of its three colours, so there is "
        "no network of grey images that does the same",
    )
    absorbed = {pad.name: conv.name for pad, conv in _paddings(network) if _is_same(pad, conv)}
    skipped = {*absorbed, *([rescaling.name] if rescaling else [])}

    def clone(layer: Layer) -> Layer:
        if layer.name in skipped:
            return tf.keras.layers.Activation("linear", name=layer.name)
        if layer.name in absorbed.values():
            return networks.rebuilt(layer, padding="same")
        if isinstance(layer, tf.keras.layers.GlobalAveragePooling2D):
            return _average_pooling(layer)
        return networks.rebuilt(layer)

    size = network.input_shape[1]
    images = tf.keras.Input((size, size, 1 if grey else 3), name="images")
    copy = tf.keras.models.clone_model(network, input_tensors=images, clone_function=clone)
    copy.set_weights(_summed_over_colours(network, stem) if grey else network.get_weights())
    if rescaling is None:
        return Rewritten(copy, 1.0, 0.0)
    return Rewritten(copy, float(rescaling.scale), float(rescaling.offset))


def _readers(network: tf.keras.Model, tensor: tf.Tensor) -> list[Layer]:
    """Returns the layers that a tensor goes into."""
    return [
        layer
        for layer in network.layers
        if not isinstance(layer, tf.keras.layers.InputLayer)
        and any(each is tensor for each in tf.nest.flatten(layer.input))
    ]


def _rescaling(network: tf.keras.Model) -> Layer | None:
    """Returns the layer that all pixels enter by, if it rescales all of them alike."""
    first = _readers(network, network.input)
    if len(first) != 1 or not isinstance(first[0], tf.keras.layers.Rescaling):
        return None
    return first[0] if np.ndim(first[0].scale) == np.ndim(first[0].offset) == 0 else None


def _paddings(network: tf.keras.Model) -> Iterator[tuple[Layer, Layer]]:
    """Yields each padding that a single convolution alone reads, and that."""
    for layer in network.layers:
        if isinstance(layer, tf.keras.layers.ZeroPadding2D):
            readers = _readers(network, layer.output)
            if len(readers) == 1 and isinstance(readers[0], CONVOLUTIONS):
                yield layer, readers[0]


def _is_same(padding: Layer, convolution: Layer) -> bool:
    """Whether a convolution of padding "same" would pad as the layer in front of it does."""
    return (
        convolution.padding == "valid"
        and tuple(convolution.dilation_rate) == (1, 1)
        and tuple(map(tuple, padding.padding))
        == tuple(
            map(
                same_padding,
                padding.input_shape[1:3],
                convolution.kernel_size,
                convolution.strides,
            )
        )
    )


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns how many zeros padding "same" puts before and behind a side of so many pixels."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _average_pooling(layer: Layer) -> Layer:
    """Returns a layer that does the same as one of global average pooling."""
    layers = [tf.keras.layers.AveragePooling2D(layer.input_shape[1:3])]
    if not layer.keepdims:
        layers.append(tf.keras.layers.Reshape((layer.input_shape[-1],)))
    return tf.keras.Sequential(layers, name=layer.name)


def _stem(network: tf.keras.Model) -> Layer | None:
    """Returns the convolution that pixels meet first, if nothing on the way tells colours apart."""
    tensor, passed = network.input, (tf.keras.layers.ZeroPadding2D, tf.keras.layers.Rescaling)
    while True:
        readers = _readers(network, tensor)
        if len(readers) != 1:
            return None
        (layer,) = readers
        if type(layer) is tf.keras.layers.Conv2D:
            return layer if layer.groups == 1 else None
        if not isinstance(layer, passed) or np.ndim(getattr(layer, "scale", 0)):
            return None
        tensor = layer.output


def _summed_over_colours(network: tf.keras.Model, stem: Layer) -> list[np.ndarray]:
    """Returns a network's weights, the kernel [h, w, 3, c] of one convolution as [h, w, 1, c]."""
    return [
        value.sum(axis=2, keepdims=True) if weight is stem.kernel else value
        for weight, value in zip(network.weights, network.get_weights(), strict=True)
    ]


def float_probabilities(float_network: Rewritten, images: np.ndarray) -> np.ndarray:
    """Returns what the network gives before it is quantised.

    Args:
        float_network: the network.
        images: [N, S, S, c] uint8.

    Returns:
        [N, C] float32.
    """
    network, scale, offset = float_network
    parts = [
        network(scale * images[start : start + 64].astype(np.float32) + offset, training=False)
        for start in range(0, len(images), 64)
    ]
    return tf.nn.softmax(np.concatenate([part["logits"] for part in parts])).numpy()


# The integers.


def convert(float_network: Rewritten, images: np.ndarray, count: int) -> bytes:
    """Quantises a network.

    Args:
        float_network: the network.
        images: [n, S, S, c] uint8, which the bias of the integers is measured on.
        count: the number of them, from the first on, that give the ranges of activations: the
            converter knows the least and the greatest value, and no percentiles.

    Returns:
        The content of a .tflite file, without names of tensors.

    Raises:
        InputError: TFLite has no integers for one of its operators, or `require_runnable`.
    """
    network, scale, offset = float_network
    images = images.copy()
    # A black and a white pixel, or the input's integers would not be pixels less 128.
    images[0, 0, :2] = [[0], [255]]
    # One scale for all classes: until September 2024 tflite-micro took the first class's for all,
    # or refused them, and boards have older ports
    # (https://github.com/tensorflow/tflite-micro/pull/2602).
    model = conversion.in_integers(
        lambda image: network(image, training=False)["logits"],
        scale * images.astype(np.float32) + np.float32(offset),
        count,
        tf.int8,
        scale_for_each_class=False,
    )
    parsed = flatbuffer_utils.convert_bytearray_to_object(model)
    flatbuffer_utils.strip_strings(parsed)  # they would lie in flash
    stripped = bytes(flatbuffer_utils.convert_object_to_bytearray(parsed))
    require_runnable(stripped)
    return stripped


def operators(model: bytes) -> dict[str, int]:
    """Returns the names of a .tflite file's operators, and how often each is called."""
    parsed = flatbuffer_utils.convert_bytearray_to_object(model)
    codes = [
        flatbuffer_utils.get_builtin_code_from_operator_code(code) for code in parsed.operatorCodes
    ]
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    counts = Counter(
        names[codes[operator.opcodeIndex]]
        for graph in parsed.subgraphs
        for operator in graph.operators
    )
    return dict(sorted(counts.items()))


def require_runnable(model: bytes) -> None:
    """Rejects a .tflite file that tflite-micro does not run.

    Raises:
        InputError: naming the operator, or what else tflite-micro says.
    """
    unknown = sorted(operators(model).keys() - OPERATORS.keys())
    require(
        not unknown,
        f"the network needs the operator {', '.join(unknown)}, which is not known here in "
        f"tflite-micro; known are {', '.join(OPERATORS)}",
    )
    run = _run_apart(model, AMPLE)
    require(
        run.returncode == 0,
        f"tflite-micro cannot run this network of {', '.join(operators(model))}: "
        f"{_last_line(run.stderr) or f'its process ended with status {run.returncode}'}",
    )


def arena_bytes(model: bytes) -> int:
    """Returns the least memory that tflite-micro runs a network in, here, in bytes.

    It is a multiple of `ALIGNMENT`. Pointers take 8 bytes here and 4 on most microcontrollers.

    Args:
        model: content of a .tflite file that runs.
    """
    least, most = 0, AMPLE // ALIGNMENT  # too few, and enough, in units of ALIGNMENT
    while most - least > 1:
        # Networks need some 100 kB: by ratios at first.
        middle = max(least + 1, most // 8) if most > 8 * least else (least + most) // 2
        fits = _run_apart(model, middle * ALIGNMENT).returncode == 0
        least, most = (least, middle) if fits else (middle, most)
    return most * ALIGNMENT


_RUN = """
import sys
from tflite_micro.python.tflite_micro import runtime
model, arena = sys.stdin.buffer.read(), int(sys.argv[1])
runtime.Interpreter.from_bytes(model, arena_size=arena).invoke()
"""


def _run_apart(model: bytes, arena: int) -> subprocess.CompletedProcess[bytes]:
    """Runs a network once, in a process of its own: C++ that cannot go on may end the process.

    Some arenas that are too small have it access memory outside of them, others raise an error.
    """
    command = [sys.executable, "-c", _RUN, str(arena)]
    return subprocess.run(command, input=model, capture_output=True)


def _last_line(stderr: bytes) -> str:
    """Returns the last line that is not part of a traceback of ours."""
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Traceback", "  ", "RuntimeError"))]
    return " ".join((told or lines or [""])[-1].split())


def _interpreter(model: bytes) -> runtime.Interpreter:
    """Returns tflite-micro with a network that `require_runnable` has seen run."""
    return runtime.Interpreter.from_bytes(model, arena_size=AMPLE)


def quantizations(model: bytes) -> tuple[Quantization, Quantization]:
    """Returns what the integers of input and output stand for."""
    interpreter = _interpreter(model)
    details = interpreter.get_input_details(0), interpreter.get_output_details(0)
    found = [each["quantization_parameters"] for each in details]
    taken, given = (Quantization(float(q["scales"][0]), int(q["zero_points"][0])) for q in found)
    return taken, given


def micro_outputs(
    model: bytes, images: np.ndarray, progress: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Runs a network by tflite-micro.

    Args:
        model: content of a .tflite file.
        images: [N, S, S, c] uint8.
        progress: called after each.

    Returns:
        [N, C] int8.
    """
    interpreter = _interpreter(model)
    answers = []
    for image in quantized(images):
        interpreter.set_input(image[np.newaxis], 0)
        interpreter.invoke()
        answers.append(interpreter.get_output(0)[0])
        progress()
    return np.array(answers)


def calibrated(
    float_network: Rewritten, images: np.ndarray, counts: Sequence[int]
) -> tuple[bytes, list[Calibration]]:
    """Quantises a network by the number of calibration images that serves it best.

    Every number is tried, and judged by tflite-micro's agreement with the float network on
    training images that none of them is calibrated on. Of equals, the most images count.

    Args:
        float_network: the network.
        images: [N, S, S, c] uint8 to train on, at least 2.
        counts: numbers to try; of more than there are, all there are.

    Returns:
        The content of a .tflite file, and how each number has fared.
    """
    require(len(images) > 1, "integers need at least 2 training images, to calibrate and to judge")
    order = np.random.default_rng(0).permutation(len(images))
    judged = images[order[: min(JUDGED_IMAGES, len(images) // 2)]]
    others = images[order[len(judged) :][: max(counts)]]
    wanted = float_probabilities(float_network, judged).argmax(axis=1)
    counts = sorted({min(count, len(others)) for count in counts})
    models, fared = [], []
    with tqdm(
        total=len(counts) * len(judged),
        unit="image",
        desc="calibration",
        mininterval=bar_interval(),
    ) as bar:
        for count in counts:
            models.append(convert(float_network, others, count))
            found = micro_outputs(models[-1], judged, bar.update).argmax(axis=1)
            fared.append(Calibration(count, float(np.mean(found == wanted))))
    return models[fared.index(best(fared))], fared


def best(fared: Sequence[Calibration]) -> Calibration:
    """Returns the choice that agrees most; of equals, that of the most images."""
    return max(fared, key=lambda each: (each.agreement, each.images))
