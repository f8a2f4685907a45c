"""Requests to the embedded server, and what tests do with the answers."""

import base64
import shutil

import grpc
import images
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2

from export.server_files import Batching
from export.serving.manager import Manager
from export.serving.model import Limits

COUNT = 8  # images in the fixture `asked`
REQUEST_BYTES, BATCH_SIZE = 2**20, 32  # of the fixture `server`


def spec(signature="", **version):
    return model_pb2.ModelSpec(name="refilled", signature_name=signature, **version)


def predict_request(signature, inputs, **version):
    protos = {name: tf.make_tensor_proto(value) for name, value in inputs.items()}
    return predict_pb2.PredictRequest(model_spec=spec(signature, **version), inputs=protos)


def png_request(**version):
    return predict_request("serving_bytes", {"image_bytes": [images.NOISE_PNG]}, **version)


def example(encoded):
    """Returns a serialized tf.Example of an image."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


def as_json(value):
    """Turns bytes, an array or a list of them into what stands for it in JSON."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return [as_json(each) for each in value] if np.ndim(value) else float(value)


def arrays(outputs):
    """Turns {output: lists} into arrays, names of classes into bytes."""
    as_arrays = {name: np.array(value) for name, value in outputs.items()}
    return {
        name: value.astype(bytes) if value.dtype.kind == "U" else value
        for name, value in as_arrays.items()
    }


def is_close(found):
    return max(found.values()) <= 1e-5


PNG = as_json(images.NOISE_PNG)


def refusal(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value.code().name, caught.value.details()


def publish(version, base, number):
    """Adds a copy of a version at once, as an export does."""
    shutil.copytree(version, base / "copy")
    (base / "copy").rename(base / str(number))


def manager(base):
    limits = Limits(rows=1, pixels=2**25, bytes=2**25)
    return Manager(base, "refilled", limits, Batching(num_batch_threads=1))
