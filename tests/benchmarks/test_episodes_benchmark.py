"""benchmarks/episodes.py: both ways learn the same, and its command prints a table."""

from __future__ import annotations

import dataclasses

import commands
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import episodes
from refilled_tf.data.episodes import Episodes


@pytest.fixture(scope="module")
def what():
    tf.keras.utils.set_random_seed(0)
    pool, facts = episodes.random_pool()
    return episodes.random_networks(), pool, Episodes(count=2).draw(facts, 1)


@pytest.mark.parametrize("name", episodes.LEARNERS)
def test_plain_loop_learns_the_same(name, what):
    learner = dataclasses.replace(episodes.LEARNERS[name], steps=3)
    batched = learner.logits(*what)
    loop = episodes.loop_of(learner, *what)
    for _ in range(2):  # the second time on what the first one has left
        np.testing.assert_allclose(loop(), batched, rtol=0, atol=1e-4)
    assert np.std(batched) > 0


def test_command_prints_a_row_for_each_learner_and_number_of_shots():
    flags = ("--learners=fine_tune_top", "--shots=1,2", "--tasks=2", "--repeats=1")
    done = commands.run("benchmarks.episodes", *flags)
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert [row[:2] for row in cells] == [["fine_tune_top", "1"], ["fine_tune_top", "2"]]
    assert all(float(row[5]) < 1e-4 for row in cells)


def test_unknown_learner_is_named():
    done = commands.run("benchmarks.episodes", "--learners=nope")
    assert done.returncode == 1
    assert "--learners: nope; there are fine_tune_top" in done.stderr
