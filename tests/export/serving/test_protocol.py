"""What TensorFlow Serving's sources decide: the table in docs/export.md, line by line.

The sources are json_tensor.cc, http_rest_api_util.cc, http_server.cc and util.cc of TensorFlow
Serving. The table says which of its lines were not checked there.
"""

import base64
import json
import re

import asking
import embedded
import grpc
import images
import numpy as np
import pytest
import requests as http
from tensorflow_serving.apis import classification_pb2
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

pytestmark = pytest.mark.slow

# A file of a length that base64 pads; what is behind the end of a PNG does not count.
PADDED = images.NOISE_PNG + b"\0" * (1 + -len(images.NOISE_PNG) % 3)
BASE64 = base64.b64encode(PADDED).decode()


def _post(url, text, **headers):
    data = text if isinstance(text, bytes) else text.encode()
    return http.post(f"{url}:predict", data=data, headers=headers)


def _bytes_body(encoded):
    instances = [{"b64": encoded}]
    return json.dumps({"signature_name": "serving_bytes", "instances": instances})


def test_base64_with_line_breaks_and_without_padding(url):
    lines = "\n".join(BASE64[start : start + 76] for start in range(0, len(BASE64), 76))
    assert BASE64.endswith("=")
    answers = [
        _post(url, _bytes_body(text)).json()
        for text in (BASE64, lines, BASE64.rstrip("="), BASE64.replace("A", " A", 3))
    ]
    assert "predictions" in answers[0]
    assert all(answer == answers[0] for answer in answers)
    # Neither with half of its padding, nor in the alphabet of addresses.
    for text in ("QQ=", "Q===", "_-8=", "Q"):
        assert _post(url, _bytes_body(text)).status_code == 400


def test_of_a_key_that_occurs_twice_the_first_value_counts(url):
    body = _bytes_body(BASE64)
    once = _post(url, body).json()
    assert "predictions" in once
    twice = body.replace('"instances"', '"signature_name": "embedding", "instances"')
    assert _post(url, twice).json() == once
    twice = body.replace('"instances"', '"signature_name": 5, "instances"')
    assert _post(url, twice).json() == once


@pytest.mark.parametrize(
    ("number", "fits"),
    [
        ("0.5", True),
        ("3", True),
        ("16777215", True),  # 2**24 - 1, the largest that TensorFlow Serving takes
        ("16777216", False),
        ("-16777216", False),
        ("16777216.0", True),  # written as a fraction it may be rounded
        ("3.4e38", True),
        ("3.5e38", False),  # float32 ends at 3.4028e38
        ("1e400", False),
        ("-1e400", False),
        ("NaN", True),
        ("Infinity", True),
        ("-Infinity", True),
        ("true", False),
        ("null", False),
        ('"1"', False),
        ("1" + "0" * 400, False),
        ("1" * 5000, False),
    ],
)
def test_numbers(number, fits, url):
    pixels = json.dumps(np.zeros((1, 32, 32, 3)).tolist())
    body = f'{{"signature_name": "serving_tensor", "instances": {pixels}}}'
    answer = _post(url, body.replace("0.0", number, 1))
    assert answer.status_code == (200 if fits else 400), answer.text


def test_bodies_are_utf_8(url):
    body = _bytes_body(BASE64)
    once = _post(url, body).json()
    assert _post(url, body.encode("utf-8-sig")).json() == once
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        answer = _post(url, body.encode(encoding))
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("JSON Parse error: ")


