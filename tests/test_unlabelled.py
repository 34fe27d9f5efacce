"""Joined sets of labelled and unlabelled samples: the content of a batch, and a task that learns only from labels."""

import copy
import fractions
import itertools
import pickle
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from keras_ssd.augmentation import Jitter
from keras_ssd.unlabelled import check_labels
from models import compiled
from same_weights import assert_close, assert_same

# Every sample knows its number, so that it is known again: labelled ones are positive, unlabelled ones negative.
X = np.arange(1, 11, dtype="float32").reshape(10, 1)
Y = np.arange(10)
U = -np.arange(1, 25, dtype="float32").reshape(24, 1)


def joined(labelled=(X, Y), unlabelled=U, **options):
    return keras_ssd.join_unlabelled(labelled, unlabelled, **{"batch_size": 4, "ratio": 2, "seed": 0, **options})


def epoch(data):
    batches = [data[index] for index in range(data.num_batches)]
    data.on_epoch_end()
    return batches


def numbers(batches):
    return np.concatenate([x[:, 0] for x, _, _ in batches])


# What is in a batch.


def test_batches_mix_both_sets_in_the_ratio_and_weigh_the_labelled():
    """The weights of 3 = 12 / 4 make the mean over twelve samples one over the four that have a label."""
    data = joined(shuffle=False)
    assert data.num_batches == 3  # 10 rows in batches of 4, 24 in batches of 8
    x, y, weight = data[0]
    np.testing.assert_array_equal(x[:, 0], [-1, 1, -2, -3, 2, -4, -5, 3, -6, -7, 4, -8])
    np.testing.assert_array_equal(weight, [0, 3, 0, 0, 3, 0, 0, 3, 0, 0, 3, 0])
    np.testing.assert_array_equal(y[weight > 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(y[weight == 0], 0)  # some valid label, which nobody looks at
    assert weight.dtype == "float32" and y.dtype == Y.dtype


def test_longer_set_is_used_once_per_epoch():
    rows = numbers(epoch(joined()))
    np.testing.assert_array_equal(np.sort(rows[rows < 0]), np.sort(U[:, 0]))
    labelled, counts = np.unique(rows[rows > 0], return_counts=True)
    np.testing.assert_array_equal(labelled, X[:, 0])
    assert sorted(counts) == [1] * 8 + [2] * 2
    rows = numbers(epoch(joined(unlabelled=U[:3], ratio=1)))  # 3 batches of 4 labelled rows
    assert np.unique(rows[rows < 0], return_counts=True)[1].tolist() == [4, 4, 4]


def test_labels_and_inputs_of_any_structure_stay_with_their_samples():
    data = joined(({"a": X, "b": [X, 2 * X]}, {"one": Y, "two": X}), {"a": U, "b": [U, 2 * U]})
    for _ in range(3):
        for x, y, weight in epoch(data):
            np.testing.assert_array_equal(2 * x["a"], x["b"][1])
            for name, target in (("one", x["a"][:, 0] - 1), ("two", x["a"])):
                known = weight[name].ravel() > 0
                np.testing.assert_array_equal(known, x["a"][:, 0] > 0)
                np.testing.assert_array_equal(y[name][known], target[known])


def test_epochs_differ_and_the_seed_fixes_them():
    """Without a seed the order follows that of Keras."""
    data, again, other = joined(), joined(), joined(seed=1)
    first, second = (numbers(epoch(data)).tolist() for _ in range(2))
    assert first != second
    assert first == numbers(epoch(again)).tolist()
    assert first != numbers(epoch(other)).tolist()
    # An epoch can be read in any order, and twice.
    assert data[1][0].tolist() == data[1][0].tolist()
    unseeded = []
    for seed in (4, 4, 5):
        keras.utils.set_random_seed(seed)
        unseeded.append(joined(seed=None)[0][0].tolist())
    assert unseeded[0] == unseeded[1] != unseeded[2]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_a_copy_of_joined_arrays_has_their_order(copied):
    data = joined()
    epoch(data)
    again = copied(data)
    assert again.epoch == 1
    assert numbers(epoch(again)).tolist() == numbers(epoch(data)).tolist()


@pytest.mark.parametrize(
    "ratio, expected",
    [(0.01, 1), (0.6, 2), (1.2, 5), (np.int8(100), 400), (np.float32(2), 8), (fractions.Fraction(2), 8)],
)
def test_the_number_of_unlabelled_samples_is_rounded_and_at_least_one(ratio, expected):
    assert (joined(ratio=ratio, batch_size=np.int8(4))[0][2] == 0).sum() == expected


def test_sample_weights_are_scaled_and_targets_of_unlabelled_samples_are_not_used():
    """The weights have the structure and shape of those given."""
    data = joined((X, Y, np.arange(10.0)), (U, np.full(24, 77), np.full(24, 5.0)), shuffle=False)
    x, y, weight = data[0]
    known = x[:, 0] > 0
    np.testing.assert_array_equal(weight, np.where(known, 3 * (x[:, 0] - 1), 0))
    assert 77 not in y
    given = {"one": np.full(10, 2.0, "float32"), "two": np.full((10, 3), 3.0, "float32")}
    weight = joined((X, {"one": Y, "two": Y}, given), shuffle=False)[0][2]
    np.testing.assert_array_equal(weight["one"], np.where(known, 6.0, 0.0))
    np.testing.assert_array_equal(weight["two"], np.where(known[:, None], [9.0, 9.0, 9.0], 0.0))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(ratio=0), "`ratio` should be a number above 0. Received: ratio=0"),
        (dict(ratio=True), "`ratio` should be a number above 0"),
        (dict(ratio=np.float32("nan")), "`ratio` should be a number above 0"),
        (dict(batch_size=0), "`batch_size` should be an integer of at least 1"),
        (dict(steps_per_epoch=0), "`steps_per_epoch` should be an integer of at least 1"),
        (dict(seed=-1), "`seed` should be an integer of at least 0. Received: seed=-1"),
        (dict(labelled=(X, Y[:5])), "arrays of `labelled` should have the same, positive length"),
        (dict(unlabelled=U[:0]), "arrays of `unlabelled` should have the same, positive length"),
        (dict(unlabelled=[]), "arrays of `unlabelled`"),
        (dict(unlabelled=iter([(U,)])), "`unlabelled` does not report its number of batches"),
        (dict(labelled=X), "`labelled` should hold targets"),
        (dict(unlabelled=np.zeros((24, 2), "float32")), r"same structure and shape.*\(1,\) and \(2,\)"),
        (dict(unlabelled={"x": U}), "same structure and shape"),
        (dict(unlabelled=iter([]), steps_per_epoch=2), "`unlabelled` yields no batch"),
    ],
)
def test_join_unlabelled_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        joined(**arguments)[0]


