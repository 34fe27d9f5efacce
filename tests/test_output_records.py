"""The kind of each output and whether it holds logits, found from the compiled loss and the last activation."""

import functools

import keras
import pytest
from keras import layers, ops

from keras_ssd.graph import Graph
from keras_ssd.output_records import OutputRecords


def described(activations, loss, loss_weights=None):
    """The records of a model with outputs "a", "b" ... that end in these activations."""
    inputs = keras.Input((2,))
    heads = [layers.Dense(3, activation=one, name=name)(inputs) for one, name in zip(activations, "ab", strict=False)]
    model = keras.Model(inputs, heads if len(heads) > 1 else heads[0])
    records = OutputRecords(model, Graph(model), 2.5)
    records.note_compile(loss, loss_weights)
    return records.describe()


def custom(y_true, y_pred):
    return ops.mean(y_pred, axis=-1)


def weighted_crossentropy(y_true, y_pred):
    return ops.mean(y_pred, axis=-1)


KINDS = [
    ("sparse_categorical_crossentropy", None, "categorical", False),
    ("kl_divergence", None, "categorical", False),
    ("binary_crossentropy", "softmax", "binary", False),
    ("bce", None, "binary", False),
    ("mse", "sigmoid", "regression", False),
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None, "categorical", True),
    (keras.losses.CategoricalFocalCrossentropy(), "softmax", "categorical", False),
    (keras.losses.BinaryCrossentropy(from_logits=True), "softmax", "binary", True),
    (keras.losses.MeanSquaredError(), "softmax", "regression", False),
    (keras.losses.categorical_crossentropy, None, "categorical", False),
    (functools.partial(keras.losses.binary_crossentropy, from_logits=True), None, "binary", True),
    (weighted_crossentropy, "sigmoid", "binary", False),
    (weighted_crossentropy, "softmax", "categorical", False),
    (weighted_crossentropy, None, "categorical", True),
    (custom, "softmax", "categorical", False),
    (custom, "sigmoid", "binary", False),
    (custom, None, "regression", False),
]


def loss_id(value):
    name = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
    return {"NoneType": "None", "bool": str(value)}.get(name, name)


@pytest.mark.parametrize("loss, activation, kind, from_logits", KINDS, ids=loss_id)
def test_kind_of_an_output(loss, activation, kind, from_logits):
    (output,) = described([activation], loss)
    assert (output.kind, output.from_logits, output.temperature, output.weight) == (kind, from_logits, 2.5, 1)


@pytest.mark.parametrize(
    "loss, loss_weights, expected",
    [
        (["mse", "bce"], [0.5, 2], [("regression", 0.5), ("binary", 2)]),
        ({"b": "bce", "a": "mse"}, {"b": 2}, [("regression", 1), ("binary", 2)]),
        ({"b": "bce"}, None, [("categorical", 0), ("binary", 1)]),  # what is not trained is not taught
        ("mse", 0.5, [("regression", 0.5), ("regression", 0.5)]),
        (["mse"], None, [("regression", 1), ("regression", 1)]),
        (None, None, [("categorical", 1), ("regression", 1)]),
    ],
    ids=["list", "dict", "part-of-a-dict", "one-for-all", "list-of-one", "none"],
)
def test_several_outputs(loss, loss_weights, expected):
    assert [(output.kind, output.weight) for output in described(["softmax", None], loss, loss_weights)] == expected
