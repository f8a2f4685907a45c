"""A network as a .tflite file: an image in, the probabilities of its classes out.

image          [1, L, L, 3] in [0, 255], L = Data.load_size; of it, the network sees the centre
probabilities  [1, C], in the order of the labels that the file carries

Both are float32, or uint8 in "int8" files. The file says how it is to be used in TFLite's
metadata, which image classifiers such as MediaPipe's go by.
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as model_schema
from ai_edge_litert.tools import flatbuffer_utils
from mediapipe.tasks.metadata import metadata_schema_py_generated as metadata_schema
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from export import MODEL_NAME, QUANTIZATIONS
from export.trained import Trained
from refilled_tf.common.errors import require
from refilled_tf.data import resizing
from refilled_tf.data.task import TaskData
from refilled_tf.models import networks

CALIBRATION_IMAGES = 300
LABELS = "labels.txt"
ANTIALIASED = "ScaleAndTranslate"  # of tf.image.resize, and unknown to TFLite


def convert(trained: Trained, quantizations: Sequence[str]) -> dict[str, bytes]:
    """Converts a classifier.

    Args:
        trained: what to convert.
        quantizations: names of `QUANTIZATIONS`.

    Returns:
        The files' contents by these names.

    Raises:
        InputError: the network resizes images in a way that TFLite cannot.
    """
    function, files = _classifier(trained), {}
    for quantize in quantizations:
        print(f"converting to {QUANTIZATIONS[quantize]}", flush=True)
        # An empty module: a frozen function has no variables that one would have to keep.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
        if quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantize == "int8":
            converter.representative_dataset = lambda: _calibration_images(trained.data)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        with silent():
            model = converter.convert()
        files[quantize] = _with_metadata(model, trained, quantize)
    return files


def _classifier(trained: Trained) -> tf.types.experimental.ConcreteFunction:
    """Returns the classifier as a function of a whole picture."""
    network, options = _in_float32(trained.network), trained.stage.task.data
    image_spec = tf.TensorSpec([1, options.load_size, options.load_size, 3], name="image")

    # A classifier on a phone hands over the whole picture, resized: the crop has to be in here.
    @tf.function
    def probabilities(image):
        crop = resizing.center_crop(image, options.image_size)
        return tf.nn.softmax(network(crop, training=False)["logits"])

    return frozen(probabilities, image_spec)


def frozen(
    probabilities: tf.types.experimental.PolymorphicFunction, image: tf.TensorSpec
) -> tf.types.experimental.ConcreteFunction:
    """Returns a function of its image alone, its weights being constants.

    TFLite converts it many times faster than one with variables.

    Args:
        probabilities: image to the probabilities of its classes.
        image: the only one that it takes.

    Raises:
        InputError: it resizes images in a way that TFLite cannot.
    """
    constant = convert_variables_to_constants_v2(probabilities.get_concrete_function(image))
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


def _in_float32(network: tf.keras.Model) -> tf.keras.Model:
    """Returns the same network without mixed precision: TFLite cannot calculate in float16."""
    clone = tf.keras.models.clone_model(
        network,
        clone_function=lambda layer: networks.rebuilt(layer, dtype="float32"),
    )
    clone.set_weights(network.get_weights())
    return clone


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


def _calibration_images(data: TaskData) -> Iterator[list[np.ndarray]]:
    """Yields the training images that the ranges of activations are taken from."""
    order = np.random.default_rng(0).permutation(len(data.train.labels))
    images = data.train.images[order[:CALIBRATION_IMAGES]].astype(np.float32)
    # A black and a white pixel, lest the range fall short of [0, 255]: bytes would be rescaled.
    images[0, 0, :2] = [[0], [255]]
    for image in images:
        yield [image[np.newaxis]]


def _with_metadata(model: bytes, trained: Trained, quantize: str) -> bytes:
    """Adds the metadata as a buffer of the model, and the labels as a zip archive behind it."""
    parsed = flatbuffer_utils.convert_bytearray_to_object(model)
    parsed.buffers.append(model_schema.BufferT(data=_metadata(trained, quantize)))
    parsed.metadata.append(
        model_schema.MetadataT(name="TFLITE_METADATA", buffer=len(parsed.buffers) - 1)
    )
    file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(parsed))
    labels = "".join(f"{name}\n" for name in trained.data.class_names)
    with zipfile.ZipFile(file, "a") as archive:
        # Of a fixed date, so that the same network gives the same file.
        archive.writestr(zipfile.ZipInfo(LABELS), labels.encode())
    return file.getvalue()


def _metadata(trained: Trained, quantize: str) -> np.ndarray:
    """Returns a serialized ModelMetadata, [n] uint8."""
    schema = metadata_schema
    stage, result = trained.stage, trained.result
    image = schema.TensorMetadataT(
        name="image",
        description="An RGB image, resized whatever its proportions.",
        content=schema.ContentT(
            contentPropertiesType=schema.ContentProperties.ImageProperties,
            contentProperties=schema.ImagePropertiesT(colorSpace=schema.ColorSpaceType.RGB),
        ),
        processUnits=[
            # Pixels enter as they are.
            schema.ProcessUnitT(
                optionsType=schema.ProcessUnitOptions.NormalizationOptions,
                options=schema.NormalizationOptionsT(mean=[0.0], std=[1.0]),
            )
        ],
    )
    probabilities = schema.TensorMetadataT(
        name="probabilities",
        description="Of the classes, in the order of the labels.",
        content=schema.ContentT(
            contentPropertiesType=schema.ContentProperties.FeatureProperties,
            contentProperties=schema.FeaturePropertiesT(),
        ),
        associatedFiles=[
            schema.AssociatedFileT(
                name=LABELS,
                description="The names of the classes.",
                type=schema.AssociatedFileType.TENSOR_AXIS_LABELS,
            )
        ],
    )
    model = schema.ModelMetadataT(
        name=MODEL_NAME,
        description=(
            f"Tells {len(trained.data.class_names)} classes of {stage.task.data.source} apart, "
            f"and knows no others. {stage.backbone} trained as {stage.method!r} (stage "
            f"{stage.name!r}); {100 * result['accuracy']:.2f} % of {result['images']} "
            f"{result['scored_on']} images right before the conversion to "
            f"{QUANTIZATIONS[quantize]}."
        ),
        version=stage.digest(),
        subgraphMetadata=[
            schema.SubGraphMetadataT(
                inputTensorMetadata=[image], outputTensorMetadata=[probabilities]
            )
        ],
        minParserVersion="1.0.0",  # of the schema in which the youngest of these fields appeared
    )
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"M001")
    return np.frombuffer(builder.Output(), np.uint8)
