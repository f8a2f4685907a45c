"""Bodies against Python's own gzip, and the memory that requests share."""

import asyncio
import gzip

import pytest
from aiohttp import streams
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from export.serving import bodies
from export.serving.errors import Code, RequestError

LIMIT = 1000


def _read(content, packing=None, memory=None):
    async def story():
        stream = streams.StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
        for start in range(0, len(content), 100):
            stream.feed_data(content[start : start + 100])
        stream.feed_eof()
        headers = {"Content-Encoding": packing} if packing else {}
        request = make_mocked_request("POST", "/", headers=headers, payload=stream)
        with (memory or bodies.Memory(10 * LIMIT)).share() as take:
            return await bodies.read(request, LIMIT, 30, take)

    return asyncio.run(story())


@pytest.mark.parametrize("packing", [None, "identity", "gzip", "GZIP"])
def test_body_of_the_largest_size(packing):
    content = bytes(LIMIT)
    is_packed = packing in {"gzip", "GZIP"}
    assert _read(gzip.compress(content) if is_packed else content, packing) == content


@pytest.mark.parametrize("count", [LIMIT + 1, 500 * LIMIT])
def test_a_byte_more_is_too_large_in_either_form(count):
    for content, packing in ((bytes(LIMIT + 1), None), (gzip.compress(bytes(count)), "gzip")):
        with pytest.raises(RequestError, match="larger than --max_request_bytes") as caught:
            _read(content, packing)
        assert caught.value.http_status == 413


@pytest.mark.parametrize(
    ("content", "packing", "message"),
    [
        (b"{}", "gzip", "the body is no gzip: .*incorrect header"),
        (b"", "gzip", "the body is no whole gzip"),
        (gzip.compress(b"a", mtime=0)[:-1], "gzip", "the body is no whole gzip"),
        (gzip.compress(b"a", mtime=0) + b"b", "gzip", "the body is no whole gzip, or more"),
        (gzip.compress(b"a" * 99, mtime=0)[:10] + b"???", "gzip", "the body is no gzip"),
        (b"{}", "br", "Content-Encoding br is not understood; gzip is"),
    ],
)
def test_what_is_not_packed_as_it_says(content, packing, message):
    with pytest.raises(RequestError, match=message) as caught:
        _read(content, packing)
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_memory_is_given_back():
    memory = bodies.Memory(2 * LIMIT)
    with memory.share() as take:
        take(LIMIT + 1)
        with pytest.raises(RequestError, match="the server is busy") as caught:
            _read(bytes(LIMIT), memory=memory)
        assert caught.value.code == Code.RESOURCE_EXHAUSTED
    assert _read(bytes(LIMIT), memory=memory) == bytes(LIMIT)


def test_unpacked_bytes_count_too():
    with pytest.raises(RequestError, match="the server is busy"):
        _read(gzip.compress(bytes(LIMIT)), "gzip", bodies.Memory(LIMIT))
