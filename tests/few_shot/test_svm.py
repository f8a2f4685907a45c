"""The linear SVM: tasks whose answers can be seen by eye, and what C does to others.

What C does comes from minimising the machine's objective (Fan et al., LIBLINEAR, 2008, section 2)
directly, one class against the rest.
"""

from __future__ import annotations

import numpy as np
import pytest
from reference_tasks import QUERIES, SHOTS, WAYS, FixedPool, tasks_of
from scipy.optimize import minimize
from sklearn.preprocessing import normalize

from refilled_tf.few_shot.base import Networks
from refilled_tf.few_shot.svm import LinearSvm


def test_classes_in_directions_of_their_own_are_told_apart():
    """The images of class c lie around the c-th axis, at any length."""
    tasks, random = tasks_of(4), np.random.default_rng(0)
    per_class = SHOTS + QUERIES
    axes = np.tile(np.repeat(np.eye(WAYS), per_class, axis=0), (4, 1))
    embeddings = (axes + random.normal(0, 0.05, axes.shape)) * random.uniform(1, 50, (len(axes), 1))
    learner = LinearSvm(c=1.0)
    answers = learner.answers(Networks(None), FixedPool(embeddings), tasks)
    np.testing.assert_array_equal(answers, np.tile(np.repeat(np.arange(WAYS), QUERIES), (4, 1)))
    accuracies = learner.accuracies(Networks(None), FixedPool(embeddings), tasks)
    np.testing.assert_array_equal(accuracies, np.ones(4))


def _scores(support, query, c):
    """½·‖w‖² + c·Σ max(0, 1 - y·w·x)², x with a 1 at its end: w·x of the queries, [C·Q, C]."""
    support, query = (np.pad(x, ((0, 0), (0, 1)), constant_values=1.0) for x in (support, query))
    labels = np.repeat(np.arange(WAYS), SHOTS)

    def scores(own):
        sides = np.where(labels == own, 1.0, -1.0)

        def objective(w):
            slack = np.maximum(0, 1 - sides * (support @ w))
            return w @ w / 2 + c * (slack**2).sum(), w - 2 * c * support.T @ (slack * sides)

        return query @ minimize(objective, np.zeros(support.shape[1]), jac=True, tol=1e-10).x

    return np.stack([scores(own) for own in range(WAYS)], axis=1)


def _random_embeddings(tasks):
    random = np.random.default_rng(0)
    shape = (tasks * WAYS * (SHOTS + QUERIES), 5)
    return random.normal(0.3, 1, shape) * random.uniform(0.1, 10, (shape[0], 1))


def test_answers_are_those_of_the_objective():
    tasks, embeddings = tasks_of(20), _random_embeddings(20)
    directions, answers = normalize(embeddings), {}
    for c in (0.01, 100.0):
        answers[c] = LinearSvm(c=c).answers(Networks(None), FixedPool(embeddings), tasks)
        for task, rows in enumerate(zip(tasks.support, tasks.query, strict=True)):
            scores = _scores(*(directions[part.ravel()] for part in rows), c)
            two = np.sort(scores)[:, -2:]
            clear = two[:, 1] - two[:, 0] > 1e-3 * np.abs(scores).max()
            assert clear.mean() > 0.8
            np.testing.assert_array_equal(answers[c][task][clear], scores.argmax(axis=1)[clear])
    assert np.mean(answers[0.01] != answers[100.0]) > 0.05  # the test can tell one c from another


@pytest.mark.parametrize("c", [0.01, 10.0])
def test_answers_do_not_depend_on_chance(c):
    ask = Networks(None), FixedPool(_random_embeddings(4)), tasks_of(4)
    np.testing.assert_array_equal(LinearSvm(c=c).answers(*ask), LinearSvm(c=c).answers(*ask))