def test_each_order_is_drawn_once_in_an_epoch(monkeypatch):
    drawn, permutation = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or permutation(seed))
    data = joined(batch_size=1, ratio=1)
    for index in np.random.RandomState(0).permutation(24):  # Keras shuffles the batches
        data[int(index)]
    assert len(drawn) == 1 + 3  # 24 unlabelled rows once, 10 labelled rows three times


# What is learnt.

ROWS = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
OTHERS = np.random.default_rng(1).normal(size=(16, 5, 3)).astype("float32")
LABELS = np.random.default_rng(2).integers(0, 4, 8)
VALUES = np.random.default_rng(3).normal(size=(8, 2)).astype("float32")
POSITIONS = np.random.default_rng(4).integers(0, 4, (8, 5))
SAMPLE_WEIGHTS = np.linspace(0.5, 2.0, 8).astype("float32")


HEADS = {
    "classes": [layers.GlobalAveragePooling1D, lambda: layers.Dense(4, activation="softmax")],
    "values": [layers.Flatten, lambda: layers.Dense(2)],
    "positions": [lambda: layers.Dense(4, activation="softmax")],
    "score": [layers.Flatten, lambda: layers.Dense(1)],
}


def network(*heads, as_dict=False):
    """Without noise of its own, so that a sample's gradient does not depend on what else is in its batch."""
    inputs = keras.Input((5, 3))
    features = layers.Dense(6, activation="tanh")(inputs)
    outputs = {head: keras.Sequential([make() for make in HEADS[head]], name=head)(features) for head in heads}
    return keras.Model(inputs, outputs if as_dict else list(outputs.values()) if len(heads) > 1 else outputs[heads[0]])