def test_image_for_a_signature_of_examples_is_pointed_to_the_right_one(predictions, url):
    """The commonest mistake: serving_default takes Examples."""
    for content in (images.NOISE_PNG, images.JPEG):
        for signature, name in (("", "examples"), ("classify", "inputs")):
            message = (
                f"{name}[0]: it is an image, where a serialized tf.Example with its feature "
                "'image/encoded' is wanted; the signature 'serving_bytes' takes images as they are"
            )
            request = asking.predict_request(signature, {name: [content]})
            assert asking.refusal(predictions.Predict, request) == ("INVALID_ARGUMENT", message)
            body = {"instances": [asking.as_json(content)]}
            if signature:
                body["signature_name"] = signature
            answer = http.post(f"{url}:predict", json=body)
            assert (answer.status_code, answer.json()) == (400, {"error": message})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("PredictionService/Predict", "PredictRequest"),
        ("PredictionService/Classify", "ClassificationRequest"),
        ("PredictionService/Regress", "RegressionRequest"),
        ("PredictionService/MultiInference", "MultiInferenceRequest"),
        ("PredictionService/GetModelMetadata", "GetModelMetadataRequest"),
        ("ModelService/GetModelStatus", "GetModelStatusRequest"),
        ("ModelService/HandleReloadConfigRequest", "ReloadConfigRequest"),
    ],
)
def test_bytes_that_are_no_message(method, message, channel, server):
    before = server.log()
    call = channel.unary_unary(f"/tensorflow.serving.{method}")
    refusal = asking.refusal(call, b"\xff\xff\xff")
    assert refusal == ("INVALID_ARGUMENT", f"the message is no {message}")
    assert server.log() == before


def test_strings_that_are_fewer_than_their_shape_says(predictions):
    request = asking.predict_request("serving_bytes", {"image_bytes": [images.JPEG]})
    request.inputs["image_bytes"].tensor_shape.dim[0].size = 2
    code, details = asking.refusal(predictions.Predict, request)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("input 'image_bytes' does not hold what its shape promises")


def test_other_origins_may_ask_if_the_server_is_told_so(base, url):
    asking_page = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    plain = http.options(f"{url}:predict", headers=asking_page)
    assert plain.status_code == 400
    assert "Access-Control-Allow-Origin" not in http.get(url).headers
    with embedded.server(base, "--rest_api_enable_cors_support") as server:
        there = f"{server.http}/v1/models/refilled"
        answer = http.options(f"{there}:predict", headers=asking_page)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["Access-Control-Allow-Methods"] == "POST, GET"
        assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type"
        assert http.options(f"{there}:predict").status_code == 400  # who asks is not said
        assert http.get(there).headers["Access-Control-Allow-Origin"] == "*"


def test_metrics(base):
    """Under the names and labels that TensorFlow Serving's monitoring page has."""
    with embedded.server(base) as server, grpc.insecure_channel(server.grpc) as channel:
        url = f"{server.http}/v1/models/refilled"
        body = {"signature_name": "serving_bytes", "instances": [asking.PNG] * 3}
        assert http.post(f"{url}:predict", json=body).ok
        assert http.post(f"{url}:predict", data=b"no JSON").status_code == 400
        assert http.post(f"{server.http}/v1/models/other:predict", json=body).status_code == 404
        stub = PredictionServiceStub(channel)
        stub.Predict(asking.png_request())
        empty = classification_pb2.ClassificationRequest(model_spec=asking.spec("classify"))
        asking.refusal(stub.Classify, empty)
        answer = http.get(f"{server.http}/monitoring/prometheus/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain")
        page = answer.text
    name = 'model_name="refilled"'
    for line in (
        f'request_count{{{name},status="OK"}} 2.0',
        f'request_count{{{name},status="INVALID_ARGUMENT"}} 2.0',
        f'request_latency_count{{API="Predict",entrypoint="REST",{name}}} 1.0',
        f'request_latency_count{{API="Predict",entrypoint="GRPC",{name}}} 1.0',
        'request_example_count_total{model="refilled"} 4.0',
        'request_example_counts_count{model="refilled"} 2.0',
        'batching_session:queuing_latency_count{thread_pool_name="batch"} 2.0',
    ):
        assert f"\n:tensorflow:serving:{line}\n" in page, line
    assert re.search(rf'runtime_latency_count{{API="Predict",{name},runtime="TF1"}} \d+', page)
    assert "other" not in page  # a caller cannot make the page grow
