"""Scores of embeddings, by hand and against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, normalize

from refilled_tf.evaluation.embedding import (
    RECALL_AT,
    cross_validated,
    embedding_quality,
    logistic_regression_accuracy,
    nearest_neighbor_accuracy,
)


def _at(*degrees):
    """Points on circles of various radii, which normalising undoes."""
    angles = np.radians(degrees)
    radii = 1 + np.arange(len(degrees))[:, np.newaxis]
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii


def test_hand_made_circle():
    """All by hand, in degrees.

    Training: class 5 at 0, 20 and 100 (its centre lies at 36.9), class 9 at 150 and 170 (centre
    160). The border between the centres is at 98.5, so 110 falls to class 9 by centres, and to
    class 5 by its nearest image at 100.
    """
    train, train_labels = _at(0, 20, 100, 150, 170), np.array([5, 5, 5, 9, 9])
    test, test_labels = _at(10, 30, 110, 155, 165), np.array([5, 5, 5, 9, 9])
    quality = embedding_quality(train, train_labels, test, test_labels, seed=0)
    assert quality["ncm"] == pytest.approx(4 / 5)
    assert quality["1nn"] == pytest.approx(1.0)
    # Nearest other test image: 10↔30, 110→155 (45 against 80), 155↔165: only 110 misses.
    assert quality["recall@1"] == pytest.approx(4 / 5)
    # Among two: 110 → 155, 165 misses still; among four, all others: everyone hits.
    assert quality["recall@2"] == pytest.approx(4 / 5)
    assert quality["recall@4"] == quality["recall@8"] == 1.0
    # k-means cuts at the widest gap, {10, 30} and {110, 155, 165}. With natural logarithms
    # H(class) = H(cluster) = H(2/5) = .6730; I = Σ p·log(p/(p_k·p_c)) over the table 2, 0 / 1, 2:
    # .4·log(.4/.24) + .2·log(.2/.36) + .4·log(.4/.24) = .2911; NMI = .2911 / .6730.
    assert quality["nmi"] == pytest.approx(0.4325, abs=1e-3)


def test_nmi_is_normalised_by_the_arithmetic_mean():
    """By hand: images at 0, 2, 60, 4 degrees of classes 1, 1, 2, 2 fall into clusters of 3 and 1.

    I = ½·log(½ / (½·¾)) + ¼·log(¼ / (½·¼)) + ¼·log(¼ / (½·¾)) = .2158; H(class) = .6931, H(cluster)
    = .5623. The mean of the two gives .3438, the geometric one would give .3457.
    """
    images, labels = _at(0, 2, 60, 4), np.array([1, 1, 2, 2])
    quality = embedding_quality(images, labels, images, labels, seed=0)
    assert quality["nmi"] == pytest.approx(0.3438, abs=2e-4)


@pytest.fixture
def clouds():
    """Three overlapping classes in seven dimensions, 30 images each for training and test."""
    random = np.random.default_rng(0)
    means = random.normal(size=(3, 7))
    labels = np.repeat([2, 4, 7], 30)
    train, test = (np.repeat(means, 30, 0) + random.normal(size=(90, 7)) for _ in range(2))
    return train, labels, test, labels


def _unit(x):
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def _distances(a, b):
    return np.sqrt(((a[:, np.newaxis] - b[np.newaxis]) ** 2).sum(axis=-1))


def test_against_plain_numpy(clouds):
    train, train_labels, test, test_labels = clouds
    quality = embedding_quality(*clouds, seed=0)
    a, b = _unit(train), _unit(test)

    classes = [2, 4, 7]
    centers = _unit(np.stack([a[train_labels == c].mean(axis=0) for c in classes]))
    ncm = np.take(classes, _distances(b, centers).argmin(axis=1)) == test_labels
    assert quality["ncm"] == pytest.approx(ncm.mean())

    nearest = train_labels[_distances(b, a).argmin(axis=1)] == test_labels
    assert quality["1nn"] == pytest.approx(nearest.mean())

    among = _distances(b, b)
    np.fill_diagonal(among, np.inf)
    order = among.argsort(axis=1)
    for k in RECALL_AT:
        hits = [any(test_labels[order[i, :k]] == test_labels[i]) for i in range(90)]
        assert quality[f"recall@{k}"] == pytest.approx(np.mean(hits))
    assert 0.4 < quality["ncm"] < 1  # neither trivial nor hopeless


def test_scale_of_an_image_does_not_matter(clouds):
    train, train_labels, test, test_labels = clouds
    scale = np.random.default_rng(1).uniform(0.1, 10, (90, 1))
    scaled = embedding_quality(train * scale, train_labels, test / scale, test_labels, 0)
    assert scaled == pytest.approx(embedding_quality(*clouds, seed=0))


def test_perfect_embedding_scores_one_everywhere():
    points = np.repeat(np.eye(4), 9, axis=0)
    labels = np.repeat(np.arange(4), 9)
    quality = embedding_quality(points, labels, points, labels, seed=0)
    assert quality == dict.fromkeys(quality, pytest.approx(1.0))


def test_an_image_is_not_its_own_neighbour():
    # Two classes of two images, each nearest to one of the other class (1 against 9 degrees).
    points = _at(0, 1, 10, 11)
    labels = np.array([0, 1, 1, 0])
    assert embedding_quality(points, labels, points, labels, 0)["recall@1"] == 0.0


def test_duplicates_count_as_neighbours():
    points = _at(0, 0, 90, 90)
    labels = np.array([0, 0, 1, 1])
    assert embedding_quality(points, labels, points, labels, 0)["recall@1"] == 1.0


def test_results_are_json_numbers(clouds):
    assert {type(x) for x in embedding_quality(*clouds, seed=0).values()} == {float}


# --- probes ---------------------------------------------------------------------------------


def test_nearest_neighbor_by_hand():
    train, labels = _at(0, 90, 180), np.array([3, 1, 2])
    test = _at(10, 80, 100, 170)
    assert nearest_neighbor_accuracy(train, labels, test, np.array([3, 1, 1, 2])) == 1.0
    assert nearest_neighbor_accuracy(train, labels, test, np.array([3, 1, 2, 1])) == 0.5


def test_logistic_regression_solves_separable_classes():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    # Scales differ a thousandfold between dimensions; standardising must undo that.
    points = (np.eye(3)[labels] + random.normal(scale=0.05, size=(60, 3))) * [1e3, 1, 1e-3]
    assert logistic_regression_accuracy(points, labels, points[::-1], labels[::-1], 0) == 1.0


def test_logistic_regression_is_not_fooled_by_noise():
    random = np.random.default_rng(0)
    train, test = random.normal(size=(2, 200, 5))
    labels = np.arange(200) % 2
    # Chance is .5, ± 4 standard deviations of .035.
    assert abs(logistic_regression_accuracy(train, labels, test, labels, 0) - 0.5) < 0.15


@pytest.mark.parametrize("count", [2, 3])
def test_logistic_regression_takes_few_images_a_class(count):
    labels = np.repeat(np.arange(6), count)
    points = np.eye(6)[labels] + np.random.default_rng(0).normal(scale=0.01, size=(6 * count, 6))
    assert logistic_regression_accuracy(points, labels, points, labels, 0) == 1.0


def test_cross_validation_is_scikit_learns():
    """1NN and NCM by scikit-learn's estimators on the same folds; the latter's normalises too."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    embeddings = np.eye(4, 6)[labels] + random.normal(size=(48, 6))
    found = cross_validated(embeddings, labels, 4, seed=3)
    folds = StratifiedKFold(4, shuffle=True, random_state=3)
    nearest = make_pipeline(Normalizer(), KNeighborsClassifier(1))
    np.testing.assert_allclose(found["1nn"], cross_val_score(nearest, embeddings, labels, cv=folds))
    for accuracy, (fit, held) in zip(found["ncm"], folds.split(embeddings, labels), strict=True):
        unit = normalize(embeddings)
        means = normalize([unit[fit][labels[fit] == c].mean(axis=0) for c in range(4)])
        assert accuracy == np.mean(np.argmax(unit[held] @ means.T, axis=1) == labels[held])
    assert found["linear"].mean() > 0.25  # chance


def test_cross_validation_takes_the_fewest_images_it_promises():
    labels = np.repeat(np.arange(5), 3)
    found = cross_validated(np.eye(5)[labels] + 0.0, labels, 3, seed=0)
    assert all((accuracies == 1.0).all() for accuracies in found.values())
