"""Compiled steps against eager ones: outputs of two to five axes, unknown sizes, low precision, empty batches."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
import reference
from gradients import assert_close
from keras_ssd.callbacks.statistics import TeacherStatistics
from keras_ssd.uncertainty import summary
from models import precision
from same_weights import assert_same

VOLUME = (2, 1, 3)
LOSSES = {"categorical": "sparse_categorical_crossentropy", "binary": "binary_crossentropy", "regression": "mse"}
ACTIVATIONS = {"categorical": "softmax", "binary": "sigmoid", "regression": None}


def model_of(sizes, activation):
    """A dropout layer and a head of two units for each position."""
    inputs = keras.Input((*sizes, 3))
    x = layers.Dropout(0.5, seed=1)(layers.Dense(8, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(2, activation=activation)(x))


def data(kind, sizes):
    x, y = (np.random.default_rng(i).normal(size=(3, *sizes, 3 - i)).astype("float32") for i in range(2))
    return x, {"categorical": np.argmax(y, axis=-1), "binary": (y > 0).astype("float32"), "regression": y}[kind]


def history_of(kind, sizes, run_eagerly, axes=None, **options):
    """The logs of three samples in batches of two, with the statistics of the teachers."""
    keras.utils.set_random_seed(1)
    model = model_of(sizes if axes is None else axes, ACTIVATIONS[kind])
    ssd = keras_ssd.wrap(model, num_teachers=2, seed=3, **options)
    ssd.compile("sgd", LOSSES[kind], run_eagerly=run_eagerly)
    monitor = keras_ssd.callbacks.TeacherMonitor()
    history = ssd.fit(*data(kind, sizes), batch_size=2, shuffle=False, verbose=0, callbacks=[monitor]).history
    assert set(TeacherStatistics.names[:-1]) < set(history)
    return {name: values[0] for name, values in history.items()}


UNKNOWN = dict(axes=(None, None, None), distill="outputs", similarity="kl")
STEPS = {
    "categorical, two axes": ("categorical", (), "ema", dict(distill="both")),
    "binary, three axes": ("binary", (3,), "self", dict(kd_fraction=0.5)),
    "regression, four axes": ("regression", (2, 3), "ema", dict(distill="both", similarity="cosine", percentile=50)),
    "binary, five axes, rows": ("binary", VOLUME, "snapshot", dict(distill="both", kd_fraction=0.5)),
    "categorical, five axes of unknown sizes": ("categorical", VOLUME, "snapshot", UNKNOWN),
    "regression, five axes of unknown sizes": ("regression", VOLUME, "self", UNKNOWN),
}


@pytest.mark.compiled
@pytest.mark.parametrize("kind, sizes, teacher, options", STEPS.values(), ids=STEPS)
def test_compiled_steps_equal_eager_ones(kind, sizes, teacher, options):
    compiled = history_of(kind, sizes, run_eagerly=False, teacher=teacher, **options)
    assert compiled["kd_loss"] > 0 and np.isfinite(list(compiled.values())).all()
    if keras.backend.backend() == "tensorflow":
        eager = history_of(kind, sizes, run_eagerly=True, teacher=teacher, **options)
        assert compiled == pytest.approx(eager, rel=1e-4, abs=1e-6)


@pytest.mark.compiled
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_compiled_steps_of_low_precision_equal_eager_ones(policy):
    with precision(policy):
        compiled, eager = (history_of("binary", VOLUME, flag, teacher="self", distill="both") for flag in (False, True))
    for name in ("kd_loss", "teacher_spread", "representation_norm"):
        assert compiled[name] == pytest.approx(eager[name], rel=0.05), name


@pytest.mark.compiled
def test_an_empty_batch_adds_no_term_and_no_gradient():
    """As a replica gets; Keras' losses of it are not scalars where its samples have a single value each."""
    stack = [layers.Masking(), layers.Dense(8), layers.Dropout(0.5), layers.Dense(2, activation="sigmoid")]
    model = keras.Sequential([keras.Input((3, 3)), *stack])
    model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
    before = model.get_weights()
    ssd = keras_ssd.wrap(model, "snapshot", num_teachers=2, distill="both", kd_fraction=0.5, similarity="cosine")
    ssd.train_on_batch(*(a[:0] for a in data("binary", (3,))))
    assert_same(model.get_weights(), before)


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["categorical", "binary"])
def test_uncertainty_of_a_volume_of_logits(kind):
    model = model_of(VOLUME, activation=None)
    losses = {"categorical": keras.losses.SparseCategoricalCrossentropy, "binary": keras.losses.BinaryCrossentropy}
    model.compile(loss=losses[kind](from_logits=True))
    prediction = keras_ssd.predict_stochastic(model, data(kind, VOLUME)[0], 3, verbose=0)
    assert prediction.mean.shape == (3, *VOLUME, 2)
    assert prediction.predictive_entropy.shape == (3, *VOLUME) + ((2,) if kind == "binary" else ())
    assert prediction.mutual_information.max() > 0
    logits = np.random.default_rng(1).normal(size=(2, 3, *VOLUME, 2)).astype("float32")
    activation = {"categorical": reference.softmax, "binary": reference.sigmoid}[kind]
    assert_close(summary(logits, kind, from_logits=True)["mean"], activation(logits).mean(axis=1))
