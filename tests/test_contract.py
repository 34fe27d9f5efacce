"""Keras features that work with a plain model work with a wrapped model: a test for each feature and kind of teacher.

Every feature is a function of the kind of teacher. It uses the feature on a plain model and on a wrapped model of equal
weights and seeds, and returns `None`, or the reason why Keras itself refuses it for the plain model (after a check that
the wrapped model is refused with the same words).

The last kind, `"weight 0"`, is a wrapped model without distillation: everything has to be equal bit for bit.

`tools/contract.py` runs this file and writes the result to docs/contract.md.
"""

import copy
import functools
import importlib.util
import itertools
import pathlib
import pickle
import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from models import precision
from same_weights import arrays, assert_close, assert_same
from structures import Doubling, several_inputs_and_outputs

KINDS = ["self", "snapshot", "ema", "model", "weight 0"]
KD = 0.5
X = np.random.default_rng(0).normal(size=(10, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 10)
WEIGHTS = np.linspace(0.1, 2.0, 10).astype("float32")
FEATURES = {}
# What the quick run tests, with the usual teacher; the slow one tests all features with all teachers.
QUICK = {
    "NumPy arrays, a short last batch, validation_data",
    "sample_weight in a 3-tuple",
    "masks",
    "several inputs and outputs, loss_weights",
    "jit_compile=True",
    "steps_per_execution",
    "gradient_accumulation_steps",
    "mixed_float16 with loss scaling",
    "pickle",
}
# What is about how Keras compiles a step.
COMPILED = {"jit_compile=True", "jit_compile=False", "steps_per_execution"}
# What Keras does not do for a plain model, either.
REFUSED = {("steps_per_execution", "torch")}


def feature(name):
    """Enter a function into the table under a name."""
    return lambda function: FEATURES.setdefault(name, function)


def same_training(name, train, **options):
    """Enter a feature that is nothing but another training: `compare` tests it."""
    FEATURES[name] = lambda teacher: compare(teacher, train, **options)[0]


def network():
    """Normalization before the noise, and a representation that is random."""
    inputs = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(5, activation="relu")(inputs))
    x = layers.Dense(5, activation="relu")(layers.Dropout(0.5, seed=2)(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(x))


def without_randomness(**head):
    """Every pass of the teachers is the same, but not the student's: they normalize by constants, it by the batch."""
    inputs = keras.Input((6,))
    x = Doubling()(layers.Dense(5, activation="tanh")(inputs))
    x = layers.BatchNormalization(momentum=1.0)(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="head", **head)(x))
    for layer in model.layers:
        if isinstance(layer, layers.Dense):  # of the same values in every precision
            layer.kernel.assign(np.random.normal(size=layer.kernel.shape, scale=0.5))
    return model


def wrap(model, teacher, build=network, ema_momentum=0.99):
    options = {"num_teachers": 2, "kd_weight": KD, "seed": 1, "kd_fraction": 1, "ema_momentum": ema_momentum}
    if teacher == "ema" and not ema_momentum:
        options["ema_momentum"] = 1e-7  # the average is the student, but for rounding
    if teacher == "weight 0":
        teacher, options["kd_weight"] = "self", 0
    if teacher == "model":
        keras.utils.set_random_seed(6)
        teacher = build()
    return keras_ssd.wrap(model, teacher=teacher, **options)


def compiled(build=network, optimizer=None, **options):
    keras.utils.set_random_seed(5)
    model = build()
    optimizer = keras.optimizers.SGD(0.5) if optimizer is None else optimizer()
    options = {"loss": "sparse_categorical_crossentropy", **options}
    model.compile(optimizer, **options)
    return model


def wrapped(teacher, build=network, **options):
    """A wrapped model, compiled."""
    return wrap(compiled(build, **options), teacher, build)


def twins(teacher, build=network, ema_momentum=0.99, **options):
    """A plain model and a wrapped one of the same weights and seeds, compiled alike."""
    return compiled(build, **options), wrap(compiled(build, **options), teacher, build, ema_momentum)


