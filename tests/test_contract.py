"""Keras features that work with a plain model work with a wrapped model: a test for each feature and kind of teacher.

Every feature is a function of the kind of teacher. It uses the feature on a plain model and on a wrapped model of equal
weights and seeds, and returns `None`, or the reason why Keras itself refuses it for the plain model (after a check that
the wrapped model is refused with the same words).

The last kind, `"weight 0"`, is a wrapped model without distillation: everything has to be equal bit for bit.

`tools/contract.py` runs this file and writes the result to docs/contract.md.
"""

import contextlib
import copy
import importlib.util
import pathlib
import pickle
import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
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
    "weighted_metrics",
    "jit_compile=True",
    "steps_per_execution",
    "gradient_accumulation_steps",
    "mixed_float16 with loss scaling",
    "activity regularisers, add_loss",
    "pickle",
}
# What is about how Keras compiles a step.
COMPILED = {"jit_compile=True", "jit_compile=False", "steps_per_execution"}
# What Keras does not do for a plain model, either.
REFUSED = {("steps_per_execution", "torch")}


def feature(name):
    """Enter a function into the table under a name."""

    def enter(function):
        FEATURES[name] = function
        return function

    return enter


# Models.


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


def twins(teacher, build=network, ema_momentum=0.99, **options):
    """A plain model and a wrapped one of the same weights and seeds, compiled alike."""
    return compiled(build, **options), wrap(compiled(build, **options), teacher, build, ema_momentum)


# What has to hold.


def refused_alike(plain, ssd, train):
    """The reason for which Keras refuses `train` for a plain model, if it does; that of the wrapped one is the same."""
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

    Args:
        teacher: the kind.
        train: function of a model that returns logs.
        build: function that makes the model.
        tolerance: relative, of logs.
        **options: for `compile`.

    Returns:
        The reason for which Keras refuses the plain model, or `None`; and the two models.
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
        assert {n: v for n, v in logs.items() if n[:4] != "val_"} == {n: expected[n] for n in logs if n[:4] != "val_"}
        assert_same(plain.get_weights(), ssd.student.get_weights())
    else:
        kd_loss = logs.pop("kd_loss")
        assert kd_loss > 1e-4
        assert logs == pytest.approx({**expected, "loss": expected["loss"] + KD * kd_loss}, rel=tolerance)
    assert_close(plain.non_trainable_variables, ssd.student.non_trainable_variables, 1e-6)
    if isinstance(train, Fit):
        for momentum in (0, 0.5):
            trained = wrap(compiled(build, **options), teacher, build, momentum) if momentum else ssd
            if momentum:
                run(trained)
            # The plain model of the same weights is what `evaluate` and `predict` of the wrapped one are.
            same = compiled(build, **options)
            same.set_weights(trained.student.get_weights())
            (scores, predicted), (expected, of_plain) = train.measure(trained), train.measure(same)
            assert scores == pytest.approx(expected, rel=tolerance, abs=1e-6)
            assert_close(predicted, of_plain, tolerance)
            last_validation = {f"val_{n}": scores[n] for n in scores if f"val_{n}" in found[trained.name]}
            if train.validates:
                validated = {n: found[trained.name][n] for n in last_validation}
                assert validated == pytest.approx(last_validation, rel=10 * tolerance, abs=1e-5)
    return None, plain, ssd


def update(teacher, steps=1, build=without_randomness, x=X, y=Y, **options):
    """By how much training steps change the student's weights."""
    _, ssd = twins(teacher, build, **options)
    before = ssd.student.get_weights()
    for _ in range(steps):
        ssd.train_on_batch(x, y)
    return [after - b for after, b in zip(ssd.student.get_weights(), before, strict=True)]


def assert_teaches(teacher, change):
    """A change of weights differs from the plain model's, unless there are no teachers."""
    plain = compiled(without_randomness)
    before = plain.get_weights()
    plain.train_on_batch(X, Y)
    expected = [after - b for after, b in zip(plain.get_weights(), before, strict=True)]
    difference = max(np.abs(a - b).max() for a, b in zip(change, expected, strict=True))
    assert difference == 0 if teacher == "weight 0" else difference > 1e-3


# Data.


