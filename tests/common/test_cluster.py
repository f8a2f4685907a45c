"""Who trains together by TF_CONFIG, and who is gone by what TensorFlow says of it."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf

from refilled_tf.common import cluster
from refilled_tf.common.errors import InputError

WORKERS = {"worker": ["a:1", "b:2", "c:3"]}
MINE = {"cluster": WORKERS, "task": {"type": "worker", "index": 1}}
# What TensorFlow 2.15 and 2.21 have said in a test with a worker killed, stopped or cut off, but
# for the middle. At first they name the device that asked: this one.
HERE = "{{function_node f}} /job:worker/replica:0/task:1/device:CPU:0 Collective ops is aborted by"
RESET = "The error could be from a previous operation. Restart your program to reset."
BROKEN = f"""{HERE}: Socket closed
Additional GRPC error information from remote target /job:worker/replica:0/task:2 while calling
/tensorflow.WorkerService/RecvBuf: {{grpc_status:14}}
{RESET}"""
SILENT_15 = f"{HERE}: Error reported from /job:worker/task:2: Task /job:worker/replica:0/task:2 "
SILENT_15 += f"heartbeat timeout. This indicates that the remote task has failed\n{RESET}"
SILENT_21 = f"""{HERE}: Error reported from /job:worker/task:2: The following tasks are unhealthy:
/job:worker/replica:0/task:2
The tasks have crashed.
{RESET}"""
LEADER = f"{HERE}: Deadline Exceeded\nRPC: /tensorflow.CoordinationService/Heartbeat\n{RESET}"
UNNAMED = f"{HERE}: Connection reset by peer\n{RESET}"


@pytest.fixture
def config(monkeypatch):
    return lambda value: monkeypatch.setenv("TF_CONFIG", json.dumps(value))


@pytest.mark.parametrize(
    ("text", "who"),
    [
        (BROKEN, "worker 2 (c:3)"),
        (SILENT_15, "worker 2 (c:3)"),
        (SILENT_21, "worker 2 (c:3)"),
        (LEADER, "worker 0 (a:1)"),
        (UNNAMED, "another worker"),
    ],
)
def test_who_is_gone_is_named(config, text, who):
    config(MINE)
    error = tf.errors.UnavailableError(None, None, text)
    assert cluster.lost(error) == f"{who} is gone, so worker 1 (b:2) has stopped"


def test_the_chief_listens_for_heartbeats(config):
    config({"cluster": {"chief": ["d:4"], **WORKERS}, "task": MINE["task"]})
    error = tf.errors.DeadlineExceededError(None, None, LEADER)
    assert cluster.lost(error).startswith("chief 0 (d:4) is gone")


def test_other_errors_are_no_lost_worker(config, monkeypatch):
    config(MINE)
    assert cluster.lost(tf.errors.UnavailableError(None, None, "gs://bucket: 503")) is None
    monkeypatch.delenv("TF_CONFIG")
    assert cluster.lost(tf.errors.UnavailableError(None, None, BROKEN)) is None


def test_tf_config_says_who_is_who(config):
    config(MINE)
    addresses = {("worker", 0): "a:1", ("worker", 1): "b:2", ("worker", 2): "c:3"}
    assert cluster.of_environment() == (addresses, ("worker", 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        [],
        {"cluster": WORKERS},
        {"task": MINE["task"]},
        {"cluster": WORKERS, "task": {"type": "worker", "index": 3}},
        {"cluster": WORKERS, "task": {"type": "chief", "index": 0}},
        {"cluster": {"worker": 3}, "task": {"type": "worker", "index": 0}},
    ],
)
def test_tf_config_that_says_less_is_an_error(config, wrong):
    config(wrong)
    with pytest.raises(InputError, match="does not say who is who; several machines need TF_CONF"):
        cluster.of_environment()


@pytest.mark.parametrize("text", ["", "{worker: [a:1]}"])
def test_no_tf_config(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    said = "does not say who is who" if text else "'multi_worker', but TF_CONFIG is not set"
    with pytest.raises(InputError, match=said) as caught:
        cluster.of_environment()
    # What it shows can be typed.
    example = str(caught.value).partition("such as '")[2].rstrip("'")
    monkeypatch.setenv("TF_CONFIG", example)
    assert cluster.of_environment().me == ("worker", 0)
