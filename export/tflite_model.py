"""A network as a .tflite file: an image in, the probabilities of its classes out.

image          [1, L, L, 3] in [0, 255], L = Data.load_size; of it, the network sees the centre
probabilities  [1, C], in the order of the labels that the file carries

Both are float32, or uint8 in "int8" files. The file says how it is to be used in TFLite's
metadata, which image classifiers such as MediaPipe's go by.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as model_schema
from ai_edge_litert.tools import flatbuffer_utils
from mediapipe.tasks.metadata import metadata_schema_py_generated as metadata_schema

from export import MODEL_NAME, QUANTIZATIONS, conversion
from export.trained import Trained
from refilled_tf.data import resizing
from refilled_tf.data.task import TaskData
from refilled_tf.models import networks

CALIBRATION_IMAGES = 300
LABELS = "labels.txt"


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
    logits, files = _logits(trained), {}
    size = trained.stage.task.data.load_size
    function = conversion.frozen(lambda image: tf.nn.softmax(logits(image)), (size, size, 3))
    for quantize in quantizations:
        print(f"converting to {QUANTIZATIONS[quantize]}", flush=True)
        if quantize == "int8":
            images = _calibration_images(trained.data)
            model = conversion.in_integers(logits, images, len(images), tf.uint8)
        else:
            converter = conversion.converter(function)
            if quantize != "none":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if quantize == "float16":
                converter.target_spec.supported_types = [tf.float16]
            with conversion.silent():
                model = converter.convert()
        files[quantize] = _with_metadata(model, trained, quantize)
    return files


def _logits(trained: Trained) -> conversion.Classifier:
    """Returns the classifier as a function of whole pictures."""
    network, size = _in_float32(trained.network), trained.stage.task.data.image_size

    # A classifier on a phone hands over the whole picture, resized: the crop has to be in here.
    def logits(image):
        return network(resizing.center_crop(image, size), training=False)["logits"]

    return logits


def _in_float32(network: tf.keras.Model) -> tf.keras.Model:
    """Returns the same network without mixed precision: TFLite cannot calculate in float16."""
    clone = tf.keras.models.clone_model(
        network,
        clone_function=lambda layer: networks.rebuilt(layer, dtype="float32"),
    )
    clone.set_weights(network.get_weights())
    return clone


def _calibration_images(data: TaskData) -> np.ndarray:
    """Returns the training images that integers are fitted to: [n, L, L, 3] float32."""
    order = np.random.default_rng(0).permutation(len(data.train.labels))
    images = data.train.images[order[:CALIBRATION_IMAGES]].astype(np.float32)
    # A black and a white pixel, lest the range fall short of [0, 255]: bytes would be rescaled.
    images[0, 0, :2] = [[0], [255]]
    return images


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
