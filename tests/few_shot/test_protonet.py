"""ProtoNet's loss and gradient against the formulas of the paper in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from reference_tasks import FixedPool
from scipy.special import softmax

from refilled_tf.common.errors import InputError
from refilled_tf.data.episodes import Tasks
from refilled_tf.data.recipe import Recipe
from refilled_tf.few_shot.base import Networks
from refilled_tf.few_shot.protonet import NearestPrototype, ProtoNet
from refilled_tf.objectives.base import GlobalBatch

WAYS, SHOTS, QUERIES, SIZE = 3, 2, 4, 5
OBJECTIVE = ProtoNet(WAYS, SHOTS, QUERIES, temperature=2.0)


def _batch(embedding):
    labels = tf.zeros(embedding.shape[0], tf.int32)  # the order says which class is which
    return GlobalBatch(labels, {"embedding": embedding}, {}, {}, tf.constant(0.0))


def _episode(tasks):
    shape = (tasks * WAYS * (SHOTS + QUERIES), SIZE)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _reference(embedding):
    """Snell et al., Algorithm 1, one query after another: the loss and its gradient."""
    images = embedding.astype(np.float64).reshape(WAYS, SHOTS + QUERIES, SIZE)
    prototypes = images[:, :SHOTS].mean(axis=1)
    loss, hits, gradient = 0.0, 0, np.zeros_like(images)
    for c in range(WAYS):
        for q in range(SHOTS, SHOTS + QUERIES):
            gaps = images[c, q] - prototypes
            logits = -(gaps**2).sum(axis=1) / OBJECTIVE.temperature
            p = softmax(logits)
            loss -= np.log(p[c])
            hits += logits.argmax() == c
            # d(-log p_c)/d logit_k = p_k - [k = c]; d logit_k / d query = -2·gap_k / temperature.
            slopes = (p - (np.arange(WAYS) == c))[:, np.newaxis]
            pushes = slopes * -2 * gaps / OBJECTIVE.temperature
            gradient[c, q] += pushes.sum(axis=0)
            gradient[:, :SHOTS] -= pushes[:, np.newaxis] / SHOTS
    count = WAYS * QUERIES
    return loss / count, hits / count, gradient.reshape(embedding.shape) / count


def test_loss_and_gradient_of_an_episode():
    embedding = tf.Variable(_episode(1))
    with tf.GradientTape() as tape:
        loss, parts = OBJECTIVE(_batch(embedding))
    wanted, accuracy, gradient = _reference(embedding.numpy())
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    assert float(parts["train_accuracy"]) == pytest.approx(accuracy)
    np.testing.assert_allclose(tape.gradient(loss, embedding), gradient, rtol=1e-4, atol=1e-6)


def test_several_episodes_are_averaged():
    embedding = _episode(3)
    loss, _ = OBJECTIVE(_batch(tf.constant(embedding)))
    parts = [_reference(part)[0] for part in np.split(embedding, 3)]
    assert float(loss) == pytest.approx(np.mean(parts), rel=1e-5)


def test_nearest_prototype_answers_as_the_loss_sees_it():
    embedding = _episode(2)
    rows = np.arange(len(embedding)).reshape(2, WAYS, SHOTS + QUERIES)
    tasks = Tasks(np.zeros((2, WAYS), int), rows[:, :, :SHOTS], rows[:, :, SHOTS:])
    accuracies = NearestPrototype().accuracies(Networks(None), FixedPool(embedding), tasks)
    np.testing.assert_allclose(accuracies, [_reference(x)[1] for x in np.split(embedding, 2)])


@pytest.mark.parametrize(
    ("recipe", "culprit"),
    [
        ({"batch_size": 18}, r"Recipe\.classes_per_batch=None.*ProtoNet\.ways=3"),
        ({"batch_size": 24, "classes_per_batch": 4}, r"classes_per_batch=4.*ProtoNet\.ways=3"),
        ({"batch_size": 21, "classes_per_batch": 3}, r"batch_size=21 must be 18.*shots=2.*ies=4"),
    ],
)
def test_batches_that_are_no_tasks_are_refused(recipe, culprit):
    with pytest.raises(InputError, match=culprit):
        OBJECTIVE.check_batches(Recipe(**recipe), 1)


def test_batches_of_whole_tasks_are_taken():
    OBJECTIVE.check_batches(Recipe(batch_size=36, classes_per_batch=6), 2)


@pytest.mark.parametrize("option", ["ways", "shots", "queries"])
def test_impossible_tasks_are_refused(option):
    with pytest.raises(InputError, match=rf"ProtoNet\.{option}=0"):
        ProtoNet(**{option: 0})
