"""Two replicas take the steps that one device takes when batches are tasks.

Expected values come from the same stage trained on one device. ProtoNet's and FEAT's task lies
across the replicas, two of its classes on either; MAML's replicas have a task each.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf.data.splits import RandomParts
from refilled_tf.data.task import Task
from refilled_tf.experiment import training
from refilled_tf.few_shot.feat import Feat
from refilled_tf.few_shot.maml import Maml
from refilled_tf.few_shot.protonet import ProtoNet
from refilled_tf.objectives import base

DATA = dataclasses.replace(tiny.DATA, class_split=RandomParts(4, 3, 3))
# Four classes, the first two for the first replica, with 2 + 3 images each; five such steps.
RECIPE = dataclasses.replace(tiny.RECIPE, epochs=1, batch_size=20, classes_per_batch=4)
IMAGES = {"shots": 2, "queries": 3}
ACROSS = {
    "protonet": ProtoNet(ways=4, **IMAGES, temperature=4.0),
    "feat": Feat(ways=4, **IMAGES, temperature=4.0),
}
OBJECTIVES = ACROSS | {"maml": Maml(ways=2, **IMAGES, inner_steps=2)}


def _weights(learner):
    """Returns those of the network and of its head, by name."""
    return {name: network.get_weights() for name, network in learner.trained.items()}


def _train(objective, work_dir, devices):
    """Returns the logs of an epoch."""
    spec = tiny.first(objective=objective, task=Task(DATA, "teacher", 25), recipe=RECIPE)
    return training.train(spec, tiny.run_in(work_dir, devices))["training"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_replicas_are_one_device(name, tmp_path, built):
    logs = _train(OBJECTIVES[name], tmp_path / "one", 1)
    two_logs = _train(OBJECTIVES[name], tmp_path / "two", 2)
    (one, start), (two, _) = built
    weights, two_weights = _weights(one), _weights(two)
    assert set(weights) == ({"student"} if name == "protonet" else {"student", "head"})
    for network in weights:
        assert tiny.largest_difference(weights[network], two_weights[network]) < 1e-5
        assert tiny.largest_difference(weights[network], start[network]) > 1e-3
    assert two_logs == pytest.approx(logs, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ACROSS)
def test_without_gathering_a_replica_has_no_task(name, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_gather", lambda x: x)
    with pytest.raises(ValueError, match="evenly divisible"):
        _train(ACROSS[name], tmp_path / "apart", 2)


@pytest.mark.parametrize("name", ACROSS)
def test_halves_of_these_tasks_have_another_gradient(name):
    """The tests above can tell a task across replicas from what either replica has of it."""
    objective = ACROSS[name]
    embedding_size, rows = 6, RECIPE.batch_size
    head = objective.head(embedding_size)
    outputs = np.random.default_rng(0).normal(size=(rows, embedding_size)).astype(np.float32)

    def gradient(objective, outputs):
        embedding = tf.Variable(outputs)
        with tf.GradientTape() as tape:
            labels = tf.zeros(len(outputs), tf.int32)  # the order says which class is which
            batch = base.GlobalBatch(
                labels, {"embedding": embedding}, {}, {}, tf.constant(0.0), head=head
            )
            loss, _ = objective(batch)
        return tape.gradient(loss, embedding).numpy()

    half = dataclasses.replace(objective, ways=2)
    halves = np.concatenate([gradient(half, part) for part in np.split(outputs, 2)]) / 2
    assert np.abs(gradient(objective, outputs) - halves).max() > 1e-3
