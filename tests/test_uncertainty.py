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
from structures import EXCHANGEABLE, Doubling, Subclassed, batch

X = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 7)
N = 5


class Counting(layers.Layer):
    """Multiplies pass 0, 1, ... by 1, 2, ...: noise whose draws are known. Its N passes lie side by side in a batch."""

    def __init__(self, n=N):
        super().__init__()
        self.n, self.seed_generator = n, keras.random.SeedGenerator(1)

    def call(self, x, training=False):
        if not training:
            return x
        number = ops.arange(ops.shape(x)[0]) % self.n + 1
        return x * ops.cast(ops.reshape(number, (-1, *[1] * (len(x.shape) - 1))), x.dtype)


def counted_logits(model, factors=range(1, N + 1)):
    """The passes of a `dense_network(Counting())` in NumPy, `(batch, passes, units)`."""
    kernel, bias, gamma, beta, mean, variance, head, head_bias = (w.astype("float64") for w in model.get_weights())
    hidden = np.maximum(X @ kernel + bias, 0)
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


def assert_figures_of(prediction, p, entropy=entropy):
    """The figures of passes with the probabilities `p`, `(batch, passes, units)`."""
    mean = p.mean(axis=1)
    assert_figures(prediction, mean, p.var(axis=1), entropy(mean), entropy(mean) - entropy(p).mean(axis=1))


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


def test_summary_of_binary_units_and_of_a_regression_by_hand():
    told = summary(np.array([[[1.0, 0.9], [0.0, 0.7]]], "float32"), "binary")
    np.testing.assert_allclose(told["mean"], [[0.5, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(told["variance"], [[0.25, 0.01]], rtol=1e-5)
    np.testing.assert_allclose(told["predictive_entropy"], [[0.693147, 0.500402]], atol=1e-6)
    np.testing.assert_allclose(told["mutual_information"], [[0.693147, 0.032429]], atol=1e-6)
    told = summary(np.array([[[1.0, -2.0], [3.0, -2.0], [5.0, -2.0]]], "float32"), "regression")
    assert set(told) == {"mean", "variance"}
    np.testing.assert_allclose(told["mean"], [[3.0, -2.0]])
    np.testing.assert_allclose(told["variance"], [[8 / 3, 0.0]], rtol=1e-6)


# The passes, against NumPy.


@pytest.mark.compiled
def test_classification_is_that_of_the_drawn_passes():
    """In batches of 3, 3 and 1 samples."""
    model = dense_network(Counting())
    prediction = predict(model, batch_size=3)
    assert_figures_of(prediction, softmax(counted_logits(model)))
    assert prediction.mutual_information.max() > 0.01


def test_chunks_of_passes():
    """2 + 2 + 1 passes: the layer counts from 0 in every chunk, and the last has one row for each sample."""
    model = dense_network(Counting(n=2))
    last = np.arange(7)[:, None] % 2 + 1
    assert_figures_of(predict(model, pass_chunk=2), softmax(counted_logits(model, factors=[1, 2, 1, 2, last])))


SPARSE_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    "own_loss, given_loss",
    [(SPARSE_LOGITS, None), (None, keras.losses.CategoricalCrossentropy(from_logits=True)), ("mse", SPARSE_LOGITS)],
    ids=["compiled", "given", "given over compiled"],
)
def test_the_loss_tells_that_an_output_holds_logits(own_loss, given_loss):
    model = dense_network(Counting(), activation=None)
    if own_loss is not None:
        model.compile("sgd", own_loss)
    assert_figures_of(predict(model, loss=given_loss), softmax(counted_logits(model)))


@pytest.mark.parametrize("units, from_logits", [(1, False), (3, True)], ids=["one, probabilities", "three, logits"])
def test_binary_units(units, from_logits):
    model = dense_network(Counting(), activation=None if from_logits else "sigmoid", units=units)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=from_logits))
    assert_figures_of(predict(model), sigmoid(counted_logits(model)), binary_entropy)


def test_regression_has_mean_and_variance_only():
    model = dense_network(Counting(), activation=None, units=2)
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


