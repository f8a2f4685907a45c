"""The embedded server, asked by gRPC's official stubs, by plain HTTP and by ovmsclient.

Expected answers are those of the Keras network. Forms of bodies, names of fields and codes are
those of TensorFlow Serving's documentation (api_rest.md) and protos.
"""

import asyncio
import base64
import json
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import digits
import embedded
import grpc
import images
import numpy as np
import ovmsclient
import pytest
import requests as http
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from export import WARMUP, check, requests, server_files
from export.serving.errors import RequestError
from export.serving.manager import Manager, wanted_versions
from export.serving.model import readable
from refilled_tf.errors import InputError
from refilled_tf.models import networks

pytestmark = pytest.mark.slow

COUNT = 8
REQUEST_BYTES, BATCH_SIZE = 2**20, 32


@pytest.fixture(scope="module")
def server(base):
    flags = (f"--max_request_bytes={REQUEST_BYTES}", f"--max_batch_size={BATCH_SIZE}")
    with embedded.server(base, *flags) as running:
        yield running


@pytest.fixture(scope="module")
def url(server):
    return f"{server.http}/v1/models/refilled"


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def predictions(channel):
    return PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel):
    return ModelServiceStub(channel)


@pytest.fixture(scope="module")
def asked(model):
    """The first test images as a request to every signature."""
    squares = model.data.test.images[:COUNT]
    return requests.make(squares, squares.astype(np.float32))


@pytest.fixture(scope="module")
def differences(model):
    """A function from a signature's outputs to how far they are from the network's."""
    examples = model.data.test.images[:COUNT].astype(np.float32)
    outputs = networks.outputs_of(model.network, [examples])
    return lambda reply: check.differences(reply, outputs, model.data.class_names)


def _spec(signature="", **version):
    return model_pb2.ModelSpec(name="refilled", signature_name=signature, **version)


def _request(signature, inputs, **version):
    protos = {name: tf.make_tensor_proto(value) for name, value in inputs.items()}
    return predict_pb2.PredictRequest(model_spec=_spec(signature, **version), inputs=protos)


def _png_request(**version):
    return _request("serving_bytes", {"image_bytes": [images.NOISE_PNG]}, **version)


