"""Noise of the teachers: the layers that make it, and dropout for distillation in networks without noise layers."""

import random

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from models import compiled, precision, softmax_head
from passes import passes
from reference import softmax
from same_weights import arrays, assert_close
from structures import EXCHANGEABLE, Subclassed, batch

RATE, N = 0.5, 6
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 8)
# Both what the teachers compare and what they put out is seen.
BOTH = dict(distill="both", similarity="cosine", percentile=0, num_teachers=N)


def dense(widths=(6,)):
    """A classifier of vectors without noise."""
    hidden = [layers.Dense(width, activation="relu", name=f"hidden_{width}") for width in widths]
    return keras.Sequential([keras.Input((4,)), *hidden, layers.Dense(3, activation="softmax", name="head")])


def convolutional(dimensions):
    """A convolution over sequences, images or volumes, pooled and classified; of sequences each position, then pooled.

    There the map of features is the head's input, and where noise is added by default.
    """
    inputs = keras.Input((5,) * dimensions + (2,))
    x = getattr(layers, f"Conv{dimensions}D")(7, 2, activation="elu", name="map")(inputs)
    pooling = getattr(layers, f"GlobalAveragePooling{dimensions}D")()
    outputs = layers.Softmax()(pooling(layers.Conv1D(3, 1)(x))) if dimensions == 1 else softmax_head(pooling(x), 3)
    return keras.Model(inputs, outputs)


def copy_of(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def taught(model, teacher="self", dropout_rate=RATE, **options):
    """Wrapped with noise that the model does not have; another model teaches with the student's weights."""
    source = copy_of(model) if teacher == "model" else teacher
    return keras_ssd.wrap(model, teacher=source, dropout_rate=dropout_rate, **{**BOTH, **options})


# Where it acts, and in which form.


@pytest.mark.parametrize("teacher", ["self", "model"])
def test_dropout_rate_drops_features_of_the_heads_input(teacher):
    model = dense((5, 6))
    drawn = passes(taught(model, teacher), X)
    features = arrays(keras.Model(model.inputs[0], model.layers[-2].output)(X))[0]
    assert_close([drawn.representation], [features])
    # Each feature is 0, or kept and scaled by 1 / (1 - 0.5): both happen where it is above 0.
    dropped = drawn.teacher_representation == 0
    assert_close([drawn.teacher_representation], [np.where(dropped, 0, 2 * features[:, None])])
    rates = dropped[np.broadcast_to(features[:, None] > 0, dropped.shape)].mean()
    assert 0.2 < rates < 0.8
    # The head sees what is left.
    kernel, bias = model.layers[-1].get_weights()
    assert_close(drawn.teacher_outputs, [softmax(drawn.teacher_representation @ kernel + bias)])


@pytest.mark.parametrize("dimensions, chosen", [(1, None), (3, "map")])
def test_whole_channels_are_dropped_where_there_are_positions(dimensions, chosen):
    model = convolutional(dimensions)
    x = batch(model, size=3)
    drawn = passes(taught(model, stochastic_layers=chosen, representation="map"), x)
    channels = drawn.teacher_representation.reshape(3, N, -1, 7)
    dropped = (channels == 0).all(axis=2)
    np.testing.assert_array_equal((channels == 0).any(axis=2), dropped)
    assert 0.1 < dropped.mean() < 0.9
    assert not np.array_equal(dropped[:, 0], dropped[:, 1])
    features = drawn.representation.reshape(3, 1, -1, 7)
    assert_close([channels], [np.where(dropped[:, :, None], 0, 2 * features)])


def test_dropout_rate_drops_the_input_of_every_head():
    inputs = keras.Input((4,))
    x = layers.Dense(6, activation="elu")(inputs)
    deep = layers.Dense(5, activation="elu")(x)
    model = keras.Model(inputs, [layers.Dense(3, activation="softmax")(deep), layers.Dense(2)(x)])
    ssd = taught(model, distill="outputs", similarity="kl")
    for output in passes(ssd, X).teacher_outputs:
        assert (np.ptp(output, axis=1).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("chosen", ["hidden_5", lambda layer: layer.name == "hidden_5"])
def test_names_and_predicates_choose_any_layer(chosen):
    """Layers after the chosen one change, too; one before it cannot be compared."""
    for name in ("hidden_5", "hidden_6"):
        ssd = taught(dense((5, 6)), stochastic_layers=chosen, representation=name)
        assert (passes(ssd, X).teacher_representation == 0).mean() > 0.3
    with pytest.raises(ValueError, match="lies before the first active noise"):
        taught(dense((5, 6)), stochastic_layers=["hidden_6"], representation="hidden_5")


# Structures. With next to no dropout the teachers are what the model predicts: its masks, its several outputs, its
# order of layers, its BatchNormalization in inference mode.

STRUCTURES = ["shared_layers", "several_inputs_and_outputs", "nested_with_several_outputs", "masked_through_nesting"]


@pytest.mark.parametrize("name", [*STRUCTURES, "noise_at_the_input"])
def test_teachers_equal_the_model_except_for_the_dropout(name):
    model = EXCHANGEABLE[name](layers.Identity)
    x = batch(model)
    options = dict(distill="outputs", similarity="kl", num_teachers=3)
    expected = arrays(model(x, training=False))
    chosen = [layer.name for layer in _all_layers(model) if isinstance(layer, layers.Identity)]
    for places in (None, chosen):
        drawn = passes(taught(model, "model", dropout_rate=1e-7, stochastic_layers=places, **options), x)
        for output, own in zip(drawn.teacher_outputs, expected, strict=True):
            np.testing.assert_allclose(output, np.repeat(own[:, None], 3, axis=1), atol=1e-5)
    for output in passes(taught(model, "model", **options), x).teacher_outputs:
        for i in range(3):
            assert np.abs(output[:, i] - output[:, i - 1]).max() > 1e-4


def _all_layers(model):
    """The layers of a model and of those nested in it."""
    parts = [_all_layers(layer) if hasattr(layer, "layers") else [layer] for layer in model.layers]
    return [layer for part in parts for layer in part]


def test_dropout_follows_each_call_of_a_shared_layer():
    inputs = keras.Input((2, 4))
    shared = layers.Dense(6, activation="elu", name="shared")
    first, second = shared(inputs[:, 0]), shared(inputs[:, 1])
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Concatenate(name="both")([first, second])))
    drawn = passes(taught(model, stochastic_layers="shared", representation="both"), batch(model))
    dropped = drawn.teacher_representation == 0
    assert 0.2 < dropped[..., :6].mean() < 0.8 and 0.2 < dropped[..., 6:].mean() < 0.8
    assert not np.array_equal(dropped[..., :6], dropped[..., 6:])


