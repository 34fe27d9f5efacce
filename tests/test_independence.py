"""Rows of a batch that depend on each other: found by running the layers; the passes then give what `predict` gives."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd.graph import Graph
from keras_ssd.independence import examine
from models import compiled
from passes import passes

X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
SEQUENCES = np.random.default_rng(1).normal(size=(8, 4, 6)).astype("float32")
NONE = 1e-7  # a dropout rate at which nothing is dropped
OUTPUTS = dict(distill="outputs", similarity="kl", num_teachers=4, dropout_rate=NONE)


class Layer(layers.Layer):
    """A layer of the user's that computes a function, of the shape of its input."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


class SameShape(Layer):
    def compute_output_shape(self, shape):
        return shape


def capacity(count):
    """At most so many rows, or steps of all sequences, of a batch are computed; the others are 0."""

    def first(x):
        flat = ops.reshape(x, (-1, x.shape[-1]))
        flat = ops.where(ops.cumsum(ops.ones_like(flat[:, :1]), axis=0) <= count, flat, ops.zeros_like(flat))
        return ops.reshape(flat, (-1, *x.shape[1:]))

    return Layer(first, name="culprit")


def gates(layer):
    """Multiplies by the result of a layer: weights of the samples of a batch."""

    def call(x):
        return layers.Multiply()([x, layer(layers.Dense(1)(x))])

    return call


class Subclassed(keras.Model):
    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.drop, self.layer = layers.Dropout(0.5), layer

    def call(self, x, training=False):
        return self.layer(self.drop(x, training=training))


def stacked(*stack, inputs=(6,)):
    x = inputs = keras.Input(inputs)
    for layer in (*stack, layers.Dense(2)):
        x = layer(x)
    return keras.Model(inputs, x)


def after_noise(*stack, **options):
    return stacked(layers.Dropout(0.5), *stack, **options)


def before_noise(*stack, **options):
    return stacked(*stack, layers.Dropout(0.5), **options)


def over_the_batch(x):
    return ops.softmax(x, axis=0)


def above_the_mean(x):
    return x * ops.cast(x > ops.mean(x, axis=0), x.dtype)


def scores(x):
    return ops.matmul(x, ops.transpose(x))


def distributed():
    return layers.TimeDistributed(SameShape(over_the_batch), name="culprit")


def nested():
    return keras.Sequential([keras.Input((6,)), layers.Softmax(axis=0, name="culprit")])


COMBINING = {
    "Softmax(axis=0)": lambda: after_noise(gates(layers.Softmax(axis=0, name="culprit"))),
    "Softmax(axis=-2) of rank 2": lambda: after_noise(gates(layers.Softmax(axis=-2, name="culprit"))),
    "an activation of the user's": lambda: after_noise(layers.Dense(3, activation=over_the_batch, name="culprit")),
    "the mean over the batch": lambda: after_noise(lambda x: x - ops.mean(x, axis=0, keepdims=True)),
    "reversed rows": lambda: after_noise(Layer(lambda x: ops.flip(x, axis=0), name="culprit")),
    "Lambda": lambda: after_noise(layers.Lambda(lambda x: ops.cumsum(x, axis=0), name="culprit")),
    "the largest row": lambda: after_noise(Layer(lambda x: x / ops.max(ops.abs(x), axis=0), name="culprit")),
    "rows above the mean": lambda: after_noise(layers.Dense(1), Layer(above_the_mean, name="culprit")),
    "capacity of 1000": lambda: after_noise(capacity(1000)),
    "capacity of 1000 steps": lambda: after_noise(
        lambda x: layers.Reshape((4, 6))(capacity(1000)(x)), layers.Flatten(), inputs=(4, 6)
    ),
    "in a nested model": lambda: after_noise(nested()),
    "in TimeDistributed": lambda: after_noise(distributed(), layers.Flatten(), inputs=(4, 6)),
    "subclassed": lambda: built(Subclassed(layers.Softmax(axis=0), name="culprit")),
}


def built(model):
    model(X[:2])
    return model


@pytest.mark.parametrize("name", COMBINING)
def test_passes_run_one_at_a_time_if_layers_combine_samples(name):
    model = compiled(COMBINING[name](), loss="mse", metrics=())
    x = SEQUENCES if name in ("in TimeDistributed", "capacity of 1000 steps") else X
    expected = np.repeat(model.predict(x, batch_size=8, verbose=0)[:, None], 4, axis=1)
    named = "" if name == "the mean over the batch" else "'culprit'"
    options = dict(OUTPUTS)
    if name == "subclassed":
        del options["dropout_rate"]
        model.drop.rate = NONE
    message = rf"(?s)The layer .*{named}.*combines the samples of a batch.*one at a.*or choose noise"
    with pytest.warns(UserWarning, match=message) as warned:
        ssd = keras_ssd.wrap(model, **options)
    assert len([w for w in warned if issubclass(w.category, UserWarning)]) == 1
    assert ssd.teacher_cost.fraction == 1
    np.testing.assert_allclose(passes(ssd, x).teacher_outputs[0], expected, atol=1e-5)


