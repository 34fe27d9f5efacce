"""Keras features that work with a plain model work with a wrapped model: a test for each feature and kind of teacher.

Every feature is a function of the kind of teacher. It uses the feature on a plain model and on a wrapped model of equal
weights and seeds. Where Keras itself refuses it for the plain model, it returns the reason, a text, after a check that
the wrapped model is refused with the same words.

The last kind, `"weight 0"`, is a wrapped model without distillation: everything has to be equal bit for bit.

`tools/contract.py` runs this file and writes the result to docs/contract.md.
"""

import copy
import functools
import itertools
import pathlib
import pickle
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from models import Highest, precision
from same_weights import arrays, assert_close, assert_same
from structures import Doubling, several_inputs_and_outputs

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))

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


def feature(name):
    """Enter a function into the table under a name."""
    return lambda function: FEATURES.setdefault(name, function)


def same_training(name, train, **options):
    """Enter a feature that is nothing but another training: `compare` tests it."""
    FEATURES[name] = lambda teacher: compare(teacher, train, **options)


def network(last=layers.Identity, **hidden):
    """Normalization before the noise, and a representation that is random."""
    inputs = keras.Input((6,))
    x = layers.BatchNormalization(momentum=0.5)(layers.Dense(5, activation="relu", **hidden)(inputs))
    x = last()(layers.Dense(5, activation="relu", **hidden)(layers.Dropout(0.5, seed=2)(x)))
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


def sgd(rate=0.5, **options):
    """A function that makes the optimizer."""
    return functools.partial(keras.optimizers.SGD, rate, **options)


def compiled(build=network, optimizer=None, **options):
    keras.utils.set_random_seed(5)
    model = build()
    options["metrics"] = made(options.get("metrics"))
    model.compile((optimizer or sgd())(), **{"loss": "sparse_categorical_crossentropy", **options})
    return model


def wrap(model, teacher, build=network):
    options = {"num_teachers": 2, "kd_weight": KD, "kd_fraction": 1, "ema_momentum": 0.99, "seed": 1}
    if teacher == "weight 0":
        teacher, options["kd_weight"] = "self", 0
    if teacher == "model":
        keras.utils.set_random_seed(6)
        teacher = build()
    return keras_ssd.wrap(model, teacher, **options)


def twins(teacher, build=network, **options):
    """A plain model and a wrapped one of the same weights and seeds, compiled alike."""
    return compiled(build, **options), wrap(compiled(build, **options), teacher, build)


def last(logs):
    """Figures of the last epoch, of what `fit`, `evaluate` or `train_on_batch` returned."""
    return {name: float(np.ravel(values)[-1]) for name, values in getattr(logs, "history", logs).items()}


class Fit:
    """Trains a model by `fit`, and evaluates it on the data on which it is validated: by default the same.

    A function among the arguments makes data that cannot be made before, or only be used once.
    """

    def __init__(self, *data, evaluated=None, **options):
        self.data, self.evaluated, self.options = data, evaluated or data, options

    def __call__(self, model):
        options = {name: made(value) for name, value in self.options.items()}
        return model.fit(*map(made, self.data), verbose=0, **options)

    def evaluate(self, model):
        options = {name: self.options[name] for name in ("batch_size", "sample_weight") if name in self.options}
        return last(model.evaluate(*map(made, self.evaluated), verbose=0, return_dict=True, **options))


def made(data):
    return data() if callable(data) else data


def compare(teacher, train, build=network, tolerance=1e-5, **options):
    """Train both: the loss has to be the plain model's and `KD` times the term; all else has to be the plain model's.

    With a learning rate of 0, so that this holds for any number of steps; without distillation with another, and then
    the weights have to be equal.

    What `fit` validates and `evaluate` returns has to be what the plain model of the averaged weights returns. Returns
    both models, the wrapped one with its raw weights.
    """
    rate = 0.5 if teacher == "weight 0" else 0.0
    plain, ssd = twins(teacher, build, **{"optimizer": sgd(rate), **options})
    figures = []
    for model in (plain, ssd):
        keras.utils.set_random_seed(7)
        figures.append(last(train(model)))
    expected, logs = ({name: one[name] for name in one if name[:4] != "val_"} for one in figures)
    kd_loss = 0.0 if teacher == "weight 0" else logs.pop("kd_loss")
    assert (kd_loss > 1e-4) == (teacher != "weight 0")
    expected["loss"] += KD * kd_loss
    assert logs == (pytest.approx(expected, rel=tolerance) if kd_loss else expected)
    weights, state = plain.get_weights(), arrays(plain.non_trainable_variables)
    if isinstance(train, Fit):
        plain.set_weights(ssd.student.get_weights())
        scores = train.evaluate(ssd)
        assert scores == pytest.approx(train.evaluate(plain), rel=tolerance, abs=1e-6)
        for name in figures[1].keys() - logs.keys() - {"kd_loss"}:
            assert figures[1][name] == pytest.approx(scores[name[4:]], rel=10 * tolerance, abs=1e-5)
    ssd.average.resume()
    assert_close(state, ssd.student.non_trainable_variables, 1e-6)
    if teacher == "weight 0":
        assert_same(weights, ssd.student.get_weights())
    return plain, ssd


