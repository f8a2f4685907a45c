"""Two methods on the same test images: how much better one is, and how sure that is."""

from __future__ import annotations

import numpy as np


def difference(ours: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Compares the hits of two methods image by image, so that hard images count in neither.

    The error is that of a table of two crossed random effects without replication, image and
    seed: with mean squares M_i of images, M_s of seeds and M_r of what both leave over, the
    variance of the mean is (M_i + M_s − M_r) / (N·S), a component below zero counting as none.
    Of one seed nothing is known but the images' part.

    Args:
        ours: [S, N] bool, whether image n is predicted right with seed s.
        reference: [S, N] bool, the other method's with the same seeds and images; N ≥ 2.

    Returns:
        The difference of the accuracies, and its standard error over images and seeds; in [-1, 1]
        and [0, 1].
    """
    differences = ours.astype(np.float64) - reference
    seeds, images = differences.shape
    mean = differences.mean()
    by_image = differences.mean(axis=0) - mean
    by_seed = differences.mean(axis=1) - mean
    of_images = seeds * np.sum(by_image**2) / (images - 1)
    of_seeds = of_rest = 0.0
    if seeds > 1:
        of_seeds = images * np.sum(by_seed**2) / (seeds - 1)
        rest = differences - mean - by_image - by_seed[:, np.newaxis]
        of_rest = np.sum(rest**2) / ((seeds - 1) * (images - 1))
    variance = max(of_images, of_rest) + max(of_seeds - of_rest, 0.0)
    return float(mean), float(np.sqrt(variance / (seeds * images)))
