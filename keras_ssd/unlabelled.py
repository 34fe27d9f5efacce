"""Partly labelled training sets: every batch holds labelled and unlabelled samples, the unlabelled with weight 0."""

import functools
import math
import numbers
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd.settings import Settings, check_integer


def join_unlabelled(
    labelled: Any,
    unlabelled: Any,
    ratio: float = 3,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int | None = None,
    steps_per_epoch: int | None = None,
) -> "JoinedDataset":
    """Join a labelled and an unlabelled data set, to train a model wrapped with `kd_sample_weight=False`.

    Every batch holds labelled and unlabelled samples, evenly mixed, as `(x, y, sample_weight)`. A sample without a
    label has weight 0 and an arbitrary valid target. A sample with a label has weight `batch / labelled` (times its own
    weight, if given), so that the task's loss is the mean over the labelled samples. With `kd_sample_weight=False`
    these weights weigh the task only, and all samples count equally in the distillation term.

    Arrays are shuffled as a whole, again in every epoch; the shorter set is repeated, and an epoch ends when each
    sample of the longer set was used once. Sets that come in batches are joined batch by batch, in their own order and
    sizes; a set that ends starts again.

    Args:
        labelled: `(x, y)` or `(x, y, sample_weight)` of NumPy arrays (or structures of them), or an object that yields
            such batches: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch `DataLoader`, a generator.
        unlabelled: `x` or `(x,)`, likewise; of `(x, y)` and `(x, y, sample_weight)` only `x` is used.
        ratio: number of unlabelled samples for each labelled sample, for arrays, > 0. `ratio * batch_size` is rounded,
            to at least one sample. Defaults to `3`.
        batch_size: number of labelled samples in a batch, for arrays. Defaults to `32`.
        shuffle: whether arrays are shuffled. Defaults to `True`.
        seed: integer >= 0 that fixes the order of arrays. Defaults to `None`: follows `keras.utils.set_random_seed`.
        steps_per_epoch: number of batches in an epoch, > 0. Defaults to `None`: that of the set with more batches;
            required if a set does not report its number of batches.

    Returns:
        A `keras.utils.PyDataset`, for `fit`.

    Raises:
        ValueError: if an argument is out of range, a set is empty or its size is unknown, or the two sets do not have
            the same structure of inputs.

    Example:
        >>> ssd = keras_ssd.wrap(model, **keras_ssd.SEMI_SUPERVISED)
        >>> data = keras_ssd.join_unlabelled((x, y), x_unlabelled, ratio=3)
        >>> history = ssd.fit(data, epochs=2, verbose=0)
    """
    return JoinedDataset(labelled, unlabelled, ratio, batch_size, shuffle, seed, steps_per_epoch)


