"""Differences between methods: hand-derived numbers, and a simulation of what the error means."""

from __future__ import annotations

import numpy as np
import pytest

from refilled_tf.evaluation.paired import difference


def test_one_seed_is_a_paired_t_tests_error():
    """Differences 1, 0, 0, 1 about their mean ½: variance 4 · ¼ / 3, over 4 images."""
    ours, reference = np.array([[1, 1, 0, 1]], bool), np.array([[0, 1, 0, 0]], bool)
    assert difference(ours, reference) == pytest.approx((0.5, np.sqrt(1 / 12)))


def test_seeds_that_agree_add_nothing_but_themselves():
    """Twice the same seed: M_s = M_r = 0 and M_i doubles, so the error is that of one seed."""
    ours, reference = np.array([[1, 1, 0, 1]] * 2, bool), np.array([[0, 1, 0, 0]] * 2, bool)
    assert difference(ours, reference) == pytest.approx((0.5, np.sqrt(1 / 12)))


def test_seeds_that_differ_everywhere_alike():
    """Seed 0 wins every image, seed 1 none: M_i = M_r = 0, M_s = N · 2 · ¼ / 1 = 2 with N = 4.

    The variance is 2 / (2 · 4), that of the mean of 1 and 0: ½ / 2.
    """
    ours, reference = np.array([[1] * 4, [0] * 4], bool), np.zeros((2, 4), bool)
    assert difference(ours, reference) == pytest.approx((0.5, 0.5))


def test_components_below_zero_count_as_none():
    """Each seed wins another of two images: M_i = M_s = 0 and M_r = 4 · ¼; over N·S = 4."""
    ours, reference = np.eye(2, dtype=bool), np.zeros((2, 2), bool)
    assert difference(ours, reference) == pytest.approx((0.5, 0.5))


def test_methods_swapped_change_the_sign_alone():
    rng = np.random.default_rng(0)
    ours, reference = rng.random((2, 3, 50)) < 0.5
    mean, error = difference(ours, reference)
    assert difference(reference, ours) == pytest.approx((-mean, error))


def test_error_is_the_deviation_over_fresh_images_and_seeds():
    """2,000 tables of images, seeds and their interplay: the mean varies as the error says."""
    rng = np.random.default_rng(0)
    means, variances = [], []
    for _ in range(2000):
        # What a seed makes of an image beside what image and seed make of all: a coin for each.
        odds = 0.5 + 0.15 * rng.standard_normal(60) + 0.1 * rng.standard_normal((3, 1))
        ours, reference = rng.random((3, 60)) < odds, rng.random((3, 60)) < 0.5
        mean, error = difference(ours, reference)
        means.append(mean)
        variances.append(error**2)
    assert np.sqrt(np.mean(variances)) == pytest.approx(np.std(means), rel=0.1)
