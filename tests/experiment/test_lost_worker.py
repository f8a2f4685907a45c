"""A worker of two is killed, and then one falls silent: the other says so and ends; all go on.

Expected weights come from the same command on two workers that are left alone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import commands
import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf.common import cluster

pytestmark = pytest.mark.slow

TIME_LIMIT = 600  # seconds, for any one wait
GIN = (
    tiny.GIN
    + """
Experiment.rows = [@student/Stage()]
Experiment.strategy = 'multi_worker'
Recipe.epochs = 20
Recipe.batch_size = 50
"""
)


class Workers:
    """Two workers that train in one folder."""

    def __init__(self, folder, name):
        self.folder, self.work_dir = folder, folder / name
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
        for each in sockets:
            each.close()
        self.logs = [folder / f"{name}{index}.log" for index in range(2)]
        for path in self.logs:
            path.write_text("")
        self.processes = [self._start(index) for index in range(2)]

    def _start(self, index):
        config = {
            "cluster": {"worker": self.addresses},
            "task": {"type": "worker", "index": index},
        }
        return commands.start(
            "refilled_tf.train",
            f"--gin_file={self.folder / 'two.gin'}",
            f"--work_dir={self.work_dir}",
            outputs=[self.logs[index]] * 2,
            cwd=self.folder,
            TF_CONFIG=json.dumps(config),
            TINY_SAVE_STEPS="1",  # every epoch is saved
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for each in self.processes:
            each.kill()
            each.join()

    def said(self, index):
        """What a worker has said so far, but for bars of progress."""
        text = self.logs[index].read_text().replace("\r", "\n")
        return [line for line in text.splitlines() if line and not line.startswith("student:")]

    def wait_until(self, holds, what):
        deadline = time.monotonic() + TIME_LIMIT
        while not holds():
            assert all(each.exitcode is None for each in self.processes), self.told()
            assert time.monotonic() < deadline, (what, self.told())
            time.sleep(0.01)

    def told(self):
        return [self.said(index)[-20:] for index in range(2)]

    def status(self, index):
        self.processes[index].join(TIME_LIMIT)
        return self.processes[index].exitcode


def _saved_epoch(work_dir):
    """The last epoch that is saved; 0 if none is."""
    newest = tf.train.latest_checkpoint(work_dir / "stages/student/checkpoints")
    return int(newest.rpartition("-")[2]) if newest else 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.gin").write_text(GIN)
    return folder


@pytest.fixture(scope="module")
def unbroken(folder):
    """Weights of two workers that are left alone."""
    with Workers(folder, "unbroken") as workers:
        assert [workers.status(index) for index in range(2)] == [0, 0], workers.told()
    return tiny.saved_weights(folder / "unbroken", "student")


def _loses(folder, lost, how):
    """Has two workers lose one, and looks at how the other ends."""
    with Workers(folder, "broken") as workers:
        before = _saved_epoch(workers.work_dir)
        workers.wait_until(lambda: _saved_epoch(workers.work_dir) > before, "no checkpoint")
        # In the middle of an epoch.
        os.kill(workers.processes[lost].pid, how)
        left = 1 - lost
        assert workers.status(left) == cluster.LOST, workers.said(left)
        names = [f"worker {index} ({workers.addresses[index]})" for index in range(2)]
        assert workers.said(left) == [
            f"{names[left]} waits for {names[lost]}",
            f"error: {names[lost]} is gone, so {names[left]} has stopped; the same command, given "
            "again on all machines, goes on from the last checkpoint",
        ]
        assert not (workers.work_dir / "stages/student/result.json").exists()


def test_who_is_left_ends_in_a_line_and_all_go_on_to_the_same_weights(folder, unbroken):
    _loses(folder, 1, signal.SIGKILL)
    # Its connections stay open. Of the one that listens for heartbeats, the other hears none back.
    _loses(folder, 0, signal.SIGSTOP)
    with Workers(folder, "broken") as workers:
        assert [workers.status(index) for index in range(2)] == [0, 0], workers.told()
    broken = tiny.saved_weights(folder / "broken", "student")
    assert len(broken) == len(unbroken) >= 5
    for one, other in zip(unbroken, broken, strict=True):
        assert np.array_equal(one, other)