class JoinedDataset(keras.utils.PyDataset):
    """The data set that `join_unlabelled` returns.

    Attributes:
        epoch: number of the epoch, from 0; it determines the order of arrays.
    """

    def __init__(
        self,
        labelled: Any,
        unlabelled: Any,
        ratio: Any,
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        steps_per_epoch: int | None,
    ) -> None:
        super().__init__()
        self.epoch: int = 0
        is_real = isinstance(ratio, numbers.Real) and not isinstance(ratio, bool)
        if not is_real or not 0 < float(ratio) < math.inf:
            raise ValueError(f"`ratio` should be a number above 0. Received: ratio={ratio!r}")
        check_integer("batch_size", batch_size, 1)
        if seed is not None:
            check_integer("seed", seed, 0)
        if steps_per_epoch is not None:
            check_integer("steps_per_epoch", steps_per_epoch, 1)
        seeds = np.random.SeedSequence(_backend.derived_seed("join_unlabelled") if seed is None else int(seed)).spawn(2)
        # As Python integers, because the product of small NumPy integers could overflow.
        sizes = int(batch_size), max(1, round(float(ratio) * int(batch_size)))
        self._labelled: Any = _batches_of("labelled", labelled, sizes[0], shuffle, seeds[0])
        self._unlabelled: Any = _batches_of("unlabelled", unlabelled, sizes[1], shuffle, seeds[1])
        self._num_batches: int = self._count() if steps_per_epoch is None else int(steps_per_epoch)

    def _count(self) -> int:
        counts = {"labelled": self._labelled.num_batches, "unlabelled": self._unlabelled.num_batches}
        unknown = [name for name, count in counts.items() if count is None]
        if unknown:
            raise ValueError(f"`{unknown[0]}` does not report its number of batches. Pass `steps_per_epoch`.")
        return max(counts.values())

    @property
    def num_batches(self) -> int:
        """Number of batches in an epoch."""
        return self._num_batches

    def on_epoch_end(self) -> None:
        """Switch to the order of the next epoch."""
        self.epoch += 1

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        """Return a batch `(x, y, sample_weight)`."""
        place = self.epoch * self._num_batches + index
        x, y, weight = self._labelled.batch(place)
        other_x, _, _ = self._unlabelled.batch(place)
        if y is None:
            raise ValueError("`labelled` should hold targets: `(x, y)` or `(x, y, sample_weight)`. Received none.")
        _check_structures(x, other_x)
        sizes = _length(x), _length(other_x)
        x = tree.map_structure(functools.partial(_mixed, sizes=sizes), x, other_x)
        # A valid target replaces the missing ones: the first of the batch.
        y = tree.map_structure(lambda part: _mixed(part, np.repeat(part[:1], sizes[1], axis=0), sizes), y)
        weight = tree.map_structure(_ones_for, y) if weight is None else weight
        weight = tree.map_structure(lambda part: _weights(part, sizes), weight)
        # On TensorFlow a PyDataset may not yield lists.
        return tree.lists_to_tuples((x, y, weight))


def as_joined_dataset(data: Any, settings: Settings) -> JoinedDataset | None:
    """Return the data given to `fit` if `join_unlabelled` made it, else `None`.

    Raises:
        ValueError: if samples without a label would have no effect on the training.
    """
    if not isinstance(data, JoinedDataset):
        return None
    if not settings.distills or settings.kd_sample_weight:
        what = "kd_sample_weight=True" if settings.distills else "kd_weight=0"
        raise ValueError(
            "Samples without a label have a task weight of 0 and enter only the distillation term, but this model was "
            f"wrapped with {what}, so they would have no effect on training. Wrap it with a kd_weight above 0 and "
            "kd_sample_weight=False, as keras_ssd.wrap(model, **keras_ssd.SEMI_SUPERVISED) does."
        )
    return data


def weigh_metrics(arguments: dict[str, Any]) -> None:
    """Make metrics `weighted_metrics`, so that by the task's weights they count only samples with a label.

    Args:
        arguments: arguments of `compile`, changed in place.

    Raises:
        ValueError: if both kinds are given.
    """
    if not arguments.get("metrics"):
        return
    if arguments.get("weighted_metrics"):
        raise ValueError(
            "With kd_sample_weight=False all metrics are weighted, so that samples of weight 0, which have no label, "
            "do not count. Pass them all as `weighted_metrics`, or all as `metrics`. Received: both."
        )
    arguments["weighted_metrics"] = arguments.pop("metrics")


class _ArrayBatches:
    """Batches of arrays in memory, in an order that depends only on the epoch."""

    def __init__(self, name: str, data: Any, size: int, shuffle: bool, seed: np.random.SeedSequence) -> None:
        self._data = _as_numpy(data)
        lengths = {len(part) for part in tree.flatten(self._data) if part is not None}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"The arrays of `{name}` should have the same, positive length. Received: {lengths}")
        (self._length,) = lengths
        self._size, self._shuffle, self._seed = size, shuffle, seed
        self.num_batches = math.ceil(self._length / size)

    def batch(self, place: int) -> Any:
        """Return a batch: rows are taken from one order of all rows after the other."""
        places = np.arange(place * self._size, (place + 1) * self._size)
        rounds, rows = np.divmod(places, self._length)
        order = np.concatenate([self._order(int(number))[rows[rounds == number]] for number in np.unique(rounds)])
        return tree.map_structure(lambda part: None if part is None else part[order], self._data)

    def _order(self, number: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._length)
        seed = np.random.SeedSequence([*self._seed.generate_state(2), number])
        return np.random.default_rng(seed).permutation(self._length)


