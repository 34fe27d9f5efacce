"""Training on few labels: the task learns from what has a label, the term from all, and missing labels are found."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from keras_ssd.augmentation import Jitter
from keras_ssd.unlabelled import check_labels
from models import compiled, softmax_head
from same_weights import assert_close, assert_same

ROWS = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
OTHERS = np.random.default_rng(1).normal(size=(16, 5, 3)).astype("float32")
LABELS = np.random.default_rng(2).integers(0, 4, 8)
VALUES = np.random.default_rng(3).normal(size=(8, 2)).astype("float32")
POSITIONS = np.random.default_rng(4).integers(0, 4, (8, 5))
SAMPLE_WEIGHTS = np.linspace(0.5, 2.0, 8).astype("float32")

HEADS = {
    "classes": lambda x: softmax_head(layers.GlobalAveragePooling1D()(x), 4),
    "values": lambda x: layers.Dense(2)(layers.Flatten()(x)),
    "positions": lambda x: softmax_head(x, 4),
}


def network(*heads, as_dict=False):
    """Without noise of its own, so that a sample's gradient does not depend on what else is in its batch."""
    inputs = keras.Input((5, 3))
    features = layers.Dense(6, activation="tanh")(inputs)
    outputs = [HEADS[head](features) for head in heads]
    return keras.Model(inputs, dict(zip(heads, outputs, strict=True)) if as_dict else outputs)


SPARSE, ONE_HOT = "sparse_categorical_crossentropy", "categorical_crossentropy"
# Heads, targets, loss and sample weights.
TASKS = {
    "classes": (["classes"], LABELS, SPARSE, None),
    "positions": (["positions"], POSITIONS, SPARSE, None),
    "one-hot positions": (["positions"], np.eye(4, dtype="float32")[POSITIONS], ONE_HOT, None),
    "list": (["classes", "values"], (LABELS, VALUES), [SPARSE, "mse"], None),
    "weighted dict": (
        ["classes", "values"],
        {"classes": LABELS, "values": VALUES},
        {"classes": SPARSE, "values": "mse"},
        {"classes": SAMPLE_WEIGHTS, "values": SAMPLE_WEIGHTS},
    ),
}


def taught(model, **options):
    """Wrapped, with a term that is computed and too small to be seen."""
    usual = dict(teacher="snapshot", num_teachers=2, distill="outputs", similarity="kl", percentile=0, dropout_rate=0.3)
    return keras_ssd.wrap(model, **{**usual, "kd_sample_weight": False, "kd_weight": 1e-12, **options})


@pytest.mark.parametrize("task", TASKS)
def test_the_task_is_that_of_plain_training_on_the_labelled_rows(task):
    heads, y, loss, weights = TASKS[task]

    def trained(wrap, *data, **options):
        keras.utils.set_random_seed(3)
        model = compiled(network(*heads, as_dict=isinstance(y, dict)), keras.optimizers.SGD(0.5), loss, metrics=())
        wrap(model).fit(*data, shuffle=False, verbose=0, **options)
        return model.get_weights()

    labelled = (ROWS, y) if weights is None else (ROWS, y, weights)
    data = keras_ssd.join_unlabelled(labelled, OTHERS, ratio=2, batch_size=4, shuffle=False)
    own = trained(lambda model: model, ROWS, y, batch_size=4, sample_weight=weights)
    assert_close(trained(taught, data), own, tolerance=1e-6)


def test_samples_without_a_label_are_distilled():
    """What they put out moves, and the task does not move it."""
    drops = []
    for kd_weight in (1e-12, 10.0):
        keras.utils.set_random_seed(3)
        model = compiled(network("values"), keras.optimizers.SGD(0.5), "mse", metrics=())
        ssd = taught(model, kd_weight=kd_weight)
        data = keras_ssd.join_unlabelled((np.zeros_like(ROWS), np.zeros_like(VALUES)), OTHERS, ratio=2, batch_size=8)
        model.weights[-1].assign([0.0, 0.0])  # so the rows with labels have no loss and no gradient
        before = model.get_weights()
        ssd.fit(data, verbose=0)
        drops.append(max(np.abs(a - b).max() for a, b in zip(before, model.get_weights(), strict=True)))
    assert drops[0] < 1e-6 < 1e-3 < drops[1]


def test_metrics_of_compile_are_weighted_by_the_labels():
    """The accuracy over what has a label, by hand: a head that always says class 0, half of the labels are 0."""
    model = network("classes")
    model.layers[-1].set_weights([np.zeros((6, 4)), np.float32([1, 0, 0, 0])])
    labels = np.int32([0, 0, 0, 0, 1, 2, 3, 1])
    ssd = taught(compiled(model, keras.optimizers.SGD(0.0), metrics=["accuracy"]))
    data = keras_ssd.join_unlabelled((ROWS, labels), OTHERS, ratio=2, batch_size=4)
    history = ssd.fit(data, validation_data=(ROWS[4:], labels[4:]), verbose=0).history
    assert history["accuracy"] == [pytest.approx(0.5)] and history["val_accuracy"] == [0.0]
    with pytest.raises(ValueError, match="Pass them all as `weighted_metrics`"):
        ssd.compile("sgd", SPARSE, metrics=["accuracy"], weighted_metrics=["accuracy"])


