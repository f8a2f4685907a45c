"""The bytes of requests: how many are held at a time, and how a REST body is read and unpacked."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator

from aiohttp import web

from export.serving.errors import Code, RequestError, require_valid


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


class TooLargeError(Exception):
    """A body is larger than it may be."""


async def read(request: web.BaseRequest, limit: int, take: Callable[[int], None]) -> bytes:
    """Reads a body, and unpacks it if it is gzip.

    Args:
        request: whose body it is.
        limit: in bytes, for the body as it comes and for what it holds.
        take: is told of every byte that is kept; of `Memory.share`.

    Raises:
        TooLargeError: the body passes the limit; no more than that much of it is read or unpacked.
        RequestError: it is no gzip though it says so, is packed by anything else, or `take` says
            so.
    """
    packing = request.headers.get("Content-Encoding", "identity").lower()
    require_valid(
        packing in {"identity", "gzip"},
        f"Content-Encoding {packing:.50} is not understood; gzip is",
    )
    if (request.content_length or 0) > limit:
        raise TooLargeError
    body = bytearray()
    async for chunk in request.content.iter_any():
        if len(body) + len(chunk) > limit:
            raise TooLargeError
        take(len(chunk))
        body += chunk
    if packing == "identity":
        return bytes(body)
    unpacked = await asyncio.to_thread(_unpacked, bytes(body), limit)
    take(len(unpacked))
    return unpacked


def _unpacked(body: bytes, limit: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            unpacked = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(Code.INVALID_ARGUMENT, f"the body is no gzip: {error}") from error
    if len(unpacked) > limit:
        raise TooLargeError
    return unpacked
