"""Training sets of which only a part is labelled: labelled and unlabelled samples in every batch."""

import math
import numbers
import threading

import keras
import numpy as np
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd.labels import able_to_miss, in_output_order, missing_like, takes_classes
from keras_ssd.settings import is_integer

# Rows of a set that comes in batches are drawn from a buffer of as many.
_BUFFER = 1024
# So many batches of such a set are kept, the first and the last ones of an epoch: they might be asked for again.
_KEPT = 4


def join_unlabelled(labelled, unlabelled, ratio=3, batch_size=32, shuffle=True, seed=None, steps_per_epoch=None):
    """Join a labelled and an unlabelled set to one that a model wrapped by `keras_ssd.wrap` is trained on.

    Every batch holds `batch_size` labelled samples and `ratio` times as many without labels, evenly mixed. The shorter
    set is repeated; an epoch ends when each sample of the longer one was met once. Unlabelled samples take part in the
    distillation term only: task loss and metrics see the labelled ones. Their targets are -1 (integers) or NaN.

    Args:
        labelled: `(x, y)` or `(x, y, sample_weight)` of NumPy arrays (or structures of them), or what yields such
            batches: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch `DataLoader`, another iterable.
        unlabelled: `x` or `(x,)`, likewise; of `(x, y)` and `(x, y, sample_weight)` the targets are not used.
        ratio: unlabelled samples for each labelled one, > 0. `ratio * batch_size` is rounded, to at least one sample;
            the attribute `batch_sizes` of what is returned tells. Defaults to `3`.
        batch_size: labelled samples in a batch. Defaults to `32`.
        shuffle: whether to shuffle both sets, anew in every epoch: arrays as a whole, what comes in batches within
            a buffer of 1024 samples. Defaults to `True`.
        seed: integer >= 0 that fixes the order. Defaults to `None`: follows `keras.utils.set_random_seed`.
        steps_per_epoch: batches in an epoch, > 0. Defaults to `None`: as said above; needed if a set does not tell
            how many samples it has.

    Returns:
        A `keras.utils.PyDataset`, for `fit`. All its batches are of one size.

    Raises:
        ValueError: if an argument is out of range, a set is empty or its size is unknown, or the two do not have the
            same structure of inputs, or of sample weights.

    Example:
        >>> data = keras_ssd.join_unlabelled((x, y), x_unlabelled, ratio=3)
        >>> keras_ssd.SSDModel.semi_supervised(model).fit(data, epochs=50, validation_data=(x_val, y_val))
    """
    return JoinedDataset(labelled, unlabelled, ratio, batch_size, shuffle, seed, steps_per_epoch)


