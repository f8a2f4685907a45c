"""Requests that fail leave nothing behind that waits for Python's garbage collector.

It looks at old objects rarely, and until then the frames of an error keep its request in memory.
"""

import asyncio
import gc
import types
from pathlib import Path

import aiohttp
import grpc
import pytest
from aiohttp import web
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from export.server_files import Batching
from export.serving import bodies, grpc_api, images, rest
from export.serving.batching import Batcher, Call
from export.serving.errors import Code, RequestError

SERVING = str(Path(rest.__file__).parent)
COUNT = 20
CIRCLE = """
def keep():
    try:
        1 / 0
    except Exception as error:
        kept = error
keep()
"""


class Failing:
    """In a Manager's place: each request's image is none, or the run of its call fails."""

    name = "model"

    def __init__(self, read):
        self._read = read
        self.batcher = Batcher(_no_run, Batching(num_batch_threads=1), 100, self.name)

    async def run(self, spec, read):
        return await self.batcher.answer(self._read)


def _no_image():
    return images.read("image_bytes", [b"no image"])


def _call():
    return Call("kind", None, 1, 1, finish=str)


def _no_run(calls):
    raise RequestError(Code.INVALID_ARGUMENT, "nothing runs here")


async def _grpc(manager, count):
    services = grpc_api.Services(manager, bodies.Memory(2**20), 30.0, 1000)
    server = grpc_api.server(services, 2**20, 10, 60.0)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    codes = set()
    async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        for _ in range(count):
            try:
                await PredictionServiceStub(channel).Predict(PredictRequest())
            except grpc.RpcError as error:
                codes.add(error.code())
    await server.stop(None)
    return codes == {Code.INVALID_ARGUMENT}


async def _rest(manager, count):
    settings = rest.Settings(2**20, 30.0, 30.0, 60.0, 10, cors=False)
    runner = web.ServerRunner(rest.Rest(manager, bodies.Memory(2**20), settings).server())
    await runner.setup()
    await web.TCPSite(runner, "localhost", 0).start()
    host, port, *_ = runner.addresses[0]
    async with aiohttp.ClientSession() as session:
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1/models/model:predict"
        statuses = set()
        for _ in range(count):
            async with session.post(url, data=b"{}") as answer:
                statuses.add(answer.status)
    await runner.cleanup()
    return statuses == {400}


@pytest.mark.parametrize("read", [_no_image, _call])
@pytest.mark.parametrize("ask", [_grpc, _rest])
def test_failed_requests(ask, read):
    async def story(count):
        manager = Failing(read)
        failed = await ask(manager, count)
        await asyncio.to_thread(manager.batcher.close)
        return failed

    assert _frames_left(lambda: asyncio.run(story(COUNT))) == []


def test_what_is_kept_is_found():
    assert "keep" in _frames_left(lambda: exec(compile(CIRCLE, SERVING, "exec"), {}) is None)


def _frames_left(story):
    """Returns the names of the server's functions whose frames only the collector finds."""
    gc.collect()
    gc.disable()
    try:
        assert story()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        frames = [each for each in gc.garbage if isinstance(each, types.FrameType)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    codes = [frame.f_code for frame in frames]
    return [code.co_name for code in codes if code.co_filename.startswith(SERVING)]
