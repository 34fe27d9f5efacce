"""`predict_stochastic`: values computed by hand, passes computed by NumPy, and an unchanged model."""

import random

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd.uncertainty import summary
from models import compiled, dense_network
from reference import sigmoid, softmax
from same_weights import arrays, assert_same
from structures import BUILT_IN, EXCHANGEABLE, Doubling, Subclassed, batch

ALL = {**EXCHANGEABLE, **BUILT_IN}
X = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 7)
N = 5


@keras.saving.register_keras_serializable(package="tests")
class Counting(layers.Layer):
    """Multiplies pass 0, 1, ... by 1, 2, ...: noise whose draws are known. Its N passes lie side by side in a batch."""

    def __init__(self, n=N, **kwargs):
        super().__init__(**kwargs)
        self.n = n
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x, training=False):
        if not training:
            return x
        number = ops.arange(ops.shape(x)[0]) % self.n + 1
        return x * ops.cast(ops.reshape(number, (-1, *[1] * (len(x.shape) - 1))), x.dtype)

    def get_config(self):
        return {**super().get_config(), "n": self.n}


@keras.saving.register_keras_serializable(package="tests")
class Recording(layers.Layer):
    """Passes its input on and records how many rows each call saw."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rows = []

    def call(self, x):
        self.rows.append(x.shape[0])
        return x


def counted_logits(model, x=X, factors=range(1, N + 1)):
    """The passes of a `dense_network(Counting())` in NumPy, `(batch, passes, units)`."""
    kernel, bias, gamma, beta, mean, variance, head, head_bias = (w.astype("float64") for w in model.get_weights())
    hidden = np.maximum(x @ kernel + bias, 0)
    hidden = gamma * (hidden - mean) / np.sqrt(variance + model.layers[2].epsilon) + beta
    return np.stack([factor * hidden @ head + head_bias for factor in factors], axis=1)


def entropy(p):
    return -np.sum(p * np.log(p), axis=-1)


def binary_entropy(p):
    return entropy(np.stack([p, 1 - p], axis=-1))


def predict(model, x=X, **options):
    return keras_ssd.predict_stochastic(model, x, **{"num_passes": N, "seed": 2, "verbose": 0, **options})


def assert_figures(prediction, mean, variance, predictive_entropy=None, mutual_information=None):
    expected = (mean, variance, predictive_entropy, mutual_information)
    for name, one, reference in zip(prediction._fields, prediction, expected, strict=True):
        assert (one is None) == (reference is None), name
        if one is not None:
            assert isinstance(one, np.ndarray), name
            np.testing.assert_allclose(one, reference, rtol=1e-4, atol=1e-6, err_msg=name)


def state(model):
    return arrays([*model.variables, *(model.optimizer.variables if model.compiled else [])])


# The figures, by hand. ln 2 = 0.693147; H(.8) = 0.500402, H(.9) = 0.325083, H(.7) = 0.610864.


def test_summary_of_exclusive_classes_by_hand():
    passes = [[[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.7, 0.3]]]
    told = summary(np.array(passes, "float32"), "categorical")
    np.testing.assert_allclose(told["mean"], [[0.5, 0.5], [0.5, 0.5], [0.8, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(told["variance"], [[0.25, 0.25], [0, 0], [0.01, 0.01]], atol=1e-7)
    np.testing.assert_allclose(told["predictive_entropy"], [0.693147, 0.693147, 0.500402], atol=1e-6)
    np.testing.assert_allclose(told["mutual_information"], [0.693147, 0, 0.032429], atol=1e-6)


def test_summary_of_binary_units_by_hand():
    told = summary(np.array([[[1.0, 0.9], [0.0, 0.7]]], "float32"), "binary")
    np.testing.assert_allclose(told["mean"], [[0.5, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(told["variance"], [[0.25, 0.01]], rtol=1e-5)
    np.testing.assert_allclose(told["predictive_entropy"], [[0.693147, 0.500402]], atol=1e-6)
    np.testing.assert_allclose(told["mutual_information"], [[0.693147, 0.032429]], atol=1e-6)


def test_summary_of_a_regression_by_hand():
    told = summary(np.array([[[1.0, -2.0], [3.0, -2.0], [5.0, -2.0]]], "float32"), "regression")
    assert set(told) == {"mean", "variance"}
    np.testing.assert_allclose(told["mean"], [[3.0, -2.0]])
    np.testing.assert_allclose(told["variance"], [[8 / 3, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["categorical", "binary"])
def test_logits_give_the_summary_of_their_probabilities(kind):
    logits = np.array([[[2.0, -1.0, 0.5], [0.0, 3.0, -40.0]]], "float32")
    of_probabilities = summary((softmax if kind == "categorical" else sigmoid)(logits), kind)
    for name, value in summary(logits, kind, from_logits=True).items():
        np.testing.assert_allclose(value, of_probabilities[name], atol=1e-6, err_msg=name)


# The passes, against NumPy.


@pytest.mark.compiled
@pytest.mark.parametrize("batch_size", [None, 3])
def test_classification_is_that_of_the_drawn_passes(batch_size):
    model = dense_network(Counting())
    p = softmax(counted_logits(model))
    mean = p.mean(axis=1)
    information = entropy(mean) - entropy(p).mean(axis=1)
    assert information.max() > 0.01
    assert_figures(predict(model, batch_size=batch_size), mean, p.var(axis=1), entropy(mean), information)


def test_chunks_of_passes():
    """2 + 2 + 1 passes: the layer counts from 0 in every chunk, and the last has one row for each sample."""
    model = dense_network(Counting(n=2))
    last = np.arange(7)[:, None] % 2 + 1
    p = softmax(counted_logits(model, factors=[1, 2, 1, 2, last]))
    mean = p.mean(axis=1)
    prediction = predict(model, pass_chunk=2)
    assert_figures(prediction, mean, p.var(axis=1), entropy(mean), entropy(mean) - entropy(p).mean(axis=1))


LOSSES = {
    "compiled": (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None),
    "given": (None, keras.losses.CategoricalCrossentropy(from_logits=True)),
    "given_over_compiled": ("mse", keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
}


@pytest.mark.parametrize("own_loss, given_loss", LOSSES.values(), ids=LOSSES)
def test_the_loss_tells_that_an_output_holds_logits(own_loss, given_loss):
    model = dense_network(Counting(), activation=None)
    if own_loss is not None:
        model.compile("sgd", own_loss)
    p = softmax(counted_logits(model))
    mean = p.mean(axis=1)
    prediction = predict(model, loss=given_loss)
    assert_figures(prediction, mean, p.var(axis=1), entropy(mean), entropy(mean) - entropy(p).mean(axis=1))


@pytest.mark.parametrize("from_logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("units", [1, 3])
def test_binary_units(units, from_logits):
    model = dense_network(Counting(), activation=None if from_logits else "sigmoid", units=units)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=from_logits))
    p = sigmoid(counted_logits(model))
    mean = p.mean(axis=1)
    information = binary_entropy(mean) - binary_entropy(p).mean(axis=1)
    assert_figures(predict(model), mean, p.var(axis=1), binary_entropy(mean), information)


@pytest.mark.parametrize("loss", [None, "mse"])
def test_regression_has_mean_and_variance_only(loss):
    model = dense_network(Counting(), activation=None, units=2)
    if loss:
        model.compile("sgd", loss)
    values = counted_logits(model)
    assert_figures(predict(model), values.mean(axis=1), values.var(axis=1))


def test_dropout_has_its_own_variance():
    """Of `sum w m / (1 - p)` with `m` Bernoulli(1 - p): mean `sum w`, variance `sum w^2 p / (1 - p)`."""
    w = np.array([1.0, -2.0, 3.0, 0.5])
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.2), layers.Dense(1)])
    model.set_weights([w[:, None], np.zeros(1)])
    prediction = predict(model, np.ones((2, 4), "float32"), num_passes=4000)
    np.testing.assert_allclose(prediction.mean, np.full((2, 1), 2.5), atol=4 * (14.25 / 4 / 4000) ** 0.5)
    np.testing.assert_allclose(prediction.variance, np.full((2, 1), 14.25 / 4), rtol=0.1)


def some_of(names, quick):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "name",
    some_of(EXCHANGEABLE, "shared_layers several_inputs_and_outputs dictionaries nested subclassed masked".split()),
)
def test_every_structure_gives_the_call_with_noise_on(name):
    """A layer that doubles makes every pass the one of the model that is called with noise on, frozen."""
    model = EXCHANGEABLE[name](Doubling)
    for variable in model.non_trainable_weights:
        variable.assign(np.linspace(0.5, 1.5, int(np.prod(variable.shape))).reshape(variable.shape))
    x = batch(model)
    predictions = predict(model, x, num_passes=3, loss="mse" if name == "subclassed" else None)
    before = state(model)
    for layer in model._flatten_layers():
        layer.trainable = False
    expected = keras.tree.map_structure(ops.convert_to_numpy, model(x, training=True))
    assert_same(before, state(model))
    assert (type(predictions) is type(expected)) or isinstance(expected, np.ndarray)
    if isinstance(expected, dict):
        assert predictions.keys() == expected.keys()
        predictions, expected = ([one[key] for key in sorted(one)] for one in (predictions, expected))
    pairs = [(predictions, expected)] if isinstance(expected, np.ndarray) else zip(predictions, expected, strict=True)
    for prediction, mean in pairs:
        is_classification = mean.shape[-1] == 3 and name != "subclassed"
        figures = (entropy(mean), np.zeros(mean.shape[:-1])) if is_classification else ()
        assert_figures(prediction, mean, np.zeros(mean.shape), *figures)


@pytest.mark.parametrize("name", some_of(ALL, ["subclassed", "gaussian_noise"]))
def test_passes_of_real_noise_differ(name):
    model = ALL[name](lambda **name: layers.Dropout(0.5, **name))
    predictions = predict(model, batch(model))
    if isinstance(predictions, dict):
        predictions = list(predictions.values())
    for one in [predictions] if hasattr(predictions, "mean") else predictions:
        assert one.variance.max() > 1e-8  # rounding makes 1e-15


@pytest.mark.parametrize("outputs", ["tensor", "dict"])
def test_subclassed_model_with_implicit_training_argument(outputs):
    class Implicit(keras.Model):
        def __init__(self):
            super().__init__()
            self.noise, self.head = Doubling(), layers.Dense(3, activation="softmax")

        def call(self, x):
            y = self.head(self.noise(x))
            return y if outputs == "tensor" else {"b": y, "a": 2 * x}

    model = Implicit()
    model(X)
    model.compile("sgd", "sparse_categorical_crossentropy" if outputs == "tensor" else {"b": "kl_divergence"})
    kernel, bias = model.get_weights()
    p = softmax(2.0 * X @ kernel + bias)
    prediction = predict(model, batch_size=4)
    if outputs == "dict":
        assert set(prediction) == {"a", "b"}
        assert_figures(prediction["a"], 2 * X, np.zeros(X.shape))
        prediction = prediction["b"]
    assert_figures(prediction, p, np.zeros(p.shape), entropy(p), np.zeros(len(X)))


def test_mixed_precision_is_summarised_in_float32():
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5)(layers.Dense(6, dtype="mixed_bfloat16")(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", dtype="mixed_bfloat16")(x))
    prediction = predict(model)
    assert {str(one.dtype) for one in prediction} == {"float32"}
    np.testing.assert_allclose(prediction.mean.sum(axis=-1), 1, atol=1e-2)


# What is evaluated, how often.


@pytest.mark.parametrize("chunk", [N, pytest.param(2, marks=pytest.mark.slow)], ids=["tiled", "chunked"])
def test_layers_before_the_noise_run_once_per_batch(chunk):
    before, after = Recording(), Recording()
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8), before, layers.Dropout(0.5), after, layers.Dense(3)],
    )
    model.compile("sgd", "mse", run_eagerly=True)
    before.rows.clear()
    after.rows.clear()
    predict(model, batch_size=3, pass_chunk=chunk)
    # The graph is walked symbolically first, with no or invented batch sizes.
    assert [rows for rows in before.rows if rows in (1, 3)] == [3, 3, 1]
    if chunk == N:
        assert [rows for rows in after.rows if rows in (3 * N, N)] == [3 * N, 3 * N, N]
    else:  # the loop over chunks is traced on some backends, so only the last one shows
        assert after.rows[-1] == 1
        assert {3 * N, N}.isdisjoint(after.rows)


# Determinism.


def test_seed_fixes_the_result_after_any_calls():
    model = dense_network()
    first, other = predict(model, seed=3), predict(model, seed=4)
    keras.random.normal((2,))
    model.predict(X, verbose=0)
    keras.utils.set_random_seed(77)
    assert_same(predict(model, seed=3), first)
    assert np.abs(first.mean - other.mean).max() > 1e-3


def test_every_sample_and_every_batch_has_noise_of_its_own():
    mean = predict(dense_network(), np.repeat(X[:1], 6, axis=0), batch_size=2).mean
    for i in range(6):
        for j in range(i):
            assert np.abs(mean[i] - mean[j]).max() > 1e-4


# Nothing is changed.


def trained(model=None):
    model = model or dense_network()
    compiled(model, keras.optimizers.Adam(0.01)).fit(X, Y, batch_size=4, verbose=0)
    return model


def test_the_model_is_left_as_it_was():
    model = trained()
    model.layers[1].trainable = False
    optimizer, config, before = model.optimizer, model.get_config(), state(model)
    described = [(layer.name, layer.trainable, layer.built) for layer in model._flatten_layers()]
    random_states = random.getstate(), np.random.get_state()[1].tolist()
    if keras.backend.backend() == "torch":
        import torch

        torch_state = torch.get_rng_state()
    functions = model.train_function, model.predict_function
    predict(model, batch_size=3)
    assert_same(state(model), before)
    assert [(layer.name, layer.trainable, layer.built) for layer in model._flatten_layers()] == described
    assert model.optimizer is optimizer
    assert model.get_config() == config
    assert (model.train_function, model.predict_function) == functions
    assert (random.getstate(), np.random.get_state()[1].tolist()) == random_states
    if keras.backend.backend() == "torch":
        assert (torch.get_rng_state() == torch_state).all()


def test_prediction_does_not_change_later_training():
    model = trained()
    keras.utils.set_random_seed(0)
    other = trained()
    assert_same(state(model), state(other))
    predict(model)
    for one in (model, other):
        keras.utils.set_random_seed(9)
        one.fit(X, Y, batch_size=4, verbose=0)
    assert_same(state(model), state(other))


def test_error_during_prediction_leaves_the_model_unchanged():
    model = trained()
    before = state(model)
    with pytest.raises(Exception, match="(?i)shape|dim|size"):
        predict(model, np.ones((4, 9), "float32"))
    assert_same(state(model), before)
    predict(model)


# Where the weights come from.


@pytest.mark.parametrize("teacher", ["self", pytest.param("snapshot", marks=pytest.mark.slow)])
def test_a_wrapped_model_predicts_as_its_student(teacher):
    ssd = keras_ssd.wrap(dense_network(activation=None), teacher=teacher, num_teachers=4, seed=1)
    ssd.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ssd.fit(X, Y, verbose=0)
    expected = predict(ssd.student, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert expected.predictive_entropy is not None
    before = state(ssd)
    assert_same(predict(ssd), expected)
    assert_same(ssd.predict_stochastic(X, num_passes=N, seed=2, verbose=0), expected)
    assert_same(state(ssd), before)


@pytest.mark.parametrize("averages", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_averaged_weights_are_used_as_in_predict(averages):
    ssd = keras_ssd.wrap(dense_network(), num_teachers=2, ema_momentum=0.5 if averages else 0, seed=1)
    ssd.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    for _ in range(3):
        ssd.train_on_batch(X, Y)
    raw = arrays(ssd.student.weights)
    own = predict(ssd.student)
    prediction = predict(ssd)
    assert_same(ssd.student.weights, raw)
    if not averages:
        assert_same(prediction, own)
        return
    ssd.write_average()
    of_average = predict(ssd.student)
    assert np.abs(own.mean - of_average.mean).max() > 1e-3
    assert_same(prediction, of_average)


# Other inputs and choices.


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


def test_a_data_set_gives_what_its_arrays_give():
    model = dense_network()
    assert_same(predict(model, Batches()), predict(model, batch_size=4))


def test_stochastic_layers_are_chosen_by_name():
    inputs = keras.Input((4,))
    x = Doubling(name="first")(inputs)
    model = keras.Model(inputs, Doubling(name="second")(x))
    for names, factor in (("first", 2), (["first", "second"], 4), (None, 4)):
        np.testing.assert_allclose(predict(model, stochastic_layers=names).mean, factor * X, rtol=1e-6)


def without_noise():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)])


BAD = {
    "no_noise": (without_noise, {}, "^(?!.*teacher).*has no noise layer.*all passes would be identical.*in the passes"),
    "rate_0": (lambda: dense_network(layers.Dropout(0.0)), {}, "all have a rate of 0"),
    "no_model": (lambda: "model", {}, "`model` should be a keras.Model. Received: 'model' of type str"),
    "not_built": (lambda: Subclassed(), {}, "`model` is not built"),
    "one_pass": (dense_network, {"num_passes": 1}, "`num_passes` should be an integer of at least 2.*num_passes=1"),
    "float_passes": (dense_network, {"num_passes": 3.0}, "num_passes=3.0"),
    "true_passes": (dense_network, {"num_passes": True}, "num_passes=True"),
    "seed": (dense_network, {"seed": "7"}, "`seed` should be an integer or None. Received: seed='7'"),
    "chunk": (
        dense_network,
        {"pass_chunk": 0},
        "`pass_chunk` should be an integer of at least 1, or None.*pass_chunk=0",
    ),
    "unknown_layer": (dense_network, {"stochastic_layers": "drop"}, "Unknown: \\['drop'\\]"),
    "classes_on_another_axis": (
        lambda: keras.Sequential([keras.Input((4, 3)), layers.Dropout(0.5), layers.Dense(3)]),
        {"loss": keras.losses.CategoricalCrossentropy(axis=1)},
        "classes of output 0 should lie on its last axis.*axis=1",
    ),
    "deterministic": (dense_network, {"stochastic_layers": ()}, r"depends on the noise \(none\)"),
}


@pytest.mark.parametrize("make, options, message", BAD.values(), ids=BAD)
def test_predict_stochastic_rejects_bad_arguments(make, options, message):
    with pytest.raises(ValueError, match=message):
        predict(make(), **options)


def test_logits_are_not_taken_for_probabilities():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.5)(inputs)))
    x = 9 * np.random.default_rng(0).normal(size=(5, 4))
    with pytest.raises(ValueError, match="Output 0 of .* Received: values down to -.*from_logits=True.*mse"):
        predict(model, x, loss="sparse_categorical_crossentropy")
    of_logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(predict(model, x, loss=of_logits).mean.sum(axis=1), 1, rtol=1e-5)


def test_an_unknown_option_of_the_method_is_refused():
    ssd = keras_ssd.wrap(dense_network(), seed=1)
    with pytest.raises(TypeError, match="num_teachers"):
        ssd.predict_stochastic(X, num_teachers=3)


def test_unseeded_calls_draw_other_noise_and_repeat_after_the_seed_is_set():
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5, seed=1), layers.Dense(2)])
    x = np.ones((2, 4), "float32")

    def three():
        keras.utils.set_random_seed(5)
        state = random.getstate()
        variances = [keras_ssd.predict_stochastic(model, x, 5, verbose=0).variance.tolist() for _ in range(3)]
        assert random.getstate() == state
        return variances

    variances = three()
    assert len({str(variance) for variance in variances}) == 3
    assert three() == variances