def test_resumed_run_gets_the_batches_of_its_epochs():
    """With `SeedEachEpoch`. A new process makes a new set, which knows nothing of the epochs before."""

    def weights(*spans):
        keras.utils.set_random_seed(1)
        ssd = taught(compiled(network("classes"), metrics=()), kd_weight=0.1)
        for first, last in spans:
            data = keras_ssd.join_unlabelled((ROWS, LABELS), OTHERS, batch_size=4, seed=0)
            seeds = [keras_ssd.callbacks.SeedEachEpoch(7)]
            ssd.fit(data, initial_epoch=first, epochs=last, verbose=0, callbacks=seeds)
        return ssd.student.get_weights()

    whole, resumed, other = weights((0, 2)), weights((0, 1), (1, 2)), weights((0, 1), (0, 1))
    assert_same(whole, resumed)
    assert any(not np.array_equal(a, b) for a, b in zip(whole, other, strict=True))


# One channel of each sample is far above the others.
SURE = np.repeat(np.eye(3, dtype="float32")[np.arange(16) % 3][:, None], 5, axis=1)


@pytest.mark.parametrize("scale, share", [(100.0, 1.0), (0.0, 0.0)])
def test_semi_supervised_learns_from_sure_answers_only(scale, share):
    """Weights of 0 give four equal probabilities, of which none is at least 0.9."""
    features = [layers.GlobalAveragePooling1D(), layers.Dropout(1e-6), layers.Dense(4, activation="softmax")]
    model = compiled(keras.Sequential([keras.Input((5, 3)), Jitter(1e-3), *features]), keras.optimizers.SGD(0.0))
    model.layers[-1].set_weights([scale * np.eye(3, 4), np.zeros(4)])
    ssd = keras_ssd.wrap(model, **keras_ssd.SEMI_SUPERVISED, kd_fraction=1)
    data = keras_ssd.join_unlabelled((SURE[:4], LABELS[:4]), SURE[4:], batch_size=4)
    options = dict(epochs=2, validation_data=(SURE[:4], LABELS[:4]), verbose=0)
    history = ssd.fit(data, **options).history  # the first step of an average copies the weights
    assert history["kd_share"][-1] == pytest.approx(share)
    assert share or history["kd_loss"][-1] == 0
    assert "val_kd_share" not in history


# What is refused.


@pytest.mark.parametrize("name, value", [("kd_sample_weight", True), ("kd_weight", 0)])
def test_fit_rejects_unlabelled_data_without_distillation_of_all_samples(name, value):
    ssd = taught(compiled(network("classes")), **{name: value})
    with pytest.raises(ValueError, match=f"{name}={value}.*kd_sample_weight=False.*SEMI_SUPERVISED"):
        ssd.fit(keras_ssd.join_unlabelled((ROWS, LABELS), OTHERS), verbose=0)


NAN = np.where(np.arange(8)[:, None] == 0, np.nan, VALUES)
MARKED = np.where(np.arange(8) == 0, -1, LABELS)


@pytest.mark.parametrize(
    "heads, y, loss, mark",
    [
        (["classes"], MARKED, SPARSE, "-1"),
        (["classes"], MARKED, keras.losses.SparseCategoricalCrossentropy(), "-1"),
        (["classes"], MARKED, {"classes": SPARSE}, "-1"),
        (["classes", "values"], (LABELS, NAN), [SPARSE, "mse"], "NaN"),
    ],
    ids=["-1", "-1, loss object", "-1, loss by name", "NaN in the second output"],
)
def test_labels_that_mark_missing_values_are_rejected(heads, y, loss, mark):
    """In arrays that `fit` gets, in joined arrays, and in joined batches."""
    ssd = taught(compiled(network(*heads, as_dict=isinstance(loss, dict)), loss=loss, metrics=()))
    of_arrays = keras_ssd.join_unlabelled((ROWS, y), OTHERS)
    of_batches = keras_ssd.join_unlabelled(iter([(ROWS, y)] * 3), OTHERS, steps_per_epoch=1)
    for data in ((ROWS, y), (of_arrays,), (of_batches,)):
        with pytest.raises(ValueError, match=rf"Received: {mark} among the labels.*known = .*join_unlabelled"):
            ssd.fit(*data, verbose=0)


@pytest.mark.parametrize(
    "loss, y",
    [
        (SPARSE, np.int32([1, -1, 0])),
        (ONE_HOT, np.float32([[0, 1], [-1, -1], [1, 0]])),
        ("mse", np.float32([[2, 3], [1, np.nan], [0, 0]])),
    ],
    ids=["classes", "one-hot", "values"],
)
def test_the_remedies_for_missing_labels_fit_labels_of_any_shape(loss, y):
    with pytest.raises(ValueError) as error:
        check_labels(y, loss)
    expression, filled, changed = re.search(
        r"`known = (.*?)`.*`x`, (?:`(np.where.*?)`|`y` after `(.*?)`)", str(error.value)
    ).groups()
    known = eval(expression, {"np": np, "y": y})
    assert known.tolist() == [True, False, True]
    scope = {"np": np, "y": y, "known": known}
    exec(changed or f"y = {filled}", scope)
    assert (scope["y"] >= 0).all()


def own_crossentropy(y_true, y_pred):
    return keras.ops.mean(y_pred, axis=-1)


@pytest.mark.parametrize(
    "loss", ["hinge", keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), own_crossentropy]
)
def test_minus_one_is_accepted_where_the_loss_accepts_it(loss):
    check_labels(np.int32([1, -1]), loss)


def test_each_label_is_checked_for_the_loss_of_its_output():
    signs = np.int32([1, -1])
    for y, loss in (([LABELS, signs], [SPARSE, "hinge"]), ({"a": signs, "b": LABELS}, {"b": SPARSE, "a": "hinge"})):
        check_labels(y, loss)
    for y, loss in (([LABELS, signs], SPARSE), ({"a": signs, "b": LABELS}, {"a": SPARSE})):
        with pytest.raises(ValueError, match="Received: -1 among the labels"):
            check_labels(y, loss)