class Fit:
    """Trains a model, and measures it by `evaluate` and `predict` on the same data."""

    def __init__(self, *data, **options):
        self.data, self.options = data, options

    def __call__(self, model):
        return model.fit(*self.data, verbose=0, **self.options)

    @property
    def validates(self):
        """Whether the validation of `fit` is on the same data."""
        given = self.options.get("validation_data")
        return given is not None and keras.tree.flatten(given)[0] is keras.tree.flatten(self.data)[0]

    def measure(self, model):
        options = {name: self.options[name] for name in ("batch_size", "sample_weight") if name in self.options}
        scores = model.evaluate(*self.data, verbose=0, return_dict=True, **options)
        options.pop("sample_weight", None)
        predicted = model.predict(self.data[0], verbose=0, **options)
        return last(scores), keras.tree.flatten(predicted)


fit = Fit


class Batches(keras.utils.PyDataset):
    """Batches of 4, 4 and 2 of arrays."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tuple(array[4 * index : 4 * index + 4] for array in self.arrays)


@feature("NumPy arrays, a short last batch, validation_data")
def numpy_arrays(teacher):
    return compare(teacher, fit(X, Y, batch_size=4, validation_data=(X, Y)), metrics=["accuracy"])[0]


@feature("validation_split")
def validation_split(teacher):
    return compare(teacher, fit(X, Y, batch_size=8, validation_split=0.5), metrics=["accuracy"])[0]


@feature("tf.data.Dataset")
def tf_data(teacher):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    return compare(teacher, fit(data, shuffle=False, validation_data=data))[0]


@feature("keras.utils.PyDataset")
def py_dataset(teacher):
    data = Batches(X, Y)
    return compare(teacher, fit(data, shuffle=False, validation_data=data))[0]


@feature("torch DataLoader")
def data_loader(teacher):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    data = torch.utils.data.DataLoader(data, batch_size=4)
    return compare(teacher, fit(data, shuffle=False, validation_data=data))[0]


@feature("a Python generator, steps_per_epoch, validation_steps")
def generator(teacher):
    def endless():
        while True:
            for start in (0, 5):
                yield X[start : start + 5], Y[start : start + 5]

    def train(model):
        data = dict(validation_data=endless(), validation_steps=2)
        return model.fit(endless(), steps_per_epoch=2, epochs=2, shuffle=False, verbose=0, **data)

    return compare(teacher, train)[0]


# Weights of samples, masks, several inputs and outputs.


@feature("sample_weight in a 3-tuple")
def sample_weight(teacher):
    refusal, _, ssd = compare(teacher, fit(Batches(X, Y, WEIGHTS), shuffle=False))
    if teacher != "weight 0":
        # Both terms are weighted: twice the weight is twice the term.
        terms = []
        for factor in (1, 2):
            keras.utils.set_random_seed(5)
            ssd = wrap(compiled(without_randomness), teacher, without_randomness)
            terms.append(last(ssd.fit(Batches(X, Y, factor * WEIGHTS), shuffle=False, verbose=0, steps_per_epoch=1)))
        assert terms[1] == pytest.approx({name: 2 * value for name, value in terms[0].items()}, rel=1e-5)
    return refusal


@feature("class_weight")
def class_weight(teacher):
    weights = {0: 0.5, 1: 3.0, 2: 1.5}
    refusal, _, ssd = compare(teacher, fit(X, Y, batch_size=10, class_weight=weights))
    change = []
    for options in ({"class_weight": weights}, {"sample_weight": np.array([0.5, 3.0, 1.5], "float32")[Y]}):
        _, ssd = twins(teacher, without_randomness)
        ssd.train_on_batch(X, Y, **options)
        change.append(ssd.student.get_weights())
    assert_same(*change)
    return refusal


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


def two_inputs():
    a, b = X[:6, :4], np.random.default_rng(3).normal(size=(6, 5, 2)).astype("float32")
    return [a, b], [Y[:6], X[:6, 4:]]


@feature("several inputs and outputs, loss_weights")
def several_outputs(teacher):
    x, y = two_inputs()
    return compare(
        teacher,
        fit(x, y, batch_size=4, validation_data=(x, y)),
        lambda: several_inputs_and_outputs(lambda: layers.Dropout(0.5, seed=1)),
        loss=["sparse_categorical_crossentropy", "mse"],
        loss_weights=[0.3, 2.0],
        metrics=[["accuracy"], ["mae"]],
    )[0]


@feature("loss, loss_weights and metrics by the name of the output")
def by_name(teacher):
    x, y = two_inputs()
    return compare(
        teacher,
        fit(x, dict(zip(("first", "second"), y, strict=True)), batch_size=6),
        lambda: several_inputs_and_outputs(lambda: layers.Dropout(0.5, seed=1)),
        loss={"first": "sparse_categorical_crossentropy", "second": "mse"},
        loss_weights={"first": 0.3, "second": 2.0},
        metrics={"second": ["mae"]},
    )[0]


# Losses and metrics.


class Focal(keras.losses.Loss):
    """Not registered, and of a name that tells nothing of it."""

    def call(self, y_true, y_pred):
        true = ops.sum(ops.one_hot(ops.cast(y_true, "int32"), 3) * y_pred, axis=-1)
        return -ops.square(1 - true) * ops.log(true)


@feature("a custom Loss")
def custom_loss(teacher):
    return compare(teacher, fit(X, Y, batch_size=5, sample_weight=WEIGHTS), loss=Focal())[0]


@feature("a custom loss function")
def custom_loss_function(teacher):
    def confident(y_true, y_pred):
        return ops.mean(ops.square(ops.one_hot(ops.cast(y_true, "int32"), 3) - y_pred), axis=-1)

    return compare(teacher, fit(X, Y, batch_size=5), loss=confident)[0]


class Highest(keras.metrics.Metric):
    """The highest probability seen."""

    def __init__(self, name="highest", **kwargs):
        super().__init__(name=name, **kwargs)
        self.highest = self.add_variable((), "zeros", name="highest")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.highest.assign(ops.maximum(self.highest, ops.cast(ops.max(y_pred), "float32")))

    def result(self):
        return ops.convert_to_tensor(self.highest)


@feature("a custom Metric")
def custom_metric(teacher):
    return compare(teacher, fit(X, Y, batch_size=5, validation_data=(X, Y)), metrics=[Highest()])[0]


@feature("weighted_metrics")
def weighted_metrics(teacher):
    options = dict(metrics=["accuracy"], weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")])
    refusal, plain, ssd = compare(teacher, fit(X, Y, batch_size=5, sample_weight=WEIGHTS), **options)
    logs = ssd.evaluate(X, Y, sample_weight=WEIGHTS, verbose=0, return_dict=True)
    right = ssd.predict(X, verbose=0).argmax(axis=1) == Y
    assert logs["weighted"] == pytest.approx((right * WEIGHTS).sum() / WEIGHTS.sum(), rel=1e-5)
    return refusal


# How a step is run.


@feature("run_eagerly")
def run_eagerly(teacher):
    return compare(teacher, fit(X, Y, batch_size=5), run_eagerly=True)[0]


@feature("jit_compile=True")
def jit_compile(teacher):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's compiler warns of what it meets inside PyTorch and Keras
        return compare(teacher, fit(X, Y, batch_size=5), tolerance=1e-4, jit_compile=True)[0]


@feature("jit_compile=False")
def no_jit_compile(teacher):
    return compare(teacher, fit(X, Y, batch_size=5), jit_compile=False)[0]


@feature("steps_per_execution")
def steps_per_execution(teacher):
    return compare(teacher, fit(X, Y, batch_size=5, validation_data=(X, Y)), steps_per_execution=2)[0]


@feature("train_on_batch")
def train_on_batch(teacher):
    return compare(teacher, lambda model: model.train_on_batch(X, Y, sample_weight=WEIGHTS, return_dict=True))[0]


@feature("test_on_batch")
def evaluation_on_batch(teacher):
    plain, ssd = twins(teacher, metrics=["accuracy"])
    before = arrays(ssd.student.variables)
    logs = [model.test_on_batch(X, Y, sample_weight=WEIGHTS, return_dict=True) for model in (plain, ssd)]
    assert last(logs[1]) == pytest.approx(last(logs[0]), rel=1e-6)
    assert_same(before, ssd.student.variables)


@feature("predict_on_batch")
def predict_on_batch(teacher):
    plain, ssd = twins(teacher)
    before = arrays(ssd.variables)
    np.testing.assert_array_equal(ssd.predict_on_batch(X), plain.predict_on_batch(X))
    assert_same(before, ssd.variables)


# The optimizer.


@feature("gradient_accumulation_steps")
def gradient_accumulation(teacher):
    """Two halves make one step; with no running statistics the same as their gradients' mean at once."""
    accumulating = lambda: keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)  # noqa: E731
    assert all(not change.any() for change in update(teacher, optimizer=accumulating))
    whole = update(teacher)
    assert_teaches(teacher, whole)
    assert_close(update(teacher, steps=2, optimizer=accumulating), whole)


