r"""Requests a second of the embedded server: joined into batches or each by itself, in one run.

    python -m benchmarks.serving --export_dir=exports

All servers run on this machine, as does what asks them: so many clients, each with a connection of
its own over which it sends one image after another, and waits for each answer. The servers take
turns, round by round; what is printed comes from all rounds together. "one by one" is
`export.serve --noenable_batching`; "in threads" besides lets TensorFlow spread each run over as
many threads as there are cores, as it does by itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
from absl import flags

from benchmarks.training import line
from refilled_tf.common.entry import run_main
from refilled_tf.common.errors import InputError

# The last is compared with each of the others.
WAYS = {
    "in threads": (
        "--noenable_batching",
        f"--tensorflow_intra_op_parallelism={os.cpu_count()}",
        f"--tensorflow_inter_op_parallelism={os.cpu_count()}",
    ),
    "one by one": ("--noenable_batching",),
    "batches": ("--enable_batching",),
}
HEADER = ("clients", "server", "requests/s", "p50, ms", "p99, ms")

FLAGS = flags.FLAGS


def main(_: list[str]) -> None:
    request = http_request(Path(FLAGS.image).read_bytes())
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(
        f"{FLAGS.rounds} rounds of {FLAGS.seconds} s on {os.cpu_count()} cores; load before the "
        f"start {loads} (1, 5, 15 minutes).\n"
    )
    print(line(HEADER))
    print("| ---: | --- |" + " ---: |" * (len(HEADER) - 2))
    with contextlib.ExitStack() as stack:
        ports = {way: stack.enter_context(running(options)) for way, options in WAYS.items()}
        for count in map(int, FLAGS.clients):
            measured = {way: [] for way in WAYS}
            for number in range(FLAGS.rounds + 1):
                for way, port in ports.items():
                    seconds = asyncio.run(ask(port, request, count))
                    if number:  # the first round warms up
                        measured[way].append(seconds)
            for way, rounds in measured.items():
                print(line(row(count, way, rounds)), flush=True)
            *others, last = WAYS
            for way in others:
                print_ratios(f"{last} / {way}", cells(measured[way]), cells(measured[last]))


def row(count: int, way: str, rounds: list[list[float]]) -> list[str]:
    """Returns a line's cells."""
    rate, p50, p99 = cells(rounds)
    return [str(count), way, f"{rate:.0f}", f"{p50:.1f}", f"{p99:.1f}"]


def cells(rounds: list[list[float]]) -> tuple[float, float, float]:
    """Returns requests a second in the median round, and percentiles of all in milliseconds."""
    everything = np.concatenate(rounds)
    rate = np.median([len(each) / FLAGS.seconds for each in rounds])
    return rate, *(1e3 * np.percentile(everything, [50, 99]))


def print_ratios(name: str, before: tuple, after: tuple) -> None:
    """Prints how one way compares with another."""
    rate, p50, p99 = (theirs / ours for ours, theirs in zip(before, after, strict=True))
    print(line(["", name, f"{rate:.2f}", f"{p50:.2f}", f"{p99:.2f}"]), flush=True)


@contextlib.contextmanager
def running(options: Iterable[str]) -> Iterator[int]:
    """Runs a server with options; yields its port for REST."""
    command = [sys.executable, "-m", "export.serve", f"--export_dir={FLAGS.export_dir}"]
    with subprocess.Popen(
        [*command, "--host=127.0.0.1", "--port=0", "--grpc_port=0", *options],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            if found is None:
                raise InputError(f"no server could be started on --export_dir={FLAGS.export_dir}")
            yield int(found[1])
        finally:
            process.terminate()


def http_request(image: bytes) -> bytes:
    """Returns a request for the classes of an image, as it goes over the wire."""
    encoded = {"b64": base64.b64encode(image).decode()}
    body = json.dumps({"signature_name": "serving_bytes", "instances": [encoded]}).encode()
    head = "POST /v1/models/refilled:predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(port: int, request: bytes, clients: int) -> list[float]:
    """Asks for as long as a round lasts; returns how long each answer took, in seconds."""
    loop, end = asyncio.get_running_loop(), time.perf_counter() + FLAGS.seconds
    asking = []
    for _ in range(clients):
        _, client = await loop.create_connection(lambda: _Client(request, end), "127.0.0.1", port)
        asking.append(client)
    return [seconds for client in asking for seconds in await client.done]


class _Client(asyncio.Protocol):
    """Sends a request over and over.

    A library's client would need as much of the processor as the server.

    Attributes:
        done: how long each answer took.
    """

    def __init__(self, request: bytes, end: float):
        self.done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._request = request
        self._end = end
        self._taken: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, _, body = self._answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if length is None or len(body) < int(length[1]):
            return
        self._taken.append(time.perf_counter() - self._start)
        if not head.startswith(b"HTTP/1.1 200 "):
            self.done.set_exception(InputError(f"the server answers {self._answer!r:.200}"))
            self._transport.close()
        elif time.perf_counter() < self._end:
            self._ask()
        else:
            self.done.set_result(self._taken)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(InputError("the server has hung up"))

    def _ask(self) -> None:
        self._answer, self._start = b"", time.perf_counter()
        self._transport.write(self._request)


# Here, so that the module can be imported beside others with flags of these names.
if __name__ == "__main__":
    flags.DEFINE_string("export_dir", None, "The folder of the versions.", required=True)
    flags.DEFINE_string("image", "docs/digit.png", "What is asked for.")
    flags.DEFINE_list("clients", ["1", "8", "32"], "How many at a time.")
    flags.DEFINE_float("seconds", 3.0, "How long a round lasts.", lower_bound=0.1)
    flags.DEFINE_integer("rounds", 5, "Measured, after one of warming up.", lower_bound=1)
    run_main(main)
