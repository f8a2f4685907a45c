"""Asks a server for the classes of images: python -m export.client --address=… IMAGE….

Speaks TensorFlow Serving's gRPC or REST, to TensorFlow Serving itself or to export.serve. Prints
the most probable classes of every image, best first.

Images are what a viewer shows: turned as their EXIF orientation says, WebP and others re-encoded.

With --support=CLASS=FILE, given for several images, the server learns these classes from the
request and answers with them instead of its own; a folder stands for the files in it,
except hidden ones.
"""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from etils import epy

from export import MODEL_NAME
from refilled_tf.common import storage
from refilled_tf.common.entry import run_main
from refilled_tf.common.errors import InputError, require

with epy.lazy_imports():
    import grpc
    import requests
    import tensorflow as tf
    from tensorflow_serving.apis import (
        model_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    from refilled_tf.data import pixels

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "address",
    "http://localhost:8501",
    "http://HOST:PORT or https://HOST:PORT for REST, grpc://HOST:PORT or HOST:PORT for gRPC.",
)
flags.DEFINE_string("model", MODEL_NAME, "The model's name.")
flags.DEFINE_integer("version", None, "The model's version; the latest if unset.", 0)
flags.DEFINE_string("label", None, "Instead of a version its label, such as stable.")

flags.DEFINE_multi_string(
    "support", [], "CLASS=FILE or CLASS=FOLDER: images of a class to learn; repeated."
)

TIMEOUT = 60.0  # seconds
# A signature's inputs by name: encoded images, or the names of their classes.
Inputs = dict[str, list[bytes]]


class Classes(NamedTuple):
    """A signature's answer for B images: the most probable classes, best first.

    Attributes:
        classes: [B, k] names.
        scores: [B, k] probabilities.
    """

    classes: Sequence[Sequence[str]]
    scores: Sequence[Sequence[float]]


def check(argv: list[str]) -> None:
    """Rejects options that contradict each other, and files that are not there."""
    paths = argv[1:]
    require(bool(paths), "no image is given: python -m export.client [--flags] IMAGE…")
    require(FLAGS.version is None or FLAGS.label is None, "give --version or --label, not both")
    scheme, separator, _ = FLAGS.address.rpartition("://")
    require(
        not separator or scheme in ("http", "https", "grpc"),
        f"--address={FLAGS.address} must begin with http://, https:// or grpc://, or be HOST:PORT",
    )
    for path in paths:
        require(Path(path).exists(), f"{path} does not exist")


def main(argv: list[str]) -> None:
    """Prints the classes of the images that the arguments name."""
    paths = argv[1:]
    images = [_read(path) for path in paths]
    # Together they might hold more pixels than a server takes; a task cannot be split.
    tasks = [{"image_bytes": [image]} for image in images]
    if FLAGS.support:
        tasks = [support(FLAGS.support) | {"query_bytes": images}]
    scheme, _, target = FLAGS.address.rpartition("://")
    spec = model_pb2.ModelSpec(name=FLAGS.model, version_label=FLAGS.label)
    spec.signature_name = "serving_support" if FLAGS.support else "serving_bytes"
    if FLAGS.version is not None:
        spec.version.value = FLAGS.version
    if scheme.startswith("http"):
        answers = [over_rest(FLAGS.address, spec, inputs) for inputs in tasks]
    else:
        answers = [over_grpc(target, spec, inputs) for inputs in tasks]
    rows = [row for answer in answers for row in zip(*answer, strict=True)]
    for path, (names, scores) in zip(paths, rows, strict=True):
        print(path)
        for name, score in zip(names, scores, strict=True):
            print(f"  {100 * score:6.2f} %  {name}")


def support(options: Sequence[str]) -> Inputs:
    """Reads the images that a server is to learn classes from.

    Args:
        options: CLASS=FILE or CLASS=FOLDER; a folder stands for the files in it.

    Returns:
        "support_bytes" and "support_labels" of equal length.

    Raises:
        InputError: an option has no "=", names nothing that can be read, or there are fewer than
            two classes.
    """
    images, labels = [], []
    for option in options:
        name, _, place = option.partition("=")
        require(bool(name and place), f"--support={option} must be CLASS=FILE or CLASS=FOLDER")
        path = Path(place)
        paths = _files_in(path) if path.is_dir() else [path]
        require(bool(paths), f"--support={option}: the folder holds no file")
        images += [_read(path) for path in paths]
        labels += [name.encode()] * len(paths)
    require(
        len(set(labels)) >= 2,
        f"--support names the class {labels[0].decode()!r} alone; at least 2 are needed",
    )
    return {"support_bytes": images, "support_labels": labels}


def over_rest(address: str, spec: model_pb2.ModelSpec, inputs: Inputs) -> Classes:
    """Asks over REST.

    Args:
        address: http://HOST:PORT.
        spec: the model, the signature, and perhaps a version or its label.
        inputs: of the signature.

    Raises:
        InputError: the server cannot be reached, or refuses.
    """
    parts = ["models", spec.name]
    if spec.HasField("version"):
        parts += ["versions", str(spec.version.value)]
    elif spec.version_label:
        parts += ["labels", spec.version_label]
    path = "/".join(urllib.parse.quote(part, safe="") for part in parts)
    encoded = {
        name: [{"b64": base64.b64encode(value).decode()} for value in values]
        for name, values in inputs.items()
    }
    body = {"signature_name": spec.signature_name, "inputs": encoded}
    try:
        response = requests.post(f"{address}/v1/{path}:predict", json=body, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise InputError(f"{address} cannot be asked: {error}") from error
    try:
        content = response.json()
        if not response.ok:
            raise InputError(f"{address}: {response.status_code}: {content['error']}")
        return Classes(content["outputs"]["classes"], content["outputs"]["scores"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{address} does not answer as TensorFlow Serving does") from error


def over_grpc(address: str, spec: model_pb2.ModelSpec, inputs: Inputs) -> Classes:
    """Asks over gRPC.

    Args:
        address: HOST:PORT.
        spec: the model, the signature, and perhaps a version or its label.
        inputs: of the signature.

    Raises:
        InputError: the server cannot be reached, or refuses.
    """
    request = predict_pb2.PredictRequest(model_spec=spec, output_filter=Classes._fields)
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    with grpc.insecure_channel(address) as channel:
        try:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            response = stub.Predict(request, TIMEOUT)
        except grpc.RpcError as error:
            raise InputError(f"{address}: {error.code().name}: {error.details()}") from error
    classes, scores = (tf.make_ndarray(response.outputs[name]) for name in Classes._fields)
    return Classes([[name.decode() for name in row] for row in classes], scores.tolist())


def _files_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not storage.is_hidden(path.name)
    )


def _read(path: str | Path) -> bytes:
    """Reads an image, turned and re-encoded where the server would see other pixels."""
    try:
        return pixels.for_graph(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


if __name__ == "__main__":
    run_main(main, check)
