"""Joining a labelled and an unlabelled set of arrays: what is in a batch, how often a sample comes, and training."""

import copy
import fractions
import pickle

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from joined_sets import U, X, Y, epoch, joined


def test_a_batch_holds_both_in_the_ratio_evenly_mixed_and_without_labels_where_there_are_none():
    data = joined(shuffle=False)
    assert len(data) == 3  # 10 rows in batches of 4, 24 in batches of 8
    assert data.batch_sizes == (4, 8)
    x, y = data[0]
    np.testing.assert_array_equal(x[:, 0], [-1, 1, -2, -3, 2, -4, -5, 3, -6, -7, 4, -8])
    np.testing.assert_array_equal(y, [-1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1])


def test_the_shorter_set_is_repeated_and_the_longer_one_met_once():
    rows = np.concatenate([x[:, 0] for x, _ in epoch(joined())])
    unlabelled, counts = np.unique(rows[rows < 0], return_counts=True)
    np.testing.assert_array_equal(unlabelled, np.sort(U[:, 0]))
    np.testing.assert_array_equal(counts, 1)
    labelled, counts = np.unique(rows[rows > 0], return_counts=True)
    np.testing.assert_array_equal(labelled, X[:, 0])
    assert sorted(counts) == [1] * 8 + [2] * 2


def test_more_labelled_than_unlabelled():
    data = joined(unlabelled=U[:3], ratio=1)
    assert len(data) == 3
    rows = np.concatenate([x[:, 0] for x, _ in epoch(data)])
    assert np.unique(rows[rows < 0], return_counts=True)[1].tolist() == [4, 4, 4]


def test_labels_stay_with_their_samples():
    for _ in range(3):
        for x, y in epoch(joined()):
            np.testing.assert_array_equal(y, np.where(x[:, 0] > 0, x[:, 0] - 1, -1))


def test_epochs_differ_and_the_seed_fixes_them():
    data, again, other = joined(), joined(), joined(seed=1)
    first, second = ([x.tolist() for x, _ in epoch(data)] for _ in range(2))
    assert first != second
    assert first == [x.tolist() for x, _ in epoch(again)]
    assert first != [x.tolist() for x, _ in epoch(other)]
    # An epoch can be read in any order, and twice.
    assert data[1][0].tolist() == data[1][0].tolist()


def test_the_order_that_a_seed_gives():
    data = joined((X[:5], Y[:5]), U[:3], ratio=1, batch_size=2)
    rows = [[x[:, 0].tolist() for x, _ in epoch(data)] for _ in range(2)]
    assert rows[0] == [[1, -1, 3, -2], [5, -3, 4, -3], [2, -2, 4, -1]]
    assert rows[1] == [[1, -1, 3, -2], [2, -3, 5, -3], [4, -1, 3, -2]]
    # A batch of more rows than the set has.
    data = joined((X[:5], Y[:5]), U[:3], ratio=4, batch_size=2)
    assert data[1][0][:, 0].tolist() == [-2, -3, 5, -1, -2, -3, -1, 4, -2, -1]


def test_an_order_is_drawn_once_and_not_for_every_batch(monkeypatch):
    data, drawn, draw = joined(), [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or draw(seed))
    epoch(data)
    assert len(drawn) == 3  # of the 10 labelled samples twice, of the others once
    epoch(data), epoch(data)
    assert [len(rows._orders) for rows in data._sets] == [2, 2]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))], ids=["copy", "pickle"]
)
def test_a_copy_of_joined_arrays_has_their_order(copied):
    data = joined()
    epoch(data)
    again = copied(data)
    assert again.epoch == 1
    assert [x.tolist() for x, _ in epoch(again)] == [x.tolist() for x, _ in epoch(data)]


def test_without_a_seed_it_follows_that_of_keras():
    keras.utils.set_random_seed(4)
    first = joined(seed=None)[0][0]
    keras.utils.set_random_seed(4)
    np.testing.assert_array_equal(first, joined(seed=None)[0][0])


@pytest.mark.parametrize(
    "y, expected",
    [
        (np.array([[0.0, 1.0], [1.0, 0.0]], "float32"), np.array([[np.nan, np.nan]] * 2, "float32")),
        (np.array([1.5, 2.5]), np.array([np.nan, np.nan])),
        (np.array([0, 255], "uint8"), np.array([-1, -1], "int32")),
        (np.array([[True], [False]]), np.array([[-1], [-1]], "int32")),
    ],
    ids=["one-hot", "regression", "unsigned", "truth values"],
)
def test_what_stands_for_a_missing_target(y, expected):
    _, joint = keras_ssd.join_unlabelled((X[:2], y), U[:2], ratio=1, batch_size=2, shuffle=False)[0]
    assert joint.dtype == expected.dtype
    np.testing.assert_array_equal(joint[[1, 3]], expected)
    np.testing.assert_array_equal(joint[[0, 2]], y.astype(joint.dtype))


def test_sample_weights_are_1_where_none_are_given():
    data = joined((X, Y, np.full(10, 2.0, "float32")), shuffle=False)
    x, _, weights = data[0]
    np.testing.assert_array_equal(weights, np.where(x[:, 0] > 0, 2.0, 1.0))
    x, _, weights = joined(unlabelled=(U, None, np.full(24, 0.5, "float32")), shuffle=False)[0]
    np.testing.assert_array_equal(weights, np.where(x[:, 0] > 0, 1.0, 0.5))


