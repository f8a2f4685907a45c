"""Errors of requests: one exception for gRPC and for REST."""

from __future__ import annotations

import asyncio

from absl import logging
from grpc import StatusCode as Code

# As TensorFlow Serving translates them; whatever is not here is the server's own fault.
HTTP_STATUS = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    # Here alone it differs: 429 would say that one caller asks too often. The server is full.
    Code.RESOURCE_EXHAUSTED: 503,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
}
LONGEST = 1000  # characters; gRPC sends messages as headers, which have to stay below 8 KB


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        code: what gRPC callers see.
        message: a line for a person.
        http_status: what REST callers see.
    """

    def __init__(self, code: Code, message: str, http_status: int | None = None):
        self.code = code
        self.http_status = http_status or HTTP_STATUS.get(code, 500)
        self.message = message if len(message) <= LONGEST else message[:LONGEST] + "…"
        super().__init__(self.message)


def require_valid(condition: bool, message: str) -> None:
    """Raises RequestError for an invalid argument with `message` unless `condition` holds."""
    if not condition:
        raise RequestError(Code.INVALID_ARGUMENT, message)


def told(error: Exception) -> RequestError:
    """Returns what a caller is told of an exception; what nobody has foreseen goes to the log.

    It is always a new exception. The old one holds the frames that it came through, and one of
    these often holds what the answer is put into: a circle, which keeps the request in memory.
    """
    if isinstance(error, RequestError):
        return RequestError(error.code, error.message, error.http_status)
    if isinstance(error, UnicodeEncodeError):  # JSON can spell half a character, "\ud800"
        return RequestError(Code.INVALID_ARGUMENT, f"a string is no Unicode: {error.reason}")
    if isinstance(error, ConnectionError):
        return RequestError(Code.CANCELLED, "the caller has hung up")
    if isinstance(error, asyncio.TimeoutError):
        return RequestError(Code.DEADLINE_EXCEEDED, "the request took too long")
    logging.error("A request failed unexpectedly.", exc_info=error)
    return RequestError(Code.INTERNAL, "internal error; the server's log says more")