def _json(value):
    """Turns bytes, an array or a list of them into what stands for it in JSON."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return [_json(each) for each in value] if np.ndim(value) else float(value)


def _arrays(outputs):
    """Turns {output: lists} into arrays, names of classes into bytes."""
    as_arrays = {name: np.array(value) for name, value in outputs.items()}
    return {
        name: value.astype(bytes) if value.dtype.kind == "U" else value
        for name, value in as_arrays.items()
    }


def _close(found):
    return max(found.values()) <= 1e-5


PNG = _json(images.NOISE_PNG)


# What it answers.


@pytest.mark.parametrize(
    ("signature", "outputs"),
    [
        ("serving_default", {"classes", "scores", "probabilities"}),
        ("serving_bytes", {"classes", "scores", "probabilities"}),
        ("serving_tensor", {"classes", "scores", "probabilities"}),
        ("embedding", {"embedding"}),
        ("classify", {"classes", "scores"}),
    ],
)
def test_predict_answers_as_the_network(
    signature, outputs, predictions, url, asked, differences, version
):
    response = predictions.Predict(_request(signature, asked[signature]))
    assert response.model_spec == _spec(signature, version={"value": int(version.name)})
    reply = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
    assert reply.keys() == outputs
    assert _close(differences(reply))

    columns = {name: _json(value) for name, value in asked[signature].items()}
    body = {"signature_name": signature, "inputs": columns}
    answer = http.post(f"{url}:predict", json=body).json()["outputs"]
    # The name of an only output is left out.
    reply = _arrays({"embedding": answer} if outputs == {"embedding"} else answer)
    assert reply.keys() == outputs
    assert _close(differences(reply))


def test_classify_answers_as_the_network(predictions, url, asked, differences):
    examples = [tf.train.Example.FromString(each) for each in asked["classify"]["inputs"]]
    request = classification_pb2.ClassificationRequest(model_spec=_spec("classify"))
    request.input.example_list.examples.extend(examples)
    result = predictions.Classify(request).result
    rows = [[(each.label, each.score) for each in row.classes] for row in result.classifications]
    assert _close(differences(_of_pairs(rows)))

    pngs = _json(asked["serving_bytes"]["image_bytes"])
    body = {"signature_name": "classify", "examples": [{"image/encoded": png} for png in pngs]}
    rows = http.post(f"{url}:classify", json=body).json()["results"]
    assert _close(differences(_of_pairs(rows)))


def _of_pairs(rows):
    return _arrays(
        {
            "classes": [[label for label, _ in row] for row in rows],
            "scores": [[score for _, score in row] for row in rows],
        }
    )


def test_context_is_part_of_every_example(predictions, url):
    context = tf.train.Example.FromString(
        requests.make([images.PIXELS], None)["classify"]["inputs"][0]
    )
    alone = classification_pb2.ClassificationRequest(model_spec=_spec("classify"))
    alone.input.example_list.examples.add().CopyFrom(context)
    (wanted,) = predictions.Classify(alone).result.classifications
    shared = classification_pb2.ClassificationRequest(model_spec=_spec("classify"))
    shared.input.example_list_with_context.context.CopyFrom(context)
    shared.input.example_list_with_context.examples.add()
    assert list(predictions.Classify(shared).result.classifications) == [wanted]

    # Features may be of any type and a list; the signature reads the one that it needs.
    others = {"text": ["a", "b"], "size": [40, 30], "flag": True, "ratio": 0.75, "none": []}
    body = {"signature_name": "classify", "context": {"image/encoded": [PNG]}, "examples": [others]}
    ((first, *_),) = http.post(f"{url}:classify", json=body).json()["results"]
    assert first == [wanted.classes[0].label, pytest.approx(wanted.classes[0].score)]


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"instances": [PNG, PNG]}, "predictions"),
        ({"instances": [{"image_bytes": PNG}] * 2}, "predictions"),
        ({"inputs": [PNG, PNG]}, "outputs"),
        ({"inputs": {"image_bytes": [PNG, PNG]}}, "outputs"),
    ],
)
def test_rows_and_columns(body, key, url, predictions):
    def post(signature):
        answer = http.post(f"{url}:predict", json=body | {"signature_name": signature})
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.json().keys() == {key}
        return answer.json()[key]

    single = predictions.Predict(_png_request()).outputs
    wanted = {name: tf.make_ndarray(value)[0] for name, value in single.items()}
    answer = post("serving_bytes")
    if key == "predictions":
        first, second = answer
    else:
        first, second = ({name: rows[i] for name, rows in answer.items()} for i in range(2))
    for row in (first, second):
        assert row["classes"] == [name.decode() for name in wanted["classes"]]
        np.testing.assert_allclose(row["scores"], wanted["scores"], rtol=1e-4)
        np.testing.assert_allclose(row["probabilities"], wanted["probabilities"], rtol=1e-4)
    assert np.shape(post("embedding")) == (2, 256)


def test_strings_may_be_plain_and_numbers_are_short(url):
    # Without base64, a string is its UTF-8: an Example whose bytes happen to be ASCII.
    answer = http.post(f"{url}:predict", json={"inputs": ["no example"]})
    assert answer.json() == {"error": "Could not parse example input, value: 'no example'"}
    body = {"signature_name": "serving_bytes", "instances": [PNG]}
    score = http.post(f"{url}:predict", json=body).json()["predictions"][0]["scores"][0]
    assert str(score) == str(np.float32(score))


def test_output_filter_chooses(predictions):
    request = _png_request()
    request.output_filter.append("scores")
    assert predictions.Predict(request).outputs.keys() == {"scores"}


def test_empty_batch(predictions, url):
    """A tensor may be empty in TensorFlow Serving too; lists of instances and examples may not."""
    request = _request("serving_bytes", {})
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([], tf.string, (0,)))
    outputs = predictions.Predict(request).outputs
    shapes = {name: tf.make_ndarray(value).shape for name, value in outputs.items()}
    assert shapes == dict.fromkeys(["classes", "scores", "probabilities"], (0, 5))

    body = {"signature_name": "serving_bytes", "inputs": []}
    answer = http.post(f"{url}:predict", json=body).json()
    assert answer == {"outputs": {"classes": [], "scores": [], "probabilities": []}}


def test_classes_are_learnt_from_the_request(predictions, url, asked, model):
    """Over both protocols; `check.taught` is NumPy's nearest class mean."""
    inputs = asked["serving_support"]
    squares = model.data.test.images[:COUNT].astype(np.float32)
    outputs = networks.outputs_of(model.network, [squares])
    wanted, names = check.taught(outputs, inputs["support_labels"])
    response = predictions.Predict(_request("serving_support", inputs))
    reply = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
    body = {"signature_name": "serving_support"}
    columns = {name: _json(value) for name, value in inputs.items()}
    answer = http.post(f"{url}:predict", json=body | {"inputs": columns})
    for got in (reply, _arrays(answer.json()["outputs"])):
        assert max(check.differences(got, wanted, names).values()) < check.TOLERANCE

    row = {name: values[0] for name, values in columns.items()}
    del row["support_labels"]
    answer = http.post(f"{url}:predict", json=body | {"instances": [row]})
    assert answer.status_code == 400
    assert "support_labels" in answer.json()["error"]


