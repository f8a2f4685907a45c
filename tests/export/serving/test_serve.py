"""How the embedded server starts and ends."""

import asyncio
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asking
import digits
import embedded
import grpc
import images
import pytest
import requests as http
import tensorflow as tf
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from refilled_tf.common.errors import InputError

pytestmark = pytest.mark.slow


def test_running_requests_are_answered_after_sigterm(version, tmp_path):
    asking.publish(version, tmp_path, 1)
    # 2**25 pixels each, as many as the graph takes: seconds of work.
    large = [images.black_png(2**13, 2**12)] * 8
    body = {"signature_name": "serving_bytes", "inputs": asking.as_json(large)}
    with (
        embedded.server(
            tmp_path, f"--max_request_pixels={8 * 2**25}", "--grace_seconds=250"
        ) as running,
        grpc.insecure_channel(running.grpc) as channel,
        ThreadPoolExecutor(2) as threads,
    ):
        url = f"{running.http}/v1/models/refilled"
        stub = PredictionServiceStub(channel)
        request = asking.predict_request("serving_bytes", {"image_bytes": large})
        by_grpc = threads.submit(stub.Predict, request)
        by_rest = threads.submit(http.post, f"{url}:predict", json=body)
        time.sleep(0.5)
        assert http.get(url, timeout=5).ok  # the loop answers all the while
        running.process.terminate()
        time.sleep(0.2)
        with pytest.raises(http.ConnectionError):
            http.get(url, timeout=5)
        assert not by_grpc.done()
        assert not by_rest.done()
        assert len(tf.make_ndarray(by_grpc.result().outputs["scores"])) == len(large)
        assert len(by_rest.result().json()["outputs"]["scores"]) == len(large)


def _start(base, *flags):
    """Runs a server that is not to come up; returns exit code, stdout and stderr's last line."""
    run = subprocess.run(
        [*embedded.COMMAND, f"--export_dir={base}", *flags],
        cwd=digits.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.returncode, run.stdout, run.stderr.splitlines()[-1]


def test_folder_without_versions(tmp_path):
    message = f"error: --export_dir={tmp_path / 'absent'} is not a folder"
    assert _start(tmp_path / "absent", "--port=0", "--grpc_port=0") == (1, "", message)

    async def refresh():
        await asking.manager(tmp_path).refresh()

    (tmp_path / "server").mkdir()
    with pytest.raises(InputError, match=f"--export_dir={tmp_path} holds no version"):
        asyncio.run(refresh())


def test_folder_with_nothing_but_a_broken_version(version, tmp_path):
    asking.publish(version, tmp_path, 1)
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"broken")
    message = f"error: no version in --export_dir={tmp_path} can be loaded"
    code, out, last = _start(tmp_path, "--port=0", "--grpc_port=0")
    assert (code, out) == (1, "")
    assert last.startswith(message)


def test_port_that_is_taken(base):
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        code, out, last = _start(base, f"--port={port}", "--grpc_port=0")
        assert (code, out) == (1, "")
        assert last.startswith(f"error: --host=localhost --port={port} cannot be listened on")
        code, out, last = _start(base, "--port=0", f"--grpc_port={port}")
        assert (code, out) == (1, "")
        assert last == f"error: --grpc_port={port} cannot be listened on"


@pytest.mark.skipif(not socket.has_ipv6, reason="the machine has no IPv6")
def test_ipv6(base):
    with embedded.server(base, "--host=::1") as running:
        assert running.http.startswith("http://[::1]:")
        assert running.grpc.startswith("[::1]:")
        assert http.get(f"{running.http}/v1/models/refilled").ok
        with grpc.insecure_channel(running.grpc) as channel:
            assert PredictionServiceStub(channel).Predict(asking.png_request()).outputs


def test_threads_that_runs_share(base):
    """TensorFlow starts as many as it is told, and one that idles where runs keep their caller's.

    A few more or fewer are gRPC's, which starts them as it goes.
    """
    counts = []
    for flags in ((), ("--tensorflow_inter_op_parallelism=20",)):
        with (
            embedded.server(base, *flags) as running,
            grpc.insecure_channel(running.grpc) as channel,
        ):
            assert PredictionServiceStub(channel).Predict(asking.png_request()).outputs
            counts.append(len(list(Path(f"/proc/{running.process.pid}/task").iterdir())))
    assert abs(counts[1] - counts[0] - (20 - 1)) < 5


def test_requests_are_logged_when_asked_for(base):
    with embedded.server(base, "--verbosity=1") as running:
        http.post(f"{running.http}/v1/models/refilled:predict", data=b"no JSON")
        with grpc.insecure_channel(running.grpc) as channel:
            PredictionServiceStub(channel).Predict(asking.png_request())
        running.wait_for_log(r"REST POST /v1/models/refilled:predict from \S+: 400 in [\d.]+ ms")
        running.wait_for_log(r"gRPC Predict from \S+: OK in [\d.]+ ms")
