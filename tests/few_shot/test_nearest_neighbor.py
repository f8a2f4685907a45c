"""1NN against scikit-learn's classifier."""

from __future__ import annotations

import numpy as np
from reference_tasks import QUERIES, SHOTS, WAYS, FixedPool, tasks_of
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from refilled_tf.few_shot.base import Networks
from refilled_tf.few_shot.nearest_neighbor import NearestNeighbor


def test_answers_are_scikit_learns():
    tasks = tasks_of(5)
    # Of very different lengths, so that normalising them matters.
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(5 * WAYS * (SHOTS + QUERIES), 6))
    embeddings *= random.uniform(0.1, 10, (len(embeddings), 1))
    answers = NearestNeighbor().answers(Networks(None), FixedPool(embeddings), tasks)
    directions, wanted = normalize(embeddings), []
    for support, query in zip(tasks.support, tasks.query, strict=True):
        classifier = KNeighborsClassifier(1)
        classifier.fit(directions[support.ravel()], np.repeat(np.arange(WAYS), SHOTS))
        wanted.append(classifier.predict(directions[query.ravel()]))
    np.testing.assert_array_equal(answers, wanted)
    assert len(np.unique(answers)) == WAYS