def test_the_output_of_a_nested_model_is_dropped():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(6, activation="elu")], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(3, activation="softmax")])
    drawn = passes(taught(model, stochastic_layers="inner"), X)
    dropped = drawn.teacher_representation == 0
    assert 0.2 < dropped.mean() < 0.8
    assert_close([drawn.teacher_representation], [np.where(dropped, 0, 2 * drawn.representation[:, None])])


def test_dropout_computes_as_the_layer_does():
    with precision("mixed_float16"):
        model = compiled(dense())
        ssd = taught(model)
        (tensor,) = ssd.distillation.wiring.noise.tensors
        assert tensor.dtype == "float16"
        features = arrays(keras.Model(model.inputs[0], model.layers[0].output)(X))[0]
        # Doubling is exact in every format.
        drawn = passes(ssd, X).teacher_representation.astype("float16")
        np.testing.assert_array_equal(drawn, np.where(drawn == 0, 0, 2 * features[:, None]))
        assert np.isfinite(ssd.fit(X, Y, verbose=0).history["kd_loss"]).all()


# The student is untouched.


def described(model):
    return model.to_json(), [(v.path, v.shape) for v in model.variables], model.count_params(), model.inputs


def test_added_dropout_does_not_change_the_student():
    """Neither what describes it nor, with a term too small to be seen, how it is trained.

    BatchNormalization and the generator that the user's layers draw seeds from move as without teachers, too.
    """
    results = []
    for is_taught in (False, True):
        keras.utils.set_random_seed(4)
        stack = [layers.Dense(6, activation="relu"), layers.BatchNormalization(), layers.Dense(3, activation="softmax")]
        model = compiled(keras.Sequential([keras.Input((4,)), *stack]))
        before = described(model)
        trained = taught(model, kd_weight=1e-12, ema_momentum=0) if is_taught else model
        trained.fit(X, Y, batch_size=4, verbose=0)
        assert described(model) == before
        results.append((model.get_weights(), random.getstate()))
    assert_close(results[0][0], results[1][0], tolerance=1e-6)
    assert results[0][1] == results[1][1]


def test_predict_stochastic_makes_its_own_noise():
    """Monte Carlo dropout of a network without dropout, against NumPy: (1 +- 1) of each of two features."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False)])
    model.set_weights([np.float32([[1], [2]])])
    prediction = keras_ssd.predict_stochastic(
        model, np.float32([[3, 5]]), num_passes=4000, dropout_rate=RATE, seed=1, verbose=0
    )
    # Dropped features are 0 and kept ones doubled, each with probability 1/2: mean 3 + 10, variance 3^2 + 10^2.
    assert prediction.mean[0, 0] == pytest.approx(13, abs=0.7)
    assert prediction.variance[0, 0] == pytest.approx(109, rel=0.06)
    with pytest.raises(ValueError, match="no noise layer.*Pass dropout_rate=0.3"):
        keras_ssd.predict_stochastic(dense(), X, verbose=0)


# What is refused.


def without_weights():
    return keras.Sequential([keras.Input((4,)), layers.Softmax()])


def subclassed():
    model = Subclassed("dropout")
    model(X)
    model.noise.rate = 0.0
    return model


@pytest.mark.parametrize(
    "make, message",
    [(subclassed, "functional API"), (without_weights, "depends on no layer with weights.*by `stochastic_layers`")],
)
def test_invalid_noise_choices_raise(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        taught(make(), similarity="kl", distill="outputs")


@pytest.mark.parametrize("rate, noise_shape", [(0.1, None), (0.7, None), (0.7, (None, 1))])
def test_dropout_in_the_passes_has_the_law_of_the_layer(rate, noise_shape):
    """Every value is 0 with probability `rate`, whatever its neighbours are, and else divided by `1 - rate`."""
    dropout = layers.Dropout(rate, noise_shape, seed=1, name="dropout")
    model = keras.Sequential([keras.Input((41,)), dropout, layers.Dense(1)])
    options = dict(representation="dropout", distill="representation", similarity="cosine", num_teachers=30)
    drawn = passes(keras_ssd.wrap(model, **options), np.ones((40, 41), "float32")).teacher_representation
    dropped = drawn == 0
    np.testing.assert_allclose(drawn[~dropped], 1 / (1 - rate), rtol=1e-4)
    n_draws = dropped.size if noise_shape is None else dropped[..., 0].size
    # Five standard deviations of a mean of as many draws.
    tolerance = 5 * np.sqrt(rate * (1 - rate) / n_draws)
    assert abs(dropped.mean() - rate) < tolerance
    if noise_shape is None:
        for distance in range(1, 5):
            both = dropped[..., distance:] & dropped[..., :-distance]
            assert abs(both.mean() - rate**2) < 1.2 * tolerance
    else:
        assert (dropped == dropped[..., :1]).all()
