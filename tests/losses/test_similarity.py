"""Similarity distillation, against NumPy and at its minimum."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import rel_entr, softmax
from sklearn.preprocessing import normalize

from refilled_tf.losses.similarity import similarity_kl

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = (normalize(RANDOM.normal(size=(5, 8))).astype(np.float32) for _ in range(2))
BANK = normalize(RANDOM.normal(size=(20, 8))).astype(np.float32)


def test_against_numpy():
    taught, said = softmax(TEACHER @ BANK.T / 0.07, 1), softmax(STUDENT @ BANK.T / 0.2, 1)
    found = similarity_kl(STUDENT, TEACHER, BANK, tau_teacher=0.07, tau_student=0.2)
    np.testing.assert_allclose(found, rel_entr(taught, said).sum(axis=1), rtol=1e-4)


def test_zero_with_a_zero_gradient_where_both_agree():
    student = tf.Variable(TEACHER)
    with tf.GradientTape() as tape:
        loss = similarity_kl(student, TEACHER, BANK, tau_teacher=0.1, tau_student=0.1)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, student), 0, atol=1e-5)


@pytest.mark.parametrize("name", ["tau_teacher", "tau_student"])
def test_temperatures_must_be_positive(name):
    taus = {"tau_teacher": 0.1, "tau_student": 0.1} | {name: 0.0}
    with pytest.raises(ValueError, match=name):
        similarity_kl(STUDENT, TEACHER, BANK, **taus)
