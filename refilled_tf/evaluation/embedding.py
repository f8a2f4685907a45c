"""Measures of how well an embedding separates classes, and simple classifiers on it.

All distances are those of l2-normalised embeddings; the estimators are scikit-learn's.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score, pairwise_distances_argmin
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from tqdm import tqdm

RECALL_AT = (1, 2, 4, 8)
LOGISTIC_REGRESSION_C = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def embedding_quality(train, train_labels, test, test_labels, seed: int) -> dict[str, float]:
    """Scores an embedding on the test images.

    Args:
        train: [N, d] embeddings of the training images.
        train_labels: [N] int.
        test: [M, d].
        test_labels: [M] int.
        seed: of k-means.

    Returns:
        ncm: accuracy of the nearest class centre, centres from the training images;
        1nn: accuracy of the nearest training image;
        recall@k: share of test images with one of their class among the k nearest other test
        images, k = 1, 2, 4, 8;
        nmi: normalised mutual information (arithmetic mean) of the classes and k-means clusters
        of the test images, k the number of classes. All in [0, 1].
    """
    train, test = normalize(train), normalize(test)
    quality = {
        "ncm": nearest_center_accuracy(train, train_labels, test, test_labels),
        "1nn": nearest_neighbor_accuracy(train, train_labels, test, test_labels),
    }
    wanted = min(max(RECALL_AT), len(test) - 1)
    # Asked without points, kneighbors leaves every image out of its own neighbours.
    neighbors = NearestNeighbors(n_neighbors=wanted).fit(test).kneighbors(return_distance=False)
    hits = test_labels[neighbors] == test_labels[:, np.newaxis]
    quality |= {f"recall@{k}": hits[:, :k].any(axis=1).mean() for k in RECALL_AT}
    clusters = KMeans(len(np.unique(test_labels)), n_init=10, random_state=seed).fit_predict(test)
    quality["nmi"] = normalized_mutual_info_score(test_labels, clusters)
    return {name: float(value) for name, value in quality.items()}


def nearest_center_accuracy(train, train_labels, test, test_labels) -> float:
    """Returns the accuracy of the nearest class mean of normalised embeddings ([N, d], [M, d])."""
    train, classes = normalize(train), np.unique(train_labels)
    centers = np.stack([train[train_labels == c].mean(axis=0) for c in classes])
    return nearest_neighbor_accuracy(centers, classes, test, test_labels)


def nearest_neighbor_accuracy(train, train_labels, test, test_labels, seed: int = 0) -> float:
    """Returns the accuracy of the class of the nearest training image ([N, d], [M, d])."""
    nearest = pairwise_distances_argmin(normalize(test), normalize(train))
    return float(np.mean(train_labels[nearest] == test_labels))


def logistic_regression_accuracy(train, train_labels, test, test_labels, seed: int) -> float:
    """Fits logistic regression on embeddings; C is chosen on held-out training images.

    A stratified fifth of the training images chooses C; the model is then fitted to all of them.

    Args:
        train: [N, d] embeddings, not normalised; they are standardised per dimension.
        train_labels: [N] int.
        test: [M, d].
        test_labels: [M] int.
        seed: of the held-out fifth.

    Returns:
        Accuracy on the test embeddings, in [0, 1].
    """

    def fitted(c: float, x, y):
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(x, y)

    classes = len(np.unique(train_labels))
    fit_x, held_x, fit_y, held_y = train_test_split(
        train,
        train_labels,
        test_size=max(classes, len(train) // 5),
        stratify=train_labels,
        random_state=seed,
    )
    best = max(LOGISTIC_REGRESSION_C, key=lambda c: fitted(c, fit_x, fit_y).score(held_x, held_y))
    return float(fitted(best, train, train_labels).score(test, test_labels))


def cross_validated(
    embeddings: np.ndarray, labels: np.ndarray, folds: int, seed: int
) -> dict[str, np.ndarray]:
    """Scores an embedding by stratified cross-validation.

    Args:
        embeddings: [N, d].
        labels: [N] int; every class has at least max(3, folds) images.
        folds: F, at least 3.
        seed: of the folds, and of the held-out images within.

    Returns:
        Accuracies [F] in [0, 1] on each fold's held-out images: "ncm", of the nearest class centre;
        "1nn"; "linear", of `logistic_regression_accuracy`.
    """
    found = []
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    splits = splitter.split(embeddings, labels)
    for fit, held in tqdm(splits, "cross-validation", folds, leave=False):
        sides = embeddings[fit], labels[fit], embeddings[held], labels[held]
        found.append(
            {
                "ncm": nearest_center_accuracy(*sides),
                "1nn": nearest_neighbor_accuracy(*sides),
                "linear": logistic_regression_accuracy(*sides, seed),
            }
        )
    return {name: np.array([fold[name] for fold in found]) for name in found[0]}