SPARSE, ONE_HOT = "sparse_categorical_crossentropy", "categorical_crossentropy"
# Heads, targets and loss.
TASKS = {
    "classes": (["classes"], LABELS, SPARSE),
    "regression": (["values"], VALUES, "mse"),
    "positions": (["positions"], POSITIONS, SPARSE),
    "one-hot positions": (["positions"], np.eye(4, dtype="float32")[POSITIONS], ONE_HOT),
    "list": (["classes", "values"], (LABELS, VALUES), [SPARSE, "mse"]),
    "dict": (["classes", "values"], {"classes": LABELS, "values": VALUES}, {"classes": SPARSE, "values": "mse"}),
}


def taught(model, **options):
    """Wrapped, with a term that is computed and too small to be seen."""
    usual = dict(teacher="snapshot", num_teachers=8, distill="outputs", similarity="kl", percentile=0, dropout_rate=0.3)
    return keras_ssd.wrap(model, **{**usual, "kd_sample_weight": False, "kd_weight": 1e-12, **options})


def trained(task, wrap, *data, **options):
    heads, y, loss = TASKS[task]
    keras.utils.set_random_seed(3)
    model = compiled(network(*heads, as_dict=isinstance(y, dict)), keras.optimizers.SGD(0.5), loss, metrics=())
    wrap(model).fit(*data, shuffle=False, verbose=0, **options)
    return model.get_weights()


@pytest.mark.parametrize(
    "task, weights",
    [(task, None) for task in [*TASKS][:-1]]
    + [("one-hot positions", np.tile(SAMPLE_WEIGHTS[:, None], (1, 5)))]
    + [("dict", {"classes": SAMPLE_WEIGHTS, "values": SAMPLE_WEIGHTS})],
)
def test_the_task_is_that_of_plain_training_on_the_labelled_rows(task, weights):
    y = TASKS[task][1]
    labelled = (ROWS, y) if weights is None else (ROWS, y, weights)
    data = keras_ssd.join_unlabelled(labelled, OTHERS, ratio=2, batch_size=4, shuffle=False)
    own = trained(task, lambda model: model, ROWS, y, batch_size=4, sample_weight=weights)
    assert_close(trained(task, taught, data), own, tolerance=1e-6)


