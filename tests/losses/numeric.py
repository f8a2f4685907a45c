"""Gradients by central differences, to hold automatic ones against."""

import numpy as np

STEP = 1e-5


def gradient(function, x):
    """Returns the gradient of a scalar function at an array, both computed in float64."""
    slopes = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[index] = STEP
        slopes[index] = (function(x + step) - function(x - step)) / (2 * STEP)
    return slopes