def refused_alike(plain, ssd, train):
    """The first line with which Keras refuses `train` for a plain model, if it does; the wrapped one says the same."""
    try:
        train(plain)
    except Warning:
        raise
    except Exception as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            train(ssd)
        return str(error).splitlines()[0]


def last(logs):
    """Figures of the last epoch, of what `fit`, `evaluate` or `train_on_batch` returned."""
    if isinstance(logs, keras.callbacks.History):
        return {name: float(values[-1]) for name, values in logs.history.items()}
    return {name: float(value) for name, value in logs.items()}


def compare(teacher, train, build=network, tolerance=1e-5, **options):
    """Train both: the loss has to be the plain model's and `KD` times the term; all else has to be the plain model's.

    With a learning rate of 0, so that this holds for any number of steps; without distillation with another, and then
    the weights have to be equal.

    What `fit` validates, `evaluate` and `predict` has to be that of the plain model of the same weights, without and
    with a moving average. Returns the reason why Keras refuses the plain model, or `None`; and the models.
    """
    rate = 0.5 if teacher == "weight 0" else 0.0
    options = {"optimizer": lambda: keras.optimizers.SGD(rate), **options}
    # Without averaging, because the average is what is validated, and what the student is after `fit`.
    plain, ssd = twins(teacher, build, ema_momentum=0, **options)
    found = {}

    def run(model):
        keras.utils.set_random_seed(7)
        found[model.name] = last(train(model))

    refusal = refused_alike(plain, ssd, run)
    if refusal:
        return refusal, plain, ssd
    run(ssd)
    expected, logs = found[plain.name], dict(found[ssd.name])
    if teacher == "weight 0":
        # TensorFlow adds the losses of layers up in another order where it evaluates.
        assert logs == pytest.approx(expected, rel=1e-6)
        assert all(logs[name] == expected[name] for name in logs if name[:4] != "val_")
        assert_same(plain.get_weights(), ssd.student.get_weights())
    else:
        kd_loss = logs.pop("kd_loss")
        assert kd_loss > 1e-4
        assert logs == pytest.approx({**expected, "loss": expected["loss"] + KD * kd_loss}, rel=tolerance)
    assert_close(plain.non_trainable_variables, ssd.student.non_trainable_variables, 1e-6)
    if isinstance(train, Fit):
        averaged = wrap(compiled(build, **options), teacher, build, ema_momentum=0.5)
        run(averaged)
        for trained in (ssd, averaged):
            plain.set_weights(trained.student.get_weights())
            (scores, predicted), (expected, of_plain) = train.measure(trained), train.measure(plain)
            assert scores == pytest.approx(expected, rel=tolerance, abs=1e-6)
            assert_close(predicted, of_plain, tolerance)
            if train.validates:
                validated = {n[4:]: v for n, v in found[trained.name].items() if n[:4] == "val_"}
                assert validated == pytest.approx({n: scores[n] for n in validated}, rel=10 * tolerance, abs=1e-5)
    return None, plain, ssd


def change(before, model):
    return [after - b for after, b in zip(model.get_weights(), before, strict=True)]


def update(teacher, steps=1, build=without_randomness, **options):
    """By how much training steps change the student's weights."""
    ssd = wrapped(teacher, build, **options)
    before = ssd.student.get_weights()
    for _ in range(steps):
        ssd.train_on_batch(X, Y)
    return change(before, ssd.student)


usual_update = functools.cache(update)


class Fit:
    """Trains a model, and measures it by `evaluate` and `predict` on the same data."""

    def __init__(self, *data, **options):
        self.data, self.options = data, options
        given = options.get("validation_data")
        self.validates = given is not None and keras.tree.flatten(given)[0] is keras.tree.flatten(data)[0]

    def __call__(self, model):
        return model.fit(*self.data, verbose=0, **self.options)

    def measure(self, model):
        options = {name: self.options[name] for name in ("batch_size", "sample_weight") if name in self.options}
        scores = model.evaluate(*self.data, verbose=0, return_dict=True, **options)
        options.pop("sample_weight", None)
        return last(scores), keras.tree.flatten(model.predict(self.data[0], verbose=0, **options))


