"""Fine-tuning and REFILLED's second stage, batched, against one Keras training after another."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from reference_tasks import QUERIES, SHOTS, WAYS, pool_of, tasks_of

from refilled_tf.common.errors import InputError
from refilled_tf.few_shot.base import Networks
from refilled_tf.few_shot.fine_tune import FineTune
from refilled_tf.few_shot.refilled import Refilled
from refilled_tf.losses.local import local_kl
from refilled_tf.models.convnet import ConvNet
from refilled_tf.models.networks import embedding_network, with_classifier

SIZE, TASKS, STEPS, RATE, DECAY = 16, 3, 4, 0.5, 0.01


@pytest.fixture(scope="module")
def known():
    tf.keras.utils.set_random_seed(0)
    student = embedding_network(ConvNet(channels=6), SIZE)
    teacher = embedding_network(ConvNet(channels=5), SIZE)
    for network in (student, teacher):  # running statistics other than 0 and 1
        network(np.random.default_rng(0).uniform(0, 255, (20, SIZE, SIZE, 3)), training=True)
    return Networks(student, None, teacher)


@pytest.fixture(scope="module")
def pool():
    return pool_of(TASKS, SIZE)


def _keras(known, images, rows, first, loss_of):
    """Trains one task's network by Keras's SGD; returns it and the accuracy of its answers."""
    network = with_classifier(known.student, WAYS)
    names = [layer.name for layer in network.layers]
    trained = network.layers[names.index(first) :]
    variables = [v for layer in trained for v in layer.trainable_weights]
    optimizer = tf.keras.optimizers.SGD(RATE, momentum=0.9)
    support, query = (images[part.ravel()].astype(np.float32) for part in rows)
    for step in range(STEPS):
        with tf.GradientTape() as tape:
            loss = loss_of(network(support, training=False)["logits"], support, step)
            loss += DECAY * tf.add_n([tf.nn.l2_loss(v) for v in variables])
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    answers = np.argmax(network(query, training=False)["logits"], axis=1)
    return network, np.mean(answers == np.repeat(np.arange(WAYS), QUERIES))


def _cross_entropy(logits, support, step):
    labels = np.repeat(np.arange(WAYS), SHOTS)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def _eq_6(known):
    """With the whole support as the batch, by the loss that stages use."""

    def loss(logits, support, step):
        labels = np.repeat(np.arange(WAYS), SHOTS).astype(np.int32)
        teacher = known.teacher(support, training=False)["embedding"]
        local = local_kl(logits, teacher, labels, tau_teacher=3.0, tau_student=1.5)
        return _cross_entropy(logits, support, step) + 2.0 * np.exp(-0.1 * step) * local

    return loss


OPTIONS = {"steps": STEPS, "learning_rate": RATE, "weight_decay": DECAY, "group": 2}
EQ_6 = {"weight": 2.0, "decay": 0.1, "tau_teacher": 3.0, "tau_student": 1.5}


@pytest.mark.parametrize("method", ["fine_tune", "refilled"])
@pytest.mark.parametrize("first", ["logits", "block4_conv", "rescale"])
def test_tasks_are_learnt_as_one_by_one(method, first, known, pool):
    if method == "fine_tune":
        learner, loss_of = FineTune(first, **OPTIONS), _cross_entropy
    else:
        learner, loss_of = Refilled(first, **OPTIONS, **EQ_6), _eq_6(known)
    tasks = tasks_of(TASKS)
    accuracies = learner.accuracies(known, pool, tasks)
    adapted = learner.adapted(known, pool, tasks)
    assert len(adapted) == TASKS
    for task, network in enumerate(adapted):
        rows = tasks.support[task], tasks.query[task]
        wanted, accuracy = _keras(known, pool.examples.images, rows, first, loss_of)
        assert accuracies[task] == pytest.approx(accuracy)
        for ours, theirs in zip(network.get_weights(), wanted.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        before = with_classifier(known.student, WAYS).get_weights()
        moved = max(np.abs(a - b).max() for a, b in zip(before, network.get_weights(), strict=True))
        assert moved > 5e-3


def test_adapting_leaves_the_networks_alone(known, pool):
    before = known.student.get_weights()
    FineTune("rescale", **OPTIONS).adapted(known, pool, tasks_of(TASKS))
    for old, new in zip(before, known.student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_candidates_are_all_combinations():
    candidates = FineTune(steps=(1, 2), learning_rate=[0.1, 0.2], weight_decay=0.0).candidates()
    assert [(c.steps, c.learning_rate) for c in candidates] == [
        *((1, 0.1), (1, 0.2)),
        *((2, 0.1), (2, 0.2)),
    ]


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"steps": 0}, r"FineTune\.steps=0"),
        ({"steps": (5, 0)}, r"FineTune\.steps=0"),
        ({"learning_rate": -1.0}, r"FineTune\.learning_rate=-1"),
        ({"group": 0}, r"FineTune\.group=0"),
    ],
)
def test_bad_option_is_named(options, culprit):
    with pytest.raises(InputError, match=culprit):
        FineTune(**options)


def test_option_without_values_is_named():
    with pytest.raises(InputError, match=r"FineTune\.steps is empty"):
        FineTune(steps=()).candidates()


def test_unknown_layer_is_named(known, pool):
    with pytest.raises(InputError, match=r"no layer 'block7'.*block4_conv"):
        FineTune("block7").accuracies(known, pool, tasks_of(TASKS))
