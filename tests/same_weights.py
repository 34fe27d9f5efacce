"""Copies of the values of variables, and comparison of two structures of arrays, tensors or variables."""

import keras
import numpy as np


def arrays(variables):
    """Copies: on PyTorch an array shares its memory with the variable."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in keras.tree.flatten(variables)]


def assert_same(left, right):
    """Equal to the bit."""
    for a, b in _pairs(left, right):
        np.testing.assert_array_equal(a, b)


def assert_close(left, right, tolerance=1e-5):
    """Equal to `tolerance`, absolute and relative."""
    for a, b in _pairs(left, right):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def _pairs(left, right):
    return zip(*([_array(leaf) for leaf in keras.tree.flatten(side)] for side in (left, right)), strict=True)


def _array(leaf):
    return leaf if leaf is None else keras.ops.convert_to_numpy(leaf)
