"""What a hostile network does: bombs, slow callers, callers who are gone, full queues.

None of these is timed but for what must be over long before it would be without the remedy.
"""

import gzip
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import asking
import embedded
import grpc
import images
import pytest
import requests as http
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

pytestmark = pytest.mark.slow

CONNECTIONS = 12  # of the fixture `narrow`
BODY = {"signature_name": "serving_bytes", "instances": [asking.PNG]}


@pytest.fixture(scope="module")
def server(base):
    with embedded.server(base, "--idle_seconds=2", "--body_seconds=1") as running:
        yield running


def _connect(server, content=b""):
    place = urlsplit(server.http)
    connection = socket.create_connection((place.hostname, place.port), 30)
    connection.sendall(content)
    return connection


def _post(server, body, **headers):
    url = f"{server.http}/v1/models/refilled:predict"
    return http.post(url, data=body, headers=headers, timeout=60)


def _figure(server, name):
    """Returns a figure of the server's metrics."""
    page = http.get(f"{server.http}/monitoring/prometheus/metrics", timeout=60).text
    found = [line for line in page.splitlines() if line.startswith(f":tensorflow:serving:{name}")]
    return sum(float(line.split()[-1]) for line in found)


def _head(length):
    return (
        b"POST /v1/models/refilled:predict HTTP/1.1\r\nHost: x\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )


def test_gzip_bombs_hold_up_no_one_and_take_no_memory(server):
    """A megabyte that becomes a gigabyte, of which 32 MB may be unpacked, two at a time."""
    bomb = gzip.compress(bytes(2**30))
    for _ in range(3):
        assert _post(server, bomb, **{"Content-Encoding": "gzip"}).status_code == 413
    before = server.memory()
    with ThreadPoolExecutor(6) as threads:
        bombs = [
            threads.submit(_post, server, bomb, **{"Content-Encoding": "gzip"}) for _ in range(20)
        ]
        while not all(each.done() for each in bombs):
            assert _post(server, json.dumps(BODY)).ok
            assert server.memory() < before + 600  # MB; all twenty would be 20 GB
        assert {each.result().status_code for each in bombs} == {413}


@pytest.mark.parametrize(
    "many",
    [b"[],", b"[0,0],", b"{},", b'"ab",', b"0,", b"null,", b'{"b64":""},'],
    ids=["lists", "pairs", "objects", "strings", "numbers", "nulls", "base64"],
)
def test_bodies_of_many_small_values_take_no_memory(many, server):
    """Some 30 kB that unpack to 32 MB. As Python's objects they were a gigabyte."""
    count = (2**25 - 100) // len(many)
    for start, end in ((b'{"instances": [', b"0]}"), (b'{"instances": [[', b"0]]}")):
        body = gzip.compress(start + many * count + end)
        server.peak()
        before = server.memory()
        assert _post(server, body, **{"Content-Encoding": "gzip"}).status_code == 400
        assert server.peak() < before + 250  # MB, of which the body is 32 as bytes and as text
    assert _post(server, json.dumps(BODY)).ok


@pytest.mark.parametrize(
    ("begun", "status"),
    [
        (b"", None),
        (b"POST /v1/models/refilled:predict HTTP/1.1\r\nHost", None),
        (_head(100) + b"{", b"408"),
        (b"GET /v1/models/refilled HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
    ],
    ids=["nothing", "half a head", "half a body", "kept alive"],
)
def test_connections_that_go_on_to_nothing_are_closed(begun, status, server):
    with _connect(server, begun) as connection:
        answer = b""
        while block := connection.recv(2**16):  # times out where it is never closed
            answer += block
    assert answer[9:12] == (status or b"")


def test_grpc_calls_without_a_message_end(server):
    with grpc.insecure_channel(server.grpc) as channel:

        def never():
            time.sleep(30)
            yield b""

        call = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            call(never(), timeout=20)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert caught.value.details() == "the request has not arrived within 1 seconds"


@pytest.fixture(scope="module")
def narrow(base, tmp_path_factory):
    """A server with few connections that works on one request at a time and lets two wait."""
    path = tmp_path_factory.mktemp("narrow") / "batching.config"
    path.write_text(
        "max_batch_size { value: 1 } num_batch_threads { value: 1 }\n"
        "max_enqueued_batches { value: 2 }\n"
    )
    flags = (f"--batching_parameters_file={path}", f"--max_connections={CONNECTIONS}")
    with embedded.server(base, *flags) as running:
        yield running


SLOW = images.black_png(2**13, 2**12)  # a second's work


def test_more_connections_than_may_be_are_refused_in_words(narrow):
    held = [_connect(narrow) for _ in range(CONNECTIONS)]
    try:
        with _connect(narrow) as connection:
            answer = connection.recv(2**16)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"too many connections" in answer
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.5)
    assert _post(narrow, json.dumps(BODY)).ok


def test_full_queue_refuses_at_once_over_both(narrow):
    body = BODY | {"instances": [asking.as_json(SLOW)]}
    with ThreadPoolExecutor(8) as threads, grpc.insecure_channel(narrow.grpc) as channel:
        many = [threads.submit(_post, narrow, json.dumps(body)) for _ in range(8)]
        answers = [each.result() for each in many]
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 503}
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert "the server is busy: 2 requests are waiting" in refused.json()["error"]

        stub = PredictionServiceStub(channel)
        request = asking.predict_request("serving_bytes", {"image_bytes": [SLOW]})
        calls = [stub.Predict.future(request) for _ in range(8)]
        codes = {call.exception().code().name if call.exception() else "OK" for call in calls}
        assert codes == {"OK", "RESOURCE_EXHAUSTED"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_callers_who_are_gone_are_not_computed(protocol, base):
    """Of forty that leave at once, only those run that are under way by then."""
    many = 40
    with embedded.server(base) as server:
        before = _figure(server, "runtime_latency_count")
        if protocol == "grpc":
            with grpc.insecure_channel(server.grpc) as channel:
                request = asking.predict_request("serving_bytes", {"image_bytes": [SLOW]})
                stub = PredictionServiceStub(channel)
                calls = [stub.Predict.future(request, timeout=0.2) for _ in range(many)]
                codes = {call.exception().code().name for call in calls}
                assert codes <= {"DEADLINE_EXCEEDED"}
        else:
            body = json.dumps(BODY | {"instances": [asking.as_json(SLOW)]}).encode()
            for _ in range(many):
                _connect(server, _head(len(body)) + body).close()
        assert _post(server, json.dumps(BODY)).ok
        assert _figure(server, "runtime_latency_count") - before < many / 4


def test_expensive_images_count_together(server):
    body = BODY | {"instances": [asking.as_json(SLOW)] * 2}
    answer = _post(server, json.dumps(body))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(
        f"the request's images have {2 * 2**25} pixels together, the limit is "
    )
    assert _post(server, json.dumps(BODY | {"instances": [asking.as_json(SLOW)]})).ok


def test_a_bad_image_does_not_spoil_others_in_its_batch(server):
    """Half a JPEG passes the server's own look at the header and fails in the graph."""
    bad = BODY | {"instances": [asking.as_json(images.BAD["half a jpeg"][0])]}
    with ThreadPoolExecutor(8) as threads:
        bodies = [json.dumps(bad if number % 4 == 0 else BODY) for number in range(64)]
        codes = [each.status_code for each in threads.map(lambda body: _post(server, body), bodies)]
    assert codes == [400 if number % 4 == 0 else 200 for number in range(64)]


def test_few_file_handles_and_many_connections_leave_the_log_short(base):
    with embedded.server(base, under=("bash", "-c", 'ulimit -n 256; exec "$@"', "-")) as server:
        held = [_connect(server) for _ in range(300)]
        time.sleep(3)
        for connection in held:
            connection.close()
        time.sleep(0.5)
        assert _post(server, json.dumps(BODY)).ok
        assert len(server.log().splitlines()) < 50
