"""Copies of a model's weights: which weights are copied, the variables that hold the copies, and their values."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd._typing import Tensor
from keras_ssd.noise import parts_of


class WeightCopies(keras.layers.Layer):
    """A copy of a model's weights, the weights of a frozen teacher; all methods take them in the same order."""

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
    """Add a variable to a layer for the copy of another variable, whose value is not copied yet.

    `wide` copies of floating-point variables of fewer than 32 bits have 32 bits.
    """
    dtype, is_float = variable.dtype, keras.backend.is_float_dtype(variable.dtype)
    # Trained weights are equal on all replicas of `tf.distribute`. Each replica has its own statistics of
    # BatchNormalization; the copy holds their mean.
    aggregation = {} if variable.trainable else {"aggregation": "mean" if is_float else "only_first_replica"}
    return layer.add_weight(
        shape=variable.shape,
        initializer="zeros",
        dtype="float32" if wide and dtype in ("float16", "bfloat16") else dtype,
        trainable=False,
        # Mixed precision must not round the values when they are read inside a layer.
        autocast=False,
        # A layout map of `keras.distribution.ModelParallel` finds the copy by the rule for the original.
        name=variable.path.replace("/", "_").replace(".", "_"),
        **aggregation,
    )


def copied_variables(model: keras.Model) -> list[Any]:
    """Return the weights of a model that can be copied: all but the states of stateful recurrent layers."""
    stateful = [part for part in parts_of(model) if getattr(part, "stateful", False)]
    states = {id(state) for part in stateful for state in keras.tree.flatten(getattr(part, "states", None))}
    return [v for v in model.weights if id(v) not in states]


def averaged_variables(model: keras.Model) -> list[Any]:
    """Return the weights of a model that are averaged.

    These are the trainable weights and the statistics of BatchNormalization layers. Other non-trainable weights of
    trainable layers, such as counters and power iterations, keep their last value, and so do the states of recurrent
    layers. A frozen layer may be trained later, so all of its weights are averaged.
    """
    parts = [part for part in parts_of(model) if not isinstance(part, keras.Model)]
    whole = [part for part in parts if isinstance(part, keras.layers.BatchNormalization) or not part.trainable]
    averaged = {id(v) for v in [*model.trainable_weights, *(v for part in whole for v in part.weights)]}
    return [v for v in copied_variables(model) if id(v) in averaged and keras.backend.is_float_dtype(v.dtype)]


def arrays(variables: Sequence[Any]) -> list[np.ndarray]:
    """Return NumPy copies of the values of variables: on JAX two variables must not share a buffer."""
    return [np.array(ops.convert_to_numpy(v.value)) for v in variables]


def assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Assign arrays to variables."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