def change(before, model):
    return [after - b for after, b in zip(model.get_weights(), before, strict=True)]


def moved(changes):
    return [bool(one.any()) for one in changes]


def update(teacher, steps=1, build=without_randomness, given=None, **options):
    """By how much training steps change the student's weights; `given` are arguments of `train_on_batch`."""
    ssd = wrap(compiled(build, **options), teacher, build)
    before = ssd.student.get_weights()
    for _ in range(steps):
        ssd.train_on_batch(X, Y, **(given or {}))
    return change(before, ssd.student)


usual_update = functools.cache(update)
VALIDATED = Fit(X, Y, batch_size=5, validation_data=(X, Y))


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
    Fit(X, Y, batch_size=4, validation_data=(X, Y)),
    metrics=["accuracy"],
)
same_training(
    "validation_split",
    Fit(X, Y, batch_size=8, validation_split=0.5, evaluated=(X[5:], Y[5:])),
    metrics=["accuracy"],
)


def training_on(data, **options):
    return Fit(data, shuffle=False, validation_data=data, **options)


def tf_data():
    return pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices((X, Y)).batch(4)


def data_loader():
    return pytest.importorskip("torch").utils.data.DataLoader([*zip(X, Y, strict=True)], batch_size=4)


def endless():
    yield from itertools.cycle([(X[:5], Y[:5]), (X[5:], Y[5:])])


same_training("tf.data.Dataset", training_on(tf_data))
same_training("keras.utils.PyDataset", training_on(Batches(X, Y)))
same_training("torch DataLoader", training_on(data_loader))
same_training(
    "a Python generator, steps_per_epoch, validation_steps",
    training_on(endless, steps_per_epoch=2, epochs=2, validation_steps=2, evaluated=(X, Y)),
)
# Weights of samples (`test_training` tells that they weigh the term, too), masks, several inputs and outputs.
same_training("sample_weight in a 3-tuple", Fit(Batches(X, Y, WEIGHTS), shuffle=False))


@feature("class_weight")
def class_weight(teacher):
    by_class = np.array([0.5, 3.0, 1.5], "float32")
    given = {"class_weight": dict(enumerate(by_class))}
    assert_same(update(teacher, given=given), update(teacher, given={"sample_weight": by_class[Y]}))
    compare(teacher, Fit(X, Y, batch_size=10, **given))


@feature("masks")
def masks(teacher):
    def tagger():
        inputs = keras.Input((4,), dtype="int32")
        x = layers.Embedding(7, 4, "orthogonal", mask_zero=True)(inputs)
        x = layers.GRU(4, return_sequences=True)(layers.Dropout(0.5, seed=1)(x))
        return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Dropout(0.2, seed=2)(x)))

    x = np.array([[3, 2, 5, 1], [4, 0, 0, 0], [6, 1, 0, 0]], "int32")
    y = np.array([[0, 1, 2, 0], [1, 1, 1, 1], [2, 0, 2, 2]])
    # The plain model's loss leaves padding out, and so do the loss and the metric of the wrapped one.
    _, ssd = compare(teacher, Fit(x, y, batch_size=3, validation_data=(x, y)), tagger, metrics=["accuracy"])
    before = ssd.evaluate(x, y, verbose=0)
    y[1, 1:], y[2, 2:] = 0, 1
    assert ssd.evaluate(x, y, verbose=0) == pytest.approx(before, rel=1e-6)


