"""Local distillation against hand-derived numbers and float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.local import class_centers, decayed_weight, local_kl


def _numpy_local_kl(logits, embeddings, labels, tau_teacher, tau_student, centers=None):
    """Sample by sample, class by class, in float64."""
    logits, embeddings = np.asarray(logits, np.float64), np.asarray(embeddings, np.float64)
    classes = sorted(set(int(y) for y in labels))
    total = 0.0
    for x, f in zip(embeddings, logits, strict=True):
        t, s = [], []
        for c in classes:
            if centers is None:
                center = embeddings[np.asarray(labels) == c].mean(axis=0)
                center = center / np.linalg.norm(center)
            else:
                center = np.asarray(centers, np.float64)[c]
            t.append(x @ center / tau_teacher)
            s.append(f[c] / tau_student)
        p, q = np.exp(np.array(t) - max(t)), np.exp(np.array(s) - max(s))
        p, q = p / p.sum(), q / q.sum()
        total += np.sum(p * np.log(p / q))
    return total / len(labels)


def _batch(seed=0, batch=12, classes=7):
    """Logits, embeddings and labels in which classes 1 and 4 are absent."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 2, 3, 5, 6], batch)
    return (
        rng.normal(size=(batch, classes)).astype(np.float32),
        rng.normal(size=(batch, 9)).astype(np.float32),
        labels,
    )


def test_class_centers_by_hand():
    # Class 0: mean of (6, 0) and (0, 8) is (3, 4), of length 5. (The mean of the *normalised*
    # embeddings would point along (1, 1).) Class 1 is absent.
    centers, present = class_centers(tf.constant([[6.0, 0], [0, 8], [0, -2]]), [0, 0, 2], 3)
    np.testing.assert_allclose(centers, [[0.6, 0.8], [0, 0], [0, -1]], atol=1e-6)
    assert present.dtype == tf.bool
    assert present.numpy().tolist() == [True, False, True]


def test_opposite_embeddings_have_a_zero_center():
    # Their mean is zero and has no direction.
    centers, present = class_centers(tf.constant([[1.0, 2], [-1, -2]]), [0, 0], 1)
    np.testing.assert_array_equal(centers, [[0.0, 0.0]])
    assert bool(present[0])