@feature("clipnorm, global_clipnorm, clipvalue")
def clipping(teacher):
    free = update(teacher, optimizer=lambda: keras.optimizers.SGD(1.0))
    norm = np.sqrt(sum(np.sum(np.square(change)) for change in free))
    clipped = {
        "global_clipnorm": [0.1 * change / norm for change in free],
        "clipnorm": [0.1 * change / max(np.linalg.norm(change), 0.1) for change in free],
        "clipvalue": [np.clip(change, -0.1, 0.1) for change in free],
    }
    for name, expected in clipped.items():
        found = update(teacher, optimizer=lambda name=name: keras.optimizers.SGD(1.0, **{name: 0.1}))
        assert_close(found, expected)


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

    change = update(teacher)
    assert_teaches(teacher, change)
    assert_close(update(teacher, steps=2, optimizer=decay), change, 1e-6)


# Precision.


@contextlib.contextmanager
def policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def wide_jax():
    """JAX has no float64 unless it is told so."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@feature("mixed_float16 with loss scaling")
def mixed_float16(teacher):
    expected = update(teacher)
    assert_teaches(teacher, expected)
    with policy("mixed_float16"):
        plain, ssd = twins(teacher)
        assert isinstance(ssd.optimizer, keras.optimizers.LossScaleOptimizer) and type(plain.optimizer) is type(
            ssd.optimizer
        )
        assert ssd.student.outputs[0].dtype == "float16"
        assert_close(update(teacher), expected, 0.01)
        return compare(teacher, fit(X, Y, batch_size=5, validation_data=(X, Y)), tolerance=5e-3)[0]


@feature("mixed_bfloat16")
def mixed_bfloat16(teacher):
    expected = update(teacher)
    with policy("mixed_bfloat16"):
        assert_close(update(teacher), expected, 0.05)
        return compare(teacher, fit(X, Y, batch_size=5, validation_data=(X, Y)), tolerance=0.02)[0]


@feature("float64")
def float64(teacher):
    expected = update(teacher)
    with policy("float64"), wide_jax():
        found = update(teacher)
        assert {change.dtype for change in found} == {np.dtype("float64")}
        assert_close(found, expected)
        return compare(teacher, fit(X, Y, batch_size=5, validation_data=(X, Y)))[0]


# What layers add.


@feature("regularisers")
def regularisers(teacher):
    def build():
        return without_randomness(kernel_regularizer=keras.regularizers.L2(0.5), bias_regularizer="l1")

    plain, ssd = compare(teacher, fit(X, Y, batch_size=5, validation_data=(X, Y)), build)[1:]
    assert len(ssd.losses) == len(plain.losses) == 2


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

    return compare(teacher, fit(X, Y, batch_size=5, validation_data=(X, Y)), build)[0]


@feature("constraints")
def constraints(teacher):
    free, constrained = (
        update(teacher, build=lambda head=head: without_randomness(**head))
        for head in ({}, {"kernel_constraint": keras.constraints.UnitNorm()})
    )
    kernel = compiled(without_randomness).get_layer("head").get_weights()[0]
    position = [change.shape for change in free].index(kernel.shape)
    expected = kernel + free[position]
    expected = expected / np.linalg.norm(expected, axis=0, keepdims=True)
    assert_close([kernel + constrained[position]], [expected])


# Freezing, compiling and fitting again.


@feature("layers frozen before wrapping")
def frozen_before(teacher):
    def build():
        model = network()
        for layer in model.layers[:3]:
            layer.trainable = False
        return model

    refusal, plain, ssd = compare(teacher, fit(X, Y, batch_size=5), build)
    assert [v.path for v in ssd.trainable_variables] == [v.path for v in ssd.student.trainable_variables]
    assert len(ssd.trainable_variables) == 4
    change = update(teacher, build=build)
    assert [bool(one.any()) for one in change] == [False] * 6 + [True] * 4
    return refusal


@feature("layers frozen after wrapping, and compiled again")
def frozen_after(teacher):
    plain, ssd = twins(teacher)
    for model in (plain, ssd.student):
        for layer in model.layers[:3]:
            layer.trainable = False
    plain.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    ssd.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    expected, logs = (last(model.train_on_batch(X, Y, return_dict=True)) for model in (plain, ssd))
    assert logs["loss"] == pytest.approx(expected["loss"] + KD * logs.get("kd_loss", 0.0), rel=1e-5)
    before, after = network_weights(), ssd.student.get_weights()
    assert [not np.array_equal(*pair) for pair in zip(before, after, strict=True)] == [False] * 6 + [True] * 4


def network_weights():
    return compiled().get_weights()


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
    results = []
    for epochs in ([2], [1, 1]):
        keras.utils.set_random_seed(5)
        _, ssd = twins(teacher, optimizer=lambda: keras.optimizers.SGD(0.1, momentum=0.9))
        keras.utils.set_random_seed(7)
        for n in epochs:
            ssd.fit(X, Y, batch_size=5, epochs=n, shuffle=False, verbose=0)
        results.append(ssd.student.get_weights())
    assert_close(*results, 1e-6)
    start = network_weights()
    assert max(np.abs(a - b).max() for a, b in zip(start, results[0], strict=True)) > 1e-3


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
    assert not np.array_equal(plain.get_weights()[0], network_weights()[0])


@feature("the student inside another model")
def student_inside_another(teacher):
    _, ssd = twins(teacher)
    ssd.train_on_batch(X, Y)
    inputs = keras.Input((6,))
    whole = keras.Model(inputs, ssd.student(inputs))
    np.testing.assert_array_equal(whole.predict(X, verbose=0), ssd.student.predict(X, verbose=0))


def assert_is_a_copy(one, other):
    """Equal in all that is kept, and apart: training the copy leaves the original alone."""
    assert type(other) is type(one) and other is not one and other.student is not one.student
    assert other.get_config() == one.get_config() or other.get_config()["name"] == one.get_config()["name"]
    assert_same(one.weights, other.weights)
    np.testing.assert_array_equal(one.predict(X, verbose=0), other.predict(X, verbose=0))
    before = arrays(one.weights)
    other.train_on_batch(X, Y)
    assert_same(before, one.weights)
    assert any(not np.array_equal(a, ops.convert_to_numpy(b)) for a, b in zip(before, other.weights, strict=True))


@feature("pickle")
def pickling(teacher):
    _, ssd = twins(teacher)
    ssd.train_on_batch(X, Y)
    assert_is_a_copy(ssd, pickle.loads(pickle.dumps(ssd)))


@feature("copy.deepcopy")
def deepcopy(teacher):
    _, ssd = twins(teacher)
    ssd.train_on_batch(X, Y)
    assert_is_a_copy(ssd, copy.deepcopy(ssd))


@feature("keras.models.clone_model of the student")
def clone_model(teacher):
    _, ssd = twins(teacher)
    ssd.train_on_batch(X, Y)
    clone = keras.models.clone_model(ssd.student)
    clone.set_weights(ssd.student.get_weights())
    np.testing.assert_array_equal(clone.predict(X, verbose=0), ssd.student.predict(X, verbose=0))
    clone.compile("sgd", "sparse_categorical_crossentropy")
    logs = wrap(clone, teacher).train_on_batch(X, Y, return_dict=True)
    assert ("kd_loss" in logs) == (teacher != "weight 0")


@feature("summary()")
def summary(teacher):
    plain, ssd = twins(teacher)
    lines, of_plain = [], []
    ssd.summary(print_fn=lambda line, **_: lines.append(line), line_length=120)
    plain.summary(print_fn=lambda line, **_: of_plain.append(line), line_length=120)
    text, of_plain = "\n".join(lines), "\n".join(of_plain)
    assert ssd.student.name in text
    trainable = re.search(r"Trainable params: (\S+)", of_plain)[1]
    assert re.search(r" Trainable params: (\S+)", text)[1] == trainable


# The test.


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