TWO_INPUTS = [X[:6, :4], np.random.default_rng(3).normal(size=(6, 5, 2)).astype("float32")]
TWO_TARGETS = [Y[:6], X[:6, 4:]]
TWO_OUTPUTS = functools.partial(several_inputs_and_outputs, lambda: layers.Dropout(0.5, seed=1))
same_training(
    "several inputs and outputs, loss_weights",
    Fit(TWO_INPUTS, TWO_TARGETS, batch_size=3, validation_data=(TWO_INPUTS, TWO_TARGETS)),
    build=TWO_OUTPUTS,
    loss=["sparse_categorical_crossentropy", "mse"],
    loss_weights=[0.3, 2.0],
    metrics=[["accuracy"], ["mae"]],
)
same_training(
    "loss, loss_weights and metrics by the name of the output",
    Fit(TWO_INPUTS, dict(zip(("first", "second"), TWO_TARGETS, strict=True)), batch_size=6),
    build=TWO_OUTPUTS,
    loss={"first": "sparse_categorical_crossentropy", "second": "mse"},
    loss_weights={"first": 0.3, "second": 2.0},
    metrics={"second": ["mae"]},
)


# Losses and metrics.
def focal(y_true, y_pred):
    true = ops.sum(ops.one_hot(ops.cast(y_true, "int32"), 3) * y_pred, axis=-1)
    return -ops.square(1 - true) * ops.log(true)


class Focal(keras.losses.Loss):
    """Not registered, and of a name that tells nothing of it."""

    def call(self, y_true, y_pred):
        return focal(y_true, y_pred)


WEIGHTED = Fit(X, Y, batch_size=5, sample_weight=WEIGHTS)
same_training("a custom Loss", WEIGHTED, loss=Focal())
same_training("a custom loss function", Fit(X, Y, batch_size=5), loss=focal)
same_training("a custom Metric", VALIDATED, metrics=lambda: [Highest()])  # each model has its own
same_training("weighted_metrics", WEIGHTED, metrics=["accuracy"], weighted_metrics=["sparse_categorical_accuracy"])

# How a step is run.
same_training("run_eagerly", Fit(X, Y, batch_size=5), run_eagerly=True)
# Without an evaluation, as it takes a second to compile a function: `evaluate` and `fit` call the student alike.
same_training(
    "jit_compile=True", lambda model: model.fit(X, Y, batch_size=5, verbose=0), tolerance=1e-4, jit_compile=True
)
same_training("jit_compile=False", Fit(X, Y, batch_size=5), jit_compile=False)


@feature("steps_per_execution")
def steps_per_execution(teacher):
    if keras.backend.backend() != "torch":
        return compare(teacher, VALIDATED, steps_per_execution=2)
    refusals = []
    for model in twins(teacher, steps_per_execution=2):
        with pytest.raises(ValueError) as refusal:
            VALIDATED(model)
        refusals.append(str(refusal.value))
    assert refusals[0] == refusals[1]
    return refusals[0].splitlines()[0]


same_training("train_on_batch", lambda model: model.train_on_batch(X, Y, sample_weight=WEIGHTS, return_dict=True))


def on_batch(teacher):
    plain, ssd = twins(teacher, metrics=["accuracy"])
    before = arrays(ssd.student.variables)
    assert_same(ssd.predict_on_batch(X), plain.predict_on_batch(X))
    expected, logs = (last(m.test_on_batch(X, Y, sample_weight=WEIGHTS, return_dict=True)) for m in (plain, ssd))
    assert logs == pytest.approx(expected, rel=1e-6)
    assert_same(before, ssd.student.variables)


FEATURES["test_on_batch"] = FEATURES["predict_on_batch"] = on_batch


# The optimizer.
@feature("gradient_accumulation_steps")
def gradient_accumulation(teacher):
    """Two halves make one step; with no running statistics the same as their gradients' mean at once."""
    whole, accumulating = usual_update(teacher), sgd(gradient_accumulation_steps=2)
    assert not any(moved(update(teacher, optimizer=accumulating)))
    assert_close(update(teacher, steps=2, optimizer=accumulating), whole)
    # That of the plain model is another one, unless there are no teachers.
    plain = compiled(without_randomness)
    before = plain.get_weights()
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
        assert_close(update(teacher, optimizer=sgd(1.0, **{name: 0.1})), expected)


