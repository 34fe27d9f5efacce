"""Training and evaluation where targets are missing: the task's loss and the metrics see the others only."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = RNG.integers(0, 3, 12)
LABELLED = np.array([True, False, False, True, True, False, True, False, False, False, True, False])
PARTLY = np.where(LABELLED, Y, -1)
FRACTION = LABELLED.mean()
# On TensorFlow XLA makes each test last twice as long.
QUICK = {"jit_compile": keras.backend.backend() == "jax"}


def network(outputs=1, activation="softmax"):
    inputs = keras.Input((4,))
    x = layers.Dense(8, activation="tanh")(inputs)
    x = layers.Dropout(0.5, seed=1)(x)
    heads = [layers.Dense(3, activation=activation, name=name)(x) for name in ("first", "second")[:outputs]]
    return keras.Model(inputs, heads if outputs > 1 else heads[0])


def trained(x, y=None, seed=3, steps=1, **options):
    """A model after a few steps on one batch; its history."""
    keras.utils.set_random_seed(seed)
    model = network()
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model = keras_ssd.wrap(model, seed=7, **options)
    history = model.fit(x, y, batch_size=None if y is None else len(x), epochs=steps, shuffle=False, verbose=0)
    return model, history.history


def weights_of(model):
    return [ops.convert_to_numpy(w) for w in getattr(model, "student", model).get_weights()]


class NoTask(keras.losses.Loss):
    """A task whose loss is 0 for every sample, so that only the distillation trains; sparse classes by its name."""

    def __init__(self):
        super().__init__(name="sparse_crossentropy")

    def call(self, y_true, y_pred):
        return 0.0 * ops.sum(y_pred, axis=-1)


def test_unlabelled_rows_get_their_gradient_from_the_distillation_alone():
    """Without any label a step is the one of a task that is 0 for every sample."""
    keras.utils.set_random_seed(3)
    model = network()
    model.compile(keras.optimizers.SGD(0.5), NoTask())
    reference = keras_ssd.wrap(model, seed=7)
    reference.fit(X, Y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    ssd, history = trained(X, np.full(12, -1), steps=2)
    for own, expected in zip(weights_of(ssd), weights_of(reference), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)
    start = trained(X, Y, steps=0)[0]
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(weights_of(ssd), weights_of(start), strict=True))
    np.testing.assert_allclose(history["loss"], 0.1 * np.array(history["kd_loss"]), rtol=1e-5)


def test_the_task_is_the_mean_over_labelled_rows_and_the_term_that_over_all():
    """The gradients add up: with SGD, so do the changes of the weights."""
    start = weights_of(trained(X, Y, steps=0)[0])
    both = weights_of(trained(X, PARTLY)[0])
    none = weights_of(trained(X, np.full(12, -1))[0])
    keras.utils.set_random_seed(3)
    plain = network()
    plain.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    weights = LABELLED.astype("float32") / FRACTION
    plain.fit(X, Y, sample_weight=weights, batch_size=12, epochs=1, shuffle=False, verbose=0)
    for one, term, task, zero in zip(both, none, weights_of(plain), start, strict=True):
        np.testing.assert_allclose(one - zero, (term - zero) + (task - zero), rtol=1e-4, atol=1e-6)


def test_a_batch_with_all_labels_trains_as_without_the_feature():
    usual, history = trained(X, Y, steps=3)
    keras.utils.set_random_seed(3)
    model = network()
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    ssd = keras_ssd.wrap(model, seed=7)
    # Data that cannot be looked at beforehand might lack labels.
    batches = Batches([(X, Y)])
    observed = ssd.fit(batches, epochs=3, verbose=0).history
    for own, expected in zip(weights_of(ssd), weights_of(usual), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)
    for name in ("loss", "kd_loss", "accuracy"):
        np.testing.assert_allclose(observed[name], history[name], rtol=1e-6)


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def test_metrics_are_those_of_the_labelled_rows():
    keras.utils.set_random_seed(3)
    model = network()
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")]
    weighted = [keras.metrics.SparseCategoricalCrossentropy(name="entropy")]
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=metrics, weighted_metrics=weighted)
    ssd = keras_ssd.wrap(model)
    weights = RNG.uniform(0.5, 2, 12).astype("float32")
    probabilities = ssd.student.predict(X, verbose=0)[LABELLED]
    y = Y[LABELLED]
    entropy = -np.log(probabilities[np.arange(len(y)), y])
    expected = {
        "accuracy": np.mean(probabilities.argmax(-1) == y),
        "top": np.mean([label in row.argsort()[-2:] for row, label in zip(probabilities, y, strict=True)]),
        "entropy": np.average(entropy, weights=weights[LABELLED]),
        "loss": np.sum(entropy * weights[LABELLED]) / len(y),
    }
    logs = ssd.evaluate(X, PARTLY, sample_weight=weights, batch_size=12, verbose=0, return_dict=True)
    assert set(logs) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
    before = [ops.convert_to_numpy(v) for v in ssd.variables]
    assert ssd.evaluate(X, PARTLY, sample_weight=weights, batch_size=12, verbose=0, return_dict=True) == logs
    for one, other in zip(before, ssd.variables, strict=True):
        np.testing.assert_array_equal(one, ops.convert_to_numpy(other))


def test_sample_weights_weigh_both_terms():
    """Weights of 0 on all rows leave the model as it was; three times the weight is three times the term."""
    keras.utils.set_random_seed(3)
    ssd = trained(X, Y, steps=0)[0]
    ssd.fit(X, PARTLY, sample_weight=np.zeros(12, "float32"), batch_size=12, epochs=1, verbose=0)
    start = trained(X, Y, steps=0)[0]
    for own, expected in zip(weights_of(ssd), weights_of(start), strict=True):
        np.testing.assert_array_equal(own, expected)
    light, heavy = (
        trained(X, np.full(12, -1), steps=0)[0].fit(
            X, np.full(12, -1), sample_weight=np.full(12, w, "float32"), batch_size=12, verbose=0
        )
        for w in (1.0, 3.0)
    )
    np.testing.assert_allclose(heavy.history["kd_loss"], 3 * np.array(light.history["kd_loss"]), rtol=1e-5)


def compiled():
    keras.utils.set_random_seed(3)
    model = network()
    # Plain Keras leaves out -1 by this.
    model.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(ignore_class=-1))
    return model


def test_what_has_no_label_has_a_class_weight_of_1():
    results = []
    for options in (
        {"class_weight": {0: 0.5, 1: 2.0, 2: 3.0}},
        {"sample_weight": np.array([0.5, 2.0, 3.0, 1.0], "float32")[PARTLY]},
    ):
        ssd = keras_ssd.wrap(compiled(), seed=7)
        ssd.fit(X, PARTLY, batch_size=12, shuffle=False, verbose=0, **options)
        results.append(weights_of(ssd))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_class_weights_of_a_tf_data_set_are_refused_by_keras():
    """It looks them up by the label. If this fails for a plain model, Keras has learnt it: then tell the README."""
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, PARTLY)).batch(12)
    for model in (compiled(), keras_ssd.wrap(compiled())):
        with pytest.raises(tf.errors.InvalidArgumentError, match="= -1 is not in"):
            model.fit(data, class_weight={0: 0.5, 1: 2.0, 2: 3.0}, shuffle=False, verbose=0)


@pytest.mark.parametrize("as_dictionary", [False, True], ids=["list", "dict"])
def test_each_output_may_lack_its_target(as_dictionary):
    keras.utils.set_random_seed(3)
    model = network(outputs=2)
    second = np.where(LABELLED[:, None], np.nan, np.eye(3)[Y]).astype("float32")
    losses = ["sparse_categorical_crossentropy", "categorical_crossentropy"]
    metrics = [["accuracy"], ["accuracy"]]
    y = [PARTLY, second]
    if as_dictionary:
        losses, metrics, y = ({"first": a, "second": b} for a, b in (losses, metrics, y))
        model = keras.Model(model.input, dict(zip(("first", "second"), model.outputs, strict=True)))
    model.compile("sgd", losses, metrics=metrics)
    ssd = keras_ssd.wrap(model)
    outputs = model.predict(X, verbose=0)
    outputs = [outputs["first"], outputs["second"]] if as_dictionary else outputs
    rows = [LABELLED, ~LABELLED]
    logs = ssd.evaluate(X, y, batch_size=12, verbose=0, return_dict=True)
    entropies = [-np.log(out[np.arange(12), Y])[mask].mean() for out, mask in zip(outputs, rows, strict=True)]
    np.testing.assert_allclose(logs["loss"], sum(entropies), rtol=1e-5)
    for name, out, mask in zip(("first", "second"), outputs, rows, strict=True):
        np.testing.assert_allclose(logs[f"{name}_accuracy"], np.mean(out.argmax(-1)[mask] == Y[mask]), rtol=1e-6)
    assert np.isfinite(ssd.fit(X, y, batch_size=12, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("as_arrays", [True, False], ids=["arrays", "batches"])
@pytest.mark.parametrize("names", ["az", "za"])
def test_targets_by_name_go_to_the_outputs_of_a_list(names, as_arrays):
    """A dictionary is sorted by name, the outputs are not."""
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5)(layers.Dense(8, activation="tanh")(inputs))
    outputs = [layers.Dense(3, "softmax", name=names[0])(x), layers.Dense(2, name=names[1])(x)]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {names[0]: "sparse_categorical_crossentropy", names[1]: "mse"}, **QUICK)
    values = RNG.normal(size=(12, 2)).astype("float32")
    probabilities, predicted = model.predict(X, verbose=0)
    entropy = -np.log(probabilities[np.arange(12), Y])
    error = np.square(predicted - values).mean(axis=1)
    partly = {names[0]: PARTLY, names[1]: np.where(LABELLED[:, None], np.nan, values).astype("float32")}
    try:
        model.evaluate(X, {names[0]: Y, names[1]: values}, verbose=0)
    except ValueError:
        pytest.skip("Keras 3.6 sorts them by name, too, for the plain model")
    ssd = keras_ssd.wrap(model)
    for y, expected in (
        ({names[0]: Y, names[1]: values}, entropy.mean() + error.mean()),
        (partly, entropy[LABELLED].mean() + error[~LABELLED].mean()),
    ):
        data = (X, y) if as_arrays else (Batches([(X, y)]),)
        observed = ssd.evaluate(*data, batch_size=12 if as_arrays else None, verbose=0, return_dict=True)["loss"]
        np.testing.assert_allclose(observed, expected, rtol=1e-5)
    assert np.isfinite(ssd.fit(*data, verbose=0).history["loss"]).all()


SERIES = RNG.normal(size=(6, 5, 4)).astype("float32")


def of_series(width, activation=None, masked=False):
    inputs = keras.Input((5, 4))
    x = layers.Masking()(inputs) if masked else inputs
    x = layers.Dropout(0.5)(layers.Dense(8, activation="tanh")(x))
    return keras.Model(inputs, layers.Dense(width, activation=activation)(x))


def of_each_sample(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=(1, 2))


@pytest.mark.parametrize(
    "width, activation, loss, y",
    [
        (1, None, "mse", RNG.normal(size=(6, 5))),
        (1, None, "mse", RNG.normal(size=(6, 5, 1))),
        (1, "sigmoid", "binary_crossentropy", RNG.integers(0, 2, (6, 5))),
        (1, "sigmoid", "hinge", np.sign(RNG.normal(size=(6, 5, 1))).astype(int)),
        (4, None, of_each_sample, RNG.normal(size=(6, 5, 4))),
        (4, "softmax", "sparse_categorical_crossentropy", RNG.integers(0, 4, (6, 5))),
        (4, "softmax", keras.losses.CTC(), RNG.integers(1, 4, (6, 2))),
    ],
    ids=["vectors", "values", "binary", "hinge", "of a sample", "classes", "CTC"],
)
def test_labelled_batches_give_the_plain_models_loss(width, activation, loss, y):
    """Of a set in batches it is not known beforehand that all of it is labelled."""
    model = of_series(width, activation)
    model.compile("sgd", loss, **QUICK)
    batches = Batches([(SERIES, y.astype("int32" if y.dtype.kind == "i" else "float32"))])
    expected = model.evaluate(batches, verbose=0)
    ssd = keras_ssd.wrap(model)
    np.testing.assert_allclose(ssd.evaluate(batches, verbose=0), expected, rtol=1e-6)
    assert np.isfinite(ssd.fit(batches, verbose=0).history["loss"]).all()


def test_a_sample_of_a_loss_without_positions_counts_if_all_of_it_is_there():
    model = of_series(4)
    model.compile("sgd", of_each_sample, **QUICK)
    y = RNG.normal(size=(6, 5, 4)).astype("float32")
    errors = np.square(model.predict(SERIES, verbose=0) - y).mean(axis=(1, 2))
    y[1, 2, 3] = y[4, 0] = np.nan
    observed = keras_ssd.wrap(model).evaluate(Batches([(SERIES, y)]), verbose=0)
    np.testing.assert_allclose(observed, errors[[0, 2, 3, 5]].mean(), rtol=1e-5)


def test_masked_steps_are_left_out_once():
    x = SERIES.copy()
    x[:3, 3:] = 0
    shown = np.ones((6, 5), bool)
    shown[:3, 3:] = False
    y = RNG.integers(0, 4, (6, 5))
    model = of_series(4, "softmax", masked=True)
    model.compile("sgd", "sparse_categorical_crossentropy", **QUICK)
    ssd = keras_ssd.wrap(model)
    entropy = -np.log(np.take_along_axis(model.predict(x, verbose=0), y[..., None], axis=-1)[..., 0])
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), entropy[shown].mean(), rtol=1e-5)
    padded = np.where(shown, y, -1)
    np.testing.assert_allclose(ssd.evaluate(x, padded, verbose=0), entropy[shown].mean(), rtol=1e-5)
    padded[4, 1:4] = -1
    expected = entropy[padded != -1].mean()
    np.testing.assert_allclose(ssd.evaluate(x, padded, verbose=0), expected, rtol=1e-5)


@pytest.mark.parametrize("ignored", [0, 1])
def test_an_ignored_class_stays_ignored(ignored):
    model = of_series(4, "softmax")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(ignore_class=ignored), **QUICK)
    y = RNG.integers(0, 4, (6, 5))
    y[0, :2] = ignored
    entropy = -np.log(np.take_along_axis(model.predict(SERIES, verbose=0), y[..., None], axis=-1)[..., 0])
    y[2:4, 1:] = -1
    observed = keras_ssd.wrap(model).evaluate(SERIES, y, verbose=0)
    np.testing.assert_allclose(observed, entropy[(y != -1) & (y != ignored)].mean(), rtol=1e-5)


def test_a_loss_of_ones_own_takes_classes_if_they_look_like_them():
    """Integers, one for the scores of several classes."""

    def likelihood(y_true, y_pred):
        return -ops.sum(ops.one_hot(ops.cast(y_true, "int32"), 3) * ops.log_softmax(y_pred), axis=-1)

    model = network(activation=None)
    model.compile("sgd", likelihood, **QUICK)
    logits = model.predict(X, verbose=0)
    entropy = np.log(np.exp(logits).sum(-1)) - logits[np.arange(12), Y]
    observed = keras_ssd.wrap(model).evaluate(X, PARTLY, batch_size=12, verbose=0)
    np.testing.assert_allclose(observed, entropy[LABELLED].mean(), rtol=1e-5)


def test_minus_one_is_a_class_to_hinge():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(layers.Dropout(0.5)(layers.Dense(6)(inputs))))
    model.compile("sgd", "hinge", **QUICK)
    y = np.where(LABELLED, 1, -1)[:, None]
    expected = np.maximum(0, 1 - y * model.predict(X, verbose=0)).mean()
    np.testing.assert_allclose(keras_ssd.wrap(model).evaluate(X, y, batch_size=12, verbose=0), expected, rtol=1e-5)


def test_regression_targets_may_be_missing():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.5)(layers.Dense(6)(inputs))))
    model.compile("sgd", "mse", metrics=["mae"])
    ssd = keras_ssd.wrap(model)
    y = np.where(LABELLED, Y, np.nan).astype("float32")
    error = (model.predict(X, verbose=0)[:, 0] - Y)[LABELLED]
    logs = ssd.evaluate(X, y, batch_size=12, verbose=0, return_dict=True)
    np.testing.assert_allclose([logs["loss"], logs["mae"]], [np.mean(error**2), np.mean(np.abs(error))], rtol=1e-5)
    assert np.isfinite(ssd.fit(X, y, batch_size=12, verbose=0).history["loss"]).all()


def test_a_set_that_changes_is_looked_at_anew():
    """A model that was trained on complete arrays takes partly labelled ones afterwards, and evaluates them, too."""
    ssd, _ = trained(X, Y)
    probabilities = ssd.student.predict(X, verbose=0)
    accuracy = np.mean(probabilities.argmax(-1)[LABELLED] == Y[LABELLED])
    assert ssd.evaluate(X, Y, verbose=0)[0] > 0
    np.testing.assert_allclose(ssd.evaluate(X, PARTLY, batch_size=12, verbose=0)[1], accuracy)
    assert np.isfinite(ssd.fit(X, PARTLY, verbose=0).history["loss"]).all()
    assert np.isfinite(ssd.train_on_batch(X, np.full(12, -1))[0])


@pytest.mark.parametrize(
    "use",
    [
        lambda ssd: ssd.fit(X, PARTLY, verbose=0),
        lambda ssd: ssd.fit(X, Y, validation_data=(X, PARTLY), verbose=0),
        lambda ssd: ssd.fit(keras_ssd.join_unlabelled((X, Y), X), verbose=0),
        lambda ssd: ssd.train_on_batch(X, PARTLY),
        lambda ssd: ssd.evaluate(X, PARTLY, verbose=0),
    ],
    ids=["fit", "validation", "joined", "train_on_batch", "evaluate"],
)
def test_samples_without_labels_are_refused_without_distillation(use):
    model = network()
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="kd_weight=0: it has none"):
        use(keras_ssd.wrap(model, kd_weight=0))


def test_without_distillation_a_loss_that_leaves_out_minus_one_does_so():
    plain, model = compiled(), compiled()
    ssd = keras_ssd.wrap(model, kd_weight=0)
    for one in (plain, ssd):
        keras.utils.set_random_seed(3)
        one.fit(X, PARTLY, batch_size=12, verbose=0)
    for a, b in zip(weights_of(plain), weights_of(ssd), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "y, loss", [(np.eye(3, dtype=int)[Y], "categorical_crossentropy"), (np.full((12, 3), 50), "mse")]
)
def test_integers_that_cannot_be_missing_are_refused(y, loss):
    model = network()
    model.compile("sgd", loss)
    ssd = keras_ssd.wrap(model)
    with pytest.raises(ValueError, match="integer targets that are no classes.*astype.*int64 of shape"):
        ssd.fit(keras_ssd.join_unlabelled((X, y), X), verbose=0)
    ssd.fit(keras_ssd.join_unlabelled((X, y.astype("float32")), X), verbose=0)


def test_the_setting_for_few_labels():
    model = network()
    model.compile("sgd", "sparse_categorical_crossentropy")
    ssd = keras_ssd.SSDModel.semi_supervised(model, n_teachers=4)
    settings = ssd.settings
    assert (settings.kind, settings.n_teachers, settings.distill, settings.kd_weight) == ("snapshot", 4, "outputs", 1)
    assert (settings.similarity, settings.percentile, settings.temperature) == ("kl", 0, 3)
    data = keras_ssd.join_unlabelled((X, Y), X, batch_size=4)
    snapshot = keras_ssd.callbacks.TeacherSnapshot(at_epoch=1, restore_best_weights=False)
    logs = ssd.fit(data, epochs=2, verbose=0, callbacks=[snapshot]).history
    assert logs["kd_loss"][1] > 0 and np.isfinite(logs["loss"]).all()
