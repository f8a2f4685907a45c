"""The probe's classifiers are scikit-learn's, fitted here a second time by other means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from refilled_tf.evaluation import linear_probe


def _data(classes=4, each=15, views=3, size=6, noise=1.0):
    """Noisy embeddings around a centre for each class: [N, V, d], [N]."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    images = random.normal(size=(classes, size))[labels] + noise * random.normal(
        size=(len(labels), size)
    )
    embeddings = images[:, np.newaxis] + 0.1 * random.normal(size=(len(labels), views, size))
    return embeddings.astype(np.float32), labels


def _logits(model, x):
    """Of binary regressions, sklearn has one column: the log-odds of the second class."""
    found = model.decision_function(x)
    return found if found.ndim == 2 else np.stack([-found, found], axis=1) / 2


@pytest.mark.parametrize("classes", [2, 4])
def test_each_fold_is_judged_by_a_classifier_of_the_others(classes):
    embeddings, labels = _data(classes)
    probe = linear_probe.fit(embeddings, labels, seed=0)
    assert probe.weights.shape == (6, 6, classes)
    assert sorted(np.bincount(probe.fold)) == [3 * classes] * 5
    unit = normalize(embeddings.reshape(-1, 6))
    for number in range(6):  # the last one has seen all
        rows = np.repeat(probe.fold != number, 3)
        model = LogisticRegression(C=probe.c, max_iter=1000)
        model.fit(unit[rows], np.repeat(labels, 3)[rows], np.full(rows.sum(), 1 / 3))
        ours = (unit @ probe.weights[number] + probe.bias[number]) * probe.temperature
        theirs = _logits(model, unit)
        np.testing.assert_allclose(softmax(ours, 1), softmax(theirs, 1), atol=2e-3)


def test_probabilities_of_held_out_images_are_calibrated():
    """The temperature is a minimum: no other one of the grid gives a lower loss."""
    embeddings, labels = _data(noise=1.5)
    probe = linear_probe.fit(embeddings, labels, seed=0)
    unit = normalize(embeddings[:, 0])
    logits = np.einsum("nd,ndc->nc", unit, probe.weights[probe.fold]) + probe.bias[probe.fold]

    def loss(factor):
        chosen = softmax(logits * factor, axis=1)[np.arange(len(labels)), labels]
        return -np.log(chosen).mean()

    step = linear_probe.TEMPERATURES[1] / linear_probe.TEMPERATURES[0]
    assert loss(1) <= min(loss(step), loss(1 / step))
    assert probe.accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == labels))


def test_a_single_image_of_a_class_leaves_no_folds():
    embeddings, labels = _data()
    keep = np.r_[0, 15:60]
    probe = linear_probe.fit(embeddings[keep], labels[keep], seed=0)
    assert probe.weights.shape == (1, 6, 4)
    assert set(probe.fold) == {0}
    assert np.isnan(probe.accuracy)


def test_raw_embeddings_are_standardised_within_the_weights():
    embeddings, labels = _data(views=1)
    embeddings = embeddings * [1, 10, 100, 1, 1, 0.01] + 5
    probe = linear_probe.fit_raw(embeddings, labels, seed=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=probe.c, max_iter=1000))
    model.fit(embeddings[:, 0], labels)
    ours = (embeddings[:, 0] @ probe.weights[-1] + probe.bias[-1]) * probe.temperature
    np.testing.assert_allclose(softmax(ours, 1), model.predict_proba(embeddings[:, 0]), atol=2e-3)