@feature("the optimizer's moving average (use_ema)")
def optimizer_ema(teacher):
    def train(model, student):
        seen = []
        for _ in range(2):
            model.train_on_batch(X, Y)
            seen.append(arrays(student.trainable_variables))
        model.optimizer.finalize_variable_values(model.trainable_variables)
        return [*seen, arrays(student.trainable_variables)]

    plain, ssd = twins(teacher, optimizer=sgd(use_ema=True, ema_momentum=0.75))
    expected, found = train(plain, plain), train(ssd, ssd.student)
    for first, second, average in (expected, found):
        assert_close(average, [0.75 * a + 0.25 * b for a, b in zip(first, second, strict=True)], 1e-6)
    if teacher == "weight 0":
        assert_same(expected[2], found[2])


@feature("learning-rate schedules")
def schedule(teacher):
    decay = sgd(keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.0]))
    assert_close(update(teacher, steps=2, optimizer=decay), usual_update(teacher), 1e-6)


# Precision.
def in_precision(name, of_update, tolerance, teacher):
    expected = usual_update(teacher)
    with precision(name):
        found = update(teacher)
        plain, ssd = compare(teacher, VALIDATED, tolerance=tolerance)
    assert {change.dtype for change in found} == {np.dtype("float64" if name == "float64" else "float32")}
    assert_close(found, expected, of_update)
    assert isinstance(ssd.optimizer, keras.optimizers.LossScaleOptimizer) == (name == "mixed_float16")
    assert type(plain.optimizer) is type(ssd.optimizer) and ssd.student.outputs[0].dtype == name.removeprefix("mixed_")


FEATURES["mixed_float16 with loss scaling"] = functools.partial(in_precision, "mixed_float16", 0.01, 5e-3)
FEATURES["mixed_bfloat16"] = functools.partial(in_precision, "mixed_bfloat16", 0.05, 0.02)
FEATURES["float64"] = functools.partial(in_precision, "float64", 1e-5, 1e-5)


# What layers add.
class AddedLoss(layers.Layer):
    def call(self, x):
        self.add_loss(0.3 * ops.mean(ops.square(x)))
        return x


@feature("regularisers")
def regularisers(teacher):
    options = {"kernel_regularizer": keras.regularizers.L2(0.5), "bias_regularizer": "l1"}
    plain, ssd = compare(teacher, VALIDATED, functools.partial(network, **options))
    assert len(ssd.losses) == len(plain.losses) == 4


same_training(
    "activity regularisers, add_loss",
    VALIDATED,
    build=functools.partial(network, AddedLoss, activity_regularizer=keras.regularizers.L2(0.7)),
)


@feature("constraints")
def constraints(teacher):
    free = usual_update(teacher)
    constrained = update(teacher, build=lambda: without_randomness(kernel_constraint=keras.constraints.UnitNorm()))
    kernel = compiled(without_randomness).get_layer("head").get_weights()[0]
    position = [change.shape for change in free].index(kernel.shape)
    expected = kernel + free[position]
    assert_close(kernel + constrained[position], expected / np.linalg.norm(expected, axis=0, keepdims=True))


# Freezing, compiling and fitting again.
def frozen(model):
    """The first three layers, of six variables; four others are trained."""
    for layer in model.layers[:3]:
        layer.trainable = False
    return model


AFTER_THE_FROZEN = [False] * 6 + [True] * 4


@feature("layers frozen before wrapping")
def frozen_before(teacher):
    _, ssd = compare(teacher, Fit(X, Y, batch_size=5), lambda: frozen(network()))
    assert [v.path for v in ssd.trainable_variables] == [v.path for v in ssd.student.trainable_variables]
    assert moved(update(teacher, build=lambda: frozen(network()))) == AFTER_THE_FROZEN


@feature("layers frozen after wrapping, and compiled again")
def frozen_after(teacher):
    plain, ssd = twins(teacher)
    before = plain.get_weights()
    frozen(plain), frozen(ssd.student)
    for model in (plain, ssd):
        model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    expected, logs = (last(model.train_on_batch(X, Y, return_dict=True)) for model in (plain, ssd))
    assert logs["loss"] == pytest.approx(expected["loss"] + KD * logs.get("kd_loss", 0.0), rel=1e-5)
    assert moved(change(before, ssd.student)) == AFTER_THE_FROZEN


@feature("a second compile, of other loss, optimizer and metrics")
def second_compile(teacher):
    def train(model):
        model.fit(X, Y, batch_size=5, verbose=0)
        rate = 0.5 if teacher == "weight 0" else 0.0
        model.compile(keras.optimizers.Adam(rate), "categorical_crossentropy", metrics=["mae"])
        return model.fit(X, np.eye(3, dtype="float32")[Y], batch_size=5, verbose=0)

    compare(teacher, train)


