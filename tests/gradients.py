"""Value and gradient of a function of tensors, on whichever backend is configured."""

import keras
import numpy as np
from keras import ops


def value_and_gradient(function, x):
    """Evaluate a scalar function of one tensor.

    Args:
        function: takes a tensor, returns a scalar tensor.
        x: array; its dtype is kept.

    Returns:
        `(value, gradient)`: float and array, NumPy.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        gradient = tape.gradient(value, x, unconnected_gradients="zero")
    elif backend == "jax":
        import jax

        value, gradient = jax.jit(jax.value_and_grad(function))(jax.numpy.asarray(x))
    else:
        import torch

        x = torch.tensor(x, requires_grad=True)
        value = function(x)
        (gradient,) = torch.autograd.grad(value + 0 * x.sum(), x)
        value = value.detach()
    return float(ops.convert_to_numpy(value)), ops.convert_to_numpy(gradient)


def assert_close(actual, expected, tolerance=1e-6):
    """Equal to `tolerance`, relative to the largest expected magnitude or 1, whichever is larger."""
    expected = np.asarray(expected)
    actual = ops.convert_to_numpy(actual)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))
