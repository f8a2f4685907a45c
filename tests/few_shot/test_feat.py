"""FEAT against its formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from reference_tasks import FixedPool
from scipy.special import log_softmax, softmax

from refilled_tf.common.errors import InputError
from refilled_tf.data.episodes import Tasks
from refilled_tf.few_shot.base import Networks
from refilled_tf.few_shot.feat import AdaptedPrototypes, Feat
from refilled_tf.objectives.base import GlobalBatch

WAYS, SHOTS, QUERIES, SIZE = 3, 2, 4, 6
OBJECTIVE = Feat(
    WAYS,
    SHOTS,
    QUERIES,
    temperature=4.0,
    contrastive_weight=0.3,
    contrastive_temperature=2.0,
)


@pytest.fixture
def head():
    """A head none of whose weights has its first value."""
    random, head = np.random.default_rng(1), OBJECTIVE.head(SIZE)
    head.set_weights([random.normal(size=w.shape) for w in head.get_weights()])
    return head


def _set_to_set(head, members):
    """Attention with one head (softmax of q·k / √d), projection, residual, layer norm: [m, d]."""
    query, key, value, out, gamma, beta = (w.astype(np.float64) for w in head.get_weights())
    query, key, value = (members @ w[:, 0] for w in (query, key, value))
    attended = softmax(query @ key.T / np.sqrt(SIZE), axis=1) @ value @ out[0]
    added = members + attended
    centred = added - added.mean(axis=1, keepdims=True)
    return centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-5) * gamma + beta


def _logits(queries, prototypes, temperature):
    return -((queries[:, None] - prototypes[None]) ** 2).sum(-1) / temperature


def _reference(head, images):
    """Ye et al., Eq. 3-4 and the contrastive loss of section 3.3 for one task [C, K+Q, d]."""
    adapted = _set_to_set(head, images[:, :SHOTS].mean(axis=1))
    logits = _logits(images[:, SHOTS:].reshape(-1, SIZE), adapted, 4.0)
    labels = np.repeat(np.arange(WAYS), QUERIES)
    query_loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
    accuracy = np.mean(logits.argmax(axis=1) == labels)

    centers = np.array([_set_to_set(head, members).mean(axis=0) for members in images])
    logits = _logits(images.reshape(-1, SIZE), centers, 2.0)
    labels = np.repeat(np.arange(WAYS), SHOTS + QUERIES)
    contrastive = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
    return query_loss, contrastive, accuracy


def _episodes(tasks):
    shape = (tasks, WAYS, SHOTS + QUERIES, SIZE)
    return np.random.default_rng(0).normal(size=shape)


def test_head_is_self_attention(head):
    members = _episodes(1)[0, :, 0]
    wanted = _set_to_set(head, members)
    np.testing.assert_allclose(head(members[np.newaxis])[0], wanted, rtol=1e-4, atol=1e-5)


def test_head_does_not_mind_the_order(head):
    members = _episodes(1)[0, :1].astype(np.float32)
    order = [3, 1, 0, 5, 4, 2]
    np.testing.assert_allclose(head(members[:, order]), head(members).numpy()[:, order], atol=1e-5)


def test_losses(head):
    images = _episodes(2)
    embedding = tf.constant(images.reshape(-1, SIZE), tf.float32)
    labels = tf.zeros(len(embedding), tf.int32)
    batch = GlobalBatch(labels, {"embedding": embedding}, {}, {}, tf.constant(0.0), head=head)
    loss, parts = OBJECTIVE(batch)
    query, contrastive, accuracy = np.mean([_reference(head, task) for task in images], axis=0)
    assert float(parts["query_loss"]) == pytest.approx(query, rel=1e-4)
    assert float(parts["contrastive_loss"]) == pytest.approx(contrastive, rel=1e-4)
    assert float(parts["train_accuracy"]) == pytest.approx(accuracy)
    assert float(loss) == pytest.approx(query + 0.3 * contrastive, rel=1e-4)


def test_answers_are_those_of_the_loss(head):
    images = _episodes(2)
    embeddings = images.reshape(-1, SIZE).astype(np.float32)
    rows = np.arange(len(embeddings)).reshape(2, WAYS, SHOTS + QUERIES)
    tasks = Tasks(np.zeros((2, WAYS), int), rows[:, :, :SHOTS], rows[:, :, SHOTS:])

    accuracies = AdaptedPrototypes().accuracies(Networks(None, head), FixedPool(embeddings), tasks)
    np.testing.assert_allclose(accuracies, [_reference(head, task)[2] for task in images])


def test_head_comes_back_from_its_file(head, tmp_path):
    head.save(tmp_path / "head.keras")
    loaded = tf.keras.models.load_model(tmp_path / "head.keras", compile=False)
    members = _episodes(1)[0].astype(np.float32)
    np.testing.assert_array_equal(loaded(members), head(members))


def test_negative_weight_is_refused():
    with pytest.raises(InputError, match=r"Feat\.contrastive_weight=-1"):
        Feat(contrastive_weight=-1)