def test_version_and_label_lead_to_the_model(predictions, url, version):
    number = int(version.name)
    for asked_for in ({}, {"version": {"value": number}}, {"version_label": "stable"}):
        response = predictions.Predict(_png_request(**asked_for))
        assert response.model_spec.version.value == number
    body = {"signature_name": "serving_bytes", "instances": [PNG]}
    for path in ("", f"/versions/{number}", "/labels/canary"):
        assert http.post(f"{url}{path}:predict", json=body).ok


def test_status(models, url, version):
    wanted = {
        "version": version.name,
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("", f"/versions/{version.name}", "/labels/stable"):
        assert http.get(url + path).json() == {"model_version_status": [wanted]}
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=_spec())
    (status,) = models.GetModelStatus(request).model_version_status
    assert (status.version, status.state) == (int(version.name), status.AVAILABLE)


def test_metadata(predictions, url, version):
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=_spec(), metadata_field=["signature_def"]
    )
    response = predictions.GetModelMetadata(request)
    assert response.model_spec == _spec(version={"value": int(version.name)})
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    tensor = signatures.signature_def["serving_tensor"].inputs["images"]
    assert [dim.size for dim in tensor.tensor_shape.dim] == [-1, 32, 32, 3]

    answer = http.get(f"{url}/metadata").json()
    spec = {"name": "refilled", "version": version.name, "signature_name": ""}
    assert answer["model_spec"] == spec
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"
    images_info = signatures["serving_tensor"]["inputs"]["images"]
    assert images_info["dtype"] == "DT_FLOAT"
    sizes = [dim["size"] for dim in images_info["tensor_shape"]["dim"]]
    assert sizes == ["-1", "32", "32", "3"]


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_independent_client(kind, server, asked, differences, version):
    number = int(version.name)
    make = {"grpc": ovmsclient.make_grpc_client, "http": ovmsclient.make_http_client}[kind]
    client = make(server.grpc if kind == "grpc" else server.http.removeprefix("http://"))
    examples = list(asked["serving_default"]["examples"])
    reply = client.predict({"examples": examples}, "refilled", number)
    assert reply.keys() == {"classes", "scores", "probabilities"}
    assert _close(differences(_arrays(reply)))

    status = client.get_model_status("refilled", number)
    assert status == {number: {"state": "AVAILABLE", "error_code": 0, "error_message": ""}}
    metadata = client.get_model_metadata("refilled", number)
    if kind == "grpc":
        assert metadata["inputs"] == {"examples": {"shape": [-1], "dtype": "DT_STRING"}}
        assert metadata["model_version"] == number
    else:  # of TensorFlow Serving's own form it hands the JSON on
        assert metadata["model_spec"]["version"] == version.name
    with pytest.raises(ovmsclient.ModelNotFoundError):
        client.get_model_status("refilled", 7)


# Bad requests.