@feature("fit twice")
def fit_twice(teacher):
    """Ends where one `fit` of two epochs ends."""
    start, results = compiled().get_weights(), []
    for epochs in ([2], [1, 1]):
        ssd = wrap(compiled(optimizer=sgd(0.1, momentum=0.9)), teacher)
        keras.utils.set_random_seed(7)
        for n in epochs:
            ssd.fit(X, Y, batch_size=5, epochs=n, shuffle=False, verbose=0)
        results.append(ssd.student.get_weights())
    assert_close(*results, 1e-6)
    assert max(np.abs(one).max() for one in change(start, ssd.student)) > 1e-3


@feature("initial_epoch")
def initial_epoch(teacher):
    _, ssd = compare(teacher, Fit(X, Y, batch_size=5, epochs=5, initial_epoch=3))
    assert ssd.history.epoch == [3, 4]


# The wrapped model as an object.
@feature("a wrapped model inside another model")
def inside_another(teacher):
    def outer(model):
        inputs = keras.Input((6,))
        whole = keras.Model(inputs, layers.Dense(1, kernel_initializer="ones")(model(inputs)))
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


def trained_step(teacher):
    ssd = wrap(compiled(), teacher)
    ssd.train_on_batch(X, Y)
    return ssd


@feature("the student inside another model")
def student_inside_another(teacher):
    student = trained_step(teacher).student
    inputs = keras.Input((6,))
    whole = keras.Model(inputs, student(inputs))
    np.testing.assert_array_equal(whole.predict(X, verbose=0), student.predict(X, verbose=0))


def is_copied(copy_of):
    """The copy is equal in all that is kept, and apart: training the copy leaves the original alone."""

    def use(teacher):
        one = trained_step(teacher)
        other = copy_of(one)
        assert type(other) is type(one) and other is not one and other.student is not one.student
        assert other.name == one.name
        assert_same(one.weights, other.weights)
        np.testing.assert_array_equal(one.predict(X, verbose=0), other.predict(X, verbose=0))
        before = arrays(one.weights)
        other.train_on_batch(X, Y)
        assert_same(before, one.weights)
        assert any(not np.array_equal(*pair) for pair in zip(before, arrays(other.weights), strict=True))

    return use


FEATURES["pickle"] = is_copied(lambda ssd: pickle.loads(pickle.dumps(ssd)))
FEATURES["copy.deepcopy"] = is_copied(copy.deepcopy)


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
    """A line of the wrapper, and the student's own."""
    lines, ssd = [], wrap(compiled(), teacher)
    for model in (ssd, ssd.student):
        model.summary(print_fn=lambda text, **_: lines.append(text))
    wrapper, first, second = lines
    assert wrapper.startswith("SSDModel(") and first == second


def cells():
    """Every feature with every teacher; other teachers than the usual one say little about a backend."""
    for name in FEATURES:
        for kind in KINDS:
            is_slow_compiler = name == "jit_compile=True" and keras.backend.backend() == "torch"
            # PyTorch's compiler warns of what it meets inside PyTorch and Keras.
            marks = [pytest.mark.filterwarnings("ignore")] if is_slow_compiler else []
            if kind != "self" or name not in QUICK or is_slow_compiler:
                marks.append(pytest.mark.slow)
            if kind != "self" and not is_slow_compiler:
                marks.append(pytest.mark.once)
            if name in COMPILED:
                marks.append(pytest.mark.compiled)
            yield pytest.param(name, kind, marks=marks, id=f"{name}-{kind}")


@pytest.mark.parametrize("name, teacher", list(cells()))
def test_feature(name, teacher, record_property):
    record_property("feature", name)
    record_property("teacher", teacher)
    result = FEATURES[name](teacher)
    record_property("refused", result if isinstance(result, str) else None)


def test_the_table_in_the_documents_is_that_of_this_test():
    import contract

    rows = contract.read()
    assert contract.TABLE.read_text() == contract.render(rows)
    assert "not run" not in contract.render(rows)
    assert list(dict.fromkeys(row["feature"] for row in rows)) == list(FEATURES)
    assert not [row for row in rows if not row["outcome"].startswith(("yes", "as Keras: refused ("))]
