"""Prototype logits against SciPy's distances and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import log_softmax

from refilled_tf.losses.prototypes import prototype_logits, task_cross_entropy

RANDOM = np.random.default_rng(0)
EMBEDDINGS = RANDOM.normal(size=(2, 6, 4)).astype(np.float32)
PROTOTYPES = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 16.0])
def test_logits_are_negative_squared_distances(temperature):
    logits = prototype_logits(EMBEDDINGS, PROTOTYPES, temperature)
    pairs = zip(EMBEDDINGS, PROTOTYPES, strict=True)
    wanted = [-cdist(e, p, "sqeuclidean") / temperature for e, p in pairs]
    np.testing.assert_allclose(logits, wanted, rtol=1e-5)


def test_logits_by_hand():
    # (0, 0) to (3, 4) is 25, to itself 0.
    logits = prototype_logits([[[0.0, 0.0]]], [[[3.0, 4.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(logits, [[[-25.0, 0.0]]])


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature"):
        prototype_logits(EMBEDDINGS, PROTOTYPES, 0.0)


def test_cross_entropy_takes_images_class_by_class():
    logits = RANDOM.normal(size=(4, 6, 3)).astype(np.float32)
    losses, accuracies = task_cross_entropy(logits)
    labels = np.array([0, 0, 1, 1, 2, 2])
    log_probabilities = log_softmax(logits.astype(np.float64), axis=-1)
    picked = log_probabilities[:, np.arange(6), labels]
    np.testing.assert_allclose(losses, -picked.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(accuracies, (logits.argmax(-1) == labels).mean(axis=1))


def test_accuracy_by_hand():
    # Two images of two classes: the first is right, the second is taken for class 0.
    _, accuracies = task_cross_entropy(np.array([[[1.0, 0.0], [1.0, 0.0]]], np.float32))
    np.testing.assert_array_equal(accuracies, [0.5])