def as_tf_data(*arrays):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(arrays).batch(len(arrays[0]) // 2)


def as_data_loader(*arrays):
    import torch

    dataset = torch.utils.data.TensorDataset(*map(torch.tensor, arrays))
    return torch.utils.data.DataLoader(dataset, batch_size=len(arrays[0]) // 2)


class Halves(keras.utils.PyDataset):
    """Two batches, in an order that is drawn when a pass begins; it notes the calls."""

    def __init__(self, *arrays, shuffle=False):
        super().__init__()
        self.arrays, self.shuffle, self.calls = arrays, shuffle, []

    def __len__(self):
        return 2

    def on_epoch_begin(self):
        self.calls.append("begin")
        rows = np.arange(len(self.arrays[0]))
        self.order = np.random.default_rng(len(self.calls)).permutation(rows) if self.shuffle else rows

    def on_epoch_end(self):
        self.calls.append("end")
        del self.order

    def __getitem__(self, index):
        return tuple(part[np.split(self.order, 2)[index]] for part in self.arrays)


def for_ever(*arrays):
    while True:
        yield from zip(*(np.split(part, 2) for part in arrays), strict=True)


SOURCES = {
    "arrays": lambda *arrays: arrays,
    "tf.data": as_tf_data,
    "PyDataset": Halves,
    "DataLoader": as_data_loader,
    "generator": for_ever,
}
NEEDED = {"tf.data": "tensorflow", "DataLoader": "torch"}


def joined_halves(labelled, unlabelled, y=LABELS, others=OTHERS, repeats=1):
    """Sets of two kinds, each of two batches, in their own order."""
    for kind in (labelled, unlabelled):
        pytest.importorskip(NEEDED.get(kind, "numpy"))
    x, y, others = (np.concatenate([part] * repeats) for part in (ROWS, y, others))
    steps = 2 if "generator" in (labelled, unlabelled) else None
    sets = SOURCES[labelled](x, y), SOURCES[unlabelled](others)
    return keras_ssd.join_unlabelled(*sets, ratio=2, batch_size=len(x) // 2, shuffle=False, steps_per_epoch=steps)


@pytest.mark.parametrize("labelled, unlabelled", list(zip(SOURCES, [*SOURCES][1:] + ["arrays"], strict=True)))
def test_sets_of_every_kind_are_joined(labelled, unlabelled):
    data = joined_halves(labelled, unlabelled)
    assert data.num_batches == 2
    for _ in range(2):  # the second epoch is the first one again
        for index, (x, y, weight) in enumerate(epoch(data)):
            assert all(isinstance(part, np.ndarray) for part in (x, y, weight))
            np.testing.assert_array_equal(x[weight > 0], np.split(ROWS, 2)[index])
            np.testing.assert_array_equal(x[weight == 0], np.split(OTHERS, 2)[index])
            np.testing.assert_array_equal(y[weight > 0], np.split(LABELS, 2)[index])


@pytest.mark.parametrize("source", [*SOURCES][1:])
def test_every_kind_of_set_is_trained_on(source):
    """Both batches of each set are equal: Keras looks at one before it trains, which moves a set that comes so."""
    data = joined_halves(source, source, repeats=2)
    arrays = np.tile(ROWS, (2, 1, 1)), np.tile(LABELS, 2)
    own = trained("classes", lambda model: model, *arrays, batch_size=8, epochs=2)
    assert_close(trained("classes", taught, data, epochs=2), own, tolerance=1e-6)


@pytest.mark.parametrize("source", ["tf.data", "DataLoader", "generator"])
def test_sets_of_other_shapes_are_rejected_before_training(source):
    with pytest.raises(ValueError, match=r"same structure and shape.*\(5, 3\) and \(5, 2\)"):
        joined_halves("arrays", source, others=OTHERS[..., :2])


@pytest.mark.parametrize("shape", [(None, None, 3), None], ids=str)
def test_shapes_that_tf_data_does_not_know_are_checked_in_each_batch(shape):
    tf = pytest.importorskip("tensorflow")

    def first_batch(others):
        signature = (tf.TensorSpec(shape, "float32"),)
        unlabelled = tf.data.Dataset.from_generator(lambda: for_ever(others), output_signature=signature)
        return keras_ssd.join_unlabelled((ROWS, LABELS), unlabelled, batch_size=4, steps_per_epoch=2)[0]

    assert first_batch(OTHERS)[0].shape == (12, 5, 3)
    with pytest.raises(ValueError, match=r"same structure and shape.*\(5, 3\) and \(2, 3\)"):
        first_batch(OTHERS[:, :2])


def test_epochs_of_given_sets_begin_and_end_with_each_pass():
    labelled, unlabelled = Halves(ROWS, LABELS, shuffle=True), Halves(OTHERS[:8], shuffle=True)
    data = keras_ssd.join_unlabelled(labelled, unlabelled, steps_per_epoch=4)  # two passes in an epoch
    seen = np.concatenate([x[weight == 0] for x, _, weight in epoch(data)])
    assert labelled.calls == unlabelled.calls == ["begin", "end"] * 2
    for rows in (seen[:8], seen[8:]):
        np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(OTHERS[:8], axis=0))


def test_a_pass_of_a_given_set_goes_on_in_the_next_epoch():
    labelled = Halves(ROWS, LABELS, shuffle=True)
    data = keras_ssd.join_unlabelled(labelled, OTHERS, steps_per_epoch=1)
    seen = np.concatenate([x[weight > 0] for _ in range(2) for x, _, weight in epoch(data)])
    assert labelled.calls == ["begin", "end"]
    np.testing.assert_array_equal(np.unique(seen, axis=0), np.unique(ROWS, axis=0))


class Endless(Halves):
    """As `Halves`, without a number of batches; Keras reads it as long as it likes."""

    num_batches = None

    def __len__(self):
        raise TypeError

    def __iter__(self):
        return (self[index % 2] for index in itertools.count())


def test_fit_begins_and_ends_the_epochs_of_given_sets():
    """A set of unknown length begins and ends with each epoch, as in Keras."""
    labelled, unlabelled = Halves(ROWS, LABELS), Endless(OTHERS[:8])
    data = keras_ssd.join_unlabelled(labelled, unlabelled, steps_per_epoch=2)
    taught(compiled(network("classes"))).fit(data, epochs=2, verbose=0)
    for calls in (labelled.calls, unlabelled.calls):
        assert len(calls) >= 4
        assert calls == (["begin", "end"] * len(calls))[: len(calls)]


def test_every_epoch_of_fit_is_a_pass_of_given_sets():
    """Also if Keras looks at a batch before."""
    data = keras_ssd.join_unlabelled(Halves(ROWS, LABELS, shuffle=True), Halves(OTHERS[:8], shuffle=True))
    epochs, take, end = [[]], data.labelled.batch, data.on_epoch_end

    def noted(*place):
        batch = take(*place)
        epochs[-1].append(batch[0])
        return batch

    def ended():
        end()
        epochs.append([])

    data.labelled.batch, data.on_epoch_end = noted, ended
    taught(compiled(network("classes"))).fit(data, epochs=3, verbose=0)
    looks = 1 if len(epochs[0]) == 1 else 0
    assert len(epochs) >= looks + 4
    for batches in epochs[looks : looks + 3]:
        np.testing.assert_array_equal(np.unique(np.concatenate(batches), axis=0), np.unique(ROWS, axis=0))


def test_samples_without_a_label_are_distilled():
    """What they put out moves, and the task does not move it."""
    drops = []
    for kd_weight in (1e-12, 10.0):
        keras.utils.set_random_seed(3)
        model = compiled(network("values"), keras.optimizers.SGD(0.5), "mse", metrics=())
        ssd = taught(model, kd_weight=kd_weight)
        data = keras_ssd.join_unlabelled((np.zeros_like(ROWS), np.zeros_like(VALUES)), OTHERS, ratio=2, batch_size=4)
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


@pytest.mark.parametrize(
    "options, fit, message",
    [
        ({"kd_sample_weight": True}, {}, "kd_sample_weight=True.*kd_sample_weight=False.*SEMI_SUPERVISED"),
        ({"kd_weight": 0}, {}, "kd_weight=0.*kd_sample_weight=False.*SEMI_SUPERVISED"),
        # Keras takes one or the other; so does it here.
        ({}, {"class_weight": {0: 2.0, 1: 0.5}}, "class_weight.*sample_weight"),
    ],
    ids=["weighed", "no teachers", "class weights"],
)
def test_fit_rejects_unlabelled_data_without_distillation_or_with_class_weights(options, fit, message):
    ssd = taught(compiled(network("classes")), **options)
    with pytest.raises(ValueError, match=message):
        ssd.fit(keras_ssd.join_unlabelled((ROWS, LABELS), OTHERS), verbose=0, **fit)


NAN = np.where(np.arange(8)[:, None] == 0, np.nan, VALUES)
MARKED = np.where(np.arange(8) == 0, -1, LABELS)


@pytest.mark.parametrize(
    "heads, y, loss, mark",
    [
        (["classes"], MARKED, SPARSE, "-1"),
        (["classes"], MARKED, keras.losses.SparseCategoricalCrossentropy(), "-1"),
        (["classes", "values"], (LABELS, NAN), [SPARSE, "mse"], "NaN"),
    ],
    ids=["-1", "-1, loss object", "NaN in the second output"],
)
def test_labels_that_mark_missing_values_are_rejected(heads, y, loss, mark):
    ssd = taught(compiled(network(*heads), loss=loss, metrics=()))
    for data in ((ROWS, y), (keras_ssd.join_unlabelled((ROWS, y), OTHERS),)):
        with pytest.raises(ValueError, match=rf"Received: {mark} among the labels.*known = .*join_unlabelled"):
            ssd.fit(*data, verbose=0)


@pytest.mark.parametrize(
    "y", [np.int32([[1], [-1], [0]]), np.float32([[0, 1], [-1, -1], [1, 0]])], ids=["unit", "one-hot"]
)
def test_the_remedies_for_missing_labels_fit_labels_of_several_numbers(y):
    with pytest.raises(ValueError) as error:
        check_labels(y, "categorical_crossentropy")
    expression, filled = re.search(r"`known = (.*?)`.*`(y.~known. = 0)`", str(error.value)).groups()
    known = eval(expression, {"y": y})
    assert known.tolist() == [True, False, True]
    exec(filled, {"y": y, "known": known})
    assert (y >= 0).all()


@pytest.mark.parametrize("loss", ["hinge", keras.losses.MeanSquaredError(), lambda y, p: keras.ops.mean(p, -1)])
def test_minus_one_is_accepted_where_the_loss_accepts_it(loss):
    signs = np.sign(VALUES[:, :1]).astype("int32")
    ssd = taught(compiled(network("score"), loss=loss, metrics=()))
    assert np.isfinite(ssd.fit(ROWS, signs, verbose=0).history["loss"][0])


def test_resumed_run_gets_the_batches_of_its_epochs():
    """With `SeedEachEpoch`. A new process makes a new set, which knows nothing of the epochs before."""

    def weights(*spans):
        keras.utils.set_random_seed(1)
        ssd = taught(compiled(network("classes")), kd_weight=0.1)
        for first, last in spans:
            data = keras_ssd.join_unlabelled((ROWS, LABELS), OTHERS, batch_size=4, seed=0)
            options = dict(validation_data=(ROWS, LABELS), callbacks=[keras_ssd.callbacks.SeedEachEpoch(7)])
            ssd.fit(data, initial_epoch=first, epochs=last, verbose=0, **options)
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
    history = ssd.fit(data, epochs=2, verbose=0).history  # the first step of an average copies the weights
    assert history["kd_share"][-1] == pytest.approx(share)
    assert share or history["kd_loss"][-1] == 0


def test_semi_supervised_needs_augmentation():
    with pytest.raises(ValueError, match='"each", but the model .* has no augmentation layers'):
        keras_ssd.wrap(network("classes"), dropout_rate=0.3, **keras_ssd.SEMI_SUPERVISED)


def test_metrics_of_both_kinds_are_rejected():
    ssd = taught(network("classes"))
    with pytest.raises(ValueError, match="Pass them all as `weighted_metrics`"):
        ssd.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], weighted_metrics=["accuracy"])