class JoinedDataset(keras.utils.PyDataset):
    """What `join_unlabelled` returns.

    The same batch comes again when asked for again, within an epoch; of sets that come in batches only the first and
    the last few do. With `workers` the rows of such sets come in the order in which the workers ask for them.

    Attributes:
        batch_sizes: `(labelled, unlabelled)` samples in a batch.
        epoch: how often the set was gone through; it decides on the order of arrays.
    """

    def __init__(self, labelled, unlabelled, ratio, batch_size, shuffle, seed, steps_per_epoch):
        super().__init__()
        if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real) or not 0 < ratio < math.inf:
            raise ValueError(f"`ratio` should be a number above 0. Received: ratio={ratio!r}")
        if not is_integer(batch_size) or batch_size < 1:
            raise ValueError(f"`batch_size` should be a positive integer. Received: batch_size={batch_size!r}")
        if steps_per_epoch is not None and (not is_integer(steps_per_epoch) or steps_per_epoch < 1):
            raise ValueError(
                f"`steps_per_epoch` should be a positive integer or None. Received: steps_per_epoch={steps_per_epoch!r}"
            )
        if seed is not None and (not is_integer(seed) or seed < 0):
            raise ValueError(f"`seed` should be an integer of at least 0, or None. Received: seed={seed!r}")
        # As Python's numbers, which a product of NumPy's small ones would not fit into.
        self.batch_sizes = int(batch_size), max(1, round(float(ratio) * int(batch_size)))
        self.epoch = 0
        seeds = np.random.SeedSequence(_backend.derived_seed() if seed is None else int(seed)).spawn(2)
        self._sets = [
            _rows_of(data, name, shuffle, one)
            for data, name, one in zip((labelled, unlabelled), ("labelled", "unlabelled"), seeds, strict=True)
        ]
        (x, y, weight), (other_x, _, other_weight) = (one.sample() for one in self._sets)
        if y is None:
            raise ValueError("`labelled` should hold targets: `(x, y)` or `(x, y, sample_weight)`. Received none.")
        _check_structures("inputs", x, other_x)
        if weight is not None and other_weight is not None:
            _check_structures("sample weights", weight, other_weight)
        self._steps = self._count_steps() if steps_per_epoch is None else int(steps_per_epoch)
        # Even where rows are dealt out to several devices, each gets its share of labels.
        places = [(np.arange(size) + 0.5) / size for size in self.batch_sizes]
        self._order = np.argsort(np.concatenate(places), kind="stable")

    def _count_steps(self):
        sizes = [one.size for one in self._sets]
        if None in sizes:
            name = ("labelled", "unlabelled")[sizes.index(None)]
            raise ValueError(f"`{name}` does not tell how many samples it has. Pass `steps_per_epoch`.")
        return max(math.ceil(size / of_batch) for size, of_batch in zip(sizes, self.batch_sizes, strict=True))

    @property
    def num_batches(self):
        return self._steps

    def __len__(self):
        return self._steps

    def on_epoch_end(self):
        self.epoch += 1

    def __getitem__(self, index):
        (x, y, weight), (other_x, _, other_weight) = (
            rows.take(size, self.epoch, index, self._steps)
            for rows, size in zip(self._sets, self.batch_sizes, strict=True)
        )
        y = tree.map_structure(able_to_miss, y)
        other_y = tree.map_structure(lambda one: missing_like(self._sized(one)), y)
        joined = self._join(x, other_x), self._join(y, other_y)
        if weight is not None or other_weight is not None:
            joined = *joined, self._join_weights(weight, other_weight)
        # On TensorFlow a PyDataset may not yield lists.
        return tree.lists_to_tuples(joined)

    def check_targets(self, outputs, kinds, names):
        """Refuse integers where -1 is a target as any other: in a regression, in one-hot targets.

        Args:
            outputs: symbolic outputs of the model that is trained, flat, or `None` if it has none.
            kinds: the kind of each output, see `keras_ssd.labels.target_kinds`.
            names: of the outputs.
        """
        targets = in_output_order(self._sets[0].sample()[1], len(kinds), names)
        for y, output, kind in zip(targets or (), outputs or (), kinds, strict=False):
            if y is not None and able_to_miss(y).dtype.kind == "i" and not takes_classes(able_to_miss(y), output, kind):
                raise ValueError(
                    "`labelled` holds integer targets that are no classes (a regression, or one-hot), which cannot say "
                    f"that they are missing. Pass them as floats: y.astype('float32'). Received: {y.dtype} of shape "
                    f"{y.shape}"
                )

    def _sized(self, y):
        return np.broadcast_to(y[:1], (self.batch_sizes[1], *y.shape[1:]))

    def _join_weights(self, *weights):
        """Where a set has none they are 1, in the structure and shape of those that the other set has."""
        structure = next(one for one in weights if one is not None)
        weights = [tree.map_structure(lambda _: None, structure) if one is None else one for one in weights]
        return tree.map_structure(self._join_weight, *weights)

    def _join_weight(self, *weights):
        shape = next((one.shape[1:] for one in weights if one is not None), ())
        ones = [np.ones((size, *shape), "float32") for size in self.batch_sizes]
        return self._join(*(other if one is None else one for one, other in zip(weights, ones, strict=True)))

    def _join(self, one, other):
        return tree.map_structure(lambda a, b: np.concatenate([a, b])[self._order], one, other)


def _rows_of(data, name, shuffle, seed):
    is_arrays = all(hasattr(part, "shape") for part in tree.flatten(data) if part is not None)
    if not is_arrays:
        return _BatchedRows(data, name, shuffle, seed)
    return _ArrayRows(_unpacked(data), name, shuffle, seed)


