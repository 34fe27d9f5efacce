"""Joined sets of labelled and unlabelled samples: the content of each batch, and the epochs of sets of every kind."""

import itertools
import pickle

import keras
import numpy as np
import pytest

import keras_ssd
from models import classifier, compiled

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


# Arrays.


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
    """Also those of a copy. Without a seed the order follows that of Keras."""
    data, again, other = joined(), joined(), joined(seed=1)
    first = numbers(epoch(data)).tolist()
    copy = pickle.loads(pickle.dumps(data))
    second = numbers(epoch(data)).tolist()
    assert first != second == numbers(epoch(copy)).tolist()
    assert first == numbers(epoch(again)).tolist()
    assert first != numbers(epoch(other)).tolist()
    # An epoch can be read in any order, and twice.
    assert data[1][0].tolist() == data[1][0].tolist()
    unseeded = []
    for seed in (4, 4, 5):
        keras.utils.set_random_seed(seed)
        unseeded.append(joined(seed=None)[0][0].tolist())
    assert unseeded[0] == unseeded[1] != unseeded[2]


@pytest.mark.parametrize("ratio, expected", [(0.01, 1), (0.6, 2), (1.2, 5), (np.int8(100), 400)])
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
        (dict(unlabelled=iter([np.zeros((4, 2))]), steps_per_epoch=2), r"same structure and shape.*\(1,\) and \(2,\)"),
    ],
)
def test_join_unlabelled_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        joined(**arguments)


def test_each_order_is_drawn_once_in_an_epoch(monkeypatch):
    drawn, permutation = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or permutation(seed))
    data = joined(batch_size=1, ratio=1)
    for index in np.random.RandomState(0).permutation(24):  # Keras shuffles the batches
        data[int(index)]
    assert len(drawn) == 1 + 3  # 24 unlabelled rows once, 10 labelled rows three times


# Sets that come in batches: two of each, in their own order.

ROWS, OTHERS, LABELS = X[:8], U[:16], Y[:8] % 2


def as_tf_data(*arrays):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(arrays).batch(len(arrays[0]) // 2)


def as_data_loader(*arrays):
    import torch

    dataset = torch.utils.data.TensorDataset(*map(torch.tensor, arrays))
    return torch.utils.data.DataLoader(dataset, batch_size=len(arrays[0]) // 2)


class Halves(keras.utils.PyDataset):
    """Two batches of arrays, which are reordered when a pass begins and cleared when it ends. It notes the calls."""

    def __init__(self, *arrays, shuffle=False):
        super().__init__()
        self.arrays, self.shuffle, self.calls = arrays, shuffle, []

    def __len__(self):
        return 2

    def on_epoch_begin(self):
        self.calls.append("begin")
        rows = np.arange(len(self.arrays[0]))
        order = np.random.default_rng(len(self.calls)).permutation(rows) if self.shuffle else rows
        self.ordered = [part[order] for part in self.arrays]

    def on_epoch_end(self):
        self.calls.append("end")
        for part in self.ordered:
            part.fill(0)

    def __getitem__(self, index):
        return tuple(np.split(part, 2)[index] for part in self.ordered)


class Endless(Halves):
    """As `Halves`, without a number of batches; Keras reads it as long as it likes."""

    num_batches = None

    def __len__(self):
        raise TypeError

    def __iter__(self):
        return (self[index % 2] for index in itertools.count())


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


def joined_halves(labelled, unlabelled):
    for kind in (labelled, unlabelled):
        pytest.importorskip(NEEDED.get(kind, "numpy"))
    steps = 2 if "generator" in (labelled, unlabelled) else None
    sets = SOURCES[labelled](ROWS, LABELS), SOURCES[unlabelled](OTHERS)
    return joined(*sets, shuffle=False, steps_per_epoch=steps)


# On other backends it takes a second to import PyTorch.
PAIRS = [
    ("arrays", "tf.data"),
    ("tf.data", "PyDataset"),
    ("PyDataset", "generator"),
    ("generator", "arrays"),
    pytest.param("DataLoader", "DataLoader", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("labelled, unlabelled", PAIRS)
def test_every_epoch_of_fit_is_a_pass_of_sets_of_every_kind(labelled, unlabelled, monkeypatch):
    """Also if Keras looks at a batch before."""
    data = joined_halves(labelled, unlabelled)
    assert data.num_batches == 2
    epochs, take, end = [[]], type(data).__getitem__, type(data).on_epoch_end

    def noted(self, index):
        epochs[-1].append(take(self, index))
        return epochs[-1][-1]

    monkeypatch.setattr(type(data), "__getitem__", noted)
    monkeypatch.setattr(type(data), "on_epoch_end", lambda self: end(self) or epochs.append([]))
    ssd = keras_ssd.wrap(compiled(classifier((1,)), metrics=()), num_teachers=2, kd_sample_weight=False)
    ssd.fit(data, epochs=3, verbose=0, shuffle=False)
    for batches in epochs[1:4]:
        halves = (np.split(part, 2) for part in (ROWS, OTHERS, LABELS))
        for (x, y, weight), rows, others, labels in zip(batches, *halves, strict=True):
            assert all(isinstance(part, np.ndarray) for part in (x, y, weight))
            np.testing.assert_array_equal(x[weight > 0], rows)
            np.testing.assert_array_equal(x[weight == 0], others)
            np.testing.assert_array_equal(y[weight > 0], labels)


def test_a_batch_of_another_shape_is_rejected_when_its_turn_comes():
    data = joined(unlabelled=iter([U[:4], np.zeros((4, 2))]), steps_per_epoch=2)
    assert len(data[0][0]) == 8
    with pytest.raises(ValueError, match=r"same structure and shape.*\(1,\) and \(2,\)"):
        data[1]


def test_epochs_of_given_sets_begin_and_end_with_each_pass():
    """A set of unknown length begins and ends with each epoch, as in Keras."""
    labelled, unlabelled = Halves(ROWS, LABELS, shuffle=True), Endless(OTHERS[:8])
    data = joined(labelled, unlabelled, steps_per_epoch=4)  # two passes in an epoch
    seen = numbers(epoch(data))
    seen = seen[seen > 0]
    assert labelled.calls == ["begin", "end"] * 2
    assert unlabelled.calls == ["begin", "end"]
    for rows in (seen[:8], seen[8:]):
        np.testing.assert_array_equal(np.sort(rows), ROWS[:, 0])


def test_a_pass_of_a_given_set_goes_on_in_the_next_epoch():
    labelled = Halves(ROWS, LABELS, shuffle=True)
    data = joined(labelled, OTHERS, steps_per_epoch=1)
    seen = numbers([*epoch(data), *epoch(data)])
    assert labelled.calls == ["begin", "end"]
    np.testing.assert_array_equal(np.sort(seen[seen > 0]), ROWS[:, 0])
