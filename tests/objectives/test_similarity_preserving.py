"""Similarity-preserving distillation against hand-derived numbers and NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.objectives.base import GlobalBatch
from refilled_tf.objectives.similarity_preserving import (
    SimilarityPreserving,
    similarities,
    similarity_preserving,
)


def _numpy(student, teacher):
    def rows(features):
        flat = np.float64(features).reshape(len(features), -1)
        gram = flat @ flat.T
        return gram / np.linalg.norm(gram, axis=1, keepdims=True)

    return np.sum((rows(student) - rows(teacher)) ** 2) / len(student) ** 2


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_by_hand():
    # The teacher's two images are orthogonal: I. The student's are (3, 4) and (3, 0): the rows of
    # (25, 9), (9, 9) are divided by √706 and 9√2.
    student = tf.constant([[3.0, 4.0], [3.0, 0.0]])
    teacher = tf.constant([[2.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    a, b, c = 25 / np.sqrt(706), 9 / np.sqrt(706), 1 / np.sqrt(2)
    expected = ((a - 1) ** 2 + b**2 + c**2 + (c - 1) ** 2) / 4
    assert float(similarity_preserving(student, teacher)) == pytest.approx(expected)


def test_against_numpy_with_features_of_other_sizes():
    student, teacher = _random(0, 5, 4, 4, 2), _random(1, 5, 2, 2, 6)
    loss = similarity_preserving(tf.constant(student), tf.constant(teacher))
    assert (loss.dtype, loss.shape) == (tf.float32, [])
    assert float(loss) == pytest.approx(_numpy(student, teacher), rel=1e-5)


def test_only_the_student_gets_a_gradient_and_zeros_a_zero_one():
    student, teacher = tf.zeros([3, 2, 2, 1]), tf.constant(_random(2, 3, 2, 2, 4))
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss = similarity_preserving(student, teacher)
    gradient, to_teacher = tape.gradient(loss, [student, teacher])
    assert to_teacher is None
    assert not np.any(gradient)


def test_scale_does_not_matter():
    features = tf.constant(_random(3, 4, 2, 2, 3))
    np.testing.assert_allclose(similarities(7 * features), similarities(features), atol=1e-6)


def test_objective_weights_the_sum_of_its_layers():
    outputs = [{name: tf.constant(_random(i, 4, 2, 2, 3)) for name in "ab"} for i in (4, 5)]
    batch = GlobalBatch(tf.zeros([4], tf.int32), *outputs, fitted={}, epoch=tf.constant(0.0))
    loss, parts = SimilarityPreserving(weight=2.0, layers=("a", "b"))(batch)
    expected = sum(_numpy(*(side[name].numpy() for side in outputs)) for name in "ab")
    assert float(parts["similarity"]) == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(2 * expected, rel=1e-5)
