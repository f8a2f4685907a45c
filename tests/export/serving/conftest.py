"""A server that tests ask, and its answers."""

import asking
import embedded
import grpc
import numpy as np
import pytest
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from export import check, requests
from refilled_tf.models import networks


@pytest.fixture(scope="module")
def server(base):
    flags = (f"--max_request_bytes={asking.REQUEST_BYTES}", f"--max_batch_size={asking.BATCH_SIZE}")
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
    squares = model.data.test.images[: asking.COUNT]
    return requests.make(squares, squares.astype(np.float32))


@pytest.fixture(scope="module")
def differences(model):
    """A function from a signature's outputs to how far they are from the network's."""
    examples = model.data.test.images[: asking.COUNT].astype(np.float32)
    outputs = networks.outputs_of(model.network, [examples])
    return lambda reply: check.differences(reply, outputs, model.data.class_names)
