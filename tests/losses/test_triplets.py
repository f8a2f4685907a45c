"""Mining against brute force and tensorflow-addons; the loss against its closed form."""

from __future__ import annotations

import numeric
import numpy as np
import pytest
import tensorflow as tf

from refilled_tf.losses.distances import l2_normalize, pairwise_distances
from refilled_tf.losses.triplets import (
    bernoulli_kl,
    nearest_neighbors,
    positive_pairs,
    same_class,
    semi_hard_triplets,
    triplet_kl,
)


def _brute_force(distances, labels, fallback):
    """The definition, with three loops."""
    triplets = []
    batch = len(labels)
    for i in range(batch):
        impostors = [k for k in range(batch) if labels[k] != labels[i]]
        for j in range(batch):
            if i == j or labels[i] != labels[j]:
                continue
            beyond = [k for k in impostors if distances[i, k] > distances[i, j]]
            if beyond:
                triplets.append((i, j, min(beyond, key=lambda k: (distances[i, k], k))))
            elif impostors and fallback == "farthest":
                triplets.append((i, j, min(impostors, key=lambda k: (-distances[i, k], k))))
    return np.array(triplets, np.int32).reshape(-1, 3)


_mine = {
    fallback: tf.function(
        lambda d, y, fallback=fallback: semi_hard_triplets(d, y, fallback),
        input_signature=[tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int32)],
    )
    for fallback in ("skip", "farthest")
}


def _assert_mined(distances, labels, fallback):
    mined = _mine[fallback](tf.constant(distances, tf.float32), tf.constant(labels, tf.int32))
    assert all(x.dtype == tf.int32 for x in mined)
    expected = _brute_force(np.asarray(distances, np.float32), labels, fallback)
    np.testing.assert_array_equal(np.stack(mined, axis=1), expected)
    return len(expected)


# --- mining ---------------------------------------------------------------------------------


def test_mining_by_hand():
    # Points on a line: class 0 at 0, 2, 9; class 1 at 1, 3, -3. Anchor 0: distances to
    # impostors 1, 3, 3; the pair (0, 2) finds 3 twice and takes the first in the batch, (0,
    # 9) finds none beyond. Anchor 2: impostors at 1, 1, 5; (2, 0) finds 5, (2, 9) none.
    # Anchor 9: impostors at 8, 6, 12; (9, 0) finds 12, (9, 2) finds 8.
    x = np.array([0.0, 2.0, 9.0, 1.0, 3.0, -3.0])
    labels = [0, 0, 0, 1, 1, 1]
    distances = tf.constant(np.abs(x[:, None] - x[None]), tf.float32)
    mined = np.stack(semi_hard_triplets(distances, labels), 1).tolist()
    class0 = [t for t in mined if t[0] < 3]
    assert class0 == [[0, 1, 4], [1, 0, 5], [2, 0, 5], [2, 1, 3]]
    # The two pairs without an impostor beyond take the farthest: at 3, first of two, and at
    # 5.
    mined = np.stack(semi_hard_triplets(distances, labels, "farthest"), 1).tolist()
    class0 = [t for t in mined if t[0] < 3]
    assert class0 == [[0, 1, 4], [0, 2, 4], [1, 0, 5], [1, 2, 5], [2, 0, 5], [2, 1, 3]]


