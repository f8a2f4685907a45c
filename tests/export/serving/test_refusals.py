"""What the embedded server refuses, and in which words."""

import base64
import json

import asking
import images
import numpy as np
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

from export.serving.model import readable

pytestmark = pytest.mark.slow


SIGNATURES = "classify, embedding, serving_bytes, serving_default, serving_support, serving_tensor"
NO_IMAGE = "it is no JPEG, PNG, BMP, GIF or WebP"
PIXELS = (
    "the request's images have {} pixels together, the limit is --max_request_pixels=33554432; "
    "send fewer at a time, or smaller ones"
)
# What the server finds before the graph does, in its own words.
SOONER = {
    "nothing": "image_bytes[0]: it is empty",
    "text": f"image_bytes[0]: {NO_IMAGE}",
    "gif": f"image_bytes[0]: {NO_IMAGE}",
    "50 megapixels": PIXELS.format(50_000_000),
    "50 megapixels behind a chunk that says less": PIXELS.format(50_000_000),
    "giant jpeg": (
        "image_bytes[0]: it has 4225 megapixels, more than the 178 megapixels that are read; "
        "make it smaller"
    ),
    "beginning of a jpeg": f"image_bytes[0]: {NO_IMAGE}",
    "beginning of a png": f"image_bytes[0]: {NO_IMAGE}",
    # Pillow's words, since a PNG that is not whole is decoded by Pillow.
    "half a png": "image_bytes[0]: it is damaged: image file is truncated",
}
UNMARKED = "it is base64, which JSON marks as {'b64': '…'}, without 'data:' before it"
BOTH = {
    name: ("serving_bytes", {"image_bytes": [content]}, SOONER.get(name, text))
    for name, (content, text) in images.BAD.items()
}
BOTH |= {
    "one bad image among good ones": (
        "embedding",
        {"image_bytes": [images.NOISE_PNG, b"no image", images.JPEG]},
        f"image_bytes[1]: {NO_IMAGE}",
    ),
    "no example": (
        "serving_default",
        {"examples": [b"no example"]},
        "examples[0]: it is no serialized tf.Example",
    ),
    "example without an image": (
        "classify",
        {"inputs": [tf.train.Example().SerializeToString()]},
        "inputs[0]: it is a tf.Example without the bytes of one image as its feature "
        "'image/encoded'",
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
    "bytes for the signature of Examples": (
        "serving_default",
        {"image_bytes": [images.JPEG]},
        "signature 'serving_default' takes the inputs examples, not image_bytes; signatures that "
        "take image_bytes: embedding, serving_bytes",
    ),
    "pixels for the signature of Examples": (
        "",
        {"images": np.zeros((1, 32, 32, 3), np.float32)},
        "signature 'serving_default' takes the inputs examples, not images; signatures that take "
        "images: serving_tensor",
    ),
    "base64 that is not marked": (
        "serving_bytes",
        {"image_bytes": [images.JPEG, base64.b64encode(images.JPEG)]},
        f"image_bytes[1]: {NO_IMAGE}; {UNMARKED}",
    ),
    "base64 as browsers have it": (
        "serving_support",
        {
            "support_bytes": [b"data:image/png;base64," + base64.b64encode(images.NOISE_PNG)],
            "support_labels": [b"a"],
            "query_bytes": [images.JPEG],
        },
        f"support_bytes[0]: {NO_IMAGE}; {UNMARKED}",
    ),
    "base64 of an Example that is not marked": (
        "classify",
        {"inputs": [base64.b64encode(asking.example(images.JPEG))]},
        f"inputs[0]: it is no serialized tf.Example; {UNMARKED}",
    ),
    "large batch": (
        "serving_bytes",
        {"image_bytes": [b""] * 33},
        "a batch of 33 is larger than --max_batch_size=32",
    ),
}


@pytest.mark.parametrize(("signature", "inputs", "message"), BOTH.values(), ids=BOTH)
def test_bad_request_gets_the_same_error_over_both(signature, inputs, message, predictions, url):
    refusal = asking.refusal(predictions.Predict, asking.predict_request(signature, inputs))
    assert refusal == ("INVALID_ARGUMENT", message)

    columns = {name: asking.as_json(value) for name, value in inputs.items()}
    body = {"signature_name": signature, "inputs": columns}
    answer = http.post(f"{url}:predict", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": message})
    assert predictions.Predict(asking.png_request()).outputs


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (":predict", b"no JSON", "JSON Parse error: Expecting value: line 1 column 1 (char 0)"),
        (":predict", b"", "JSON Parse error: The document is empty"),
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
        (":predict", [asking.PNG], "the body must be a JSON object"),
        (":predict", {}, "the body must have either 'instances' or 'inputs'"),
        (
            ":predict",
            {"instances": [asking.PNG], "inputs": [asking.PNG]},
            "the body must have either 'instances' or 'inputs'",
        ),
        (
            ":predict",
            {"signature_name": 1, "inputs": [asking.PNG]},
            "'signature_name' must be a string",
        ),
        (":predict", {"instances": asking.PNG}, "'instances' must be a list that is not empty"),
        (":predict", {"instances": []}, "'instances' must be a list that is not empty"),
        (
            ":predict",
            {"instances": [{"examples": asking.PNG}, asking.PNG]},
            "item 1 of 'instances' does not have the inputs of the first",
        ),
        (
            ":predict",
            {"instances": [asking.PNG, {"examples": asking.PNG}]},
            "item 0 of 'instances' does not have the inputs of the first",
        ),
        (
            ":predict",
            {"inputs": [{"b64": "?"}]},
            "input 'examples' is no base64: Only base64 data is allowed",
        ),
        (
            ":predict",
            {"inputs": [asking.PNG, 1]},
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
            ":predict",
            {"signature_name": "serving_tensor", "instances": [asking.PNG]},
            "input 'images' takes numbers that are float32; the signature 'serving_bytes' takes "
            "images as they are",
        ),
        (
            ":predict",
            {"signature_name": "serving_bytes", "instances": [[[[0, 1, 2]]]]},
            "input 'image_bytes' has 0 instead of a string or {'b64': …}; the signature "
            "'serving_tensor' takes pixels",
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
        (
            # 32 images of 32 × 32 pixels are 1 + 32 · (1 + 32 + 32²) lists; 256 a row are spare.
            ":predict",
            b'{"instances": [' + b"[]," * (33_825 + 8192) + b"no JSON",
            "the body has more than 42017 lists, or than 8192 objects and strings: more than a "
            "batch of --max_batch_size needs",
        ),
        (
            ":predict",
            b'{"instances": [' + b'"",' * 8192 + b"no JSON",
            "the body has more than 42017 lists, or than 8192 objects and strings",
        ),
        (
            ":classify",
            {"signature_name": "classify", "examples": [{}] * 32 + ["no example"]},
            "a batch of 33 is larger than --max_batch_size=32",
        ),
        (
            ":regress",
            {"examples": ["no example"] * 33},
            "a batch of 33 is larger than --max_batch_size=32",
        ),
        (":classify", {"examples": [asking.PNG, 1]}, "an example must be an object of features"),
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
            {"examples": [{"image/encoded": asking.PNG}]},
            "Expected classification signature method_name to be tensorflow/serving/classify. Was: "
            "tensorflow/serving/predict (signature 'serving_default')",
        ),
        (
            ":regress",
            {"examples": [{}]},
            "Expected regression signature method_name to be tensorflow/serving/regress. Was: "
            "tensorflow/serving/predict (signature 'serving_default')",
        ),
        (":explain", {}, "Malformed request: POST /v1/models/refilled:explain"),
        (
            f"/versions/{2**63}:predict",
            {"inputs": [asking.PNG]},
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
    request = asking.predict_request("serving_tensor", {})
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
            asking.predict_request("serving_tensor", {"images": [images.JPEG]}),
            "input 'images' takes DT_FLOAT [-1, 32, 32, 3], not DT_STRING [1]; the signature "
            "'serving_bytes' takes images as they are",
        ),
        (
            asking.predict_request("serving_bytes", {"image_bytes": IMAGE}),
            "input 'image_bytes' takes DT_STRING [-1], not DT_FLOAT [1, 32, 32, 3]; the signature "
            "'serving_tensor' takes pixels",
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
                model_spec=asking.spec("embedding"),
                inputs={"image_bytes": tf.make_tensor_proto([images.JPEG])},
                output_filter=["scores", "embedding"],
            ),
            "signature 'embedding' has no output scores; it has embedding",
        ),
    ],
)
def test_bad_message(request_, message, predictions):
    code, details = asking.refusal(predictions.Predict, request_)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith(message)
    assert predictions.Predict(asking.png_request()).outputs