@pytest.mark.parametrize("name", ["several_inputs_and_outputs", "dictionaries", "masked"])
def test_every_structure_gives_the_call_with_noise_on(name):
    """A layer that doubles makes every pass the one of the model that is called with noise on, frozen."""
    model = EXCHANGEABLE[name](Doubling)
    for variable in model.non_trainable_weights:
        variable.assign(np.linspace(0.5, 1.5, int(np.prod(variable.shape))).reshape(variable.shape))
    x = batch(model)
    predictions = predict(model, x, num_passes=3)
    for layer in model._flatten_layers():
        layer.trainable = False

    def check(mean, prediction):
        mean = ops.convert_to_numpy(mean)
        figures = (entropy(mean), np.zeros(mean.shape[:-1])) if mean.shape[-1] == 3 else ()
        assert_figures(prediction, mean, np.zeros(mean.shape), *figures)

    expected = model(x, training=True)
    assert isinstance(predictions, dict) == isinstance(expected, dict)
    keras.tree.map_structure_up_to(expected, check, expected, predictions)


def test_passes_of_a_subclassed_model_differ():
    model = EXCHANGEABLE["subclassed"](layers.Dropout)
    assert predict(model, batch(model)).variance.max() > 1e-8  # rounding makes 1e-15


def test_subclassed_model_with_implicit_training_argument():
    class Implicit(keras.Model):
        def __init__(self):
            super().__init__()
            self.noise, self.head = Doubling(), layers.Dense(3, activation="softmax")

        def call(self, x):
            return {"b": self.head(self.noise(x)), "a": 2 * x}

    model = Implicit()
    model(X)
    model.compile("sgd", {"b": "kl_divergence"})
    kernel, bias = model.get_weights()
    p = softmax(2.0 * X @ kernel + bias)
    prediction = predict(model, batch_size=4)
    assert set(prediction) == {"a", "b"}
    assert_figures(prediction["a"], 2 * X, np.zeros(X.shape))
    assert_figures(prediction["b"], p, np.zeros(p.shape), entropy(p), np.zeros(len(X)))


def test_mixed_precision_is_summarised_in_float32():
    dense = [layers.Dense(6, dtype="mixed_bfloat16"), layers.Dense(3, activation="softmax", dtype="mixed_bfloat16")]
    prediction = predict(keras.Sequential([keras.Input((4,)), dense[0], layers.Dropout(0.5), dense[1]]))
    assert {str(one.dtype) for one in prediction} == {"float32"}
    np.testing.assert_allclose(prediction.mean.sum(axis=-1), 1, atol=1e-2)


# What is evaluated, how often.


def test_layers_before_the_noise_run_once_per_batch():
    before, after = [], []
    first, second = (layers.Lambda(lambda x, rows=rows: rows.append(x.shape[0]) or x) for rows in (before, after))
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), first, layers.Dropout(0.5), second, layers.Dense(3)])
    model.compile("sgd", "mse", run_eagerly=True)
    before.clear()
    after.clear()
    predict(model, batch_size=3, pass_chunk=N)
    # The graph is walked symbolically first, with no or invented batch sizes.
    assert [rows for rows in before if rows in (1, 3)] == [3, 3, 1]
    assert [rows for rows in after if rows in (3 * N, N)] == [3 * N, 3 * N, N]


# Determinism.


def test_the_seed_or_that_of_keras_fixes_the_noise_of_each_call():
    """After any other calls; two calls without a seed draw other noise."""
    model = dense_network()
    first, other = predict(model, seed=3), predict(model, seed=4)

    def unseeded():
        keras.utils.set_random_seed(5)
        state = random.getstate()
        predictions = [predict(model, seed=None) for _ in range(2)]
        assert random.getstate() == state
        return predictions

    one, next_one = unseeded()
    assert_same(unseeded(), [one, next_one])
    assert_same(predict(model, seed=3), first)
    assert min(np.abs(a.mean - b.mean).max() for a, b in ((first, other), (one, next_one))) > 1e-3


