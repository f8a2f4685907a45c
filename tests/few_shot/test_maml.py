"""MAML against plain loops, one task after another.

Its loss against Keras's network, whose own variables are moved by the inner steps; its gradient
against TensorFlow's convolution with weights as arguments and nested tapes.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.common.errors import InputError
from refilled_tf.data.episodes import Tasks
from refilled_tf.data.recipe import Recipe
from refilled_tf.data.task import Examples
from refilled_tf.few_shot.base import Networks, Pool
from refilled_tf.few_shot.maml import InnerLoop, Maml
from refilled_tf.models.convnet import ConvNet
from refilled_tf.models.networks import embedding_network
from refilled_tf.objectives.base import Learner

WAYS, SHOTS, QUERIES, SIZE, STEPS, RATE = 3, 2, 3, 16, 2, 0.05
OBJECTIVE = Maml(WAYS, SHOTS, QUERIES, inner_steps=STEPS, inner_rate=RATE)
PER_TASK = WAYS * (SHOTS + QUERIES)


def _images(tasks):
    random = np.random.default_rng(0)
    return random.uniform(0, 255, (tasks * PER_TASK, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture
def learner():
    tf.keras.utils.set_random_seed(0)
    student = embedding_network(ConvNet(channels=4), SIZE)
    learner = Learner(student, OBJECTIVE)
    learner.head.set_weights([w + 0.1 for w in learner.head.get_weights()])
    return learner


def _variables(learner):
    return [*learner.student.trainable_variables, *learner.head.trainable_variables]


def _logits(learner, images):
    return learner.head(learner.student(images, training=True)["embedding"])


def _reference(learner, images):
    """The mean over tasks of the queries' loss after plain inner steps, and their accuracy."""
    variables = _variables(learner)
    start = [v.numpy() for v in variables]
    losses, hits = [], []
    for task in np.split(images, len(images) // PER_TASK):
        by_class = task.reshape(WAYS, SHOTS + QUERIES, SIZE, SIZE, 3)
        support, query = (
            (part.reshape(-1, SIZE, SIZE, 3), np.repeat(np.arange(WAYS), part.shape[1]))
            for part in (by_class[:, :SHOTS], by_class[:, SHOTS:])
        )
        entropy = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        for _ in range(STEPS):
            with tf.GradientTape() as tape:
                loss = entropy(support[1], _logits(learner, support[0]))
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(RATE * gradient)
        logits = _logits(learner, query[0])
        losses.append(float(entropy(query[1], logits)))
        hits.append(np.mean(np.argmax(logits, axis=1) == query[1]))
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
    return np.mean(losses), np.array(hits)


def test_loss_is_the_plain_loops(learner):
    images = _images(2)
    loss, parts = OBJECTIVE.loss_of(
        learner, tf.constant(images), *[tf.zeros(len(images), tf.int32)] * 2
    )
    wanted, hits = _reference(learner, images)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)
    assert float(parts["train_accuracy"]) == pytest.approx(hits.mean())


def _plain_logits(weights, images):
    """ConvNet-4 and the classifier in TensorFlow's own operations."""
    x, weights = images / 127.5 - 1, list(weights)
    while len(weights) > 2:
        kernel, bias, gamma, beta, *weights = weights
        x = tf.nn.conv2d(x, kernel, 1, "SAME") + bias
        mean, variance = tf.nn.moments(x, (0, 1, 2))
        x = tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-5))
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
    return tf.reduce_max(x, (1, 2)) @ weights[0] + weights[1]


def _plain_gradient(variables, images, of_gradients):
    """Of the mean of the tasks' losses; `of_gradients` may cut the inner gradients off."""

    def loss(weights, part):
        labels = np.repeat(np.arange(WAYS), part.shape[1])
        logits = _plain_logits(weights, part.reshape(-1, SIZE, SIZE, 3))
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    with tf.GradientTape() as outer:
        total = 0.0
        for task in np.split(images, len(images) // PER_TASK):
            by_class = task.reshape(WAYS, SHOTS + QUERIES, SIZE, SIZE, 3)
            weights = [tf.identity(v) for v in variables]
            for _ in range(STEPS):
                with tf.GradientTape() as inner:
                    inner.watch(weights)
                    support = loss(weights, by_class[:, :SHOTS])
                gradients = [of_gradients(g) for g in inner.gradient(support, weights)]
                weights = [w - RATE * g for w, g in zip(weights, gradients, strict=True)]
            total += loss(weights, by_class[:, SHOTS:])
        total /= len(images) // PER_TASK
    return [g.numpy() for g in outer.gradient(total, variables)]


def test_gradient_is_of_second_order(learner):
    images, variables = _images(2), _variables(learner)
    with tf.GradientTape() as tape:
        loss, _ = OBJECTIVE.loss_of(
            learner, tf.constant(images), *[tf.zeros(len(images), tf.int32)] * 2
        )
    gradients = tape.gradient(loss, variables)
    second = _plain_gradient(variables, images, tf.identity)
    first = _plain_gradient(variables, images, tf.stop_gradient)
    scale = max(np.abs(g).max() for g in second)
    for ours, theirs in zip(gradients, second, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * scale)
    # The gradient without the gradient's gradient is another one: the test can tell.
    assert max(np.abs(a - b).max() for a, b in zip(first, second, strict=True)) > 0.05 * scale


def test_inner_loop_answers_as_the_plain_loop(learner):
    images = _images(5).astype(np.uint8)
    rows = np.arange(len(images)).reshape(5, WAYS, SHOTS + QUERIES)
    tasks = Tasks(np.zeros((5, WAYS), int), rows[:, :, :SHOTS], rows[:, :, SHOTS:])
    pool = Pool(Examples(images, np.zeros(len(images), np.int32), rows.ravel().astype(str)), SIZE)
    _, wanted = _reference(learner, images.astype(np.float32))
    known = Networks(learner.student, learner.head)
    for group in (2, 5):
        accuracies = InnerLoop(STEPS, RATE, group).accuracies(known, pool, tasks)
        np.testing.assert_allclose(accuracies, wanted)


def test_replicas_need_whole_tasks():
    recipe = Recipe(batch_size=PER_TASK * 3, classes_per_batch=WAYS * 3)
    OBJECTIVE.check_batches(recipe, 3)
    with pytest.raises(InputError, match=r"3 tasks.*2 replicas"):
        OBJECTIVE.check_batches(recipe, 2)
