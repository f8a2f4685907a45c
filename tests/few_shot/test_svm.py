"""The linear SVM: tasks whose answers can be seen by eye, and what C does."""

from __future__ import annotations

import numpy as np
import pytest
from reference_tasks import QUERIES, SHOTS, WAYS, FixedPool, tasks_of

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


@pytest.mark.parametrize("c", [0.01, 10.0])
def test_answers_do_not_depend_on_chance(c):
    embeddings = np.random.default_rng(0).normal(size=(4 * WAYS * (SHOTS + QUERIES), 5))
    ask = LinearSvm(c=c).answers, Networks(None), FixedPool(embeddings), tasks_of(4)
    np.testing.assert_array_equal(ask[0](*ask[1:]), ask[0](*ask[1:]))
