"""The training benchmark: its table, and that PyTorch's side is the same networks and losses.

The latter needs a Python with torch: the benchmark's default, or what TORCH_PYTHON names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import commands
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import blocks, training
from refilled_tf.losses.kd import kd
from refilled_tf.losses.local import local_kl
from refilled_tf.losses.triplets import triplet_kl
from refilled_tf.models.networks import classifier

TORCH = shutil.which(
    os.environ.get("TORCH_PYTHON", os.path.join(blocks.ROOT, ".venv-torch/bin/python"))
)
needs_torch = pytest.mark.skipif(TORCH is None, reason="no Python with torch")


def _in_torch(expression, given):
    """Evaluates an expression on PyTorch's side, `t` being its module."""
    code = (
        "import json, sys, torch; from benchmarks import training_torch as t; "
        f"given = json.loads(sys.argv[1]); print(json.dumps({expression}))"
    )
    command = [TORCH, "-c", code, json.dumps(given)]
    done = subprocess.run(command, cwd=blocks.ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_row_by_hand():
    both = {"ours": 1500.0, "torch": 1000.0}
    expected = ["wrn_16_1", "KD", "1,500", "1,000", "1.50", "0.50"]
    assert training.row("wrn_16_1", "KD", both, 3000.0) == expected
    expected = ["wrn_16_1", "AT", "1,500", "-", "-", "-"]
    assert training.row("wrn_16_1", "AT", {"ours": 1500.0}, None) == expected


def test_workers_take_turns_and_the_first_block_is_not_counted(tmp_path):
    """Each step notes whose it is; its loss is read once a block."""
    log = tmp_path / "log"
    code = """
import sys
from benchmarks import blocks
print("a library says something")
def step():
    with open(sys.argv[1], "a") as log:
        log.write(sys.argv[2])
    return 0.0
blocks.serve(step, int(sys.argv[3]))
"""

    def command(name, parameters):
        return [sys.executable, "-c", code, str(log), name, parameters]

    with blocks.Worker(command("a", "5")) as a, blocks.Worker(command("b", "7")) as b:
        assert (a.parameters, b.parameters) == (5, 7)
        seconds = blocks.alternate({"a": a, "b": b}, steps=2, repeats=2)
    assert log.read_text() == "aabb" * 3
    assert [len(times) for times in seconds.values()] == [2, 2]
    assert min(*seconds["a"], *seconds["b"]) > 0


def test_worker_that_fails_is_reported():
    with pytest.raises(RuntimeError, match="exit code 3 of"):
        blocks.Worker([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_command_prints_a_row_for_each_step():
    done = commands.run(
        "benchmarks.training",
        "--networks=wrn_16_1",
        "--steps=student,pipeline,AT",
        *("--batch_size=4", "--repeats=1", "--block=1", "--torch_python="),
    )
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert tuple(header) == training.HEADER
    assert [row[:2] for row in rows] == [["wrn_16_1", s] for s in ("student", "pipeline", "AT")]
    assert all(float(row[2]) > 0 and row[3:5] == ["-", "-"] for row in rows)
    alone = float(rows[0][2])
    for row in rows:
        assert float(row[5]) == pytest.approx(float(row[2]) / alone, rel=0.2, abs=0.02)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--networks=wrn_16_1,wrn_17", "error: --networks: wrn_17; there are mobilenet_25_64, "),
        ("--steps=stage 3", "error: --steps: stage 3; there are student, "),
        ("--torch_python=/no/python", "error: --torch_python=/no/python is no program; install "),
    ],
)
def test_bad_flag_is_named(flag, message):
    done = commands.run("benchmarks.training", flag)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@needs_torch
def test_torch_networks_have_as_many_weights():
    backbones = {b for pair in training.PAIRS.values() for b in (pair.student, pair.teacher)}
    built = [classifier(b, 32, training.CLASSES) for b in backbones]
    ours = [sum(int(np.prod(w.shape)) for w in network.trainable_weights) for network in built]
    theirs = _in_torch(
        "[sum(w.numel() for w in t.Network(*n, classifies=True).parameters()) for n in given]",
        [training.in_torch(b) for b in backbones],
    )
    assert theirs == ours


@needs_torch
def test_torch_losses_are_ours():
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 12, 5)).astype(np.float32)
    labels = np.arange(12, dtype=np.int32) // 3
    ours = [
        triplet_kl(student, teacher, labels)[0],
        local_kl(student, teacher, labels),
        kd(tf.constant(student), tf.constant(teacher), 4.0),
    ]
    theirs = _in_torch(
        "[float(x) for s, e, y in [map(torch.tensor, given)]"
        " for x in (t.triplet_kl(s, e, y), t.local_kl(s, e, y), t.kd(s, e))]",
        [x.tolist() for x in (student, teacher, labels)],
    )
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
