"""An embedded server: python -m export.serve --export_dir=exports.

For laptops and tests. It follows TensorFlow Serving's protocol, gRPC and REST, and takes up new
versions while it runs; in production run TensorFlow Serving itself, as EXPORT_DIR/server says.
SIGTERM and SIGINT let running requests finish.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

from absl import flags
from aiohttp import web

from export import MODEL_NAME
from export.serving import grpc_api, rest
from export.serving.manager import Manager
from refilled_tf.entry import run_main
from refilled_tf.errors import InputError, require

FLAGS = flags.FLAGS
flags.DEFINE_string("export_dir", None, "The folder of the versions.", required=True)
flags.DEFINE_string("host", "localhost", "Where to listen; 0.0.0.0 for other machines too.")
flags.DEFINE_integer("port", 8501, "For REST; 0 for any.", 0, 65535)
flags.DEFINE_integer("grpc_port", 8500, "For gRPC; 0 for any.", 0, 65535)
flags.DEFINE_string("model_name", MODEL_NAME, "In addresses: /v1/models/NAME.")
flags.DEFINE_float("poll_seconds", 1.0, "How often to look for new versions.", 0.01)
flags.DEFINE_integer("max_request_bytes", 2**25, "The largest request.", 1)
flags.DEFINE_integer("max_batch_size", 128, "The most images in a request.", 1)
flags.DEFINE_float("grace_seconds", 30.0, "How long requests may go on after SIGTERM.", 0.0)


def main(argv: list[str]) -> None:
    """Serves until a signal comes."""
    require(len(argv) == 1, f"unexpected argument {argv[1:]}; every option is a --flag")
    asyncio.run(_serve())


async def _serve() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    manager = Manager(
        Path(FLAGS.export_dir), FLAGS.model_name, FLAGS.max_batch_size, os.cpu_count() or 1
    )
    rest_socket = _listening(FLAGS.host, FLAGS.port)
    address, rest_port = rest_socket.getsockname()
    grpc_server = grpc_api.server(manager, FLAGS.max_request_bytes)
    try:
        # The number, since a name may have several, of which gRPC is content with any free one.
        grpc_port = grpc_server.add_insecure_port(f"{address}:{FLAGS.grpc_port}")
    except RuntimeError as error:
        raise InputError(f"--grpc_port={FLAGS.grpc_port} cannot be listened on") from error

    await manager.refresh()
    require(
        bool(manager.available()), f"no version in --export_dir={FLAGS.export_dir} can be loaded"
    )
    watching = asyncio.create_task(manager.watch(FLAGS.poll_seconds))
    runner = web.AppRunner(
        rest.application(manager, FLAGS.max_request_bytes),
        access_log=None,
        shutdown_timeout=FLAGS.grace_seconds,
    )
    await runner.setup()
    await web.SockSite(runner, rest_socket).start()
    await grpc_server.start()
    print(
        f"Serving {FLAGS.model_name} at http://{FLAGS.host}:{rest_port} and "
        f"grpc://{FLAGS.host}:{grpc_port}",
        flush=True,
    )
    await stop.wait()
    watching.cancel()
    await asyncio.gather(grpc_server.stop(FLAGS.grace_seconds), runner.cleanup())
    await manager.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise InputError(f"--host={host} --port={port} cannot be listened on: {error}") from error


if __name__ == "__main__":
    run_main(main)