def test_by_hand():
    # Two classes of one image each, embeddings (2 ln 3, 0) and (0, 2 ln 3): centres are the
    # axes, teacher's logits at tau 2 are (ln 3, 0) and (0, ln 3), so p = (3/4, 1/4) and
    # mirrored. The student says 1/2, 1/2. KL = 3/4 ln(3/2) + 1/4 ln(1/2) for both. Class 1
    # would get logit 100 but is absent.
    scale = 2 * np.log(3)
    logits = tf.constant([[1.0, 100.0, 1.0], [-4.0, 100.0, -4.0]])
    loss = local_kl(logits, tf.constant([[scale, 0], [0, scale]], tf.float32), [0, 2])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert loss.dtype == tf.float32
    assert loss.shape == []
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("taus", [(2.0, 1.0), (4.0, 3.0)])
def test_against_numpy_with_absent_classes(seed, taus):
    logits, embeddings, labels = _batch(seed)
    loss = local_kl(
        tf.constant(logits),
        tf.constant(embeddings),
        labels,
        tau_teacher=taus[0],
        tau_student=taus[1],
    )
    expected = _numpy_local_kl(logits, embeddings, labels, *taus)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_given_centers():
    logits, embeddings, labels = _batch()
    centers = np.random.default_rng(1).normal(size=(7, 9)).astype(np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    args = tf.constant(logits), tf.constant(embeddings), labels
    loss = local_kl(*args, centers=tf.constant(centers))
    expected = _numpy_local_kl(logits, embeddings, labels, 2.0, 1.0, centers)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    # The batch's own centres, given, are the default.
    own, _ = class_centers(args[1], labels, 7)
    assert float(local_kl(*args, centers=own)) == pytest.approx(float(local_kl(*args)))
    assert abs(float(loss) - float(local_kl(*args))) > 1e-2


def test_only_present_classes_matter():
    logits, embeddings, labels = _batch()
    changed = logits.copy()
    changed[:, [1, 4]] = 1e6
    x = tf.constant(embeddings)
    losses = [local_kl(tf.constant(f), x, labels) for f in (logits, changed)]
    assert float(losses[0]) == float(losses[1])


def test_a_permuted_batch_has_the_same_loss():
    logits, embeddings, labels = _batch()
    order = np.random.default_rng(2).permutation(len(labels))
    assert (labels[order] != labels).any()
    loss = local_kl(tf.constant(logits), tf.constant(embeddings), labels)
    logits, embeddings, labels = logits[order], embeddings[order], labels[order]
    permuted = local_kl(tf.constant(logits), tf.constant(embeddings), labels)
    assert float(permuted) == pytest.approx(float(loss), rel=1e-5)


def test_gradient_and_its_absence():
    # d KL / d f_c = (q_c - p_c) / (tau_S B) for present classes and 0 for absent ones, with
    # p and q from NumPy.
    logits, embeddings, labels = _batch()
    tau_teacher, tau_student = 2.0, 3.0
    f, x = tf.constant(logits), tf.constant(embeddings)
    centers = tf.Variable(class_centers(x, labels, 7)[0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([f, x])
        own = local_kl(f, x, labels, tau_teacher=tau_teacher, tau_student=tau_student)
        given = local_kl(f, x, labels, centers=centers)
    classes = np.unique(labels)
    t = embeddings.astype(np.float64) @ centers.numpy()[classes].T / tau_teacher
    s = logits[:, classes].astype(np.float64) / tau_student
    p = np.exp(t) / np.exp(t).sum(1, keepdims=True)
    q = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    expected = np.zeros(logits.shape)
    expected[:, classes] = (q - p) / (tau_student * len(labels))
    gradient = tf.convert_to_tensor(tape.gradient(own, f))
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-7)
    assert tape.gradient(own, x) is None
    assert tape.gradient(given, [x, centers]) == [None, None]


def test_no_factor_of_tau_squared():
    # Both sides' logits times tau, both temperatures times tau: the same distributions, so
    # the same loss.
    logits, embeddings, labels = _batch()
    plain = local_kl(tf.constant(logits), tf.constant(embeddings), labels, tau_teacher=1.0)
    hot = local_kl(
        tf.constant(logits * 5),
        tf.constant(embeddings * 5),
        labels,
        tau_teacher=5.0,
        tau_student=5.0,
    )
    assert float(hot) == pytest.approx(float(plain), rel=1e-4)


def test_one_class_has_no_loss_and_no_gradient():
    # A softmax over one class is 1 on both sides.
    for batch in (1, 4):
        f = tf.constant(np.random.default_rng(3).normal(size=(batch, 3)), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(f)
            loss = local_kl(f, f * 2, [1] * batch)
        assert float(loss) == 0.0
        gradient = tf.convert_to_tensor(tape.gradient(loss, f))
        np.testing.assert_array_equal(gradient, np.zeros([batch, 3]))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, 1e30])
@pytest.mark.parametrize("identical", [False, True])
def test_finite_for_any_finite_input(size, identical):
    logits, embeddings, labels = _batch()
    if identical:
        embeddings[:] = embeddings[0]
    f = tf.constant(logits * np.float32(size))
    with tf.GradientTape() as tape:
        tape.watch(f)
        loss = local_kl(f, tf.constant(embeddings * np.float32(size)), labels)
    assert np.isfinite(loss)
    assert np.isfinite(tf.convert_to_tensor(tape.gradient(loss, f))).all()


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_input(dtype):
    # The reference is NumPy on the same, already rounded, numbers.
    logits, embeddings, labels = _batch()
    f, x = tf.cast(logits, dtype), tf.cast(embeddings, dtype)
    loss = local_kl(f, x, labels)
    rounded = (tf.cast(v, tf.float64).numpy() for v in (f, x))
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(_numpy_local_kl(*rounded, labels, 2.0, 1.0), rel=1e-4)


@pytest.mark.parametrize("name", ["tau_teacher", "tau_student"])
def test_temperatures_must_be_positive(name):
    with pytest.raises(ValueError, match=name):
        local_kl(tf.zeros([2, 2]), tf.zeros([2, 2]), [0, 1], **{name: 0.0})


def test_decayed_weight():
    # 1000 lambda with lambda = .01 is 10 in epoch 0; exp(-.05 * 20) = 1 / e.
    assert float(decayed_weight(10.0, 0)) == 10.0
    assert float(decayed_weight(10.0, 20)) == pytest.approx(10 / np.e, rel=1e-6)
    assert float(decayed_weight(10.0, tf.constant(7, tf.int64), rate=0.0)) == 10.0
    assert decayed_weight(10, tf.Variable(3)).dtype == tf.float32
