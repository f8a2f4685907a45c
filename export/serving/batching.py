"""The queue of a version: requests that wait, and the threads that answer them in batches.

Under load requests join: while all threads are at work those that arrive wait, and the next thread
takes up to a batch of them. A lone request finds an idle thread and does not wait for company.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from export.server_files import Batching
from export.serving import metrics
from export.serving.errors import Code, RequestError, told

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Call(Generic[Answer]):
    """A request that has been read and found valid.

    Attributes:
        kind: calls that are equal in this may be answered by one run; None for one that may not
            be joined with any.
        inputs: what the run needs.
        rows: how many examples or images it holds.
        pixels: of all its images before they are resized.
        finish: from the outputs of the run to the answer.
    """

    kind: Any
    inputs: Any
    rows: int
    pixels: int
    finish: Callable[[Any], Answer]


@dataclasses.dataclass(eq=False)
class _Waiting:
    """A request in the queue."""

    read: Callable[[], Call]
    future: asyncio.Future
    since: float
    _known: Call | None = None

    @property
    def call(self) -> Call:
        """The call that `read` makes, once for all."""
        if self._known is None:
            self._known = self.read()
        return self._known


class Batcher:
    """Answers requests in threads of its own; callers are on the loop.

    A request leaves the queue when its caller does: cancelling the future is enough.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Call]], list],
        batching: Batching,
        max_pixels: int,
        model: str,
    ):
        """Starts the threads.

        Args:
            run: from calls of one kind to the outputs of each.
            batching: how many requests join, how long they wait for each other, and how many may.
            max_pixels: a batch holds no more, unless a single call does.
            model: its name, for the metrics.
        """
        self._run = run
        self._batching = batching
        self._max_pixels = max_pixels
        self._model = model
        self._queue: collections.OrderedDict[asyncio.Future, _Waiting] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._busy = 0  # threads that are running a batch
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch {number}", daemon=True)
            for number in range(batching.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    async def answer(self, read: Callable[[], Call[Answer]]) -> Answer:
        """Waits for a request's turn and answers it.

        Args:
            read: makes a call of the request, in one of the threads; may take its time.

        Raises:
            RequestError: the queue is full, or `read` or the run say so.
        """
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._leave)
        with self._changed:
            if len(self._queue) >= self._batching.capacity:
                raise RequestError(
                    Code.RESOURCE_EXHAUSTED,
                    f"the server is busy: {len(self._queue)} requests are waiting; try again later",
                )
            self._queue[future] = _Waiting(read, future, time.monotonic())
            self._changed.notify()
        try:
            return await future
        finally:
            del future  # an error of the future holds this frame

    def close(self) -> None:
        """Lets the threads finish what is waiting, and waits for them to end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _leave(self, future: asyncio.Future) -> None:
        with self._changed:
            self._queue.pop(future, None)

    def _work(self) -> None:
        while batch := self._collect():
            # Some callers may have left meanwhile.
            batch = [each for each in batch if not each.future.done()]
            for each in batch:
                metrics.waited(self._model, each.call.rows, time.monotonic() - each.since)
            with self._changed:
                self._busy += 1
            try:
                _deliver(batch, self._results([each.call for each in batch]))
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _collect(self) -> list[_Waiting]:
        """Returns the next requests to run together; none once the batcher is closed."""
        batch: list[_Waiting] = []
        until = None
        while sum(each.call.rows for each in batch) < self._batching.max_batch_size:
            taken = self._take(until)
            if taken is None:
                break
            call = self._read(taken)
            if call is None:
                continue
            if batch and not self._fits(batch, call):
                self._put_back(taken)
                break
            batch.append(taken)
            until = until or time.monotonic() + self._batching.batch_timeout_micros / 1e6
        return batch

    def _take(self, until: float | None) -> _Waiting | None:
        """Takes the next request out of the queue.

        Args:
            until: how long to wait for one, by the monotonic clock; for ever if None. Company is
                only worth waiting for while the machine is at work anyway, so with a time it
                returns at once where no other thread is running a batch.

        Returns:
            The request; None if none has come, or the batcher is closed.
        """
        with self._changed:
            while not self._queue:
                left = None if until is None else until - time.monotonic()
                if self._closed or (left is not None and (left <= 0 or not self._busy)):
                    return None
                self._changed.wait(left)
            return self._queue.popitem(last=False)[1]

    def _put_back(self, taken: _Waiting) -> None:
        """Makes a request the next again, for any thread."""
        with self._changed:
            if not taken.future.done():
                self._queue[taken.future] = taken
                self._queue.move_to_end(taken.future, last=False)
                self._changed.notify()

    def _read(self, taken: _Waiting) -> Call | None:
        """Makes a call of a request; where that fails it is answered with the error."""
        if taken.future.done():
            return None
        try:
            return taken.call
        except Exception as error:
            _deliver([taken], [told(error)])
            return None

    def _fits(self, batch: Sequence[_Waiting], call: Call) -> bool:
        calls = [each.call for each in batch] + [call]
        return (
            call.kind is not None
            and call.kind == calls[0].kind
            and sum(each.rows for each in calls) <= self._batching.max_batch_size
            and sum(each.pixels for each in calls) <= self._max_pixels
        )

    def _results(self, calls: Sequence[Call]) -> list:
        """Returns the answer of each call, or the error that its caller is to be told."""
        if not calls:
            return []
        try:
            return [
                call.finish(outputs) for call, outputs in zip(calls, self._run(calls), strict=True)
            ]
        except Exception as error:
            if len(calls) == 1:
                return [told(error)]
        # One bad image fails a whole run. Alone, only its own request fails.
        return [result for call in calls for result in self._results([call])]


def _deliver(batch: Sequence[_Waiting], results: Sequence) -> None:
    """Hands results to the callers, all in one turn of the loop."""

    def deliver() -> None:
        for each, result in zip(batch, results, strict=True):
            if each.future.done():
                continue
            if isinstance(result, RequestError):
                each.future.set_exception(result)
            else:
                each.future.set_result(result)

    if batch:
        batch[0].future.get_loop().call_soon_threadsafe(deliver)