fit = Fit
VALIDATED = fit(X, Y, batch_size=5, validation_data=(X, Y))


class Batches(keras.utils.PyDataset):
    """Batches of 4, 4 and 2 of arrays."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tuple(array[4 * index : 4 * index + 4] for array in self.arrays)


same_training(
    "NumPy arrays, a short last batch, validation_data",
    fit(X, Y, batch_size=4, validation_data=(X, Y)),
    metrics=["accuracy"],
)
same_training("validation_split", fit(X, Y, batch_size=8, validation_split=0.5), metrics=["accuracy"])


def training_on(data):
    return fit(data, shuffle=False, validation_data=data)


@feature("tf.data.Dataset")
def tf_data(teacher):
    tf = pytest.importorskip("tensorflow")
    return compare(teacher, training_on(tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)))[0]


same_training("keras.utils.PyDataset", training_on(Batches(X, Y)))


@feature("torch DataLoader")
def data_loader(teacher):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return compare(teacher, training_on(torch.utils.data.DataLoader(data, batch_size=4)))[0]


@feature("a Python generator, steps_per_epoch, validation_steps")
def generator(teacher):
    def endless():
        yield from itertools.cycle([(X[:5], Y[:5]), (X[5:], Y[5:])])

    def train(model):
        options = dict(validation_data=endless(), validation_steps=2)
        return model.fit(endless(), steps_per_epoch=2, epochs=2, shuffle=False, verbose=0, **options)

    return compare(teacher, train)[0]


# Weights of samples (`test_training` tells that they weigh the term, too), masks, several inputs and outputs.
same_training("sample_weight in a 3-tuple", fit(Batches(X, Y, WEIGHTS), shuffle=False))


@feature("class_weight")
def class_weight(teacher):
    by_class = np.array([0.5, 3.0, 1.5], "float32")
    weights = []
    for options in ({"class_weight": dict(enumerate(by_class))}, {"sample_weight": by_class[Y]}):
        ssd = wrapped(teacher, without_randomness)
        ssd.train_on_batch(X, Y, **options)
        weights.append(ssd.student.get_weights())
    assert_same(*weights)
    return compare(teacher, fit(X, Y, batch_size=10, class_weight=dict(enumerate(by_class))))[0]


@feature("masks")
def masks(teacher):
    def tagger():
        inputs = keras.Input((None,), dtype="int32")
        x = layers.Embedding(7, 4, "orthogonal", mask_zero=True)(inputs)
        x = layers.GRU(4, return_sequences=True)(layers.Dropout(0.5, seed=1)(x))
        return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Dropout(0.2, seed=2)(x)))

    x = np.array([[3, 2, 5, 1], [4, 0, 0, 0], [6, 1, 0, 0]], "int32")
    y = np.array([[0, 1, 2, 0], [1, 1, 1, 1], [2, 0, 2, 2]])
    # The plain model's loss leaves padding out, and so do the loss and the metric of the wrapped one.
    refusal, _, ssd = compare(teacher, fit(x, y, batch_size=3, validation_data=(x, y)), tagger, metrics=["accuracy"])
    before = ssd.evaluate(x, y, verbose=0)
    y[1, 1:], y[2, 2:] = 0, 1
    assert ssd.evaluate(x, y, verbose=0) == pytest.approx(before, rel=1e-6)
    return refusal


TWO_INPUTS = [X[:6, :4], np.random.default_rng(3).normal(size=(6, 5, 2)).astype("float32")]
TWO_TARGETS = [Y[:6], X[:6, 4:]]
TWO_OUTPUTS = functools.partial(several_inputs_and_outputs, lambda: layers.Dropout(0.5, seed=1))
same_training(
    "several inputs and outputs, loss_weights",
    fit(TWO_INPUTS, TWO_TARGETS, batch_size=3, validation_data=(TWO_INPUTS, TWO_TARGETS)),
    build=TWO_OUTPUTS,
    loss=["sparse_categorical_crossentropy", "mse"],
    loss_weights=[0.3, 2.0],
    metrics=[["accuracy"], ["mae"]],
)
same_training(
    "loss, loss_weights and metrics by the name of the output",
    fit(TWO_INPUTS, dict(zip(("first", "second"), TWO_TARGETS, strict=True)), batch_size=6),
    build=TWO_OUTPUTS,
    loss={"first": "sparse_categorical_crossentropy", "second": "mse"},
    loss_weights={"first": 0.3, "second": 2.0},
    metrics={"second": ["mae"]},
)


# Losses and metrics.
class Focal(keras.losses.Loss):
    """Not registered, and of a name that tells nothing of it."""

    def call(self, y_true, y_pred):
        true = ops.sum(ops.one_hot(ops.cast(y_true, "int32"), 3) * y_pred, axis=-1)
        return -ops.square(1 - true) * ops.log(true)


def confident(y_true, y_pred):
    return ops.mean(ops.square(ops.one_hot(ops.cast(y_true, "int32"), 3) - y_pred), axis=-1)


same_training("a custom Loss", fit(X, Y, batch_size=5, sample_weight=WEIGHTS), loss=Focal())
same_training("a custom loss function", fit(X, Y, batch_size=5), loss=confident)


class Highest(keras.metrics.Metric):
    """The highest probability seen."""

    def __init__(self):
        super().__init__(name="highest")
        self.highest = self.add_variable((), "zeros", name="highest")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.highest.assign(ops.maximum(self.highest, ops.cast(ops.max(y_pred), "float32")))

    def result(self):
        return ops.convert_to_tensor(self.highest)


same_training("a custom Metric", VALIDATED, metrics=[Highest()])


same_training(
    "weighted_metrics",
    fit(X, Y, batch_size=5, sample_weight=WEIGHTS),
    metrics=["accuracy"],
    weighted_metrics=["sparse_categorical_accuracy"],
)


# How a step is run.
same_training("run_eagerly", fit(X, Y, batch_size=5), run_eagerly=True)


@feature("jit_compile=True")
def jit_compile(teacher):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's compiler warns of what it meets inside PyTorch and Keras
        return compare(teacher, fit(X, Y, batch_size=5), tolerance=1e-4, jit_compile=True)[0]


same_training("jit_compile=False", fit(X, Y, batch_size=5), jit_compile=False)
same_training("steps_per_execution", VALIDATED, steps_per_execution=2)
same_training("train_on_batch", lambda model: model.train_on_batch(X, Y, sample_weight=WEIGHTS, return_dict=True))


def on_batch(teacher):
    plain, ssd = twins(teacher, metrics=["accuracy"])
    before = arrays(ssd.variables)
    np.testing.assert_array_equal(ssd.predict_on_batch(X), plain.predict_on_batch(X))
    assert_same(before, ssd.variables)
    before = arrays(ssd.student.variables)
    expected, logs = (last(m.test_on_batch(X, Y, sample_weight=WEIGHTS, return_dict=True)) for m in (plain, ssd))
    assert logs == pytest.approx(expected, rel=1e-6)
    assert_same(before, ssd.student.variables)


FEATURES["test_on_batch"] = FEATURES["predict_on_batch"] = on_batch


# The optimizer.
@feature("gradient_accumulation_steps")
def gradient_accumulation(teacher):
    """Two halves make one step; with no running statistics the same as their gradients' mean at once."""
    whole, plain = usual_update(teacher), compiled(without_randomness)
    accumulating = functools.partial(keras.optimizers.SGD, 0.5, gradient_accumulation_steps=2)
    ssd = wrapped(teacher, without_randomness, optimizer=accumulating)
    before = ssd.student.get_weights()
    ssd.train_on_batch(X, Y)
    assert_same(before, ssd.student.get_weights())
    ssd.train_on_batch(X, Y)
    assert_close(change(before, ssd.student), whole)
    # That of the plain model is another one, unless there are no teachers.
    plain.train_on_batch(X, Y)
    difference = max(np.abs(a - b).max() for a, b in zip(whole, change(before, plain), strict=True))
    assert difference == 0 if teacher == "weight 0" else difference > 1e-3


