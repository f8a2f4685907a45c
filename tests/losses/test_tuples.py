"""Tuples against hand-derived numbers and a NumPy loop in float64."""

from __future__ import annotations

import numeric
import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.tuples import tuple_kl

TAUS = {"tau_teacher": 2.0, "tau_student": 1.0}


def _unit_distances(x):
    x = np.asarray(x, np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


def _numpy_tuples(student, labels, margin):
    """Lists of (anchor, [positive, impostor, ...]) by the definition."""
    d = _unit_distances(student)
    tuples = []
    for i in range(len(labels)):
        for j in range(len(labels)):
            if i == j or labels[i] != labels[j]:
                continue
            near = [
                k
                for k in range(len(labels))
                if labels[k] != labels[i] and 0 < d[i, k] - d[i, j] <= margin
            ]
            if near:
                tuples.append((i, [j, *near]))
    return tuples


def _numpy_tuple_kl(student, teacher, tuples, tau_teacher, tau_student):
    d_teacher, d_student = _unit_distances(teacher), _unit_distances(student)
    total = 0.0
    for i, members in tuples:
        p = np.exp(-d_teacher[i, members] / tau_teacher)
        q = np.exp(-d_student[i, members] / tau_student)
        p, q = p / p.sum(), q / q.sum()
        total += np.sum(p * np.log(p / q))
    return total / max(len(tuples), 1)


def _loss_and_gradients(student, teacher, labels, **kwargs):
    student, teacher = tf.convert_to_tensor(student), tf.convert_to_tensor(teacher)
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss, count = tuple_kl(student, teacher, labels, **kwargs)
    return loss, count, *tape.gradient(loss, [student, teacher])


def _on_circle(degrees):
    a = np.deg2rad(degrees)
    return tf.constant(np.stack([np.cos(a), np.sin(a)], 1), tf.float32)


def test_by_hand():
    # Class 0 at 0 and 60 degrees, impostors at -65, -70 and 180, all of different classes.
    # Chords are 2 sin(angle / 2). Anchor 0: positive at 1, impostors at 1.0746, 1.1472 and 2;
    # within 0.2 are the first two. Anchor 60: positive at 1, impostors at 125, 130 and 120
    # degrees, none within 0.2 (1.732 is the nearest). So one tuple of three members.
    degrees = [0, 60, -65, -70, 180]
    teacher_degrees = [0, 90, -90, 90, 45]
    chord = 2 * np.sin(np.deg2rad([60, 65, 70]) / 2)
    np.testing.assert_allclose(chord, [1, 1.0746, 1.1472], atol=1e-4)
    q = np.exp(-chord)
    q = q / q.sum()
    # In the teacher all three members are at 90 degrees from the anchor: p is uniform.
    expected = -np.log(3) - np.mean(np.log(q))
    loss, count = tuple_kl(
        _on_circle(degrees), _on_circle(teacher_degrees), [0, 0, 1, 2, 3], **TAUS
    )
    assert float(count) == 1.0
    assert count.dtype == loss.dtype == tf.float32
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    # A margin of 0.1 lets only the nearer impostor in, and the loss is the two-way one.
    loss, _ = tuple_kl(
        _on_circle(degrees), _on_circle(teacher_degrees), [0, 0, 1, 2, 3], margin=0.1, **TAUS
    )
    q = np.exp(-chord[:2])
    assert float(loss) == pytest.approx(-np.log(2) - np.mean(np.log(q / q.sum())), abs=1e-6)


def test_an_impostor_no_farther_than_the_positive_is_left_out():
    # The positive and the impostor coincide: their distances are equal, and equal is not
    # beyond.
    x = _on_circle([0, 50, 50])
    assert float(tuple_kl(x, x, [0, 0, 1], **TAUS)[1]) == 0.0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("margin", [0.2, 5.0])
def test_against_numpy(seed, margin):
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(4, 24))
    student = rng.normal(size=(batch, 5)).astype(np.float32)
    teacher = rng.normal(size=(batch, 3)).astype(np.float32)
    labels = np.r_[0, 0, rng.integers(0, 4, batch - 2)]
    tuples = _numpy_tuples(student, labels, margin)
    loss, count = tuple_kl(
        tf.constant(student), tf.constant(teacher), labels, margin=margin, **TAUS
    )
    assert float(count) == len(tuples)
    expected = _numpy_tuple_kl(student, teacher, tuples, **TAUS)
    assert float(loss) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_gradient_against_central_differences():
    # In float64 with the tuples held fixed: the choice of impostors must not be
    # differentiated.
    rng = np.random.default_rng(0)
    student = rng.normal(size=(10, 4)).astype(np.float32)
    teacher = rng.normal(size=(10, 4)).astype(np.float32)
    labels = np.arange(10) % 3
    tuples = _numpy_tuples(student, labels, 0.2)
    assert len(tuples) > 5
    assert max(len(members) for _, members in tuples) > 2
    gradient = _loss_and_gradients(student, teacher, labels, **TAUS)[2]
    expected = numeric.gradient(lambda x: _numpy_tuple_kl(x, teacher, tuples, **TAUS), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=2e-6)


