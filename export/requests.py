"""The same images as a request to every signature: as arrays, and as a server's messages.

"serving_support" is asked for all of them, and is taught with the first half under made-up names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
)

from export import MODEL_NAME, WARMUP
from export.replay import Arrays
from refilled_tf.data.task import Data

TAUGHT = 6  # classes at most, more than an answer names


def make(squares: np.ndarray, images: np.ndarray) -> Arrays:
    """Makes a request to every signature.

    Args:
        squares: [B, L, L, 3] uint8, images as they are loaded.
        images: [B, S, S, 3] float32, the same as a network takes them.

    Returns:
        Arrays by signature and input: objects of type bytes, or `images`.
    """
    encoded = [tf.io.encode_png(square).numpy() for square in squares]
    image_bytes = np.array(encoded, object)
    examples = np.array([_example(png).SerializeToString() for png in encoded], object)
    # Of a single image, all of it. A server that joins requests into batches accepts this one
    # signature's request only if its inputs are of one length, as they then are.
    support = image_bytes[: (len(encoded) + 1) // 2]
    names = [f"class {row % TAUGHT}".encode() for row in range(len(support))]
    return {
        "serving_default": {"examples": examples},
        "serving_bytes": {"image_bytes": image_bytes},
        "serving_tensor": {"images": images},
        "embedding": {"image_bytes": image_bytes},
        "classify": {"inputs": examples},
        "serving_support": {
            "support_bytes": support,
            "support_labels": np.array(names, object),
            "query_bytes": image_bytes,
        },
    }


def write_warmup(folder: Path, data: Data) -> None:
    """Writes the requests that TF Serving sends itself before it calls a version available.

    They are of a grey image, so that no one's photograph travels with the model.

    Args:
        folder: of the SavedModel.
        data: the sizes to which images are resized and cropped.
    """
    squares = np.full((1, data.load_size, data.load_size, 3), 128, np.uint8)
    images = np.full((1, data.image_size, data.image_size, 3), 128, np.float32)
    (folder / WARMUP).parent.mkdir()
    with tf.io.TFRecordWriter(str(folder / WARMUP)) as writer:
        for log in _logs(make(squares, images)):
            writer.write(log.SerializeToString())


def _example(encoded: bytes) -> tf.train.Example:
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature}))


def _logs(requests: Arrays) -> Iterator[prediction_log_pb2.PredictionLog]:
    for signature, inputs in requests.items():
        model = model_pb2.ModelSpec(name=MODEL_NAME, signature_name=signature)
        if signature == "classify":
            request = classification_pb2.ClassificationRequest(model_spec=model)
            request.input.example_list.examples.extend(
                tf.train.Example.FromString(example) for example in inputs["inputs"]
            )
            log = prediction_log_pb2.ClassifyLog(request=request)
            yield prediction_log_pb2.PredictionLog(classify_log=log)
        else:
            tensors = {name: tf.make_tensor_proto(value) for name, value in inputs.items()}
            request = predict_pb2.PredictRequest(model_spec=model, inputs=tensors)
            log = prediction_log_pb2.PredictLog(request=request)
            yield prediction_log_pb2.PredictionLog(predict_log=log)