@pytest.mark.parametrize("fallback", ["skip", "farthest"])
@pytest.mark.parametrize("kind", ["continuous", "ties", "duplicates", "asymmetric"])
def test_mining_against_brute_force(kind, fallback):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(120):
        batch = int(rng.integers(1, 15))
        labels = rng.integers(0, rng.integers(1, 6), batch)
        x = rng.normal(size=(batch, 3))
        if kind == "duplicates":
            x = x[rng.integers(0, max(1, batch // 3), batch)]
        distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
        if kind == "ties":
            distances = np.round(distances)
        if kind == "asymmetric":  # rows are anchors: catches a swapped axis
            distances = rng.integers(0, 6, (batch, batch)).astype(float)
        found += _assert_mined(distances, labels, fallback)
    assert found > 500


@pytest.mark.parametrize("fallback", ["skip", "farthest"])
@pytest.mark.parametrize(
    "labels",
    [[0], [0, 0], [0, 1], [0, 1, 2, 3], [7, 7, 7, 7], [0, 0, 1]],
    ids=["one", "one pair", "two classes", "no positives", "one class", "one impostor"],
)
def test_mining_of_small_and_one_sided_batches(labels, fallback):
    x = np.arange(len(labels), dtype=float) ** 2
    found = _assert_mined(np.abs(x[:, None] - x[None]), labels, fallback)
    # Only the last batch holds both a positive pair and an impostor: anchors 0 and 1, at 0
    # and 1, with the impostor at 4.
    assert found == (2 if labels == [0, 0, 1] else 0)


@pytest.mark.parametrize("fallback", ["skip", "farthest"])
def test_mining_of_a_larger_batch_of_real_distances(fallback):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(130, 8)), tf.float32)
    distances = pairwise_distances(x).numpy()
    assert _assert_mined(distances, rng.integers(0, 10, 130), fallback) > 500


def test_nan_distances_are_never_mined():
    # Nothing compares to NaN, so the brute force skips it both as positive and as impostor; a
    # sort without care does not.
    rng = np.random.default_rng(1)
    distances = rng.integers(0, 9, (60, 60)).astype(np.float32)
    distances[rng.random((60, 60)) < 0.3] = np.nan
    assert _assert_mined(distances, rng.integers(0, 6, 60), "skip") > 100


def test_unknown_fallback_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'skip', 'farthest'.*'nearest'"):
        semi_hard_triplets(tf.zeros([2, 2]), [0, 0], fallback="nearest")
    with pytest.raises(ValueError, match="farthest"):
        triplet_kl(tf.zeros([2, 2]), tf.zeros([2, 2]), [0, 0], fallback="nearest")


def test_labels_must_be_a_vector():
    with pytest.raises(ValueError, match="rank"):
        semi_hard_triplets(tf.zeros([2, 2]), [[0], [0]])


def test_nearest_neighbors_by_hand():
    # On a line at 0, 1, 3 and 7: 0 and 1 are each other's nearest, 3's is 1, 7's is 3.
    places = np.array([0.0, 1, 3, 7], np.float32)
    near = nearest_neighbors(np.abs(places[:, None] - places), 1)
    pairs = positive_pairs(near).numpy().tolist()
    assert pairs == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    assert np.diag(near).all()


def test_equal_images_are_their_own_nearest():
    near = nearest_neighbors(np.zeros((3, 3), np.float32), 1)
    assert np.diag(near).all()
    np.testing.assert_array_equal(near, np.transpose(near))


def test_positive_pairs_by_hand():
    pairs = positive_pairs(same_class(tf.constant([3, 5, 3, 3])))
    assert pairs.numpy().tolist() == [[0, 2], [0, 3], [2, 0], [2, 3], [3, 0], [3, 2]]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("own_distances", [True, False], ids=["our distances", "theirs"])
def test_mining_agrees_with_tensorflow_addons(seed, own_distances):
    tfa = pytest.importorskip("tensorflow_addons", reason="it ends with Python 3.11")
    # Their loss takes the nearest impostor beyond the positive, else the farthest, and is the
    # mean over all positive pairs of max(0, margin + d_ap - d_an). With a margin above every
    # gap the hinge is linear, so it must equal margin + mean(d_ap - d_an) over our triplets:
    # in a batch of several classes the fallback leaves no pair out, so the means run over the
    # same pairs, and which of several equally distant impostors is taken does not matter.
    rng = np.random.default_rng(seed)
    labels = tf.constant(np.r_[0, 0, 1, 1, rng.integers(0, 5, 20)], tf.int32)
    x = tf.constant(rng.normal(size=(24, 6)), tf.float32)
    margin = 20.0
    distances = pairwise_distances(x)
    assert float(tf.reduce_max(distances)) < margin
    theirs = tfa.losses.triplet_semihard_loss(
        labels, x, margin, distance_metric=pairwise_distances if own_distances else "L2"
    )
    anchor, positive, negative = (
        t.numpy() for t in semi_hard_triplets(distances, labels, "farthest")
    )
    d = distances.numpy().astype(np.float64)
    ours = margin + np.mean(d[anchor, positive] - d[anchor, negative])
    assert float(theirs) == pytest.approx(ours, abs=1e-4)


# --- the divergence -------------------------------------------------------------------------


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_bernoulli_kl_against_its_definition():
    t, s = np.meshgrid(np.linspace(-6, 6, 13), np.linspace(-6, 6, 13))
    p, q = _sigmoid(t), _sigmoid(s)
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    actual = bernoulli_kl(tf.constant(t, tf.float32), tf.constant(s, tf.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=1e-5)


def test_bernoulli_kl_identities():
    # With rho = 1 - p_T: KL = const + rho x + ln(1 + e^-x), the constant being minus the
    # entropy of p_T; dKL/dx = sigmoid(x) - p_T; so the minimum is where x is the teacher's
    # logit.
    x = np.linspace(-4, 4, 161)
    for t in (-1.5, 0.0, 0.4):
        p = _sigmoid(t)
        constant = p * np.log(p) + (1 - p) * np.log(1 - p)
        student = tf.constant(x, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(student)
            kl = bernoulli_kl(tf.fill([161], t), student)
        expected = constant + (1 - p) * x + np.log1p(np.exp(-x))
        np.testing.assert_allclose(kl, expected, atol=1e-6)
        np.testing.assert_allclose(tape.gradient(kl, student), _sigmoid(x) - p, atol=1e-6)
        assert x[np.argmin(expected)] == pytest.approx(t)
        assert x[np.argmin(kl)] == pytest.approx(t, abs=0.051)


def test_bernoulli_kl_of_certainties_is_finite():
    # For p_T = 1 and q = sigmoid(-a) with large a, KL = -ln q = softplus(a) = a; where both
    # sides are certain of the same, 0.
    t = tf.constant([1e4, 1e4, -1e4, 1e30, 1e30])
    s = tf.constant([-1e4, 1e4, 1e4, 1e30, -1e30])
    with tf.GradientTape() as tape:
        tape.watch(s)
        kl = bernoulli_kl(t, s)
    np.testing.assert_allclose(kl, [1e4, 0, 1e4, 0, 1e30], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(kl, s), [-1, 0, 1, 0, -1], atol=1e-6)


# --- the loss -------------------------------------------------------------------------------


def _numpy_triplet_kl(student, teacher, triplets, tau_teacher, tau_student):
    """The definition in float64 for given triplets, from probabilities and differences."""

    def probability(x, tau):
        x = np.asarray(x, np.float64)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        i, j, k = triplets.T
        gap = np.linalg.norm(x[i] - x[k], axis=1) - np.linalg.norm(x[i] - x[j], axis=1)
        return _sigmoid(gap / tau)

    p, q = probability(teacher, tau_teacher), probability(student, tau_student)
    return np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def _triplets_of(student, labels, fallback="skip"):
    distances = pairwise_distances(l2_normalize(tf.constant(student)))
    return np.stack(semi_hard_triplets(distances, labels, fallback), axis=1)


def _loss_and_gradients(student, teacher, labels, **kwargs):
    student, teacher = tf.convert_to_tensor(student), tf.convert_to_tensor(teacher)
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss, count = triplet_kl(student, teacher, labels, **kwargs)
    return loss, count, *tape.gradient(loss, [student, teacher])


def test_loss_by_hand():
    # Unit vectors at 0, 60 and 180 degrees, classes 0, 0, 1. Chords are 2 sin(angle / 2): the
    # pair has d = 1, the impostor is at 2 from the first and sqrt(3) from the second. So the
    # student's gaps are 1 and sqrt(3) - 1. The teacher has the pair at 90 degrees and the
    # impostor at -90: gaps sqrt(2) - sqrt(2) = 0 and 2 - sqrt(2).
    def on_circle(degrees, length):
        a = np.deg2rad(degrees)
        return (length * np.stack([np.cos(a), np.sin(a)], 1)).astype(np.float32)

    student, teacher = on_circle([0, 60, 180], 3.0), on_circle([0, 90, -90], 0.5)
    p = _sigmoid(np.array([0, 2 - np.sqrt(2)]) / 2)
    q = _sigmoid(np.array([1, np.sqrt(3) - 1]))
    expected = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    loss, count = triplet_kl(tf.constant(student), tf.constant(teacher), [0, 0, 1])
    assert float(count) == 2.0
    assert count.dtype == loss.dtype == tf.float32
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fallback", ["skip", "farthest"])
@pytest.mark.parametrize("taus", [(2.0, 1.0), (4.0, 4.0), (0.1, 0.2)])
def test_loss_and_gradient_against_numpy(taus, fallback):
    # The gradient's reference is central differences in float64 with the triplets held fixed:
    # the loss must not differentiate the choice.
    rng = np.random.default_rng(3)
    student = (rng.normal(size=(10, 4)) * 3).astype(np.float32)
    teacher = rng.normal(size=(10, 7)).astype(np.float32)
    labels = rng.integers(0, 3, 10)
    triplets = _triplets_of(student, labels, fallback)
    loss, count, gradient, _ = _loss_and_gradients(
        student, teacher, labels, tau_teacher=taus[0], tau_student=taus[1], fallback=fallback
    )
    assert float(count) == len(triplets) > 5
    expected = _numpy_triplet_kl(student, teacher, triplets, *taus)
    assert float(loss) == pytest.approx(expected, rel=1e-3, abs=1e-6)

    expected = numeric.gradient(lambda x: _numpy_triplet_kl(x, teacher, triplets, *taus), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=2e-6)


def test_loss_is_zero_and_stationary_where_student_equals_teacher():
    # One temperature on both sides and one embedding (up to length): every gap agrees.
    x = np.random.default_rng(4).normal(size=(20, 5)).astype(np.float32)
    labels = np.arange(20) % 4
    loss, count, gradient, _ = _loss_and_gradients(
        x, x * 3, labels, tau_teacher=4.0, tau_student=4.0
    )
    assert float(count) > 10
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_a_step_down_the_gradient_lowers_the_loss():
    rng = np.random.default_rng(5)
    student, teacher = rng.normal(size=(2, 24, 6)).astype(np.float32)
    labels = np.arange(24) % 4
    triplets = _triplets_of(student, labels)
    gradient = _loss_and_gradients(student, teacher, labels)[2].numpy()
    before, after = (
        _numpy_triplet_kl(s, teacher, triplets, 2.0, 1.0)
        for s in (student, student - 0.1 * gradient)
    )
    # To first order the loss falls by the step times the gradient's squared norm.
    squared_norm = np.sum(np.square(gradient, dtype=float))
    assert before - after == pytest.approx(0.1 * squared_norm, rel=0.1)


def test_no_gradient_reaches_the_teacher():
    rng = np.random.default_rng(6)
    student, teacher = rng.normal(size=(2, 12, 3)).astype(np.float32)
    _, count, to_student, to_teacher = _loss_and_gradients(student, teacher, np.arange(12) % 3)
    assert float(count) > 0
    assert np.abs(to_student).max() > 0
    assert to_teacher is None


@pytest.mark.parametrize("fallback", ["skip", "farthest"])
@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [1, 1, 1]])
def test_no_triplets_no_loss_no_gradient(labels, fallback):
    x = np.random.default_rng(7).normal(size=(len(labels), 4)).astype(np.float32)
    loss, count, gradient, _ = _loss_and_gradients(x, x[:, :2], labels, fallback=fallback)
    assert float(loss) == float(count) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(x))