@feature("clipnorm, global_clipnorm, clipvalue")
def clipping(teacher):
    free = [2 * change for change in usual_update(teacher)]  # with a learning rate of 1
    norm = np.sqrt(sum(np.sum(np.square(change)) for change in free))
    clipped = {
        "global_clipnorm": [0.1 * change / norm for change in free],
        "clipnorm": [0.1 * change / max(np.linalg.norm(change), 0.1) for change in free],
        "clipvalue": [np.clip(change, -0.1, 0.1) for change in free],
    }
    for name, expected in clipped.items():
        assert_close(update(teacher, optimizer=functools.partial(keras.optimizers.SGD, 1.0, **{name: 0.1})), expected)


@feature("the optimizer's moving average (use_ema)")
def optimizer_ema(teacher):
    def train(model, student):
        seen = []
        for _ in range(2):
            model.train_on_batch(X, Y)
            seen.append(arrays(student.trainable_variables))
        model.optimizer.finalize_variable_values(model.trainable_variables)
        return [*seen, arrays(student.trainable_variables)]

    plain, ssd = twins(teacher, optimizer=lambda: keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.75))
    expected, found = train(plain, plain), train(ssd, ssd.student)
    for first, second, average in (expected, found):
        assert_close(average, [0.75 * a + 0.25 * b for a, b in zip(first, second, strict=True)], 1e-6)
    if teacher == "weight 0":
        assert_same(expected[2], found[2])