def test_context_counts_for_each_example(predictions, url):
    """A request of 40 kB, which would be 32 times that once it is put together."""
    value = "x" * 40_000
    body = {"signature_name": "classify", "context": {"a": value}, "examples": [{}] * 32}
    request = classification_pb2.ClassificationRequest(model_spec=asking.spec("classify"))
    given = request.input.example_list_with_context
    given.context.features.feature["a"].bytes_list.value.append(value.encode())
    given.examples.extend([tf.train.Example()] * 32)
    size = given.context.ByteSize()
    assert 32 * size > asking.REQUEST_BYTES > 26 * size
    message = (
        f"32 examples, each with a context of {size} bytes, are more than "
        f"--max_request_bytes={asking.REQUEST_BYTES}"
    )
    assert asking.refusal(predictions.Classify, request) == ("INVALID_ARGUMENT", message)
    answer = http.post(f"{url}:classify", json=body)
    # JSON's example is a message, if an empty one, of two bytes more.
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("32 examples, each with a context of ")
    del given.examples[26:]
    code, details = asking.refusal(predictions.Classify, request)
    assert (code, details.split(":")[0]) == ("INVALID_ARGUMENT", "inputs[0]")  # it has no image


def test_other_calls_that_are_refused(predictions, models):
    empty = classification_pb2.ClassificationRequest(model_spec=asking.spec("classify"))
    assert asking.refusal(predictions.Classify, empty) == ("INVALID_ARGUMENT", "Input is empty.")
    many = classification_pb2.ClassificationRequest(model_spec=asking.spec("classify"))
    many.input.example_list.examples.extend([tf.train.Example()] * 33)
    message = "a batch of 33 is larger than --max_batch_size=32"
    assert asking.refusal(predictions.Classify, many) == ("INVALID_ARGUMENT", message)
    no_field = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=asking.spec())
    message = "metadata_field must be 'signature_def', the only one there is"
    assert asking.refusal(predictions.GetModelMetadata, no_field) == ("INVALID_ARGUMENT", message)
    regress = regression_pb2.RegressionRequest(model_spec=asking.spec())
    code, details = asking.refusal(predictions.Regress, regress)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("Expected regression signature method_name to be")
    for call, request, expected in (
        (predictions.MultiInference, inference_pb2.MultiInferenceRequest(), "INVALID_ARGUMENT"),
        (
            models.HandleReloadConfigRequest,
            model_management_pb2.ReloadConfigRequest(),
            "UNIMPLEMENTED",
        ),
    ):
        assert asking.refusal(call, request)[0] == expected


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
    assert asking.refusal(predictions.Predict, request) == (code[0], message)
    answer = http.post(f"{server.http}/v1/models/{path}:predict", json={"inputs": [asking.PNG]})
    assert (answer.status_code, answer.json()) == (code[1], {"error": message})
    for url in (f"{server.http}/v1/models/{path}/metadata", f"{server.http}/v1/models/{path}"):
        assert http.get(url).status_code == code[1]
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=request.model_spec)
    assert asking.refusal(models.GetModelStatus, request)[0] == code[0]


def test_large_request(predictions, url):
    body = {"signature_name": "serving_bytes", "inputs": ["x" * asking.REQUEST_BYTES]}
    answer = http.post(f"{url}:predict", json=body)
    message = "the request is larger than --max_request_bytes=1048576"
    assert (answer.status_code, answer.json()) == (413, {"error": message})
    request = asking.predict_request(
        "serving_bytes", {"image_bytes": [b"x" * asking.REQUEST_BYTES]}
    )
    code, details = asking.refusal(predictions.Predict, request)
    assert code == "RESOURCE_EXHAUSTED"
    assert "Received message larger than max" in details
    assert "1048576" in details
    assert predictions.Predict(asking.png_request()).outputs


def test_other_paths(server):
    for path in ("/v1/models", "/v1/models/refilled:predict", "/v1/models/refilled/versions/x"):
        answer = http.get(server.http + path)
        assert answer.status_code == 400
        assert answer.json() == {"error": f"Malformed request: GET {path}"}
    for path in ("/", "/v2/models/refilled"):
        assert http.get(server.http + path).status_code == 404
    assert http.head(f"{server.http}/v1/models/refilled").status_code == 400
    assert http.get(f"{server.http}/V1/Models/refilled").ok