class _GivenBatches:
    """Batches of data that come in batches, in their own order; at the end they start again."""

    def __init__(self, name: str, data: Any) -> None:
        self._name, self._data = name, data
        self._iterator: Iterator[Any] | None = None
        try:
            count = getattr(data, "num_batches", None)
            self.num_batches = len(data) if count is None else count
        except TypeError:
            self.num_batches = None

    def batch(self, place: int) -> Any:
        """Return the next batch, whatever its place."""
        batch = None if self._iterator is None else next(self._iterator, None)
        if batch is None:
            if self._iterator is not None and hasattr(self._data, "on_epoch_end"):
                self._data.on_epoch_end()
            self._iterator = _once_through(self._data)
            batch = next(self._iterator, None)
        if batch is None:
            raise ValueError(
                f"`{self._name}` yields no batch, or none in a second iteration. Pass an object that can be iterated "
                "again, or a generator that never ends."
            )
        # PyTorch's DataLoader returns its parts as a list.
        return _as_numpy(_unpacked(tuple(batch) if isinstance(batch, list) else batch))


def _batches_of(
    name: str, data: Any, size: int, shuffle: bool, seed: np.random.SeedSequence
) -> _ArrayBatches | _GivenBatches:
    if all(hasattr(part, "shape") for part in tree.flatten(data) if part is not None):
        return _ArrayBatches(name, _unpacked(data), size, shuffle, seed)
    return _GivenBatches(name, data)


def _once_through(data: Any) -> Iterator[Any]:
    """Return the batches of a set. The iterator of a `PyDataset` of Keras 3.6 would never end."""
    if isinstance(data, keras.utils.PyDataset) and data.num_batches is not None:
        return (data[index] for index in range(data.num_batches))
    return iter(data)


def _unpacked(data: Any) -> tuple[Any, Any, Any]:
    """Return `(x, y, sample_weight)`; only a tuple holds more than `x`, as everywhere in Keras."""
    return keras.utils.unpack_x_y_sample_weight(data if isinstance(data, tuple) else (data,))


def _as_numpy(data: Any) -> Any:
    return tree.map_structure(lambda part: None if part is None else np.asarray(ops.convert_to_numpy(part)), data)


def _length(data: Any) -> int:
    return len(tree.flatten(data)[0])


def _check_structures(x: Any, other_x: Any) -> None:
    shapes = [tree.map_structure(lambda part: part.shape[1:], given) for given in (x, other_x)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`labelled` and `unlabelled` should hold inputs of the same structure and shape, except for the length. "
            f"Received: {shapes[0]} and {shapes[1]}"
        )


def _ones_for(y: np.ndarray) -> np.ndarray:
    """Return weights that broadcast against any loss of these targets: `(batch, 1, ...)` with as many axes.

    For targets `(batch, positions)` a loss has a value for each position if these are classes, and for each sample if
    they are features; Keras removes a last axis of size 1 if the loss does not have it.
    """
    return np.ones((len(y), *[1] * (y.ndim - 1)), "float32")


def _weights(weight: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    labelled, unlabelled = sizes
    weight = weight[:labelled].astype("float32") * ((labelled + unlabelled) / labelled)
    return _mixed(weight, np.zeros((unlabelled, *weight.shape[1:]), "float32"), sizes)


def _mixed(part: np.ndarray, other: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    return np.concatenate([part, other])[_even_order(*sizes)]


@functools.lru_cache(maxsize=16)
def _even_order(labelled: int, unlabelled: int) -> np.ndarray:
    """Return an order that mixes both kinds evenly, so that each of several devices gets its share of labels."""
    places = [(np.arange(size) + 0.5) / size for size in (labelled, unlabelled)]
    return np.argsort(np.concatenate(places), kind="stable")