@feature("learning-rate schedules")
def schedule(teacher):
    def decay():
        return keras.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.0]))

    assert_close(update(teacher, steps=2, optimizer=decay), usual_update(teacher), 1e-6)


# Precision.
def in_precision(name, of_update, tolerance, teacher):
    expected = usual_update(teacher)
    with precision(name):
        found = update(teacher)
        refusal, plain, ssd = compare(teacher, VALIDATED, tolerance=tolerance)
    assert {change.dtype for change in found} == {np.dtype("float64" if name == "float64" else "float32")}
    assert_close(found, expected, of_update)
    assert isinstance(ssd.optimizer, keras.optimizers.LossScaleOptimizer) == (name == "mixed_float16")
    assert type(plain.optimizer) is type(ssd.optimizer) and ssd.student.outputs[0].dtype == name.removeprefix("mixed_")
    return refusal


FEATURES["mixed_float16 with loss scaling"] = functools.partial(in_precision, "mixed_float16", 0.01, 5e-3)
FEATURES["mixed_bfloat16"] = functools.partial(in_precision, "mixed_bfloat16", 0.05, 0.02)
FEATURES["float64"] = functools.partial(in_precision, "float64", 1e-5, 1e-5)


# What layers add.
@feature("regularisers")
def regularisers(teacher):
    def build():
        return without_randomness(kernel_regularizer=keras.regularizers.L2(0.5), bias_regularizer="l1")

    refusal, plain, ssd = compare(teacher, VALIDATED, build)
    assert len(ssd.losses) == len(plain.losses) == 2
    return refusal


@feature("activity regularisers, add_loss")
def activity_losses(teacher):
    class Entropy(layers.Layer):
        def call(self, x):
            self.add_loss(0.3 * ops.mean(ops.square(x)))
            return x

    def build():
        inputs = keras.Input((6,))
        x = layers.Dropout(0.5, seed=2)(layers.Dense(5, activity_regularizer=keras.regularizers.L2(0.7))(inputs))
        x = Entropy()(layers.Dense(5, activity_regularizer=keras.regularizers.L1(0.7))(x))
        return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))

    return compare(teacher, VALIDATED, build)[0]


