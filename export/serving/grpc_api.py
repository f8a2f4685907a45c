"""TensorFlow Serving's gRPC services over a Manager."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from absl import logging
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from export.serving import metrics, wire
from export.serving.bodies import Memory, arrived
from export.serving.errors import Code, RequestError, told
from export.serving.manager import Manager
from export.serving.model import Model

Handler = Callable[[Any], Awaitable[Message]]


class Services:
    """PredictionService and ModelService."""

    def __init__(self, manager: Manager, memory: Memory, message_seconds: float, most_fields: int):
        """Remembers what the methods need.

        Args:
            manager: of the versions.
            memory: for the messages.
            message_seconds: how long a call's message may take to arrive.
            most_fields: how many fields it may have, those of the messages in it included.
        """
        self._manager = manager
        self._memory = memory
        self._seconds = message_seconds
        self._most_fields = most_fields

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Returns the methods of both services, by their names on the wire."""
        prediction = {
            "Predict": (predict_pb2.PredictRequest, self._run(Model.predict)),
            "Classify": (classification_pb2.ClassificationRequest, self._run(Model.classify)),
            "Regress": (regression_pb2.RegressionRequest, self._run(Model.regress)),
            "MultiInference": (inference_pb2.MultiInferenceRequest, self._multi_inference),
            "GetModelMetadata": (get_model_metadata_pb2.GetModelMetadataRequest, self._metadata),
        }
        models = {
            "GetModelStatus": (get_model_status_pb2.GetModelStatusRequest, self._status),
            "HandleReloadConfigRequest": (model_management_pb2.ReloadConfigRequest, self._reload),
        }
        return [
            grpc.method_handlers_generic_handler(
                f"tensorflow.serving.{service}",
                {name: self._method(name, *method) for name, method in methods.items()},
            )
            for service, methods in (("PredictionService", prediction), ("ModelService", models))
        ]

    def _method(self, name: str, kind: type[Message], handler: Handler) -> grpc.RpcMethodHandler:
        """Returns a method that parses its message itself.

        To gRPC it is one of a stream of messages, of which it takes the first: that is the same on
        the wire, and only so can the wait for a message have an end, and a message that is none an
        answer other than UNKNOWN and a traceback.
        """

        async def answer(
            messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext
        ) -> Message | None:
            start = time.perf_counter()
            model, failure = "", None
            with self._memory.share() as take:
                try:
                    message = await arrived(anext(messages, b""), self._seconds)
                    take(len(message))
                    wire.require_few_fields(message, kind.DESCRIPTOR, self._most_fields)
                    request = _parsed(kind, message)
                    if hasattr(request, "model_spec"):
                        model = request.model_spec.name
                    return await handler(request)
                except Exception as error:
                    failure = told(error)
                    # Not context.abort(): the call and what that raises would hold each other.
                    context.set_code(failure.code)
                    context.set_details(failure.message)
                    return None
                finally:
                    seconds = time.perf_counter() - start
                    code = failure.code if failure else None
                    if model == self._manager.name:
                        metrics.answered(model, name, "GRPC", code, seconds)
                    logging.vlog(
                        1, "gRPC %s from %s: %s in %.1f ms",
                        name, context.peer(), code.name if code else "OK", 1e3 * seconds,
                    )  # fmt: skip

        return grpc.stream_unary_rpc_method_handler(
            answer, response_serializer=lambda response: response.SerializeToString()
        )

    def _run(self, read: Callable[[Model, Message], Any]) -> Handler:
        async def run(request: Message) -> Message:
            return await self._manager.run(request.model_spec, lambda model: read(model, request))

        return run

    async def _metadata(self, request: get_model_metadata_pb2.GetModelMetadataRequest) -> Message:
        return self._manager.model(request.model_spec).metadata(request)

    async def _status(self, request: get_model_status_pb2.GetModelStatusRequest) -> Message:
        return self._manager.status(request.model_spec)

    async def _multi_inference(self, request: inference_pb2.MultiInferenceRequest) -> Message:
        message = "this server takes a Classify request for each of the tasks"
        raise RequestError(Code.INVALID_ARGUMENT, message)

    async def _reload(self, request: model_management_pb2.ReloadConfigRequest) -> Message:
        message = "this server reads its folder, and models.config in it, by itself"
        raise RequestError(Code.UNIMPLEMENTED, message)


def server(
    services: Services, max_request_bytes: int, max_connections: int, idle_seconds: float
) -> grpc.aio.Server:
    """Returns a server without a port.

    Args:
        services: what it offers.
        max_request_bytes: larger messages are refused by gRPC itself.
        max_connections: further ones are closed by gRPC itself.
        idle_seconds: how long a connection may take to begin, and be without a call.
    """
    options = [
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.so_reuseport", 0),  # else a second server takes the same port without a word
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", int(1e3 * idle_seconds)),
        ("grpc.max_connection_idle_ms", int(1e3 * idle_seconds)),
    ]
    built = grpc.aio.server(options=options)
    built.add_generic_rpc_handlers(services.handlers())
    return built


def _parsed(kind: type[Message], message: bytes) -> Message:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        text = f"the message is no {kind.DESCRIPTOR.name}"
        raise RequestError(Code.INVALID_ARGUMENT, text) from error