def _refusal(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value.code().name, caught.value.details()


SIGNATURES = "classify, embedding, serving_bytes, serving_default, serving_support, serving_tensor"
BOTH = {
    name: ("serving_bytes", {"image_bytes": [b]}, text) for name, (b, text) in images.BAD.items()
}
BOTH |= {
    "one bad image among good ones": (
        "embedding",
        {"image_bytes": [images.NOISE_PNG, b"no image", images.JPEG]},
        "assertion failed: [an image is neither JPEG nor PNG]",
    ),
    "no example": (
        "serving_default",
        {"examples": [b"no example"]},
        "Could not parse example input, value: 'no example'",
    ),
    "example without an image": (
        "classify",
        {"inputs": [tf.train.Example().SerializeToString()]},
        "Name: <unknown>, Feature: image/encoded (data type: string) is required but could not be "
        "found.",
    ),
    "unknown signature": (
        "serving_image",
        {"image_bytes": [images.JPEG]},
        'Serving signature name: "serving_image" not found in signature def; there are '
        + SIGNATURES,
    ),
    "missing input": (
        "serving_bytes",
        {},
        "signature 'serving_bytes' takes the inputs image_bytes, not none",
    ),
    "extra input": (
        "serving_bytes",
        {"image_bytes": [images.JPEG], "size": [b"8"]},
        "signature 'serving_bytes' takes the inputs image_bytes, not image_bytes, size",
    ),
    "wrong shape": (
        "serving_tensor",
        {"images": np.zeros((1, 8, 8, 3), np.float32)},
        "input 'images' takes DT_FLOAT [-1, 32, 32, 3], not DT_FLOAT [1, 8, 8, 3]",
    ),
    "wrong rank": (
        "serving_bytes",
        {"image_bytes": np.array([[images.JPEG]], object)},
        "input 'image_bytes' takes DT_STRING [-1], not DT_STRING [1, 1]",
    ),
    "large batch": (
        "serving_bytes",
        {"image_bytes": [b""] * 33},
        "a batch of 33 is larger than --max_batch_size=32",
    ),
}


@pytest.mark.parametrize(("signature", "inputs", "message"), BOTH.values(), ids=BOTH)
def test_bad_request_gets_the_same_error_over_both(signature, inputs, message, predictions, url):
    refusal = _refusal(predictions.Predict, _request(signature, inputs))
    assert refusal == ("INVALID_ARGUMENT", message)

    columns = {name: _json(value) for name, value in inputs.items()}
    body = {"signature_name": signature, "inputs": columns}
    answer = http.post(f"{url}:predict", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": message})
    assert predictions.Predict(_png_request()).outputs


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (":predict", b"no JSON", "JSON Parse error: Expecting value: line 1 column 1 (char 0)"),
        (":predict", b"", "JSON Parse error: Expecting value: line 1 column 1 (char 0)"),
        (
            ":predict",
            b"\xff",
            "JSON Parse error: 'utf-8' codec can't decode byte 0xff in position 0",
        ),
        (":predict", rb'{"inputs": ["\ud800"]}', "a string is no Unicode: surrogates not allowed"),
        (
            ":predict",
            rb'{"inputs": {"\ud800": 1}}',
            "a string is no Unicode: surrogates not allowed",
        ),
        (
            ":predict",
            rb'{"signature_name": "\ud800"}',
            "a string is no Unicode: surrogates not allowed",
        ),
        (":predict", b"[" * 100_000, "JSON Parse error: nested too deeply"),
        (":predict", [PNG], "the body must be a JSON object"),
        (":predict", {}, "the body must have either 'instances' or 'inputs'"),
        (
            ":predict",
            {"instances": [PNG], "inputs": [PNG]},
            "the body must have either 'instances' or 'inputs'",
        ),
        (":predict", {"signature_name": 1, "inputs": [PNG]}, "'signature_name' must be a string"),
        (":predict", {"instances": PNG}, "'instances' must be a list that is not empty"),
        (":predict", {"instances": []}, "'instances' must be a list that is not empty"),
        (
            ":predict",
            {"instances": [{"examples": PNG}, PNG]},
            "item 1 of 'instances' does not have the inputs of the first",
        ),
        (
            ":predict",
            {"instances": [PNG, {"examples": PNG}]},
            "item 0 of 'instances' does not have the inputs of the first",
        ),
        (
            ":predict",
            {"inputs": [{"b64": "?"}]},
            "input 'examples' is no base64: Only base64 data is allowed",
        ),
        (
            ":predict",
            {"inputs": [PNG, 1]},
            "input 'examples' has 1 instead of a string or {'b64': …}",
        ),
        (
            ":predict",
            {"inputs": [["a"], ["a", "b"]]},
            "input 'examples' has ['a'] instead of a string or {'b64': …}",
        ),
        (
            ":predict",
            {"signature_name": "serving_tensor", "inputs": [[1.0, 2.0], [3.0]]},
            "input 'images' has lists of different lengths",
        ),
        (
            ":predict",
            {"signature_name": "serving_tensor", "inputs": ["red"]},
            "input 'images' takes numbers that are float32",
        ),
        (
            ":classify",
            {"signature_name": "classify"},
            "'examples' must be a list of objects that is not empty",
        ),
        (
            ":classify",
            {"signature_name": "classify", "examples": []},
            "'examples' must be a list of objects that is not empty",
        ),
        (":classify", {"examples": [PNG, 1]}, "an example must be an object of features"),
        (
            ":classify",
            {"examples": [{"image/encoded": ["a", 1]}]},
            "feature 'image/encoded' has 1 instead of a string or {'b64': …}",
        ),
        (
            ":classify",
            {"signature_name": "classify", "examples": [{"image/encoded": 2**63}]},
            f"feature 'image/encoded' has {2**63} instead of a string or {{'b64': …}}",
        ),
        (
            ":classify",
            {"examples": [{"image/encoded": PNG}]},
            "Expected classification signature method_name to be tensorflow/serving/classify. Was: "
            "tensorflow/serving/predict (signature 'serving_default')",
        ),
        (":regress", {}, "Malformed request: POST /v1/models/refilled:regress"),
        (
            f"/versions/{2**63}:predict",
            {"inputs": [PNG]},
            f"Failed to convert version: {2**63} to numeric.",
        ),
    ],
)
def test_bad_body(path, body, message, url):
    data = body if isinstance(body, bytes) else json.dumps(body)
    answer = http.post(url + path, data=data)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)
    assert http.get(url).ok


