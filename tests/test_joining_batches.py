"""Joining sets that come in batches: `PyDataset`, `tf.data` and `DataLoader`."""

import time
from concurrent import futures

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from joined_sets import U, X, Y, epoch, joined, unlabelled_rows
from keras_ssd import joining


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return -(-len(self.arrays[0]) // 5)

    def __getitem__(self, index):
        return tuple(part[5 * index : 5 * index + 5] for part in self.arrays)


def tf_data(*arrays):
    tf = pytest.importorskip("tensorflow", reason="the data set is TensorFlow's")
    return tf.data.Dataset.from_tensor_slices(arrays).batch(5)


def loader(*arrays):
    torch = pytest.importorskip("torch", reason="the data set is PyTorch's")
    data = torch.utils.data.TensorDataset(*map(torch.from_numpy, arrays))
    return torch.utils.data.DataLoader(data, batch_size=5)


KINDS = pytest.mark.parametrize("kind", [Batches, tf_data, loader], ids=["PyDataset", "tf.data", "DataLoader"])


@KINDS
def test_sets_that_come_in_batches(kind):
    data = joined(kind(X, Y), kind(U))
    assert 3 <= len(data) <= 4  # the last, shorter batch is not known beforehand
    batches = epoch(data)
    for x, y in batches:
        assert x.shape == (12, 1)
        assert (y >= 0).sum() == 4
        np.testing.assert_array_equal(y, np.where(x[:, 0] > 0, x[:, 0] - 1, -1))
    rows = np.concatenate([x[:, 0] for x, _ in batches])
    np.testing.assert_array_equal(np.sort(rows[rows < 0][:24]), np.sort(U[:, 0]))
    assert rows[rows < 0].tolist() != np.sort(rows[rows < 0])[::-1].tolist()  # shuffled


def test_a_set_in_batches_is_gone_through_before_any_sample_comes_again(monkeypatch):
    monkeypatch.setattr(joining, "_BUFFER", 16)
    data = joined(Batches(X, Y), Batches(U), ratio=1.75, steps_per_epoch=24)  # 7 of 24 samples: batches span two passes
    rows = unlabelled_rows(epoch(data)).reshape(7, 24)
    np.testing.assert_array_equal(np.sort(rows), [np.sort(U[:, 0])] * 7)
    assert len(np.unique(rows, axis=0)) == 7
    assert rows[:, :7].min() < -10  # not only from the first batches


def test_a_set_may_write_every_batch_into_the_same_array():
    class Reused(Batches):
        batch = np.empty((5, 1), "float32")

        def __getitem__(self, index):
            self.batch[:] = super().__getitem__(index)[0]
            return self.batch

    rows = unlabelled_rows(epoch(joined(unlabelled=Reused(U[:20]), ratio=1.25)))
    np.testing.assert_array_equal(np.sort(rows)[-20:], np.arange(-20, 0))


def test_a_set_in_batches_keeps_its_order_where_nothing_is_shuffled():
    data = joined(Batches(X, Y), Batches(U), ratio=1.75, steps_per_epoch=24, shuffle=False)
    np.testing.assert_array_equal(unlabelled_rows(epoch(data)), np.tile(U[:, 0], 7))


def test_the_buffer_is_not_copied_for_every_batch(monkeypatch):
    sizes = []

    def counted(function):
        def run(*arguments):
            result = function(*arguments)
            sizes.append(len(result[0]))
            return result

        return run

    monkeypatch.setattr(joining, "_rows", counted(joining._rows))
    monkeypatch.setattr(joining, "_concatenated", counted(joining._concatenated))
    many = -np.arange(1, 4001, dtype="float32").reshape(-1, 1)
    epoch(joined(Batches(X, Y), Batches(many)))
    assert sum(sizes) < 10 * 6000  # rows of both sets


def test_a_batch_that_was_asked_for_comes_again_and_no_sample_is_lost():
    data = joined(Batches(X, Y), Batches(np.concatenate([U, U[:16] - 24])))
    asked = [data[index][0].tolist() for index in (0, 0, 1, 0)]
    assert asked[0] == asked[1] == asked[3] != asked[2]
    batches = epoch(data)
    assert len(batches) == 5 and batches[0][0].tolist() == asked[0]
    np.testing.assert_array_equal(np.sort(unlabelled_rows(batches)), np.arange(-40, 0))
    assert data[0][0].tolist() != asked[0]  # another epoch


def test_short_epochs_of_sets_in_batches_differ():
    data = joined(Batches(X, Y), Batches(U[:20]))
    first, second = ([x.tolist() for x, _ in epoch(data)] for _ in range(2))
    assert len(first) == 3
    assert all(one not in first for one in second)


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("times", [1, 2], ids=["new", "built"])
def test_the_epoch_that_keras_looked_into_beforehand_meets_every_sample_once(times, shuffle):
    asked = []

    class Recorded(joining.JoinedDataset):
        def __getitem__(self, index):
            asked.append((index, super().__getitem__(index)))
            return asked[-1][1]

    inputs = keras.Input((1,))
    model = keras_ssd.wrap(keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Dropout(0.5)(inputs))))
    model.compile("adam", "sparse_categorical_crossentropy")
    many = -np.arange(1, 161, dtype="float32").reshape(-1, 1)
    for _ in range(times):
        data = Recorded(Batches(X, Y), Batches(many), 2, 4, True, 0, None)
        model.fit(data, shuffle=shuffle, verbose=0)
    indices, batches = zip(*asked[-20:], strict=True)
    assert sorted(indices) == list(range(20))
    np.testing.assert_array_equal(np.sort(unlabelled_rows(batches)), np.arange(-160, 0))


def test_several_threads_may_ask_for_batches():
    class Slow(Batches):
        def __getitem__(self, index):
            time.sleep(0.001)
            return super().__getitem__(index)

    data = joined(Slow(X, Y), Slow(np.concatenate([U, U[:16] - 24])))
    with futures.ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(data.__getitem__, range(5)))
    np.testing.assert_array_equal(np.sort(unlabelled_rows(batches)), np.arange(-40, 0))


@KINDS
def test_a_wrapped_model_trains_on_it(kind):
    inputs = keras.Input((1,))
    x = layers.Dropout(0.5)(layers.Dense(8, activation="relu")(inputs))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    ssd = keras_ssd.wrap(model)
    before = ops.convert_to_numpy(model.get_weights()[0])
    logs = ssd.fit(joined(kind(X, Y), kind(U)), epochs=2, verbose=0).history
    assert np.isfinite(logs["loss"]).all() and np.all(np.array(logs["kd_loss"]) > 0)
    assert np.abs(model.get_weights()[0] - before).max() > 0


def test_what_can_be_gone_through_only_once_is_refused_when_it_ends():
    data = joined(unlabelled=iter([(U[:3],)]), steps_per_epoch=3)
    with pytest.raises(ValueError, match="`unlabelled` yields no batch, or none a second time"):
        epoch(data)
