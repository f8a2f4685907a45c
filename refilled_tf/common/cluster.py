"""Machines that train one experiment together, as TF_CONFIG names them.

TensorFlow notices by itself that one of them is gone: at once where its connections break, and
where it only falls silent by a heartbeat that stays away for ten seconds. Whatever the others wait
for then fails. What is left to do is to say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import NamedTuple

from refilled_tf.common.errors import InputError, listed, require

# The exit status of a process that has lost another. Kubeflow takes one from 128 on for a reason
# to start it again, and leaves this one to programs (128 + SIGUSR1).
LOST = 138
_EXAMPLE = json.dumps(
    {
        "cluster": {"worker": ["host-a:2222", "host-b:2222"]},
        "task": {"type": "worker", "index": 0},
    }
)
_TASK = re.compile(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)")


class Cluster(NamedTuple):
    """The workers of one training.

    Attributes:
        addresses: "host:port" of each (job, number).
        me: which of them this process is.
    """

    addresses: dict[tuple[str, int], str]
    me: tuple[str, int]

    @property
    def leader(self) -> tuple[str, int]:
        """The one that writes, and that listens for the others' heartbeats."""
        return ("chief" if ("chief", 0) in self.addresses else "worker", 0)

    def named(self, task: tuple[str, int]) -> str:
        """Returns such as "worker 1 (host-b:2222)"."""
        return f"{task[0]} {task[1]} ({self.addresses[task]})"


def of_environment() -> Cluster:
    """Reads TF_CONFIG.

    Raises:
        InputError: it is not set, or does not say who trains together and which of them this is.
    """
    text = os.environ.get("TF_CONFIG", "")
    wanted = f"several machines need TF_CONFIG on each, such as '{_EXAMPLE}'"
    require(bool(text), f"Experiment.strategy = 'multi_worker', but TF_CONFIG is not set; {wanted}")
    cluster = _parsed(text)
    if cluster is None:
        raise InputError(f"TF_CONFIG={text!r} does not say who is who; {wanted}")
    return cluster


def _parsed(text: str) -> Cluster | None:
    try:
        config = json.loads(text)
        task = config["task"]
        addresses = {
            (job, number): str(address)
            for job, several in config["cluster"].items()
            if job in ("chief", "worker")
            for number, address in enumerate(several)
        }
        cluster = Cluster(addresses, (task["type"], int(task["index"])))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return cluster if cluster.me in addresses else None


@contextlib.contextmanager
def gathering(cluster: Cluster) -> Iterator[None]:
    """Says whom this process waits for in what is done within; Ctrl-C ends the waiting."""
    others = [cluster.named(task) for task in cluster.addresses if task != cluster.me]
    print(f"{cluster.named(cluster.me)} waits for {listed(others) or 'nobody'}", file=sys.stderr)
    # TensorFlow waits outside of Python, whose own handler would not be asked.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def lost(error: BaseException) -> str | None:
    """Says who is gone, if an error of TensorFlow's comes from that.

    Args:
        error: what TensorFlow has raised.

    Returns:
        Such as "worker 1 (host-b:2222) is gone"; None of any other error.
    """
    cluster = _parsed(os.environ.get("TF_CONFIG", ""))
    _, found, why = str(error).partition("Collective ops is aborted by")
    if cluster is None or not found:
        return None
    # Of those that it names, the last is the one that the others have complained of.
    named = [(job, int(number)) for job, number in _TASK.findall(why)]
    known = [task for task in named if task in cluster.addresses and task != cluster.me]
    if not known and "CoordinationService" in why:
        known = [cluster.leader]
    who = cluster.named(known[-1]) if known else "another worker"
    return f"{who} is gone, so {cluster.named(cluster.me)} has stopped"
