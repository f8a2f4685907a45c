"""What the embedded server answers to gRPC's official stubs, to plain HTTP and to ovmsclient.

Expected answers are those of the Keras network. Forms of bodies, names of fields and codes are
those of TensorFlow Serving's documentation (api_rest.md) and protos.
"""

import asking
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
)

from export import check, requests
from refilled_tf.models import networks

pytestmark = pytest.mark.slow


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
    response = predictions.Predict(asking.predict_request(signature, asked[signature]))
    assert response.model_spec == asking.spec(signature, version={"value": int(version.name)})
    reply = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
    assert reply.keys() == outputs
    assert asking.is_close(differences(reply))

    columns = {name: asking.as_json(value) for name, value in asked[signature].items()}
    body = {"signature_name": signature, "inputs": columns}
    answer = http.post(f"{url}:predict", json=body).json()["outputs"]
    # The name of an only output is left out.
    reply = asking.arrays({"embedding": answer} if outputs == {"embedding"} else answer)
    assert reply.keys() == outputs
    assert asking.is_close(differences(reply))


def test_classify_answers_as_the_network(predictions, url, asked, differences):
    examples = [tf.train.Example.FromString(each) for each in asked["classify"]["inputs"]]
    request = classification_pb2.ClassificationRequest(model_spec=asking.spec("classify"))
    request.input.example_list.examples.extend(examples)
    result = predictions.Classify(request).result
    rows = [[(each.label, each.score) for each in row.classes] for row in result.classifications]
    assert asking.is_close(differences(_of_pairs(rows)))

    pngs = asking.as_json(asked["serving_bytes"]["image_bytes"])
    body = {"signature_name": "classify", "examples": [{"image/encoded": png} for png in pngs]}
    rows = http.post(f"{url}:classify", json=body).json()["results"]
    assert asking.is_close(differences(_of_pairs(rows)))


def _of_pairs(rows):
    return asking.arrays(
        {
            "classes": [[label for label, _ in row] for row in rows],
            "scores": [[score for _, score in row] for row in rows],
        }
    )


def test_context_is_part_of_every_example(predictions, url):
    context = tf.train.Example.FromString(
        requests.make([images.PIXELS], None)["classify"]["inputs"][0]
    )
    alone = classification_pb2.ClassificationRequest(model_spec=asking.spec("classify"))
    alone.input.example_list.examples.add().CopyFrom(context)
    (wanted,) = predictions.Classify(alone).result.classifications
    shared = classification_pb2.ClassificationRequest(model_spec=asking.spec("classify"))
    shared.input.example_list_with_context.context.CopyFrom(context)
    shared.input.example_list_with_context.examples.add()
    assert list(predictions.Classify(shared).result.classifications) == [wanted]

    # Features may be of any type and a list; the signature reads the one that it needs.
    others = {"text": ["a", "b"], "size": [40, 30], "flag": True, "ratio": 0.75, "none": []}
    body = {
        "signature_name": "classify",
        "context": {"image/encoded": [asking.PNG]},
        "examples": [others],
    }
    ((first, *_),) = http.post(f"{url}:classify", json=body).json()["results"]
    assert first == [wanted.classes[0].label, pytest.approx(wanted.classes[0].score)]


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"instances": [asking.PNG, asking.PNG]}, "predictions"),
        ({"instances": [{"image_bytes": asking.PNG}] * 2}, "predictions"),
        ({"inputs": [asking.PNG, asking.PNG]}, "outputs"),
        ({"inputs": {"image_bytes": [asking.PNG, asking.PNG]}}, "outputs"),
    ],
)
def test_rows_and_columns(body, key, url, predictions):
    def post(signature):
        answer = http.post(f"{url}:predict", json=body | {"signature_name": signature})
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.json().keys() == {key}
        return answer.json()[key]

    single = predictions.Predict(asking.png_request()).outputs
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
    assert answer.json() == {"error": "examples[0]: it is no serialized tf.Example"}
    body = {"signature_name": "serving_bytes", "instances": [asking.PNG]}
    score = http.post(f"{url}:predict", json=body).json()["predictions"][0]["scores"][0]
    assert str(score) == str(np.float32(score))


def test_output_filter_chooses(predictions):
    request = asking.png_request()
    request.output_filter.append("scores")
    assert predictions.Predict(request).outputs.keys() == {"scores"}


def test_empty_batch(predictions, url):
    """A tensor may be empty in TensorFlow Serving too; lists of instances and examples may not."""
    request = asking.predict_request("serving_bytes", {})
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
    squares = model.data.test.images[: asking.COUNT].astype(np.float32)
    outputs = networks.outputs_of(model.network, [squares])
    wanted, names = check.taught(outputs, inputs["support_labels"])
    response = predictions.Predict(asking.predict_request("serving_support", inputs))
    reply = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
    body = {"signature_name": "serving_support"}
    columns = {name: asking.as_json(value) for name, value in inputs.items()}
    answer = http.post(f"{url}:predict", json=body | {"inputs": columns})
    for got in (reply, asking.arrays(answer.json()["outputs"])):
        assert max(check.differences(got, wanted, names).values()) < check.TOLERANCE

    row = {name: values[0] for name, values in columns.items()}
    del row["support_labels"]
    answer = http.post(f"{url}:predict", json=body | {"instances": [row]})
    assert answer.status_code == 400
    assert "support_labels" in answer.json()["error"]


def test_version_and_label_lead_to_the_model(predictions, url, version):
    number = int(version.name)
    for asked_for in ({}, {"version": {"value": number}}, {"version_label": "stable"}):
        response = predictions.Predict(asking.png_request(**asked_for))
        assert response.model_spec.version.value == number
    body = {"signature_name": "serving_bytes", "instances": [asking.PNG]}
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
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=asking.spec())
    (status,) = models.GetModelStatus(request).model_version_status
    assert (status.version, status.state) == (int(version.name), status.AVAILABLE)


def test_metadata(predictions, url, version):
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=asking.spec(), metadata_field=["signature_def"]
    )
    response = predictions.GetModelMetadata(request)
    assert response.model_spec == asking.spec(version={"value": int(version.name)})
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
    assert asking.is_close(differences(asking.arrays(reply)))

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