@feature("constraints")
def constraints(teacher):
    free = usual_update(teacher)
    constrained = update(teacher, build=lambda: without_randomness(kernel_constraint=keras.constraints.UnitNorm()))
    kernel = compiled(without_randomness).get_layer("head").get_weights()[0]
    position = [change.shape for change in free].index(kernel.shape)
    expected = kernel + free[position]
    assert_close(kernel + constrained[position], expected / np.linalg.norm(expected, axis=0, keepdims=True))


# Freezing, compiling and fitting again.
@feature("layers frozen before wrapping")
def frozen_before(teacher):
    def build():
        model = network()
        for layer in model.layers[:3]:
            layer.trainable = False
        return model

    refusal, _, ssd = compare(teacher, fit(X, Y, batch_size=5), build)
    assert [v.path for v in ssd.trainable_variables] == [v.path for v in ssd.student.trainable_variables]
    assert len(ssd.trainable_variables) == 4
    assert [bool(one.any()) for one in update(teacher, build=build)] == [False] * 6 + [True] * 4
    return refusal


@feature("layers frozen after wrapping, and compiled again")
def frozen_after(teacher):
    plain, ssd = twins(teacher)
    for model in (plain, ssd.student):
        for layer in model.layers[:3]:
            layer.trainable = False
        wrapper = ssd if model is ssd.student else plain
        wrapper.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    before = plain.get_weights()
    expected, logs = (last(model.train_on_batch(X, Y, return_dict=True)) for model in (plain, ssd))
    assert logs["loss"] == pytest.approx(expected["loss"] + KD * logs.get("kd_loss", 0.0), rel=1e-5)
    assert [bool(one.any()) for one in change(before, ssd.student)] == [False] * 6 + [True] * 4


@feature("a second compile, of other loss, optimizer and metrics")
def second_compile(teacher):
    def train(model):
        model.fit(X, Y, batch_size=5, verbose=0)
        rate = 0.5 if teacher == "weight 0" else 0.0
        model.compile(keras.optimizers.Adam(rate), "categorical_crossentropy", metrics=["mae"])
        return model.fit(X, np.eye(3, dtype="float32")[Y], batch_size=5, verbose=0)

    return compare(teacher, train)[0]


@feature("fit twice")
def fit_twice(teacher):
    """Ends where one `fit` of two epochs ends."""
    start, results = compiled().get_weights(), []
    for epochs in ([2], [1, 1]):
        ssd = wrapped(teacher, optimizer=lambda: keras.optimizers.SGD(0.1, momentum=0.9))
        keras.utils.set_random_seed(7)
        for n in epochs:
            ssd.fit(X, Y, batch_size=5, epochs=n, shuffle=False, verbose=0)
        results.append(ssd.student.get_weights())
    assert_close(*results, 1e-6)
    assert max(np.abs(one).max() for one in change(start, ssd.student)) > 1e-3


@feature("initial_epoch")
def initial_epoch(teacher):
    refusal, _, ssd = compare(teacher, fit(X, Y, batch_size=5, epochs=5, initial_epoch=3))
    assert ssd.history.epoch == [3, 4]
    return refusal


# The wrapped model as an object.
@feature("a wrapped model inside another model")
def inside_another(teacher):
    def outer(model):
        inputs = keras.Input((6,))
        outputs = layers.Dense(1, kernel_initializer="ones")(model(inputs))
        whole = keras.Model(inputs, outputs)
        whole.compile(keras.optimizers.SGD(0.5), "mse")
        return whole

    plain, ssd = twins(teacher)
    around_plain, around_ssd = outer(plain), outer(ssd)
    np.testing.assert_allclose(around_ssd.predict(X, verbose=0), around_plain.predict(X, verbose=0), rtol=1e-6)
    # Only its own training step distils: that of another model trains it as the plain one.
    logs = [last(model.train_on_batch(X, Y, return_dict=True)) for model in (around_plain, around_ssd)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)
    assert_close(plain.get_weights(), ssd.student.get_weights(), 1e-6)
    assert not np.array_equal(plain.get_weights()[0], compiled().get_weights()[0])


