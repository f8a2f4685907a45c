"""The bytes of requests: how many are held at a time, and how a REST body is read and unpacked."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from aiohttp import web
from async_timeout import timeout

from export.serving.errors import Code, RequestError, require_valid

UNPACKING = 2  # bodies at a time

Content = TypeVar("Content")


class Memory:
    """A limit on the bytes of all requests together, from their arrival to their answer."""

    def __init__(self, limit: int):
        self._limit = limit
        self._taken = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that takes so many bytes more; all are given back at the end.

        The function raises RequestError where the limit would be passed.
        """
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._taken + count > self._limit:
                message = "the server is busy: the requests in its memory are too large"
                raise RequestError(Code.RESOURCE_EXHAUSTED, message)
            mine += count
            self._taken += count

        try:
            yield take
        finally:
            self._taken -= mine


async def arrived(arriving: Awaitable[Content], seconds: float) -> Content:
    """Waits for a body.

    Args:
        arriving: what waits for it.
        seconds: how long it may take.

    Raises:
        RequestError: it has not arrived in time.
    """
    try:
        # Not asyncio.wait_for: before Python 3.12 it forgets that a caller has hung up where that
        # happens just as the result comes.
        async with timeout(seconds):
            return await arriving
    except asyncio.TimeoutError as error:
        message = f"the request has not arrived within {seconds:g} seconds"
        raise RequestError(Code.DEADLINE_EXCEEDED, message, 408) from error


async def read(
    request: web.BaseRequest, limit: int, seconds: float, take: Callable[[int], None]
) -> bytes:
    """Reads a body, and unpacks it if it is gzip.

    Args:
        request: whose body it is.
        limit: in bytes, for the body as it comes and for what it holds.
        seconds: how long it may take to arrive.
        take: is told of every byte that is kept; of `Memory.share`.

    Raises:
        RequestError: the body passes the limit, of which no more than that much is read or
            unpacked, does not arrive in time or ends wrongly, is no gzip though it says so, or is
            packed by anything else.
    """
    packing = request.headers.get("Content-Encoding", "identity").lower()
    require_valid(
        packing in {"identity", "gzip"},
        f"Content-Encoding {packing:.50} is not understood; gzip is",
    )
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = await arrived(_received(request, limit, take), seconds)
    if packing == "identity":
        return body
    # In a thread, and few at a time: each takes its limit of memory before it is found too large.
    async with _unpacking:
        unpacked = await asyncio.to_thread(_unpacked, body, limit)
    take(len(unpacked))
    return unpacked


async def _received(request: web.BaseRequest, limit: int, take: Callable[[int], None]) -> bytes:
    """Returns a body as it comes."""
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            if len(body) + len(chunk) > limit:
                raise _too_large(limit)
            take(len(chunk))
            body += chunk
    except web.RequestPayloadError as error:
        raise RequestError(Code.INVALID_ARGUMENT, f"the body ends wrongly: {error}") from error
    return bytes(body)


def _too_large(limit: int) -> RequestError:
    message = f"the request is larger than --max_request_bytes={limit}"
    return RequestError(Code.INVALID_ARGUMENT, message, 413)


_unpacking = asyncio.Semaphore(UNPACKING)


def _unpacked(body: bytes, limit: int) -> bytes:
    """Unpacks gzip, no further than the limit."""
    packed = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        unpacked = packed.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(Code.INVALID_ARGUMENT, f"the body is no gzip: {error}") from error
    if len(unpacked) > limit:
        raise _too_large(limit)
    # A second member would be in order, but a megabyte of them could take minutes.
    require_valid(packed.eof and not packed.unused_data, "the body is no whole gzip, or more")
    return unpacked
