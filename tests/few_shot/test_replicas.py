"""Two replicas take the steps that one device takes when batches are tasks.

Expected values come from the same stage trained on one device. MAML's replicas have a task each;
those of the others see a batch's tasks together, as a replica's half of them would not do.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny

from refilled_tf import training
from refilled_tf.data.splits import RandomParts
from refilled_tf.data.task import Task
from refilled_tf.few_shot.feat import Feat
from refilled_tf.few_shot.maml import Maml
from refilled_tf.few_shot.protonet import ProtoNet
from refilled_tf.learners.base import GlobalBatch
from refilled_tf.models.convnet import ConvNet

DATA = dataclasses.replace(tiny.DATA, class_split=RandomParts(4, 3, 3), image_size=16, load_size=16)
TASK = {"ways": 2, "shots": 2, "queries": 3}
# A batch holds two tasks of two classes; the first replica gets one, the second the other.
RECIPE = dataclasses.replace(tiny.RECIPE, epochs=1, batch_size=20, classes_per_batch=4)
OBJECTIVES = {
    "protonet": ProtoNet(**TASK, temperature=4.0),
    "feat": Feat(**TASK, temperature=4.0),
    "maml": Maml(**TASK, inner_steps=2),
}


def _train(objective, work_dir, devices, monkeypatch):
    """Returns the logs, and the weights of the network and its head."""
    built = []

    class Kept(training.Learner):
        def __init__(self, *args):
            super().__init__(*args)
            built.append(self)

    monkeypatch.setattr(training, "Learner", Kept)
    spec = tiny.first(
        objective=objective, task=Task(DATA, "teacher", 25), backbone=ConvNet(4), recipe=RECIPE
    )
    result = training.train(spec, tiny.run_in(work_dir, devices))
    monkeypatch.undo()
    (learner,) = built
    weights = [w for network in learner.trained.values() for w in network.get_weights()]
    return result["training"], weights


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_replicas_are_one_device(name, tmp_path, monkeypatch):
    logs, weights = _train(OBJECTIVES[name], tmp_path / "one", 1, monkeypatch)
    two_logs, two_weights = _train(OBJECTIVES[name], tmp_path / "two", 2, monkeypatch)
    # 16×16 images leave batch norm a single pixel in the end, which amplifies rounding.
    for one, two in zip(weights, two_weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=2e-4)
    assert two_logs == pytest.approx(logs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["protonet", "feat"])
def test_a_task_on_two_replicas_is_one_task(name):
    """What a replica sees of a task is no task: only the gathered batch has this gradient."""
    objective = dataclasses.replace(OBJECTIVES[name], ways=4)
    head = objective.head(6)
    embedding = tf.Variable(np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32))
    halves = dataclasses.replace(objective, ways=2)

    def gradient(objective, rows):
        with tf.GradientTape() as tape:
            outputs = {"embedding": embedding[rows]}
            labels = tf.zeros(outputs["embedding"].shape[0], tf.int32)
            batch = GlobalBatch(labels, outputs, None, None, tf.constant(0.0), head=head)
            loss, _ = objective(batch)
        return tf.convert_to_tensor(tape.gradient(loss, embedding)).numpy()

    apart = (gradient(halves, slice(0, 10)) + gradient(halves, slice(10, 20))) / 2
    assert np.abs(gradient(objective, slice(None)) - apart).max() > 1e-3
