"""An embedded server: python -m export.serve --export_dir=exports.

For laptops and tests. It follows TensorFlow Serving's protocol, gRPC and REST, and takes up new
versions while it runs; in production run TensorFlow Serving itself, as EXPORT_DIR/server says.
SIGTERM and SIGINT let running requests finish.
"""

from __future__ import annotations

import asyncio
import logging as python_logging
import resource
import signal
import socket
import sys
from pathlib import Path

from absl import flags
from etils import epy

from export import MODEL_NAME
from refilled_tf.common.entry import no_arguments, run_main
from refilled_tf.common.errors import InputError, require

with epy.lazy_imports():
    from export import server_files
    from export.serving import bodies, grpc_api, logs, manager, model, rest

FLAGS = flags.FLAGS
flags.DEFINE_string("export_dir", None, "The folder of the versions.", required=True)
flags.DEFINE_string(
    "host", "localhost", "Where to listen; 0.0.0.0, or :: for IPv6, for other machines too."
)
flags.DEFINE_integer("port", 8501, "For REST; 0 for any.", 0, 65535)
flags.DEFINE_integer("grpc_port", 8500, "For gRPC; 0 for any.", 0, 65535)
flags.DEFINE_string("model_name", MODEL_NAME, "In addresses: /v1/models/NAME.")
flags.DEFINE_float("poll_seconds", 1.0, "How often to look for new versions.", 0.01)
flags.DEFINE_integer("max_request_bytes", 2**25, "The largest request.", 1)
flags.DEFINE_integer("max_batch_size", 128, "The most images in a request.", 1)
flags.DEFINE_integer(
    "max_request_pixels", 2**25, "The most pixels of all images in a request: 128 of 512 × 512.", 1
)
flags.DEFINE_integer("max_memory_bytes", 2**28, "The most bytes of all requests at a time.", 1)
flags.DEFINE_integer("max_connections", 512, "The most for REST, and the most for gRPC.", 1)
flags.DEFINE_float("idle_seconds", 60.0, "How long a connection may be without a request.", 0.1)
flags.DEFINE_float("body_seconds", 30.0, "How long a request's content may take to arrive.", 0.1)
flags.DEFINE_integer("rest_api_timeout_in_ms", 30_000, "How long an answer over REST may take.", 1)
flags.DEFINE_bool("rest_api_enable_cors_support", False, "Whether pages of others may ask.")
flags.DEFINE_bool("enable_batching", True, "Whether requests that arrive together are joined.")
flags.DEFINE_string(
    "batching_parameters_file", None, "How; EXPORT_DIR/server/batching.config if unset."
)
flags.DEFINE_integer(
    "tensorflow_intra_op_parallelism",
    1,
    "The threads of one operation. More of them answer the lone caller of a large network sooner.",
    1,
)
flags.DEFINE_integer(
    "tensorflow_inter_op_parallelism",
    -1,
    "The threads that the operations of all runs share; -1 keeps a run in the thread of its batch.",
    -1,
)
flags.DEFINE_float("grace_seconds", 30.0, "How long requests may go on after SIGTERM.", 0.0)

SWITCH_SECONDS = 0.0005
BACKLOG = 64  # connections that may wait to be accepted, which asyncio then does at once
OTHER_FILES = 64 + BACKLOG  # that the process has open beside its connections


def check(argv: list[str]) -> None:
    """Rejects folders and files that are not there."""
    no_arguments(argv)
    require(Path(FLAGS.export_dir).is_dir(), f"--export_dir={FLAGS.export_dir} is not a folder")
    given = FLAGS.batching_parameters_file
    require(
        given is None or Path(given).is_file(), f"--batching_parameters_file={given} is not a file"
    )


def main(_: list[str]) -> None:
    """Serves until a signal comes."""
    for handler in python_logging.getLogger().handlers:
        handler.addFilter(logs.OncePerMinute())
    # Threads that read requests must not keep the loop from seeing who has hung up.
    sys.setswitchinterval(SWITCH_SECONDS)
    asyncio.run(_serve())


async def _serve() -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    limits = model.Limits(FLAGS.max_batch_size, FLAGS.max_request_pixels, FLAGS.max_request_bytes)
    versions = manager.Manager(
        Path(FLAGS.export_dir),
        FLAGS.model_name,
        limits,
        _batching(),
        model.Threads(FLAGS.tensorflow_intra_op_parallelism, FLAGS.tensorflow_inter_op_parallelism),
    )
    memory = bodies.Memory(FLAGS.max_memory_bytes)
    connections = _connections()
    settings = rest.Settings(
        max_bytes=FLAGS.max_request_bytes,
        body_seconds=FLAGS.body_seconds,
        seconds=FLAGS.rest_api_timeout_in_ms / 1e3,
        idle_seconds=FLAGS.idle_seconds,
        max_connections=connections,
        cors=FLAGS.rest_api_enable_cors_support,
    )
    rest_server = rest.Rest(versions, memory, settings).server()
    rest_socket = _listening(FLAGS.host, FLAGS.port)
    address, rest_port = rest_socket.getsockname()[:2]
    grpc_server = grpc_api.server(
        grpc_api.Services(versions, memory, FLAGS.body_seconds, limits.values),
        FLAGS.max_request_bytes,
        connections,
        FLAGS.idle_seconds,
    )
    try:
        # The number, since a name may have several, of which gRPC is content with any free one.
        grpc_port = grpc_server.add_insecure_port(f"{_bracketed(address)}:{FLAGS.grpc_port}")
    except RuntimeError as error:
        raise InputError(f"--grpc_port={FLAGS.grpc_port} cannot be listened on") from error

    await versions.refresh()
    require(
        bool(versions.available()), f"no version in --export_dir={FLAGS.export_dir} can be loaded"
    )
    watching = asyncio.create_task(versions.watch(FLAGS.poll_seconds))
    rest_listener = await loop.create_server(rest_server, sock=rest_socket, backlog=BACKLOG)
    await grpc_server.start()
    host = _bracketed(FLAGS.host)
    print(
        f"Serving {FLAGS.model_name} at http://{host}:{rest_port} and grpc://{host}:{grpc_port}",
        flush=True,
    )
    await stop.wait()
    watching.cancel()
    rest_listener.close()
    rest_server.pre_shutdown()
    await asyncio.gather(
        grpc_server.stop(FLAGS.grace_seconds), rest_server.shutdown(FLAGS.grace_seconds)
    )
    await versions.close()


def _batching() -> server_files.Batching:
    given = FLAGS.batching_parameters_file
    path = Path(given or Path(FLAGS.export_dir) / server_files.FOLDER / server_files.BATCHING_NAME)
    batching = server_files.read_batching(path)
    # A batch of one is closed at once.
    return batching if FLAGS.enable_batching else batching.alone()


def _connections() -> int:
    """Returns how many connections each of the two ports may have.

    Without a file to open for a connection it could not even be refused.
    """
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OTHER_FILES + 2 * FLAGS.max_connections
    if files != resource.RLIM_INFINITY and files < wanted:
        files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(1, min(wanted, files if files > 0 else wanted) - OTHER_FILES) // 2


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listening(host: str, port: int) -> socket.socket:
    try:
        families = {each[0] for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise InputError(f"--host={host} --port={port} cannot be listened on: {error}") from error


if __name__ == "__main__":
    run_main(main, check)
