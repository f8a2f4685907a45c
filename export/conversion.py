"""From a network to a .tflite file: what the files for phones and for microcontrollers share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from refilled_tf.common.errors import InputError, one_line, require

ANTIALIASED = "ScaleAndTranslate"  # of tf.image.resize, and unknown to TFLite

# An image [1, S, S, c] float32 to logits or probabilities [1, C].
Classifier = Callable[[tf.Tensor], tf.Tensor]


def frozen(classify: Classifier, shape: tuple[int, ...]) -> tf.types.experimental.ConcreteFunction:
    """Returns a function from "image" to "probabilities" whose weights are constants.

    TFLite converts it many times faster than one with variables.

    Args:
        classify: the function.
        shape: [S, S, c] of its image.

    Raises:
        InputError: it resizes images in a way that TFLite cannot.
    """
    image = tf.TensorSpec([1, *shape], name="image")
    constant = convert_variables_to_constants_v2(tf.function(classify).get_concrete_function(image))
    require(
        all(op.type != ANTIALIASED for op in constant.graph.get_operations()),
        "--stage: its network resizes its images with antialiasing, which TFLite cannot; a network "
        "that takes them as they are can be exported, and this one by python -m "
        "export.saved_model",
    )

    # Once more, since freezing forgets what the output is called.
    @tf.function(input_signature=[image])
    def named(image):
        return {"probabilities": constant(image)[0]}

    return named.get_concrete_function()


def converter(function: tf.types.experimental.ConcreteFunction) -> tf.lite.TFLiteConverter:
    """Returns TFLite's converter of a frozen function."""
    # An empty module: a frozen function has no variables that one would have to keep.
    return tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())


def in_integers(
    logits: Classifier,
    images: np.ndarray,
    count: int,
    dtype: tf.DType,
    scale_for_each_class: bool = True,
) -> bytes:
    """Quantises a classifier, and corrects the bias that this gives its logits.

    Rounding shifts each logit by about the same on all images. What it is on average is measured
    and taken away (Nagel et al., ICCV 2019, section 4.2, for the last layer alone).

    Args:
        logits: an image to logits.
        images: [n, S, S, c] float32, which the bias is measured on.
        count: the number of them, from the first on, that give the ranges of activations.
        dtype: of the file's input and output, tf.int8 or tf.uint8.
        scale_for_each_class: whether the last layer's weights have a scale for each class.

    Returns:
        The content of a .tflite file from images to probabilities.

    Raises:
        InputError: TFLite has no integers for one of its operators, or as `frozen`.
    """

    def quantised(classify: Classifier, output: tf.DType) -> bytes:
        made = converter(frozen(classify, images.shape[1:]))
        made.optimizations = [tf.lite.Optimize.DEFAULT]
        made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        made.inference_input_type, made.inference_output_type = dtype, output
        made.representative_dataset = lambda: ([image[np.newaxis]] for image in images[:count])
        # Nothing public says so; only TensorFlow 2.21 has more than one scale at all.
        made._experimental_disable_per_channel_quantization_for_dense_layers = (
            not scale_for_each_class
        )
        try:
            with silent():
                return made.convert()
        except Exception as error:  # of the converter's C++ code, of a class that is not public
            raise InputError(f"TFLite cannot quantise this network: {one_line(error)}") from error

    found = _outputs(quantised(logits, tf.float32), images)
    batches = (images[start : start + 64] for start in range(0, len(images), 64))
    wanted = np.concatenate([logits(batch) for batch in batches])
    # A sum, which the converter makes part of the last layer's own bias.
    correction = tf.constant(np.mean(wanted - found, axis=0))
    return quantised(lambda image: tf.nn.softmax(logits(image) + correction), dtype)


def _outputs(model: bytes, images: np.ndarray) -> np.ndarray:
    """Runs a .tflite file of integers with float32 outputs [C] on images [n, S, S, c] float32."""
    run = interpreter(model)
    (taken,), (given,) = run.get_input_details(), run.get_output_details()
    (scale, zero_point), limits = taken["quantization"], np.iinfo(taken["dtype"])
    integers = np.clip(np.rint(images / scale) + zero_point, limits.min, limits.max)
    outputs = []
    for image in integers.astype(taken["dtype"]):
        run.set_tensor(taken["index"], image[np.newaxis])
        run.invoke()
        outputs.append(run.get_tensor(given["index"])[0])
    return np.array(outputs)


def interpreter(model: bytes, threads: int | None = None) -> Interpreter:
    """Returns LiteRT with a .tflite file, ready to run on so many threads of the CPU."""
    with silent():
        made = Interpreter(model_content=model, num_threads=threads)
        made.allocate_tensors()
    return made


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drops what TFLite's C++ code writes to stderr, statistics that no setting turns off."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
