"""Tasks with an output for each position: segmentation in one to three dimensions, key points, labels of steps.

`tools/models_table.py` makes a row of each.
"""

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from models import compiled

CONVOLUTIONS = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}
SIZES = {1: (12,), 2: (8, 6), 3: (4, 4, 4)}


def segmentation(rank, activation, units):
    """A convolution, dropout of features, and a head for every position."""
    convolution = CONVOLUTIONS[rank]
    inputs = keras.Input((*SIZES[rank], 2))
    x = layers.Dropout(0.3)(convolution(4, 3, padding="same", activation="relu")(inputs))
    return keras.Model(inputs, convolution(units, 1, activation=activation)(x))


def key_points():
    """Five points of two coordinates."""
    inputs = keras.Input((8, 6, 2))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(inputs))
    return keras.Model(inputs, layers.Reshape((5, 2))(layers.Dense(10)(layers.Dropout(0.3)(x))))


def steps():
    inputs = keras.Input((None, 2))
    x = layers.LSTM(4, return_sequences=True)(inputs)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Dropout(0.3)(x)))


# Targets are one-hot: PyTorch cannot derive Keras' sparse cross-entropy of images on a CPU, for plain models either.
ONE_HOT, BINARY = "categorical_crossentropy", "binary_crossentropy"
# A row of the table: the model, the loss, the kind of its output, and the shape of an input.
TASKS = {
    f"segmentation of {what} ({rank}-D), {activation}": (
        lambda rank=rank, activation=activation, units=units: segmentation(rank, activation, units),
        *(loss, kind, SIZES[rank]),
    )
    for rank, what in ((1, "series"), (2, "images"), (3, "volumes"))
    for activation, units, loss, kind in (("softmax", 3, ONE_HOT, "categorical"), ("sigmoid", 1, BINARY, "binary"))
}
dice = keras.losses.Dice()
TASKS["segmentation with `keras.losses.Dice`"] = (lambda: segmentation(2, "sigmoid", 1), dice, "binary", SIZES[2])
TASKS["key points (regression of coordinates)"] = (key_points, "mse", "regression", SIZES[2])
TASKS["a label for each step of a series"] = (steps, ONE_HOT, "categorical", SIZES[1])


def targets(kind, output_shape, generator):
    if kind == "categorical":
        return np.eye(output_shape[-1], dtype="float32")[generator.integers(0, output_shape[-1], output_shape[:-1])]
    values = generator.normal(size=output_shape).astype("float32")
    return (values > 0).astype("float32") if kind == "binary" else values


@pytest.mark.parametrize("title", TASKS)
def test_a_task_is_distilled_saved_and_loaded(tmp_path, title, record_property):
    record_property("row", title)
    make, loss, kind, sizes = TASKS[title]
    generator = np.random.default_rng(0)
    model = compiled(make(), keras.optimizers.SGD(0.01), loss, metrics=())
    x = generator.normal(size=(4, *sizes, 2)).astype("float32")
    y = targets(kind, model.predict(x, verbose=0).shape, generator)
    ssd = keras_ssd.wrap(model, num_teachers=3)
    history = ssd.fit(x, y, batch_size=2, verbose=0).history
    assert ssd.distillation.output_records.describe(model(x))[0].kind == kind
    assert history["kd_loss"][0] > 1e-7 and np.isfinite(history["loss"]).all()
    ssd.save(tmp_path / "ssd.keras")
    expected = ssd.predict(x, verbose=0)
    for load in (keras.models.load_model, keras_ssd.load_model):
        np.testing.assert_allclose(load(tmp_path / "ssd.keras").predict(x, verbose=0), expected, atol=1e-6)
