"""Value and gradient of a function of tensors, on whichever backend is configured."""

import keras
import numpy as np
from keras import ops


def value_and_gradient(function, x, compiled=False):
    """Evaluate a scalar function of one tensor.

    Args:
        function: takes a tensor, returns a scalar tensor.
        x: array; its dtype is kept.
        compiled: whether the function is compiled first, on TensorFlow and JAX; faster on JAX where shapes are new.

    Returns:
        `(value, gradient)`: float and array, NumPy.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x)
            return value, tape.gradient(value, x, unconnected_gradients="zero")

        value, gradient = (tf.function(run) if compiled else run)(tf.constant(x))
    elif backend == "jax":
        import jax

        run = jax.value_and_grad(function)
        value, gradient = (jax.jit(run) if compiled else run)(jax.numpy.asarray(x))
    else:
        import torch

        x = torch.tensor(x, requires_grad=True)
        value = function(x)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
        else:
            gradient = None
        value, gradient = value.detach(), torch.zeros_like(x) if gradient is None else gradient
    return float(ops.convert_to_numpy(value)), ops.convert_to_numpy(gradient)


def assert_close(actual, expected, tolerance=1e-6):
    """Equal to `tolerance`, relative to the largest expected magnitude or 1, whichever is larger."""
    expected = np.asarray(expected)
    actual = ops.convert_to_numpy(actual)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))