@pytest.mark.parametrize(
    "message",
    [
        "Graph execution error:\n\nno image\n\t [[{{node map/while/Assert}}]]",
        "no image\n\t [[{{function_node map_while}}{{node Assert}}]]",
        "2 root error(s) found.\n  (0) INVALID_ARGUMENT: no image\n\t [[{{node a}}]]\n"
        "\t [[b/_1]]\n  (1) INVALID_ARGUMENT: no image\n\t [[{{node a}}]]",
    ],
)
def test_messages_of_tensorflow_lose_their_nodes(message):
    assert readable(message) == "no image"


def _claiming(tensor, **changes):
    """Returns a request with an image tensor that is not what it says."""
    request = _request("serving_tensor", {})
    proto = tf.make_tensor_proto(tensor)
    shape = proto.tensor_shape
    for name, value in changes.items():
        if name == "batch_size":
            shape.dim[0].size = value
        elif name == "unknown_rank":
            shape.unknown_rank = value
        else:
            setattr(proto, name, value)
    request.inputs["images"].CopyFrom(proto)
    return request


IMAGE = np.zeros((1, 32, 32, 3), np.float32)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            _claiming(IMAGE.astype(np.float64)),
            "input 'images' takes DT_FLOAT [-1, 32, 32, 3], not DT_DOUBLE [1, 32, 32, 3]",
        ),
        (
            _claiming(IMAGE, dtype=0),
            "input 'images' takes DT_FLOAT [-1, 32, 32, 3], not DT_INVALID [1, 32, 32, 3]",
        ),
        (
            _claiming(IMAGE, batch_size=-1),
            "input 'images' takes DT_FLOAT [-1, 32, 32, 3], not DT_FLOAT [-1, 32, 32, 3]",
        ),
        (
            _claiming(IMAGE, unknown_rank=True),
            "input 'images' takes DT_FLOAT [-1, 32, 32, 3], not DT_FLOAT of unknown shape",
        ),
        (
            _claiming(IMAGE, batch_size=10**12),
            "a batch of 1000000000000 is larger than --max_batch_size=32",
        ),
        (
            _claiming(IMAGE, tensor_content=b"abc"),
            "input 'images' does not hold what its shape promises",
        ),
        (
            predict_pb2.PredictRequest(
                model_spec=_spec("embedding"),
                inputs={"image_bytes": tf.make_tensor_proto([images.JPEG])},
                output_filter=["scores", "embedding"],
            ),
            "signature 'embedding' has no output scores; it has embedding",
        ),
    ],
)
def test_bad_message(request_, message, predictions):
    code, details = _refusal(predictions.Predict, request_)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith(message)
    assert predictions.Predict(_png_request()).outputs