def test_student_equal_to_teacher_has_no_loss_and_the_teacher_no_gradient():
    x = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)
    labels = np.arange(16) % 4
    same = {"tau_teacher": 3.0, "tau_student": 3.0}
    loss, count, gradient, _ = _loss_and_gradients(x, x * 2, labels, **same)
    assert float(count) > 5
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    _, _, to_student, to_teacher = _loss_and_gradients(x, x[::-1].copy(), labels, **TAUS)
    assert np.abs(to_student).max() > 1e-4
    assert to_teacher is None


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 1, 2], [5, 5, 5]])
def test_no_tuples_no_loss_no_gradient(labels):
    x = np.random.default_rng(2).normal(size=(len(labels), 4)).astype(np.float32)
    loss, count, gradient, _ = _loss_and_gradients(x, x, labels, **TAUS)
    assert float(loss) == float(count) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(x))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("kind", ["random", "identical", "half identical"])
def test_finite_for_any_finite_input(kind, size):
    x = np.random.default_rng(3).normal(size=(16, 5)).astype(np.float32)
    if kind != "random":
        x[: 16 if kind == "identical" else 8] = x[0]
    x = x * np.float32(size)
    loss, count, gradient, _ = _loss_and_gradients(
        x, x[::-1].copy(), np.arange(16) % 4, tau_teacher=1e-3, tau_student=1e-3
    )
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    if kind == "random" and size:
        assert float(count) > 5


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_input(dtype):
    # The reference is the loss of the same, already rounded, numbers in float32.
    rng = np.random.default_rng(4)
    student, teacher = (tf.cast(rng.normal(size=(16, 5)) * 50, dtype) for _ in range(2))
    labels = np.arange(16) % 4
    loss, _, gradient, _ = _loss_and_gradients(student, teacher, labels, **TAUS)
    exact, _ = tuple_kl(tf.cast(student, tf.float32), tf.cast(teacher, tf.float32), labels, **TAUS)
    assert loss.dtype == tf.float32
    assert gradient.dtype == dtype
    assert float(loss) == float(exact) > 0
    assert np.isfinite(tf.cast(gradient, tf.float32)).all()


def test_a_diverged_student_shows():
    x = np.ones((4, 2), np.float32)
    x[1, 0] = np.nan
    assert np.isnan(tuple_kl(tf.constant(x), tf.ones([4, 2]), [0, 0, 1, 1], **TAUS)[0])


@pytest.mark.parametrize("name", ["tau_teacher", "tau_student", "margin"])
def test_arguments_must_be_positive(name):
    with pytest.raises(ValueError, match=name):
        tuple_kl(tf.zeros([2, 2]), tf.zeros([2, 2]), [0, 0], **{**TAUS, name: -1.0})
