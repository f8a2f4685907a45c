"""The queue and its threads, with a run that is plain arithmetic: twice the number of a call."""

import asyncio
import contextlib
import threading

import pytest

from export.server_files import Batching
from export.serving.batching import Batcher, Call
from export.serving.errors import Code, RequestError


class Run:
    """Doubles numbers; keeps what it was called with, and can be held up."""

    def __init__(self):
        self.batches = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.began = threading.Event()

    def __call__(self, calls):
        self.batches.append([call.inputs for call in calls])
        self.began.set()
        assert self.goes_on.wait(30)
        if any(call.inputs < 0 for call in calls):
            raise RequestError(Code.INVALID_ARGUMENT, "a number is negative")
        return [2 * call.inputs for call in calls]


def _call(number, kind="numbers", rows=1, pixels=1):
    return Call(kind, number, rows, pixels, finish=str)


@contextlib.asynccontextmanager
async def _batcher(run, max_pixels=100, **batching):
    settings = {"max_batch_size": 4, "num_batch_threads": 1} | batching
    batcher = Batcher(run, Batching(**settings), max_pixels, "model")
    try:
        yield batcher
    finally:
        run.goes_on.set()
        await asyncio.to_thread(batcher.close)


async def _held_up(batcher, run):
    """Gives the only thread something that it does not get on with."""
    run.goes_on.clear()
    first = asyncio.create_task(batcher.answer(lambda: _call(1, kind="first")))
    assert await asyncio.to_thread(run.began.wait, 30)
    return first


async def _queued(batcher, *calls):
    tasks = [asyncio.create_task(batcher.answer(lambda call=call: call)) for call in calls]
    await asyncio.sleep(0)
    return tasks


def test_what_waits_is_joined_up_to_the_batch_size():
    async def story(run):
        async with _batcher(run) as batcher:
            first = await _held_up(batcher, run)
            tasks = await _queued(batcher, *map(_call, range(2, 8)))
            run.goes_on.set()
            return [await task for task in (first, *tasks)]

    run = Run()
    assert asyncio.run(story(run)) == ["2", "4", "6", "8", "10", "12", "14"]
    assert run.batches == [[1], [2, 3, 4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("calls", "batches"),
    [
        # Kinds do not mix, and the order stays.
        ([_call(2), _call(3, "others"), _call(4)], [[2], [3], [4]]),
        # None is joined with nothing.
        ([_call(2, None), _call(3, None)], [[2], [3]]),
        # 3 + 2 rows are more than 4; a call of 9 is a batch of its own.
        ([_call(2, rows=3), _call(3, rows=2), _call(4, rows=9)], [[2], [3], [4]]),
        # 60 + 50 pixels are more than 100.
        ([_call(2, pixels=60), _call(3, pixels=50), _call(4, pixels=50)], [[2], [3, 4]]),
    ],
)
def test_what_is_not_joined(calls, batches):
    async def story(run):
        async with _batcher(run) as batcher:
            first = await _held_up(batcher, run)
            tasks = await _queued(batcher, *calls)
            run.goes_on.set()
            await asyncio.gather(first, *tasks)

    run = Run()
    asyncio.run(story(run))
    assert run.batches[1:] == batches


def test_a_bad_call_fails_alone():
    async def story(run):
        async with _batcher(run) as batcher:
            first = await _held_up(batcher, run)
            tasks = await _queued(batcher, _call(2), _call(-1), _call(3))
            run.goes_on.set()
            await first
            return await asyncio.gather(*tasks, return_exceptions=True)

    two, error, three = asyncio.run(story(Run()))
    assert (two, three) == ("4", "6")
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "a number is negative")


def test_what_cannot_be_read_never_runs():
    def read():
        raise RequestError(Code.INVALID_ARGUMENT, "no number")

    async def story(run):
        async with _batcher(run) as batcher:
            with pytest.raises(RequestError, match="no number"):
                await batcher.answer(read)

    run = Run()
    asyncio.run(story(run))
    assert run.batches == []


def test_who_leaves_is_not_computed_and_makes_room():
    async def story(run):
        async with _batcher(run, max_batch_size=1, max_enqueued_batches=3) as batcher:
            first = await _held_up(batcher, run)
            left = await _queued(batcher, *map(_call, (2, 3, 4)))
            with pytest.raises(RequestError, match="3 requests are waiting") as full:
                await batcher.answer(lambda: _call(5))
            assert full.value.code == Code.RESOURCE_EXHAUSTED
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            (stayed,) = await _queued(batcher, _call(6))
            run.goes_on.set()
            return await first, await stayed

    run = Run()
    assert asyncio.run(story(run)) == ("2", "12")
    assert run.batches == [[1], [6]]


def test_deadline_takes_a_call_out_of_the_queue():
    async def story(run):
        async with _batcher(run) as batcher:
            first = await _held_up(batcher, run)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(batcher.answer(lambda: _call(2)), 0.01)
            run.goes_on.set()
            await first

    run = Run()
    asyncio.run(story(run))
    assert run.batches == [[1]]


def test_a_busy_machine_waits_for_company_and_an_idle_one_does_not():
    """One thread is held up; the other collects until its batch of 2 is full."""

    async def story(run):
        forever = 10**9
        settings = {"num_batch_threads": 2, "max_batch_size": 2, "batch_timeout_micros": forever}
        async with _batcher(run, **settings) as batcher:
            assert await batcher.answer(lambda: _call(1)) == "2"  # at once
            run.began.clear()
            first = await _held_up(batcher, run)
            (second,) = await _queued(batcher, _call(2))
            await asyncio.sleep(0.1)
            assert run.batches == [[1], [1]]
            (third,) = await _queued(batcher, _call(3))
            while len(run.batches) < 3:
                await asyncio.sleep(0.01)
            run.goes_on.set()
            await asyncio.gather(first, second, third)

    run = Run()
    asyncio.run(story(run))
    assert run.batches == [[1], [1], [2, 3]]


def test_closing_answers_what_waits():
    async def story(run):
        async with _batcher(run) as batcher:
            first = await _held_up(batcher, run)
            tasks = await _queued(batcher, _call(2), _call(3))
            closing = asyncio.create_task(asyncio.to_thread(batcher.close))
            run.goes_on.set()
            await closing
            return [await task for task in (first, *tasks)]

    assert asyncio.run(story(Run())) == ["2", "4", "6"]