def test_sample_weights_of_1_have_the_structure_and_shape_of_those_given():
    targets, weights = (
        {"one": Y, "two": Y},
        {"one": np.full(10, 2.0, "float32"), "two": np.full((10, 3), 3.0, "float32")},
    )
    x, _, joint = joined((X, targets, weights), shuffle=False)[0]
    known = x[:, 0] > 0
    np.testing.assert_array_equal(joint["one"], np.where(known, 2.0, 1.0))
    np.testing.assert_array_equal(joint["two"], np.where(known[:, None], [3.0, 3.0, 3.0], 1.0))
    assert joint["one"].dtype == joint["two"].dtype == "float32"
    x, _, joint = joined((X, [Y, Y]), (U, None, [np.full(24, 0.5, "float32"), None]), shuffle=False)[0]
    np.testing.assert_array_equal(joint[0], np.where(x[:, 0] > 0, 1.0, 0.5))
    np.testing.assert_array_equal(joint[1], np.ones(12))


@pytest.mark.parametrize("ratio", [np.int64(2), np.float32(2), np.int8(2), fractions.Fraction(2)], ids=repr)
def test_any_kind_of_number_is_a_ratio(ratio):
    data = joined(ratio=ratio, batch_size=np.int8(100))
    assert data.batch_sizes == (100, 200)
    assert data[1][0].shape == (300, 1)


@pytest.mark.parametrize("ratio, expected", [(0.01, 1), (0.6, 2), (1.1, 4), (1.2, 5)])
def test_the_samples_without_labels_are_a_rounded_number_and_at_least_one(ratio, expected):
    assert joined(ratio=ratio).batch_sizes == (4, expected)


def test_labels_of_the_unlabelled_set_are_not_used():
    for _, y in epoch(joined(unlabelled=(U, np.full(24, 7)))):
        assert 7 not in y[y == -1] and (y == -1).sum() == 8


def test_structures_of_inputs_and_targets():
    data = keras_ssd.join_unlabelled(
        ({"a": X, "b": [X, 2 * X]}, {"one": Y, "two": X}), {"a": U, "b": [U, 2 * U]}, batch_size=2, ratio=1
    )
    x, y = data[0]
    np.testing.assert_array_equal(2 * x["a"], x["b"][1])
    np.testing.assert_array_equal(y["one"] == -1, x["a"][:, 0] < 0)
    np.testing.assert_array_equal(np.isnan(y["two"]), x["a"] < 0)


@pytest.mark.skipif(keras.__version__.startswith("3.6."), reason="Keras 3.6 warns of a tuple where inputs are a list")
def test_lists_of_inputs_and_targets_are_trained_on():
    inputs = [keras.Input((1,)), keras.Input((1,))]
    x = layers.Dropout(0.5)(layers.Dense(8, activation="relu")(layers.concatenate(inputs)))
    model = keras.Model(inputs, [layers.Dense(10, activation="softmax")(x), layers.Dense(1)(x)])
    model.compile("sgd", ["sparse_categorical_crossentropy", "mse"])
    weights = [np.ones(10, "float32"), np.full(10, 2.0, "float32")]
    data = joined(([X, X], [Y, X], weights), [U, U])
    assert np.isfinite(keras_ssd.wrap(model).fit(data, verbose=0).history["loss"]).all()


@pytest.mark.skipif(
    keras.__version__.startswith("3.6.") and keras.backend.backend() == "tensorflow",
    reason="Keras 3.6 on TensorFlow cannot weigh the classes of a PyDataset, for a plain model, either",
)
def test_class_weights_may_be_given_though_most_samples_have_no_class():
    inputs = keras.Input((1,))
    x = layers.Dropout(0.5)(layers.Dense(8, activation="relu")(inputs))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    history = keras_ssd.wrap(model).fit(joined(), class_weight={0: 2.0, 1: 0.5}, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(ratio=0), "`ratio` should be a number above 0. Received: ratio=0"),
        (dict(ratio=True), "`ratio` should be a number above 0"),
        (dict(ratio=np.float32("nan")), "`ratio` should be a number above 0"),
        (dict(batch_size=0), "`batch_size` should be a positive integer"),
        (dict(steps_per_epoch=-1), "`steps_per_epoch` should be a positive integer"),
        (
            dict(steps_per_epoch=0),
            "`steps_per_epoch` should be a positive integer or None. Received: steps_per_epoch=0",
        ),
        (dict(seed=-1), "`seed` should be an integer of at least 0, or None. Received: seed=-1"),
        (dict(seed=0.5), "`seed` should be an integer of at least 0, or None"),
        (dict(labelled=(X, Y, X), unlabelled=(U, None, U[:, 0])), "sample weights of one structure and shape"),
        (dict(labelled=(X, Y[:5])), "arrays of `labelled` should have the same, positive length"),
        (dict(unlabelled=U[:0]), "arrays of `unlabelled` should have the same, positive length"),
        (dict(unlabelled=iter([(U,)])), "`unlabelled` does not tell how many samples"),
        (dict(labelled=X), "`labelled` should hold targets"),
        (dict(unlabelled=np.zeros((24, 2), "float32")), "inputs of one structure and shape"),
        (dict(unlabelled=[]), "arrays of `unlabelled`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        joined(**arguments)


def test_a_resumed_run_meets_the_batches_of_its_epochs():
    """With `SeedEachEpoch`. A new process makes a new set, which knows nothing of the epochs before."""

    def train(*spans):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((1,))
        x = layers.Dropout(0.5)(layers.Dense(4, activation="relu")(inputs))
        model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        ssd = keras_ssd.wrap(model)
        for first, last in spans:
            seeds = [keras_ssd.callbacks.SeedEachEpoch(7)]
            ssd.fit(joined(), initial_epoch=first, epochs=last, validation_data=(X, Y), verbose=0, callbacks=seeds)
        return ssd.student.get_weights()

    whole, resumed, other = train((0, 3)), train((0, 2), (2, 3)), train((0, 2), (1, 2))
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(whole, other, strict=True))
