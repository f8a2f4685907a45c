"""A logistic regression on frozen embeddings whose probabilities can be taught.

A classifier is too sure of the images that it was fitted on, so each labelled image is also judged
by one that was fitted on others (cross-fitting). The estimator is scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler, normalize

FOLDS = 5
# Of unit vectors, and of numbers of unit variance.
C_OF_UNIT = (0.1, 1.0, 10.0, 100.0)
C_OF_STANDARD = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TEMPERATURES = np.geomspace(0.1, 10.0, 41)


class LinearProbe(NamedTuple):
    """Classifiers: logits = x·weights[f] + bias[f].

    Attributes:
        weights: [F + 1, d, C] float32; f < F was fitted without the images of fold f, the last one
            on all.
        bias: [F + 1, C] float32.
        fold: [N] int32, the fold of each labelled image; F where there are no folds, as a class has
            a single image.
        c: the inverse strength of the penalty.
        temperature: by which logits have been divided, so that probabilities on images that were
            held out are right.
        accuracy: on held-out images, in [0, 1]; NaN without folds.
    """

    weights: np.ndarray
    bias: np.ndarray
    fold: np.ndarray
    c: float
    temperature: float
    accuracy: float


def fit(embeddings: np.ndarray, labels: np.ndarray, seed: int) -> LinearProbe:
    """Fits logistic regressions to l2-normalised embeddings.

    Penalty and temperature are those of the lowest negative log-likelihood of images that are held
    out in cross-validation: what is taught are probabilities, not answers.

    Args:
        embeddings: [N, V, d] of V views of each labelled image, the first one un-augmented.
        labels: [N] int, 0 … C-1, all of which occur.
        seed: of the folds.

    Returns:
        Classifiers of l2-normalised embeddings.
    """
    flat = normalize(embeddings.reshape(-1, embeddings.shape[-1])).astype(np.float64)
    return _cross_fitted(flat.reshape(embeddings.shape), labels, C_OF_UNIT, seed)


def fit_raw(embeddings: np.ndarray, labels: np.ndarray, seed: int) -> LinearProbe:
    """Fits as `fit` does, on embeddings as they are, which a dense layer takes.

    Every dimension is standardised before, and this is made part of the weights afterwards.
    """
    flat = embeddings.reshape(-1, embeddings.shape[-1]).astype(np.float64)
    scaler = StandardScaler().fit(flat)
    inputs = scaler.transform(flat).reshape(embeddings.shape)
    found = _cross_fitted(inputs, labels, C_OF_STANDARD, seed)
    weights = found.weights / scaler.scale_[:, np.newaxis]
    bias = found.bias - scaler.mean_ @ weights
    return found._replace(weights=weights.astype(np.float32), bias=bias.astype(np.float32))


def _cross_fitted(
    inputs: np.ndarray, labels: np.ndarray, choices: Sequence[float], seed: int
) -> LinearProbe:
    classes = len(np.unique(labels))
    folds = min(FOLDS, int(np.min(np.bincount(labels))))
    fold = np.full(len(labels), folds if folds > 1 else 0, np.int32)
    if folds > 1:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        for number, (_, held) in enumerate(splitter.split(fold, labels)):
            fold[held] = number
    parts = [fold != number for number in range(folds)] if folds > 1 else []

    def held_out(fitted) -> np.ndarray:
        """Returns [N, C]: what the images' un-augmented views get without themselves."""
        logits = np.empty((len(labels), classes))
        for (weights, bias), part in zip(fitted, parts, strict=True):
            logits[~part] = inputs[~part, 0] @ weights + bias
        return logits

    c = choices[len(choices) // 2]
    if parts:
        # Views of an image are much the same: one is enough to choose by.
        tried = {
            each: held_out([_fit(inputs[part, :1], labels[part], each) for part in parts])
            for each in choices
        }
        c = min(tried, key=lambda each: _calibrated(tried[each], labels)[1])
    fitted = [_fit(inputs[part], labels[part], c) for part in parts]
    temperature, accuracy = 1.0, float("nan")
    if parts:
        logits = held_out(fitted)
        temperature, _ = _calibrated(logits, labels)
        accuracy = float(np.mean(logits.argmax(axis=1) == labels))
    fitted.append(_fit(inputs, labels, c))
    weights, bias = (np.stack(each) / temperature for each in zip(*fitted, strict=True))
    weights, bias = weights.astype(np.float32), bias.astype(np.float32)
    return LinearProbe(weights, bias, fold, c, temperature, accuracy)


def _fit(inputs: np.ndarray, labels: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights [d, C] and bias [C] of [n, V, d] inputs, where an image counts once."""
    views = inputs.shape[1]
    flat, of_each = inputs.reshape(-1, inputs.shape[-1]), np.repeat(labels, views)
    found = LogisticRegression(C=c, max_iter=1000)
    found.fit(flat, of_each, sample_weight=np.full(len(flat), 1 / views))
    if len(found.classes_) == 2:  # a single column, the log-odds of the second class
        return (
            np.concatenate([-found.coef_.T, found.coef_.T], axis=1) / 2,
            np.concatenate([-found.intercept_, found.intercept_]) / 2,
        )
    return found.coef_.T, found.intercept_


def _calibrated(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns the temperature of the lowest mean negative log-likelihood, and the latter."""
    rows = np.arange(len(labels))
    losses = []
    below_best = logits - logits.max(axis=1, keepdims=True)
    for temperature in TEMPERATURES:
        scaled = below_best / temperature
        log_sums = np.log(np.exp(scaled).sum(axis=1))
        losses.append(np.mean(log_sums - scaled[rows, labels]))
    best = int(np.argmin(losses))
    return float(TEMPERATURES[best]), float(losses[best])
