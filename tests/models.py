"""Small models that several test files train, functions to compile them, and the precision they are made in."""

import contextlib
import importlib

import keras
import numpy as np
from keras import layers, ops


@contextlib.contextmanager
def precision(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    wide = keras.backend.backend() == "jax" and policy == "float64"  # JAX has it only if it is told so
    tell = importlib.import_module("jax").config.update if wide else lambda *_: None
    tell("jax_enable_x64", True)
    try:
        yield
    finally:
        tell("jax_enable_x64", False)
        keras.config.set_dtype_policy(before)


def dropout(rate):
    """A function of a seed that makes a Dropout layer."""
    return lambda seed: layers.Dropout(rate, seed=seed)


def network(noise=None, seeds=(1, 2)):
    """Normalization before and after the first noise layer, an activity and a weight regulariser.

    Takes windows `(batch, 6, 2)`, of three classes; `noise` is a function of a seed that makes a layer.
    """
    noise = noise or dropout(0.4)
    inputs = keras.Input((6, 2))
    x = layers.BatchNormalization()(layers.Conv1D(5, 3, kernel_regularizer="l2")(inputs))
    x = noise(seeds[0])(layers.GlobalAveragePooling1D()(x))
    x = layers.BatchNormalization()(layers.Dense(8, activation="relu", activity_regularizer="l1")(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(noise(seeds[1])(x)))


WINDOWS = np.random.default_rng(0).normal(size=(24, 6, 2)).astype("float32")
CLASSES = np.random.default_rng(1).integers(0, 3, 24)


def dense_network(noise=None, activation="softmax", units=3):
    """Dense, BatchNormalization with statistics unlike a batch's, noise, Dense. Takes `(batch, 4)`."""
    inputs = keras.Input((4,))
    x = layers.BatchNormalization()(layers.Dense(6, activation="relu")(inputs))
    x = (noise or layers.Dropout(0.5, seed=3))(x)
    model = keras.Model(inputs, layers.Dense(units, activation=activation)(x))
    for variable in model.non_trainable_weights:
        variable.assign(np.linspace(0.5, 1.5, int(np.prod(variable.shape))))
    return model


def compiled(model, optimizer=None, loss="sparse_categorical_crossentropy", metrics=("accuracy",), **options):
    """The model, compiled as a classifier unless told otherwise."""
    # The plainest optimizer: what a step does can be computed by hand.
    optimizer = keras.optimizers.SGD(0.1) if optimizer is None else optimizer
    model.compile(optimizer, loss, metrics=list(metrics) or None, **options)
    return model


def sequential_network():
    """Dense, Dropout, Dense, the layers with weights by name; compiled. Takes `(batch, 4)`."""
    stack = [layers.Dense(8, name="features"), layers.Dropout(0.3), layers.Dense(2, activation="softmax", name="head")]
    return compiled(keras.Sequential([keras.Input((4,)), *stack]), keras.optimizers.Adam(0.05), metrics=())


def softmax_head(x, units=2):
    """Class probabilities of a symbolic tensor."""
    return layers.Dense(units, activation="softmax")(x)


def classifier(inputs=(4,), rate=0.3):
    """Dropout and a softmax head, not compiled."""
    inputs = keras.Input(inputs)
    return keras.Model(inputs, softmax_head(layers.Dropout(rate)(inputs)))


class Highest(keras.metrics.Mean):
    """The mean of the highest probabilities. It cannot be made of its configuration, which has a name."""

    def __init__(self):
        super().__init__(name="highest")

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(ops.max(y_pred, axis=-1))
