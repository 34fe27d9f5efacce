"""Copies of what variables hold, and whether two of them are the same to the bit."""

import keras
import numpy as np


def arrays(variables):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