def test_other_calls_that_are_refused(predictions, models):
    empty = classification_pb2.ClassificationRequest(model_spec=_spec("classify"))
    assert _refusal(predictions.Classify, empty) == ("INVALID_ARGUMENT", "Input is empty.")
    many = classification_pb2.ClassificationRequest(model_spec=_spec("classify"))
    many.input.example_list.examples.extend([tf.train.Example()] * 33)
    message = "a batch of 33 is larger than --max_batch_size=32"
    assert _refusal(predictions.Classify, many) == ("INVALID_ARGUMENT", message)
    no_field = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=_spec())
    message = "metadata_field must be 'signature_def', the only one there is"
    assert _refusal(predictions.GetModelMetadata, no_field) == ("INVALID_ARGUMENT", message)
    for call, request in (
        (predictions.Regress, regression_pb2.RegressionRequest()),
        (predictions.MultiInference, inference_pb2.MultiInferenceRequest()),
        (models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()),
    ):
        assert _refusal(call, request)[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("path", "spec", "code", "message"),
    [
        (
            "other",
            {"name": "other"},
            ("NOT_FOUND", 404),
            "Servable not found for request: Latest(other)",
        ),
        (
            "refilled/versions/7",
            {"name": "refilled", "version": {"value": 7}},
            ("NOT_FOUND", 404),
            "Servable not found for request: Specific(refilled, 7)",
        ),
        (
            "refilled/labels/next",
            {"name": "refilled", "version_label": "next"},
            ("INVALID_ARGUMENT", 400),
            "Unrecognized servable version label: next; there are canary, stable",
        ),
    ],
)
def test_unknown_model_version_and_label(path, spec, code, message, predictions, models, server):
    request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(**spec))
    assert _refusal(predictions.Predict, request) == (code[0], message)
    answer = http.post(f"{server.http}/v1/models/{path}:predict", json={"inputs": [PNG]})
    assert (answer.status_code, answer.json()) == (code[1], {"error": message})
    for url in (f"{server.http}/v1/models/{path}/metadata", f"{server.http}/v1/models/{path}"):
        assert http.get(url).status_code == code[1]
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=request.model_spec)
    assert _refusal(models.GetModelStatus, request)[0] == code[0]


def test_large_request(predictions, url):
    body = {"signature_name": "serving_bytes", "inputs": ["x" * REQUEST_BYTES]}
    answer = http.post(f"{url}:predict", json=body)
    message = "the request is larger than --max_request_bytes=1048576"
    assert (answer.status_code, answer.json()) == (413, {"error": message})
    request = _request("serving_bytes", {"image_bytes": [b"x" * REQUEST_BYTES]})
    code, details = _refusal(predictions.Predict, request)
    assert code == "RESOURCE_EXHAUSTED"
    assert "Received message larger than max" in details
    assert "1048576" in details
    assert predictions.Predict(_png_request()).outputs


def test_other_paths_are_malformed_requests(server):
    for path in ("/", "/v1/models", "/v1/models/refilled:predict"):
        answer = http.get(server.http + path)
        assert answer.status_code == 400
        assert answer.json() == {"error": f"Malformed request: GET {path}"}


# Versions that come and go.


