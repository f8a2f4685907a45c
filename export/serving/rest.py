"""TensorFlow Serving's REST interface over a Manager."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import time
import urllib.parse
from typing import Any

from absl import logging
from aiohttp import web
from async_timeout import timeout
from tensorflow_serving.apis.model_pb2 import ModelSpec

from export.serving import bodies, json_api, metrics
from export.serving.bodies import Memory
from export.serving.errors import Code, RequestError, require_valid, told
from export.serving.manager import Manager

METHODS = {
    "predict": json_api.predict,
    "classify": json_api.classify,
    "regress": json_api.regress,
}
_MODEL = r"(?i)/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
POST = re.compile(rf"{_MODEL}:(?P<method>{'|'.join(METHODS)})")
GET = re.compile(rf"{_MODEL}(?P<metadata>/metadata)?")
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of a REST call: what may be asked for, and how long it may take.

    Attributes:
        max_bytes: larger bodies are refused, packed or unpacked.
        body_seconds: how long a body may take to arrive.
        seconds: how long a request may wait for its answer once it is there.
        idle_seconds: how long a connection may take to send a head, the first or a further one.
        max_connections: further ones are refused.
        cors: whether pages of other origins may ask.
    """

    max_bytes: int
    body_seconds: float
    seconds: float
    idle_seconds: float
    max_connections: int
    cors: bool


class Rest:
    """Answers HTTP requests."""

    def __init__(self, manager: Manager, memory: Memory, settings: Settings):
        self._manager = manager
        self._memory = memory
        self._settings = settings

    def server(self) -> web.Server:
        """Returns a server without a port: a factory of protocols for asyncio."""
        return _Server(
            self._settings.max_connections,
            self._answer,
            handler_cancellation=True,  # who hangs up leaves the queue
            keepalive_timeout=self._settings.idle_seconds,
            lingering_time=self._settings.body_seconds,  # for what is not read of a refused body
            auto_decompress=False,  # which would be on the loop, and in full
            access_log=None,
        )

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        """Answers {"error": message} when something goes wrong; counts and logs the request."""
        start = time.perf_counter()
        path = request.rel_url.raw_path
        asked = POST.fullmatch(path) if request.method == "POST" else None
        code = None
        try:
            if self._settings.cors and request.method == "OPTIONS":
                response = _preflight(request)
            elif asked:
                response = await self._call(request, asked)
            else:
                response = self._look_up(request, path)
        except Exception as error:
            failure = told(error)
            code = failure.code
            response = _reply({"error": failure.message}, failure.http_status)
        if self._settings.cors:
            response.headers.update(CORS)
        seconds = time.perf_counter() - start
        if asked and asked["name"] == self._manager.name:
            api = asked["method"].capitalize()
            metrics.answered(self._manager.name, api, "REST", code, seconds)
        logging.vlog(
            1, "REST %s %s from %s: %d in %.1f ms",
            request.method, path, request.remote, response.status, 1e3 * seconds,
        )  # fmt: skip
        return response

    async def _call(self, request: web.BaseRequest, asked: re.Match) -> web.Response:
        read, spec = METHODS[asked["method"].lower()], _spec(asked)
        with self._memory.share() as take:
            body = await bodies.read(
                request, self._settings.max_bytes, self._settings.body_seconds, take
            )
            async with timeout(self._settings.seconds):
                content = await self._manager.run(spec, lambda model: read(model, body))
        return web.Response(body=content, content_type="application/json")

    def _look_up(self, request: web.BaseRequest, path: str) -> web.Response:
        """Answers what takes no time."""
        if request.method == "GET" and path == metrics.PATH:
            return web.Response(body=metrics.page(), content_type="text/plain")
        if not path.lower().startswith("/v1/"):
            raise RequestError(Code.NOT_FOUND, f"there is nothing at {path}")
        asked = GET.fullmatch(path) if request.method == "GET" else None
        if asked is None:
            raise RequestError(Code.INVALID_ARGUMENT, f"Malformed request: {request.method} {path}")
        if asked["metadata"]:
            return _reply(json_api.metadata(self._manager.model(_spec(asked))))
        return _reply(json_api.of_message(self._manager.status(_spec(asked))))


class _Server(web.Server):
    """Rejects connections when there are too many."""

    def __init__(self, max_connections: int, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > self._max_connections:
            body = b'{"error": "the server is busy: it has too many connections"}'
            head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            transport.write(head.encode() + body)
            transport.close()


def _preflight(request: web.BaseRequest) -> web.Response:
    """Answers a browser that asks whether it may ask."""
    origin = request.headers.get("Origin", "")
    require_valid(
        origin.startswith(("http://", "https://")), "Origin header is missing in CORS preflight"
    )
    return _reply({})


def _spec(asked: re.Match) -> ModelSpec:
    name, version, label = (asked[part] for part in ("name", "version", "label"))
    spec = ModelSpec(name=urllib.parse.unquote(name))
    if label is not None:
        spec.version_label = urllib.parse.unquote(label)
    if version is not None:
        require_valid(int(version) < 2**63, f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    return spec


def _reply(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        body=json.dumps(content).encode(), status=status, content_type="application/json"
    )
