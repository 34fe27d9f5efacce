"""A model as a list of layer calls: values of `training` that the graph fixes, layers that are inserted."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd.graph import Graph, Step
from keras_ssd.keras_names import graph_fixes_training
from models import compiled, softmax_head
from passes import passes
from same_weights import arrays, assert_close
from structures import Doubling

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32") + 5
Y = (X[:, 0] > 5).astype("int32")
OUTPUTS = dict(distill="outputs", similarity="kl")
fixes_training = pytest.mark.skipif(not graph_fixes_training(), reason="This Keras ignores `training` in a graph.")


def backbone():
    return layers.BatchNormalization(name="normalization"), layers.Dense(4)


def flat(x, training):
    normalization, dense = backbone()
    return dense(normalization(x, training=training))


def nested(x, training):
    inputs = keras.Input((4,))
    return keras.Model(inputs, flat(inputs, None))(x, training=training)


def nested_sequential(x, training):
    return keras.Sequential([keras.Input((4,)), *backbone()])(x, training=training)


def fixed_within_nested(x, training):
    """The value that is nearest to the layer counts."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, nested(inputs, training))(x, training=not training)


BACKBONES = [(flat, False), (flat, None), (nested, True), (nested_sequential, False), (fixed_within_nested, False)]


def trained(make, training, **options):
    """Weights, statistics too, after a plain or a wrapped training with the term too small to be seen."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    # Keras 3.16.0 in the making passes the fixed value on to layers that come later, so the dropout comes first.
    x = make(layers.Dropout(0.2, seed=1)(inputs), training)
    model = compiled(keras.Model(inputs, softmax_head(x)), keras.optimizers.SGD(0.1), metrics=())
    ssd = keras_ssd.wrap(model, ema_momentum=0, kd_weight=1e-12, **options) if options else model
    ssd.fit(X, Y, batch_size=16, verbose=0, shuffle=False)
    return model.get_weights()


@pytest.mark.parametrize("make, training", BACKBONES)
def test_training_that_the_graph_fixes_holds_as_in_the_plain_model(make, training):
    assert_close(trained(make, training), trained(make, training, num_teachers=2), tolerance=1e-6)


@pytest.mark.parametrize("fixed, expected", [({}, 2.0), ({"training": False}, 1.0), ({"training": None}, 1.0)])
def test_a_call_of_a_layer_keeps_the_training_that_the_graph_fixes(monkeypatch, fixed, expected):
    """Also with a Keras that ignores it, which is told to be one that does not."""
    monkeypatch.setattr("keras_ssd.graph.graph_fixes_training", lambda: True)
    x, y, z = (keras.KerasTensor((None, 1)) for _ in range(3))
    step = Step(Doubling(), (x,), fixed, [y])
    others = dataclasses.replace(step, args=(z,), kwargs={}), dataclasses.replace(step, layer=Doubling())
    for one, source in zip((step, *others), (x, z, x), strict=True):
        values = {id(source): ops.ones((2, 1))}
        one.run(values, training=True)
        assert_close(arrays(values[id(y)]), [np.full((2, 1), expected)])


def test_noise_layer_fixed_to_inference_makes_no_noise():
    inputs = keras.Input((4,))
    off, on = layers.Dropout(0.5, name="off"), layers.Dropout(0.5, name="on")
    model = keras.Model(inputs, on(off(inputs, training=False)))
    names = keras_ssd.wrap(model).distillation.wiring.noise.names
    assert names == (["on"] if graph_fixes_training() else ["off", "on"])


@fixes_training
def test_a_layer_that_is_fixed_in_one_of_its_calls_makes_noise_in_the_others():
    inputs = keras.Input((50,))
    drop = layers.Dropout(0.5, name="drop")
    model = keras.Model(inputs, [layers.Identity()(drop(inputs, training=False)), layers.Identity()(drop(inputs))])
    still, moved = passes(keras_ssd.wrap(model, **OUTPUTS), np.ones((4, 50), "float32")).teacher_outputs
    assert (still == 1).all() and 0.3 < (moved == 0).mean() < 0.7
    with pytest.raises(ValueError, match="all teachers would be identical"):
        keras_ssd.wrap(keras.Model(inputs, drop(inputs, training=False)))


@fixes_training
def test_dropout_that_is_fixed_to_training_is_on_in_every_pass():
    inputs = keras.Input((50,))
    always = layers.Dropout(0.5)(inputs, training=True)
    model = keras.Model(inputs, layers.Dropout(0.5, name="chosen")(layers.Identity()(always)))
    ssd = keras_ssd.wrap(model, "snapshot", stochastic_layers="chosen", **OUTPUTS)
    (teachers,) = passes(ssd, np.ones((8, 50), "float32")).teacher_outputs
    dropped = (teachers == 0).mean(axis=(0, 2))
    assert (0.65 < dropped).all() and (dropped < 0.85).all()


def test_outputs_pass_through_an_inserted_layer():
    inputs = keras.Input((4,))
    hidden = layers.Dense(3)(inputs)
    graph = Graph(keras.Model(inputs, [hidden, layers.ReLU()(hidden)]))
    (x,) = graph.steps[0].outputs
    changed = graph.with_layers_after([(x, layers.Rescaling(2.0))])
    plain = arrays(graph.reader(graph.outputs)(ops.convert_to_tensor(X), training=False))
    doubled = arrays(changed.reader(changed.outputs)(ops.convert_to_tensor(X), training=False))
    assert_close(doubled, [2 * value for value in plain])


def test_a_nested_model_is_distilled_like_the_same_layers_without_a_model_around_them():
    """It is called on an expression, and on an expression of its own output."""
    losses = []
    for is_nested in (False, True):
        keras.utils.set_random_seed(1)
        dense, noise = layers.Dense(4, activation="tanh"), Doubling()
        inputs, inner_inputs = keras.Input((4,)), keras.Input((4,))
        inner = keras.Model(inner_inputs, noise(dense(inner_inputs)))
        apply = inner if is_nested else lambda x, noise=noise, dense=dense: noise(dense(x))
        hidden = softmax_head(apply(2 * apply(2 * inputs) + 1))
        model = compiled(keras.Model(inputs, hidden), keras.optimizers.SGD(0.1), metrics=())
        ssd = keras_ssd.wrap(model, "snapshot", num_teachers=2, kd_weight=1.0, seed=1)
        losses.append(ssd.fit(X, Y, batch_size=16, epochs=2, verbose=0, shuffle=False).history["kd_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[0][1] > 1e-6


def test_a_nested_model_of_any_size_has_the_sizes_that_it_is_called_on():
    keras.utils.set_random_seed(1)
    image = keras.Input((None, None, 3))
    hidden = layers.Conv2D(4, 3, strides=2, padding="same")(image)
    backbone = keras.Model(image, layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(hidden)))

    def network(apply):
        inputs = keras.Input(batch_shape=(8, 6, 6, 3))
        return compiled(keras.Model(inputs, layers.Dense(3, activation="softmax")(apply(inputs))), "sgd", metrics=())

    def flat(x):
        for layer in backbone.layers[1:]:
            x = layer(x)
        return x

    x = np.random.default_rng(0).normal(size=(16, 6, 6, 3)).astype("float32")
    nested, expected = (keras_ssd.wrap(network(apply), num_teachers=2, seed=1) for apply in (backbone, flat))
    assert nested.teacher_cost == expected.teacher_cost
    assert keras_ssd.predict_stochastic(nested.student, x, num_passes=2, batch_size=8, verbose=0).mean.shape == (16, 3)
    nested.fit(x, np.zeros(16), batch_size=8, verbose=0)


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask attached")  # a Functional, by Keras
def test_inputs_by_name_and_masks_by_name_of_a_nested_model_are_kept():
    keras.utils.set_random_seed(0)
    b, a = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    by_name = keras.Model([b, a], layers.Dense(2)(layers.Concatenate()([b, a])))
    series = keras.Input((5, 3))
    masked = keras.Model(series, layers.LSTM(2)(series))
    x, y, mask = keras.Input((3,)), keras.Input((3,)), keras.Input((5,), dtype="bool")
    generator = np.random.default_rng(0)
    values = [generator.normal(size=(4, *shape)).astype("float32") for shape in ((3,), (3,), (5, 3))]
    values = [ops.convert_to_tensor(value) for value in (*values, generator.random((4, 5)) > 0.5)]
    model = keras.Model([x, y, series, mask], [by_name({"a": x, "b": y}), masked(series, mask=mask)])
    graph = Graph(model)
    for found, expected in zip(arrays(graph.reader(graph.outputs)(values, False)), arrays(model(values)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_nested_model_of_masked_values_is_expanded_without_another_warning():
    inner_inputs, inputs = keras.Input((5, 4)), keras.Input((5,), dtype="int32")
    inner = keras.Model(inner_inputs, layers.LSTM(3, name="lstm")(inner_inputs))
    x = ops.convert_to_tensor(np.array([[3, 2, 5, 0, 0]], "int32"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.Model(inputs, inner(layers.Embedding(7, 4, mask_zero=True)(inputs)))
        expected = arrays(model(x))
    graph = Graph(model)
    assert graph.steps[-1].layer.name == "lstm"
    assert_close(arrays(graph.reader(graph.outputs)(x, training=False)), expected)
