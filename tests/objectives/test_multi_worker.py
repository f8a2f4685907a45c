"""Two worker processes take the steps that one device takes; only the chief writes.

Expected values come from the same command run as one process on one device.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter

import commands
import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.slow

TIME_LIMIT = 300  # seconds, for all processes of a run together
WORK_DIRS = ("one", "two")
GIN = (
    tiny.GIN
    + """
Experiment.rows = [@refilled/Stage()]
student.images_per_class = 10
teacher.images_per_class = 10
Recipe.batch_size = 10
Recipe.learning_rate = 0.02
triplet/teacher_cache.views = 2
"""
)


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _run(processes, outputs):
    """Waits for all processes; kills them at the time limit, and the others when one fails."""
    deadline = time.monotonic() + TIME_LIMIT
    try:
        while any(p.exitcode is None for p in processes) and not any(p.exitcode for p in processes):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    finally:
        codes = [p.exitcode for p in processes]
        for p in processes:
            p.kill()
            p.join()
    told = "\n".join(f"--- {path.name}\n{path.read_text()[-6000:]}" for path in outputs)
    assert codes == [0] * len(processes), f"exit codes {codes} (None: killed)\n{told}"


def _start(folder, name, flags, **environment):
    output = folder / f"{name}.log"
    where = {"outputs": [output, output], "cwd": folder, **environment}
    return commands.start("refilled_tf.train", *flags, **where), output


def _files(folder):
    """Counts files by path; event files of TensorBoard by their logs/ folder.

    Lock files are left out: workers of one training do not wait for each other by locks.
    """
    found = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
    paths = (p.relative_to(folder).as_posix() for p in found)
    return Counter(re.sub(r"/logs/.*", "/logs", path) for path in paths)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns a folder with two work_dirs, "one" of one process, "two" shared by two workers.

    Python code in worker 1 that opens a file of the work_dir for writing gets an error.
    """
    folder = tmp_path_factory.mktemp("multi_worker")
    gin_file = folder / "tiny.gin"
    gin_file.write_text(GIN)
    flags = [f"--gin_file={gin_file}"]

    process, output = _start(folder, "one", [*flags, f"--work_dir={folder / 'one'}"])
    _run([process], [output])

    flags += ["--gin_param=Experiment.strategy='multi_worker'", f"--work_dir={folder / 'two'}"]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in _free_ports(2)]}
    started = []
    for index in range(2):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        protected = {"TINY_READ_ONLY": str(folder / "two")} if index else {}
        started.append(_start(folder, f"worker{index}", flags, TF_CONFIG=config, **protected))
    _run(*zip(*started, strict=True))
    return folder


def _results(work_dir):
    return json.loads((work_dir / "results.json").read_text())


def test_two_workers_are_one_device(runs):
    (one,), (two,) = (_results(runs / name)["rows"] for name in ("one", "two"))
    assert (_results(runs / "one")["replicas"], _results(runs / "two")["replicas"]) == (1, 2)
    for name in ("teacher", "triplet", "refilled"):
        results = [runs / work_dir / "stages" / name / "result.json" for work_dir in WORK_DIRS]
        logs, two_logs = (json.loads(path.read_text())["training"] for path in results)
        assert two_logs == pytest.approx(logs, rel=1e-4, abs=1e-5), name
        weights, two_weights = (tiny.saved_weights(runs / work_dir, name) for work_dir in WORK_DIRS)
        for a, b in zip(weights, two_weights, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=1e-9)


def test_only_the_chief_writes(runs):
    # One process and two leave the same files, where TensorBoard's names (time, host, process)
    # are left out: nothing is written twice under another name.
    one, two = (_files(runs / work_dir) for work_dir in WORK_DIRS)
    assert two == one
    assert two["results.json"] == 1
    assert two["stages/refilled/logs"] == 1


def test_worker_1_is_kept_from_writing(tmp_path):
    # Otherwise the fixture's protection would prove nothing.
    code = "import tiny; open('x', 'w')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=commands.environment(TINY_READ_ONLY=str(tmp_path)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert run.returncode != 0
    assert "tiny: no writing" in run.stderr