def _publish(version, base, number):
    """Adds a copy of a version at once, as an export does."""
    shutil.copytree(version, base / "copy")
    (base / "copy").rename(base / str(number))


def _break(base, number):
    """Adds a version of which only the graph is there."""
    folder = base / str(number)
    folder.with_name("copy").mkdir()
    shutil.copy(next(base.glob("*/saved_model.pb")), base / "copy")
    (base / "copy").rename(folder)


def _states(models):
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=_spec())
    statuses = models.GetModelStatus(request).model_version_status
    return {each.version: each.State.Name(each.state) for each in statuses}


def _wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_version_changes_under_load_without_a_lost_request(version, tmp_path):
    _publish(version, tmp_path, 1)
    body = {"signature_name": "serving_bytes", "instances": [PNG]}
    with (
        embedded.server(tmp_path, "--poll_seconds=0.1") as running,
        grpc.insecure_channel(running.grpc) as channel,
        ThreadPoolExecutor(4) as threads,
    ):
        predictions, models = PredictionServiceStub(channel), ModelServiceStub(channel)
        done = threading.Event()

        def ask_by_grpc(versions):
            while not done.is_set():
                response = predictions.Predict(_png_request(), timeout=30)
                versions.append(response.model_spec.version.value)

        def ask_by_rest(codes):
            url = f"{running.http}/v1/models/refilled:predict"
            while not done.is_set():
                codes.append(http.post(url, json=body, timeout=30).status_code)

        by_grpc, by_rest = ([], []), ([], [])
        asking = [threads.submit(ask_by_grpc, versions) for versions in by_grpc]
        asking += [threads.submit(ask_by_rest, codes) for codes in by_rest]
        try:
            _wait(lambda: all((*by_grpc, *by_rest)))
            _publish(version, tmp_path, 2)
            _wait(lambda: _states(models) == {1: "END", 2: "AVAILABLE"})
            _break(tmp_path, 3)
            _wait(lambda: _states(models) == {1: "END", 2: "AVAILABLE", 3: "END"})
            _wait(lambda: all(2 in versions for versions in by_grpc))
        finally:
            done.set()
        for each in asking:
            each.result()
        for versions in by_grpc:
            assert versions == sorted(versions)
            assert set(versions) == {1, 2}
        assert {code for codes in by_rest for code in codes} == {200}

        failed = http.get(f"{running.http}/v1/models/refilled/versions/3").json()
        (status,) = failed["model_version_status"]
        assert status["status"]["error_code"] == "UNKNOWN"
        assert "variables" in status["status"]["error_message"]
        request = _png_request(version={"value": 1})
        assert _refusal(predictions.Predict, request)[0] == "NOT_FOUND"


def _labelled(base, **labels):
    """Writes the models.config that a person would."""
    models = server_files.label(ModelServerConfig(), [], 1)
    (ours,) = models.model_config_list.config
    ours.version_labels.clear()
    ours.version_labels.update(labels)
    ours.model_version_policy.specific.versions[:] = set(labels.values())
    server_files.write(base, models)


def test_listed_versions_and_labels_are_served(version, tmp_path):
    for number in (1, 2, 3):
        _publish(version, tmp_path, number)
    _labelled(tmp_path, stable=1, canary=2)

    async def served(manager):
        async def number(**chosen):
            spec = _spec(**chosen)
            response = await manager.run(spec, lambda model: model.predict(_png_request()))
            return response.model_spec.version.value

        await manager.refresh()
        labels = {name: await number(version_label=name) for name in ("stable", "canary")}
        return manager.available(), await number(), labels

    async def story():
        manager = Manager(tmp_path, "refilled", max_batch_size=1, workers=1)
        assert await served(manager) == ({1, 2}, 2, {"stable": 1, "canary": 2})
        _labelled(tmp_path, stable=2, canary=3)
        assert await served(manager) == ({2, 3}, 3, {"stable": 2, "canary": 3})
        # A canary that cannot be loaded leaves the label, and all versions, where they are.
        _break(tmp_path, 4)
        _labelled(tmp_path, stable=3, canary=4)
        assert await served(manager) == ({2, 3}, 3, {"stable": 3, "canary": 3})
        # Back to versions that were there before.
        _labelled(tmp_path, stable=1, canary=2)
        assert await served(manager) == ({1, 2}, 2, {"stable": 1, "canary": 2})
        await manager.close()

    asyncio.run(story())