@pytest.mark.parametrize("fallback", ["skip", "farthest"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("kind", ["random", "identical", "half identical"])
def test_finite_for_any_finite_input(kind, size, fallback):
    rng = np.random.default_rng(8)
    x = rng.normal(size=(16, 5)).astype(np.float32)
    if kind != "random":
        x[: 16 if kind == "identical" else 8] = x[0]
    x = x * np.float32(size)
    loss, count, gradient, _ = _loss_and_gradients(
        x,
        x[::-1].copy(),
        np.arange(16) % 4,
        tau_teacher=1e-3,
        tau_student=1e-3,
        fallback=fallback,
    )
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    if kind == "random" and size:
        assert float(count) > 10


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_input(dtype):
    # The reference is the loss of the same, already rounded, numbers in float32.
    rng = np.random.default_rng(9)
    student, teacher = (tf.cast(rng.normal(size=(16, 5)) * 50, dtype) for _ in range(2))
    labels = np.arange(16) % 4
    loss, count, gradient, _ = _loss_and_gradients(student, teacher, labels)
    exact, exact_count = triplet_kl(
        tf.cast(student, tf.float32), tf.cast(teacher, tf.float32), labels
    )
    assert loss.dtype == count.dtype == tf.float32
    assert gradient.dtype == dtype
    assert float(loss) == float(exact) > 0
    assert float(count) == float(exact_count)
    assert np.isfinite(tf.cast(gradient, tf.float32)).all()


def test_a_diverged_student_is_not_taken_for_a_batch_without_triplets():
    x = np.ones((4, 2), np.float32)
    x[1, 0] = np.nan
    loss, _ = triplet_kl(tf.constant(x), tf.ones([4, 2]), [0, 0, 1, 1])
    assert np.isnan(loss)


@pytest.mark.parametrize("name", ["tau_teacher", "tau_student"])
def test_temperatures_must_be_positive(name):
    with pytest.raises(ValueError, match=name):
        triplet_kl(tf.zeros([2, 2]), tf.zeros([2, 2]), [0, 0], **{name: 0.0})


def test_one_graph_serves_all_batch_sizes():
    # The last batch of an epoch is smaller; one trace gives the values of eager code.
    embeddings = tf.TensorSpec([None, 4])

    @tf.function(input_signature=[embeddings, embeddings, tf.TensorSpec([None], tf.int64)])
    def traced(student, teacher, labels):
        return triplet_kl(student, teacher, labels)

    rng = np.random.default_rng(10)
    for batch in (1, 7, 20):
        student, teacher = (tf.constant(rng.normal(size=(batch, 4)), tf.float32) for _ in "st")
        labels = tf.constant(np.arange(batch) % 3, tf.int64)
        expected = triplet_kl(student, teacher, labels)
        np.testing.assert_allclose(traced(student, teacher, labels), expected, atol=1e-6)