class _ArrayRows:
    """Rows of arrays in memory, in an order that depends on the epoch and on nothing else."""

    def __init__(self, data, name, shuffle, seed):
        self._data = _as_numpy(data)
        sizes = {len(part) for part in tree.flatten(self._data) if part is not None}
        if len(sizes) != 1 or sizes == {0}:
            raise ValueError(f"The arrays of `{name}` should have the same, positive length. Received: {sorted(sizes)}")
        (self.size,) = sizes
        self._shuffle = shuffle
        self._seed = seed
        self._orders = {}

    def sample(self):
        """Some of the data."""
        return self._data

    def take(self, n, epoch, index, n_batches):
        first, end = index * n, (index + 1) * n
        rows = []
        for repetition in range(first // self.size, (end - 1) // self.size + 1):
            start = repetition * self.size
            rows.append(self._order(epoch, repetition)[max(first - start, 0) : end - start])
        return _rows(self._data, np.concatenate(rows))

    def _order(self, epoch, repetition):
        """The order of all rows. A batch may need two: they are kept, as drawing one takes longer than the rest."""
        order = self._orders.get((epoch, repetition))
        if order is None:
            order = self._draw_order(epoch, repetition)
            # A new dictionary, as other threads may be reading. They need no lock, which could not be pickled.
            self._orders = dict([*self._orders.items()][-1:] + [((epoch, repetition), order)])
        return order

    def _draw_order(self, epoch, repetition):
        if not self._shuffle:
            return np.arange(self.size)
        seed = np.random.SeedSequence([*self._seed.generate_state(2), epoch, repetition])
        return np.random.default_rng(seed).permutation(self.size)


class _BatchedRows:
    """Rows of what yields batches, drawn from a buffer; every row is met before any comes again."""

    def __init__(self, data, name, shuffle, seed):
        self._data = data
        self._name = name
        self._generator = np.random.default_rng(seed)
        self._shuffle = shuffle
        self._batches = None  # what is left of this time through the set
        self._buffer = None  # rows in the order in which they are handed out
        self._start = 0  # the first of them that was not handed out yet
        self._epoch = 0
        self._kept = {}
        self._lock = threading.Lock()  # with `workers`, Keras asks for several batches at a time
        self.size = self._count()

    def _count(self):
        """Number of rows, if that of batches is known: as if all had the size of the first one."""
        try:
            n_batches = getattr(self._data, "num_batches", None)
            n_batches = len(self._data) if n_batches is None else n_batches
        except TypeError:
            return None
        return n_batches * _length(self.sample())

    def sample(self):
        """Some of the data."""
        self._fill(1)
        return self._buffer

    def take(self, n, epoch, index, n_batches):
        with self._lock:
            if epoch != self._epoch:
                # Keras looks at a batch or two before it trains, and calls that an epoch. They are met in the next one.
                is_look = len(self._kept) <= _KEPT and len(self._kept) < n_batches
                self._epoch, self._kept = epoch, self._kept if is_look else {}
            if index not in self._kept:
                self._kept[index] = self._draw(n)
                if len(self._kept) > 2 * _KEPT:
                    del self._kept[list(self._kept)[_KEPT]]
            return self._kept[index]

    def _draw(self, n):
        parts = []
        while n > 0:
            buffer = _BUFFER if self._shuffle else 0
            if self._left() < max(n, buffer // 2):  # not for every batch: all that is left is copied and shuffled
                self._fill(max(n, buffer))
            part = _rows(self._buffer, slice(self._start, self._start + n))
            parts.append(part)
            self._start += _length(part)
            n -= _length(part)
        return _concatenated(parts)  # a copy: a view would keep the whole buffer

    def _left(self):
        return 0 if self._buffer is None else _length(self._buffer) - self._start

    def _fill(self, n):
        """Have `n` rows in the buffer, or those that are left of this time through the set; at least one."""
        size = left = self._left()
        parts = [_rows(self._buffer, slice(self._start, None))] if left else []
        while size < n:
            is_start = self._batches is None
            if is_start:
                self._batches = _once_through(self._data)
            batch = next(self._batches, None)
            if batch is not None:
                # PyTorch's DataLoader puts its parts into a list.
                batch = _as_numpy(_unpacked(tuple(batch) if isinstance(batch, list) else batch))
                parts.append(_concatenated([batch]))  # a copy: the set may write its next batch into the same array
                size += _length(batch)
                continue
            if is_start:
                raise ValueError(
                    f"`{self._name}` yields no batch, or none a second time. Pass what can be iterated anew; a "
                    "generator cannot."
                )
            if size:
                break
            self._batches = None
            if hasattr(self._data, "on_epoch_end"):
                self._data.on_epoch_end()
        if size > left:
            self._buffer, self._start = _concatenated(parts), 0
            if self._shuffle:
                self._buffer = _rows(self._buffer, self._generator.permutation(size))


def _once_through(data):
    """The batches of a set. A `PyDataset` of Keras 3.6 would be iterated for ever."""
    if isinstance(data, keras.utils.PyDataset) and data.num_batches is not None:
        return (data[index] for index in range(data.num_batches))
    return iter(data)


def _unpacked(data):
    """`(x, y, sample_weight)`; only a tuple is more than `x`, as everywhere in Keras."""
    return keras.utils.unpack_x_y_sample_weight(data if isinstance(data, tuple) else (data,))


def _as_numpy(data):
    return tree.map_structure(lambda part: None if part is None else np.asarray(ops.convert_to_numpy(part)), data)


def _length(data):
    return len(tree.flatten(data)[0])


def _rows(data, rows):
    return tree.map_structure(lambda part: None if part is None else part[rows], data)


def _concatenated(parts):
    return tree.map_structure(lambda *same: None if same[0] is None else np.concatenate(same), *parts)


def _check_structures(what, one, other):
    shapes = [
        tree.map_structure(lambda part: None if part is None else part.shape[1:], given) for given in (one, other)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`labelled` and `unlabelled` should hold {what} of one structure and shape, but for the length. "
            f"Received: {shapes[0]} and {shapes[1]}"
        )