def test_name_in_addresses_changes_no_version_and_no_label(version, tmp_path):
    for number in (1, 2):
        _publish(version, tmp_path, number)
    _labelled(tmp_path, stable=1)
    expected = ({1}, {"stable": 1})
    assert wanted_versions(tmp_path, "refilled") == expected
    assert wanted_versions(tmp_path, "birds") == expected


def test_version_whose_warm_up_fails_is_not_taken(version, tmp_path):
    _publish(version, tmp_path, 1)
    with tf.io.TFRecordWriter(str(tmp_path / "1" / WARMUP)) as writer:
        writer.write(b"no log")

    async def story():
        manager = Manager(tmp_path, "refilled", max_batch_size=1, workers=1)
        await manager.refresh()
        (status,) = manager.status(_spec()).model_version_status
        assert (status.state, manager.available()) == (status.END, set())
        with pytest.raises(
            RequestError, match=r"Servable not found for request: Latest\(refilled\)"
        ):
            await manager.run(_spec(), lambda model: None)

    asyncio.run(story())


# Beginning and end.


def test_running_requests_are_answered_after_sigterm(version, tmp_path):
    _publish(version, tmp_path, 1)
    # 2**25 pixels each, exactly as many as may be: seconds of work.
    large = [images.black_png(2**13, 2**12)] * 24
    body = {"signature_name": "serving_bytes", "inputs": _json(large)}
    with (
        embedded.server(tmp_path, "--grace_seconds=250") as running,
        grpc.insecure_channel(running.grpc) as channel,
        ThreadPoolExecutor(2) as threads,
    ):
        url = f"{running.http}/v1/models/refilled"
        stub = PredictionServiceStub(channel)
        request = _request("serving_bytes", {"image_bytes": large})
        by_grpc = threads.submit(stub.Predict, request)
        by_rest = threads.submit(http.post, f"{url}:predict", json=body)
        time.sleep(0.5)
        assert http.get(url, timeout=5).ok  # the loop answers all the while
        running.process.terminate()
        time.sleep(0.2)
        with pytest.raises(http.ConnectionError):
            http.get(url, timeout=5)
        assert not by_grpc.done()
        assert not by_rest.done()
        assert len(tf.make_ndarray(by_grpc.result().outputs["scores"])) == len(large)
        assert len(by_rest.result().json()["outputs"]["scores"]) == len(large)


def _start(base, *flags):
    """Runs a server that is not to come up; returns exit code, stdout and stderr's last line."""
    run = subprocess.run(
        [*embedded.COMMAND, f"--export_dir={base}", *flags],
        cwd=digits.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.returncode, run.stdout, run.stderr.splitlines()[-1]


def test_folder_without_versions(tmp_path):
    message = f"error: --export_dir={tmp_path / 'absent'} is not a folder"
    assert _start(tmp_path / "absent", "--port=0", "--grpc_port=0") == (1, "", message)

    async def refresh():
        await Manager(tmp_path, "refilled", max_batch_size=1, workers=1).refresh()

    (tmp_path / "server").mkdir()
    with pytest.raises(InputError, match=f"--export_dir={tmp_path} holds no version"):
        asyncio.run(refresh())


def test_folder_with_nothing_but_a_broken_version(version, tmp_path):
    _publish(version, tmp_path, 1)
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"broken")
    message = f"error: no version in --export_dir={tmp_path} can be loaded"
    code, out, last = _start(tmp_path, "--port=0", "--grpc_port=0")
    assert (code, out) == (1, "")
    assert last.startswith(message)


def test_port_that_is_taken(base):
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        code, out, last = _start(base, f"--port={port}", "--grpc_port=0")
        assert (code, out) == (1, "")
        assert last.startswith(f"error: --host=localhost --port={port} cannot be listened on")
        code, out, last = _start(base, "--port=0", f"--grpc_port={port}")
        assert (code, out) == (1, "")
        assert last == f"error: --grpc_port={port} cannot be listened on"