def test_every_sample_and_every_batch_has_noise_of_its_own():
    mean = predict(dense_network(), np.repeat(X[:1], 6, axis=0), batch_size=2).mean
    assert min(np.abs(mean[i] - mean[j]).max() for i in range(6) for j in range(i)) > 1e-4


# Nothing is changed.


def test_neither_a_prediction_nor_an_error_in_it_changes_the_model_or_its_later_training():
    def trained():
        keras.utils.set_random_seed(0)
        model = compiled(dense_network(), keras.optimizers.Adam(0.01))
        model.layers[1].trainable = False
        model.fit(X, Y, batch_size=4, verbose=0)
        return model

    def described():
        parts = [(layer.name, layer.trainable, layer.built) for layer in model._flatten_layers()]
        random_states = [random.getstate(), np.random.get_state()[1].tolist()]
        if keras.backend.backend() == "torch":
            random_states.append(torch.get_rng_state().tolist())
        return parts, model.get_config(), model.train_function, model.predict_function, model.optimizer, random_states

    if keras.backend.backend() == "torch":
        import torch
    model, other = trained(), trained()
    before = described()
    predict(model, batch_size=3)
    assert described() == before
    with pytest.raises(Exception, match="(?i)shape|dim|size"):
        predict(model, np.ones((4, 9), "float32"))
    assert_same(state(model), state(other))
    for one in (model, other):
        keras.utils.set_random_seed(9)
        one.fit(X, Y, batch_size=4, verbose=0)
    assert_same(state(model), state(other))


# Where the weights come from.


def test_a_wrapped_model_predicts_with_the_averaged_weights_of_its_student():
    """Which are not those of the teacher."""
    ssd = keras_ssd.wrap(dense_network(activation=None), teacher="snapshot", num_teachers=4, ema_momentum=0.5, seed=1)
    ssd.compile(keras.optimizers.SGD(1.0), SPARSE_LOGITS)
    for _ in range(3):
        ssd.train_on_batch(X, Y)
    before, raw, prediction = state(ssd), predict(ssd.student), predict(ssd)
    assert prediction.predictive_entropy is not None
    assert_same(ssd.predict_stochastic(X, num_passes=N, seed=2, verbose=0), prediction)
    assert_same(state(ssd), before)
    with pytest.raises(TypeError, match="num_teachers"):
        ssd.predict_stochastic(X, num_teachers=3)
    ssd.write_average()
    of_average = predict(ssd.student)
    assert np.abs(raw.mean - of_average.mean).max() > 1e-3
    assert_same(prediction, of_average)


# Other inputs and choices.


def test_a_data_set_gives_what_its_arrays_give():
    model, batches = dense_network(), ((X[start : start + 4], Y[start : start + 4]) for start in (0, 4))
    assert_same(predict(model, batches, steps=2), predict(model, batch_size=4))


BAD = {
    "no_noise": (lambda: dense_network(layers.ReLU()), {}, "^(?!.*teacher).*no noise layer.*identical.*in the passes"),
    "no_model": (lambda: "model", {}, "`model` should be a keras.Model. Received: 'model' of type str"),
    "not_built": (lambda: Subclassed(), {}, "`model` is not built"),
    "one_pass": (dense_network, {"num_passes": 1}, "`num_passes` should be an integer of at least 2.*num_passes=1"),
    "seed": (dense_network, {"seed": "7"}, "`seed` should be an integer or None. Received: seed='7'"),
    "chunk": (dense_network, {"pass_chunk": 0}, "`pass_chunk` should be an integer .* 1, or None.*pass_chunk=0"),
    "logits": (
        lambda: dense_network(activation=None),
        {"loss": "sparse_categorical_crossentropy"},
        "Output 0 of .* Received: values down to -.*from_logits=True.*mse",
    ),
    "deterministic": (dense_network, {"stochastic_layers": ()}, r"depends on the noise \(none\)"),
}


@pytest.mark.parametrize("make, options, message", BAD.values(), ids=BAD)
def test_predict_stochastic_rejects_bad_arguments(make, options, message):
    with pytest.raises(ValueError, match=message):
        predict(make(), **options)