def test_layers_that_combine_samples_need_whole_batches_and_single_passes():
    model = COMBINING["Softmax(axis=0)"]()
    with pytest.raises(ValueError, match="`kd_fraction` should be 1"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras_ssd.wrap(model, kd_fraction=0.5, distill="outputs", similarity="kl")
    with pytest.warns(UserWarning, match="so the passes are run one at a time"):
        prediction = keras_ssd.predict_stochastic(model, X, 4, batch_size=8, dropout_rate=NONE, verbose=0)
    np.testing.assert_allclose(prediction.mean, model.predict(X, batch_size=8, verbose=0), atol=1e-5)


def two_views():
    """Two inputs in one batch, whose rows are split again after the noise."""
    a, b = keras.Input((6,)), keras.Input((6,))
    x = layers.Dense(8)(layers.Dropout(0.5)(layers.Concatenate(axis=0, name="culprit")([a, b])))
    first, second = ops.split(x, 2, axis=0)
    return keras.Model([a, b], layers.Dense(2)(ops.abs(first - second)))


def test_passes_run_one_at_a_time_if_two_inputs_share_a_batch():
    model, x = compiled(two_views(), loss="mse", metrics=()), [X, X[::-1].copy()]
    with pytest.warns(UserWarning, match="The layer 'culprit' .*moves samples along the first axis.*one at a time"):
        ssd = keras_ssd.wrap(model, **OUTPUTS)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(passes(ssd, x).teacher_outputs[0], np.repeat(expected[:, None], 4, axis=1), atol=1e-5)


class StoredShape(layers.Layer):
    """The last step of a sequence; its shape is stored as it was built, with an unknown batch."""

    def build(self, shape):
        self.stored = (None, shape[-1])

    def call(self, x):
        return x[:, -1]

    def compute_output_shape(self, shape):
        return self.stored


def folded_and_unfolded(x):
    """Windows become rows of the batch, and samples again."""
    x = layers.Dense(6, activation="relu")(ops.reshape(x, (-1, 2, 6)))
    return layers.Flatten()(ops.reshape(x, (-1, 4, 6)))


def time_first(x):
    x = layers.Dense(6)(ops.transpose(x, (1, 0, 2)))
    return layers.Flatten()(ops.transpose(x, (1, 0, 2)))


def masked():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Dropout(0.5)(layers.Embedding(2, 6, mask_zero=True)(inputs))  # of indices 0 and 1 only
    return keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(x * 1) + Layer(ops.tanh)(layers.LSTM(4)(x))))


def always_random():
    class MonteCarlo(layers.Dropout):
        def call(self, x, training=None):
            return super().call(x, training=True)

    return after_noise(MonteCarlo(0.5), Layer(ops.tanh))


INDEPENDENT = {
    "a stored shape after the noise": lambda: after_noise(StoredShape(), inputs=(4, 6)),
    "a stored shape before the noise": lambda: before_noise(StoredShape(), inputs=(4, 6)),
    "folded and unfolded": lambda: after_noise(folded_and_unfolded, inputs=(4, 6)),
    "folded and unfolded before the noise": lambda: before_noise(folded_and_unfolded, inputs=(4, 6)),
    "time first": lambda: after_noise(time_first, inputs=(4, 6)),
    "unknown length": lambda: after_noise(lambda x: ops.cumsum(x, axis=1)[:, -1], inputs=(None, 6)),
    "masks": masked,
    "noise that is always on": always_random,
    "subclassed, of indices": lambda: subclassed_on_indices(),
}


def subclassed_on_indices():
    class Embedded(Subclassed):
        def call(self, x, training=False):
            return self.layer(self.drop(self.embedding(x), training=training))

    model = Embedded(layers.Flatten())
    model.embedding = layers.Embedding(3, 4)
    model(np.ones((2, 5), "int32"))
    return model


@pytest.mark.parametrize("name", INDEPENDENT)
def test_layers_that_keep_rows_apart_are_run_side_by_side_without_a_warning(name):
    model = INDEPENDENT[name]()
    state = [ops.convert_to_numpy(v.value).tolist() for v in model.variables]
    wiring = keras_ssd.wrap(model, "snapshot", distill="outputs", similarity="kl", kd_fraction=0.5).distillation.wiring
    assert wiring.passes.is_row_wise and wiring.passes.takes_rows
    assert [ops.convert_to_numpy(v.value).tolist() for v in model.variables] == state


def test_before_the_noise_only_teachers_with_other_weights_need_whole_batches():
    """The student's own values are those of the whole batch, whatever rows are taken of them."""
    model = before_noise(Layer(lambda x: ops.softmax(x, axis=0), name="culprit"))
    assert keras_ssd.wrap(model, kd_fraction=0.5).distillation.wiring.passes.takes_rows
    with pytest.warns(UserWarning, match=r"'culprit'.*before the first noise layer.*whole batches \(kd_fraction=1\)"):
        ssd = keras_ssd.wrap(model, "snapshot", **OUTPUTS)
    assert ssd.distillation.wiring.passes.is_row_wise and ssd.teacher_cost.fraction == 1
    keras_ssd.predict_stochastic(model, X, 3, verbose=0)


def test_the_usual_model_is_not_run_when_it_is_wrapped(monkeypatch):
    calls = []

    class Dense(layers.Dense):
        def call(self, x):
            calls.append(type(x))
            return super().call(x)

    monkeypatch.setattr(layers, "Dense", Dense)  # counts as Keras' own
    model = after_noise(Dense(3), lambda x: x[:, 1:] + 1)
    calls.clear()
    keras_ssd.wrap(model, **OUTPUTS)
    assert not set(calls) - {keras.KerasTensor}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Only TensorFlow has strings and sparse inputs.")
@pytest.mark.parametrize("options", [{"dtype": "string"}, {"sparse": True}], ids=["string", "sparse"])
def test_shapes_are_examined_if_inputs_cannot_be_generated(options):
    inputs = keras.Input((6,), **options)
    numbers = SameShape(lambda x: ops.cast(x, "float32"))
    graph = Graph(keras.Model([inputs, other := keras.Input((6,))], Layer(scores, name="culprit")(numbers(other))))
    needed = graph.needed(graph.outputs)
    rows = examine(graph, [], needed, keras.tree.flatten(graph.inputs), graph.outputs)
    assert rows.suffix_culprit.name == "culprit"
