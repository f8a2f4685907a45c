"""The posterior of a linear classifier, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax

from refilled_tf.losses.posterior import probe_posterior

RANDOM = np.random.default_rng(0)
EMBEDDINGS = RANDOM.normal(size=(6, 4)).astype(np.float32)
WEIGHTS = RANDOM.normal(size=(3, 4, 5)).astype(np.float32)
BIAS = RANDOM.normal(size=(3, 5)).astype(np.float32)
FOLD = np.array([0, 2, 1, 1, 0, 2])


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_each_image_is_judged_by_its_own_classifier_whatever_its_length(scale):
    unit = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    expected = [
        log_softmax((x @ WEIGHTS[f] + BIAS[f]) / 2.5) for x, f in zip(unit, FOLD, strict=True)
    ]
    found = probe_posterior(scale * EMBEDDINGS, WEIGHTS, BIAS, FOLD, 2.5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_teacher_gets_no_gradient():
    embeddings = tf.Variable(EMBEDDINGS)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(probe_posterior(embeddings, WEIGHTS, BIAS, FOLD, 1.0))
    assert tape.gradient(loss, embeddings) is None


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature"):
        probe_posterior(EMBEDDINGS, WEIGHTS, BIAS, FOLD, 0.0)
