"""TensorFlow Serving's REST interface over a Manager."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from tensorflow_serving.apis.model_pb2 import ModelSpec

from export.serving import json_api
from export.serving.errors import Code, RequestError, told
from export.serving.manager import Manager
from export.serving.model import Model


def application(manager: Manager, max_request_bytes: int) -> web.Application:
    """Returns what answers /v1/models/….

    Args:
        manager: of the versions.
        max_request_bytes: larger bodies are refused.
    """

    async def status(request: web.Request) -> web.Response:
        return _reply(json_api.of_message(manager.status(_spec(request))))

    async def metadata(request: web.Request) -> web.Response:
        return _reply(await manager.run(_spec(request), json_api.metadata))

    def call(function: Callable[[Model, bytes], dict[str, Any]]):
        async def answer(request: web.Request) -> web.Response:
            body = await request.read()
            return web.Response(
                body=await manager.run(
                    _spec(request), lambda model: json.dumps(function(model, body))
                ),
                content_type="application/json",
            )

        return answer

    app = web.Application(client_max_size=max_request_bytes, middlewares=[_errors])
    for version in ("", r"/versions/{version:\d+}", "/labels/{label:[^/:]+}"):
        path = "/v1/models/{name:[^/:]+}" + version
        app.router.add_get(path, status)
        app.router.add_get(path + "/metadata", metadata)
        app.router.add_post(path + ":predict", call(json_api.predict))
        app.router.add_post(path + ":classify", call(json_api.classify))
    return app


@web.middleware
async def _errors(request: web.Request, handler) -> web.StreamResponse:
    """Answers {"error": message} when something goes wrong."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge as error:
        message = f"the request is larger than --max_request_bytes={request.client_max_size}"
        return _reply({"error": message}, error.status)
    except web.HTTPException:  # no such path, or not with this method
        message = f"Malformed request: {request.method} {request.path}"
        return _reply({"error": message}, 400)
    except Exception as error:
        failure = told(error)
        return _reply({"error": failure.message}, failure.http_status)


def _spec(request: web.Request) -> ModelSpec:
    parts = request.match_info
    spec = ModelSpec(name=parts["name"], version_label=parts.get("label"))
    if "version" in parts:
        try:
            spec.version.value = int(parts["version"])
        except ValueError as error:
            message = f"Failed to convert version: {parts['version']} to numeric."
            raise RequestError(Code.INVALID_ARGUMENT, message) from error
    return spec


def _reply(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(content, status=status)
