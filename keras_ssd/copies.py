"""Copies of a model's weights: which weights are copied, the variables that hold the copies, and their values."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd._typing import Tensor
from keras_ssd.noise import parts_of


class WeightCopies(keras.layers.Layer):
    """A copy of a model's weights: the weights of a frozen teacher.

    Args:
        weights: the variables to copy; later calls take them in the same order.

    Attributes:
        copies: the copies, in the order of `weights`.
    """

    def __init__(self, weights: Sequence[Any], **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.copies = [add_copy(self, variable) for variable in weights]
        self.built = True
        self.copy(weights)

    def copy(self, weights: Sequence[Any]) -> None:
        """Copy the current values of `weights`."""
        assign(self.copies, arrays(weights))

    def values(self, weights: Sequence[Any]) -> list[tuple[Any, Tensor]]:
        """Return `(variable, copied value)` pairs for `keras.StatelessScope`."""
        return [(variable, copy.value) for copy, variable in zip(self.copies, weights, strict=True)]


def add_copy(layer: keras.layers.Layer, variable: Any, wide: bool = False) -> Any:
    """Add a variable to a layer for the copy of another variable.

    Args:
        layer: the layer.
        variable: the variable to copy. Its value is not copied yet.
        wide: whether the copy of a floating-point variable of fewer than 32 bits has 32 bits.
    """
    dtype = variable.dtype
    return layer.add_weight(
        shape=variable.shape,
        initializer="zeros",
        dtype="float32" if wide and dtype in ("float16", "bfloat16") else dtype,
        trainable=False,
        # Mixed precision must not round the values when they are read inside a layer.
        autocast=False,
        # A layout map of `keras.distribution.ModelParallel` finds the copy by the rule for the original.
        name=variable.path.replace("/", "_").replace(".", "_"),
        **_aggregation(variable),
    )


def copied_variables(model: keras.Model) -> list[Any]:
    """Return the weights of a model that can be copied: all but the states of stateful recurrent layers."""
    states = {id(state) for state in recurrent_states(model)}
    return [v for v in model.weights if id(v) not in states]


def averaged_variables(model: keras.Model) -> list[Any]:
    """Return the weights of a model that are averaged.

    These are the trainable weights and the statistics of BatchNormalization layers. Other non-trainable weights of
    trainable layers, such as counters and power iterations, keep their last value, and so do the states of recurrent
    layers. A frozen layer may be trained later, so all of its weights are averaged.
    """
    parts = [part for part in parts_of(model) if not isinstance(part, keras.Model)]
    averaged = {id(v) for part in parts if _is_averaged(part) for v in part.weights}
    averaged.update(id(v) for v in model.trainable_weights)
    return [v for v in copied_variables(model) if id(v) in averaged and keras.backend.is_float_dtype(v.dtype)]


def _is_averaged(part: keras.layers.Layer) -> bool:
    return isinstance(part, keras.layers.BatchNormalization) or not part.trainable


def recurrent_states(model: keras.Model) -> list[Any]:
    """Return the states of the stateful recurrent layers of a model, which Keras does not count as its variables."""
    stateful = [layer for layer in parts_of(model) if getattr(layer, "stateful", False)]
    states = [state for layer in stateful for state in keras.tree.flatten(getattr(layer, "states", None))]
    return [state for state in states if state is not None]


def arrays(variables: Sequence[Any]) -> list[np.ndarray]:
    """Return NumPy copies of the values of variables: on JAX two variables must not share a buffer."""
    return [np.array(ops.convert_to_numpy(v.value)) for v in variables]


def assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Assign arrays to variables."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _aggregation(variable: Any) -> dict[str, str]:
    """Return how the replicas of `tf.distribute` agree on the copy of a variable, as arguments of `add_weight`.

    Trained weights are equal on all replicas. Each replica has its own statistics of BatchNormalization; the copy holds
    their mean.
    """
    if variable.trainable:
        return {}
    return {"aggregation": "mean" if keras.backend.is_float_dtype(variable.dtype) else "only_first_replica"}
