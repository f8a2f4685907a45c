"""TensorFlow Serving's gRPC services over a Manager."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from export.serving.errors import told
from export.serving.manager import Manager
from export.serving.model import Model

Answer = TypeVar("Answer")


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify and GetModelMetadata; the models have nothing for the other methods."""

    def __init__(self, manager: Manager):
        self._manager = manager

    async def Predict(self, request, context):
        return await self._run(Model.predict, request, context)

    async def Classify(self, request, context):
        return await self._run(Model.classify, request, context)

    async def GetModelMetadata(self, request, context):
        return await self._run(Model.metadata, request, context)

    async def Regress(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server only classifies")

    MultiInference = Regress

    async def _run(self, method, request, context):
        running = self._manager.run(request.model_spec, lambda model: method(model, request))
        return await _answered(running, context)


class Models(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus, of the two methods."""

    def __init__(self, manager: Manager):
        self._manager = manager

    async def GetModelStatus(self, request, context):
        async def status():
            return self._manager.status(request.model_spec)

        return await _answered(status(), context)

    async def HandleReloadConfigRequest(self, request, context):
        message = "this server reads its folder, and models.config in it, by itself"
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, message)


async def _answered(answer: Awaitable[Answer], context: grpc.aio.ServicerContext) -> Answer:
    """Waits for an answer; when something goes wrong, ends the call with code and message."""
    try:
        return await answer
    except Exception as error:
        failure = told(error)
        await context.abort(failure.code, failure.message)


def server(manager: Manager, max_request_bytes: int) -> grpc.aio.Server:
    """Returns a server without a port.

    Args:
        manager: of the versions.
        max_request_bytes: larger messages are refused by gRPC itself.
    """
    options = [
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.so_reuseport", 0),  # else a second server takes the same port without a word
    ]
    built = grpc.aio.server(options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Predictions(manager), built)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(manager), built)
    return built