@feature("the student inside another model")
def student_inside_another(teacher):
    student = trained_step(teacher).student
    inputs = keras.Input((6,))
    whole = keras.Model(inputs, student(inputs))
    np.testing.assert_array_equal(whole.predict(X, verbose=0), student.predict(X, verbose=0))


def trained_step(teacher):
    ssd = wrapped(teacher)
    ssd.train_on_batch(X, Y)
    return ssd


def assert_is_copied(teacher, copy_of):
    """The copy is equal in all that is kept, and apart: training the copy leaves the original alone."""
    one = trained_step(teacher)
    other = copy_of(one)
    assert type(other) is type(one) and other is not one and other.student is not one.student
    assert other.get_config() == one.get_config() or other.get_config()["name"] == one.get_config()["name"]
    assert_same(one.weights, other.weights)
    np.testing.assert_array_equal(one.predict(X, verbose=0), other.predict(X, verbose=0))
    before = arrays(one.weights)
    other.train_on_batch(X, Y)
    assert_same(before, one.weights)
    assert any(not np.array_equal(a, ops.convert_to_numpy(b)) for a, b in zip(before, other.weights, strict=True))


FEATURES["pickle"] = lambda teacher: assert_is_copied(teacher, lambda ssd: pickle.loads(pickle.dumps(ssd)))
FEATURES["copy.deepcopy"] = lambda teacher: assert_is_copied(teacher, copy.deepcopy)


@feature("keras.models.clone_model of the student")
def clone_model(teacher):
    student = trained_step(teacher).student
    clone = keras.models.clone_model(student)
    clone.set_weights(student.get_weights())
    np.testing.assert_array_equal(clone.predict(X, verbose=0), student.predict(X, verbose=0))
    clone.compile("sgd", "sparse_categorical_crossentropy")
    logs = wrap(clone, teacher).train_on_batch(X, Y, return_dict=True)
    assert ("kd_loss" in logs) == (teacher != "weight 0")


@feature("summary()")
def summary(teacher):
    texts = {}
    for model in twins(teacher):
        model.summary(print_fn=lambda text, model=model, **_: texts.setdefault(model, []).append(text), line_length=120)
    plain, own = ("\n".join(lines) for lines in texts.values())
    assert model.student.name in own
    assert len({re.search(r" Trainable params: (\S+)", text)[1] for text in (plain, own)}) == 1


def cells():
    """Every feature with every teacher; other teachers than the usual one say little about a backend."""
    for name in FEATURES:
        for kind in KINDS:
            is_slow_compiler = name == "jit_compile=True" and keras.backend.backend() == "torch"
            marks = [] if kind == "self" and name in QUICK and not is_slow_compiler else [pytest.mark.slow]
            if kind != "self" and not is_slow_compiler:
                marks.append(pytest.mark.once)
            if name in COMPILED:
                marks.append(pytest.mark.compiled)
            yield pytest.param(name, kind, marks=marks, id=f"{name}-{kind}")


@pytest.mark.parametrize("name, teacher", list(cells()))
def test_feature(name, teacher, record_property):
    record_property("feature", name)
    record_property("teacher", teacher)
    refused = FEATURES[name](teacher)
    assert bool(refused) == ((name, keras.backend.backend()) in REFUSED)
    record_property("refused", refused)


def test_the_table_in_the_documents_is_that_of_this_test():
    path = pathlib.Path(__file__).parents[1] / "tools" / "contract.py"
    spec = importlib.util.spec_from_file_location("contract", path)
    contract = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contract)
    rows = contract.read()
    assert contract.TABLE.read_text() == contract.render(rows)
    assert "not run" not in contract.render(rows)
    assert list(dict.fromkeys(row["feature"] for row in rows)) == list(FEATURES)
    assert not [row for row in rows if not row["outcome"].startswith(("yes", "as Keras: refused ("))]
