"""Broken requests, as many as fit into --fuzz-seconds, of the seed --fuzz-seed.

An hour of them: pytest tests/export/serving/test_fuzz.py --fuzz-seconds=1800 --fuzz-seed=1
"""

import collections
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import asking
import embedded
import grpc
import mutation
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

pytestmark = pytest.mark.slow

HANG = 60  # seconds
BATCH = 200  # requests between two looks at the clock
THREADS = 16  # of which most may wait for the server to lose patience


@pytest.fixture(scope="module")
def running(base):
    # Far below HANG, which would else be as long as a server waits for half a head.
    with embedded.server(base, "--body_seconds=3", "--idle_seconds=10") as running:
        yield running


def _fuzz(ask, seed, seconds, running):
    """Sends requests by their numbers, from several threads; returns what came of them."""
    outcomes = []
    _warm_up(ask, seed)
    before = running.memory()
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(THREADS) as threads:
        while time.monotonic() < end:
            numbers = range(len(outcomes), len(outcomes) + BATCH)
            outcomes += threads.map(lambda number: ask(random.Random(f"{seed}-{number}")), numbers)
            with grpc.insecure_channel(running.grpc) as channel:  # a good one among bad ones
                assert PredictionServiceStub(channel).Predict(asking.png_request(), HANG).outputs
    after = running.memory()
    counts = collections.Counter(outcomes)
    print(f"{len(outcomes)} requests, {before:.0f} MB before, {after:.0f} MB after: {counts}")
    assert running.process.poll() is None
    assert "unexpectedly" not in running.log()
    return outcomes, before, after


def _warm_up(ask, seed):
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda number: ask(random.Random(f"{seed}+{number}")), range(BATCH)))


def _http_status(running, request):
    """Sends bytes; returns the status of the answer, or None where the server hangs up."""
    place = urlsplit(running.http)
    with socket.create_connection((place.hostname, place.port), HANG) as connection:
        try:
            connection.sendall(request)
            answer = b""
            while block := connection.recv(2**16):
                answer += block
        except ConnectionError:
            return None
    found = re.match(rb"HTTP/1\.\d (\d+)", answer)
    return int(found[1]) if found else None


def test_a_request_depends_on_its_seed_alone():
    def some():
        return [mutation.http_request(random.Random(f"1-{number}")) for number in range(2000)]

    assert some() == some()


def test_rest(running, pytestconfig):
    seed, seconds = (pytestconfig.getoption(f"fuzz_{name}") for name in ("seed", "seconds"))

    def ask(dice):
        return _http_status(running, mutation.http_request(dice))

    statuses, before, after = _fuzz(ask, seed, seconds, running)
    faults = [number for number, status in enumerate(statuses) if (status or 0) >= 500]
    assert not faults, f"answered with 5xx: {faults} of --fuzz-seed={seed}"
    assert {200, 400} <= set(statuses)
    assert after < 1.1 * before


METHODS = {
    "PredictionService/Predict": predict_pb2.PredictRequest,
    "PredictionService/Classify": classification_pb2.ClassificationRequest,
    "PredictionService/Regress": regression_pb2.RegressionRequest,
    "PredictionService/MultiInference": inference_pb2.MultiInferenceRequest,
    "PredictionService/GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    "ModelService/GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
}


def _message(dice, kind):
    """Returns a message for a method, with its fields or its bytes changed."""
    if kind is predict_pb2.PredictRequest:
        signature, columns = mutation.inputs(dice)
        message = asking.predict_request(signature, {})
        for name, values in columns.items():
            proto = tf.make_tensor_proto(values, tf.string, [len(values)])
            if dice.random() < 0.2:
                proto.tensor_shape.dim[0].size = dice.choice([-1, 0, 1, 2, 2**40])
            if dice.random() < 0.1:
                proto.dtype = dice.randrange(24)
            message.inputs[name].CopyFrom(proto)
    elif kind is classification_pb2.ClassificationRequest:
        message = kind(model_spec=asking.spec("classify"))
        for _ in range(dice.choice([0, 1, 2])):
            try:
                read = tf.train.Example.FromString(mutation.example(dice))
            except DecodeError:
                continue
            message.input.example_list.examples.append(read)
    else:
        message = kind()
    content = message.SerializeToString()
    return mutation.mutated(dice, content) if dice.random() < 0.4 else content


def test_grpc(running, pytestconfig):
    seed, seconds = (pytestconfig.getoption(f"fuzz_{name}") for name in ("seed", "seconds"))
    with grpc.insecure_channel(running.grpc) as channel:

        def ask(dice):
            name = dice.choice(
                [*METHODS, "PredictionService/Predict", "PredictionService/Classify"]
            )
            call = channel.unary_unary(f"/tensorflow.serving.{name}")  # bytes as they are
            try:
                call(_message(dice, METHODS[name]), timeout=HANG)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        codes, before, after = _fuzz(ask, seed, seconds, running)
    fine = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    faults = {number: code.name for number, code in enumerate(codes) if code not in fine}
    assert not faults, f"of --fuzz-seed={seed}: {faults}"
    assert set(codes) == fine
    assert after < 1.1 * before
