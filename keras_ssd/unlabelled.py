"""Partly labelled training sets: every batch holds labelled and unlabelled samples, the unlabelled with weight 0."""

import contextlib
import itertools
import math
import numbers
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd.keras_names import loss_argument
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

    Every batch holds samples of both sets, evenly mixed, as `(x, y, sample_weight)`. A sample without a label has
    weight 0 and an arbitrary valid target. A sample with a label has weight `batch / labelled` (times its own weight),
    so that the task's loss is the mean over the labelled samples. In the distillation term all samples count equally.

    Arrays are shuffled as a whole, again in every epoch; the shorter set is repeated, and an epoch ends when each
    sample of the longer set was used once. Sets that come in batches are joined batch by batch, in their own order and
    sizes. A set that ends starts again; its `on_epoch_begin` and `on_epoch_end` are called around each pass.

    Args:
        labelled: `(x, y)` or `(x, y, sample_weight)` of NumPy arrays (or structures of them), or an object that yields
            such batches: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch `DataLoader`, a generator. `fit`
            refuses labels that mark missing values: NaN, and -1 with a crossentropy.
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
        ValueError: if an argument is out of range, a set is empty or its size unknown, or the inputs of the sets differ
            in structure or shape.

    Example:
        >>> ssd = keras_ssd.wrap(model, **keras_ssd.SEMI_SUPERVISED)  # the model needs augmentation layers
        >>> history = ssd.fit(keras_ssd.join_unlabelled((x, y), x_unlabelled, ratio=3), epochs=2, verbose=0)
    """
    given: Any = ratio  # any kind of real number
    is_real = isinstance(given, numbers.Real) and not isinstance(given, bool)
    if not is_real or not 0 < float(given) < math.inf:
        raise ValueError(f"`ratio` should be a number above 0. Received: ratio={ratio!r}")
    check_integer("batch_size", batch_size, 1)
    for name, value, least in (("seed", seed, 0), ("steps_per_epoch", steps_per_epoch, 1)):
        if value is not None:
            check_integer(name, value, least)
    seeds = np.random.SeedSequence(_backend.derived_seed("join_unlabelled") if seed is None else int(seed)).spawn(2)
    # As Python integers, because the product of small NumPy integers could overflow.
    sizes = int(batch_size), max(1, round(float(ratio) * int(batch_size)))
    sets: list[Any] = []
    for name, data, size, state in zip(("labelled", "unlabelled"), (labelled, unlabelled), sizes, seeds, strict=True):
        is_array = all(hasattr(part, "shape") for part in tree.flatten(data) if part is not None)
        sets.append(_ArrayBatches(name, data, size, shuffle, state) if is_array else _GivenBatches(name, data))
        if steps_per_epoch is None and sets[-1].num_batches is None:
            raise ValueError(f"`{name}` does not report its number of batches. Pass `steps_per_epoch`.")
    _check_together(*(one.example for one in sets))
    return JoinedDataset(sets[0], sets[1], int(steps_per_epoch or max(one.num_batches for one in sets)))


class JoinedDataset(keras.utils.PyDataset):
    """The data set that `join_unlabelled` returns. Its `epoch`, from 0, determines the order of arrays."""

    num_batches = 0  # in an epoch; in Keras a property

    def __init__(self, labelled: Any, unlabelled: Any, num_batches: int) -> None:
        super().__init__()
        self.labelled, self.unlabelled, self.num_batches = labelled, unlabelled, num_batches
        self.epoch: int = 0
        self.loss: Any = None  # labels are checked for this loss; `begin` sets it
        self._may_look, self._num_taken = False, 0

    def begin(self, loss: Any) -> None:
        """Note that `fit` begins, in which Keras may look at some batches before the first epoch."""
        self.loss, self._may_look, self._num_taken = loss, True, 0

    def on_epoch_end(self) -> None:
        """Switch to the order of the next epoch."""
        only_looked = self._may_look and 0 < self._num_taken < self.num_batches
        self._may_look, self._num_taken = False, 0
        self.labelled.end_epoch(only_looked)
        self.unlabelled.end_epoch(only_looked)
        self.epoch += 1

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        """Return a batch `(x, y, sample_weight)`."""
        place = self.epoch, self.num_batches, index
        self._num_taken += 1
        (x, y, weight), others = self.labelled.batch(*place), self.unlabelled.batch(*place)
        _check_together((x, y, weight), others)
        check_labels(y, self.loss)
        known, unknown = len(tree.flatten(x)[0]), len(tree.flatten(others[0])[0])
        if weight is None:  # `(batch, 1, ...)` broadcasts against a loss for each sample and for each position
            weight = tree.map_structure(lambda part: np.ones((known, *[1] * (part.ndim - 1)), "float32"), y)
        weight = tree.map_structure(lambda part: part.astype("float32") * ((known + unknown) / known), weight)
        added = (
            others[0],
            tree.map_structure(lambda part: np.repeat(part[:1], unknown, axis=0), y),  # a valid target of the batch
            tree.map_structure(lambda part: np.zeros((unknown, *part.shape[1:]), "float32"), weight),
        )
        # Both kinds evenly mixed, so that each of several devices gets its share of labels.
        order = np.argsort(np.concatenate([(np.arange(n) + 0.5) / n for n in (known, unknown)]), kind="stable")
        batch = tree.map_structure(lambda *parts: np.concatenate(parts)[order], (x, y, weight), added)
        return tree.lists_to_tuples(batch)  # on TensorFlow a PyDataset may not yield lists


class _ArrayBatches:
    """Batches of arrays in memory: rows are taken from one order of all rows after the other."""

    def __init__(self, name: str, data: Any, size: int, shuffle: bool, seed: np.random.SeedSequence) -> None:
        self.example = _as_numpy(data if isinstance(data, tuple) else (data,))
        lengths = {len(part) for part in tree.flatten(self.example) if part is not None}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"The arrays of `{name}` should have the same, positive length. Received: {lengths}")
        (self._length,) = lengths
        self._size, self._shuffle, self._seed = size, shuffle, seed.generate_state(2)
        self._drawn: tuple[Any, Any] = (None, None)  # an epoch and its rows
        self.num_batches = math.ceil(self._length / size)

    def batch(self, epoch: int, num_batches: int, index: int) -> Any:
        """Return a batch, which depends on nothing but its place."""
        drawn = self._drawn  # read once: a `PyDataset` may be read by several threads
        if epoch != drawn[0]:
            self._drawn = drawn = epoch, self._rows(epoch * num_batches * self._size, num_batches * self._size)
        rows = drawn[1][index * self._size : (index + 1) * self._size]
        return tree.map_structure(lambda part: None if part is None else part[rows], self.example)

    def _rows(self, start: int, count: int) -> np.ndarray:
        orders = []
        for number in range(start // self._length, math.ceil((start + count) / self._length)):
            generator = np.random.default_rng(np.random.SeedSequence([*self._seed, number]))
            orders.append((generator.permutation if self._shuffle else np.arange)(self._length))
        return np.concatenate(orders)[start % self._length :][:count]

    def end_epoch(self, only_looked: bool) -> None:
        """The order follows from the epoch."""


class _GivenBatches:
    """Batches of data that come in batches, in their own order; at the end they start again."""

    def __init__(self, name: str, data: Any) -> None:
        self._name, self._data = name, data
        self._iterator: Any = None
        self._taken: int | None = None  # in the present pass; `None` between two passes
        self._recent: list[Any] = []  # batches since the last epoch, and those that are returned again
        self._again: list[Any] = []
        self.num_batches = getattr(data, "num_batches", None)
        with contextlib.suppress(TypeError):
            self.num_batches = self.num_batches or len(data)
        self.example: Any = None  # a batch, which is not used up, or its shapes; `None` if unknown before training
        if hasattr(data, "element_spec"):
            spec = _unpacked(data.element_spec)
            is_known = all(part.shape[1:].is_fully_defined() for part in tree.flatten(spec) if part is not None)
            self.example = spec if is_known else None
        elif isinstance(data, keras.utils.PyDataset):
            with contextlib.suppress(Exception):  # it may need `on_epoch_begin`
                self.example = _as_numpy(data[0])
        elif first := list(itertools.islice(data, 1)):
            self.example = _as_numpy(first[0])
            self._data = itertools.chain(first, data) if iter(data) is data else data

    def batch(self, *place: int) -> Any:
        """Return the next batch, whatever its place."""
        if self._again:
            return self._again.pop(0)
        for _ in range(2):
            if self._taken is None:
                self._taken = 0
                getattr(self._data, "on_epoch_begin", lambda: None)()
            if self._iterator is None:
                # A `PyDataset` by its numbers: its iterator may never end.
                count = self._data.num_batches if isinstance(self._data, keras.utils.PyDataset) else None
                self._iterator = iter(self._data) if count is None else map(self._data.__getitem__, range(count))
            for batch in self._iterator:
                self._taken += 1
                self._recent = [*self._recent[-1:], _as_numpy(batch)]  # Keras looks at two batches at most
                return self._recent[-1]
            self._end_pass()
        raise ValueError(
            f"`{self._name}` yields no batch, or none in a second iteration. Pass an object that can be iterated "
            "again, or a generator that never ends."
        )

    def end_epoch(self, only_looked: bool) -> None:
        """End the pass if all batches were taken. If their number is unknown, the next epoch continues after them.

        If Keras has only looked at some batches, the next epoch begins with them.
        """
        self._again, self._recent = self._recent if only_looked else [], []
        if not only_looked and self._taken is not None and self.num_batches in (None, self._taken):
            self._end_pass(goes_on=self.num_batches is None)

    def _end_pass(self, goes_on: bool = False) -> None:
        self._taken, self._iterator = None, self._iterator if goes_on else None
        getattr(self._data, "on_epoch_end", lambda: None)()


def as_joined_dataset(data: Any, settings: Settings, y: Any = None, loss: Any = None) -> JoinedDataset | None:
    """Return `x` of `fit` if `join_unlabelled` made it, else `None`; raise if it cannot be trained on."""
    if not isinstance(data, JoinedDataset):
        if settings.distills and not settings.kd_sample_weight and y is not None:
            check_labels(_as_numpy((y,))[0], loss)
        return None
    if not settings.distills or settings.kd_sample_weight:
        what = "kd_sample_weight=True" if settings.distills else "kd_weight=0"
        raise ValueError(
            "Samples without a label have a task weight of 0 and enter only the distillation term, but this model was "
            f"wrapped with {what}, so they would have no effect on training. Wrap it with a kd_weight above 0 and "
            "kd_sample_weight=False, as keras_ssd.wrap(model, **keras_ssd.SEMI_SUPERVISED) does."
        )
    data.begin(loss)
    if isinstance(data.labelled, _ArrayBatches):
        check_labels(data.labelled.example[1], loss)
    return data


def check_labels(y: Any, loss: Any) -> None:
    """Raise if labels are missing, NaN or -1 among classes, and a loss of Keras would take these marks as labels."""
    labels, losses = tree.flatten(y), [keras.losses.get(one) for one in tree.flatten(loss)]
    are_paired = len(labels) == len(losses)
    for part, chosen in zip(labels, losses, strict=True) if are_paired else itertools.product(labels, losses):
        is_of_keras = getattr(chosen, "__module__", "").startswith("keras.")
        if part is None or not is_of_keras or loss_argument(chosen, "ignore_class") is not None:
            continue  # a custom loss may handle missing labels
        is_nan = np.issubdtype(part.dtype, np.floating) and np.isnan(part).any()
        name = getattr(chosen, "__name__", type(chosen).__name__).replace("_", "").lower()
        if is_nan or ("crossentropy" in name and (part == -1).any()):
            known, filled = "~np.isnan(y)" if is_nan else "y >= 0", "`np.where(known, y, 0)`"
            if part.ndim > 1:  # a sample with several numbers
                known, filled = f"({known}).reshape(len(y), -1).all(axis=1)", "`y` after `y[~known] = 0`"
            raise ValueError(
                f"Labels should not mark missing values. Received: {'NaN' if is_nan else -1} among the labels. With "
                f"`known = {known}`, pass `keras_ssd.join_unlabelled((x[known], y[known]), x[~known])` to `fit`; or "
                f"`x`, {filled} and `sample_weight=known * len(y) / known.sum()`."
            )


def weigh_metrics(arguments: dict[str, Any]) -> None:
    """Make metrics `weighted_metrics`, so that samples of weight 0 do not count; changes `arguments`."""
    if arguments.get("metrics") and arguments.get("weighted_metrics"):
        raise ValueError(
            "With kd_sample_weight=False all metrics are weighted, so that samples of weight 0, which have no label, "
            "do not count. Pass them all as `weighted_metrics`, or all as `metrics`. Received: both."
        )
    if arguments.get("metrics"):
        arguments["weighted_metrics"] = arguments.pop("metrics")


def _unpacked(data: Any) -> tuple[Any, Any, Any]:
    """Return `(x, y, sample_weight)`; only a tuple holds more than `x`, as everywhere in Keras."""
    return keras.utils.unpack_x_y_sample_weight(data if isinstance(data, tuple) else (data,))


def _as_numpy(batch: Any) -> tuple[Any, Any, Any]:
    # PyTorch's DataLoader returns its parts as a list.
    parts = _unpacked(tuple(batch) if isinstance(batch, list) else batch)
    return tree.map_structure(lambda part: None if part is None else np.asarray(ops.convert_to_numpy(part)), parts)


def _check_together(labelled: Any, unlabelled: Any) -> None:
    """Raise unless two batches have inputs of the same structure and shapes; an unknown one fits any other."""
    if labelled is None or unlabelled is None:
        return
    if labelled[1] is None:
        raise ValueError("`labelled` should hold targets: `(x, y)` or `(x, y, sample_weight)`. Received none.")
    shapes = [tree.map_structure(lambda part: tuple(part.shape[1:]), batch[0]) for batch in (labelled, unlabelled)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`labelled` and `unlabelled` should hold inputs of the same structure and shape, except for the length. "
            f"Received: {shapes[0]} and {shapes[1]}"
        )
