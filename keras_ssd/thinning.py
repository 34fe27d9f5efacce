"""The distillation term on a part of each batch: how rows are drawn and taken."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd._typing import Tensor


class Rows(NamedTuple):
    """Rows of a batch, evenly spaced from a random start: `(start + floor(j * batch / count)) mod batch`.

    Each row is drawn with the same probability `count / batch`, so that a mean over the drawn rows is, in expectation,
    the mean over the batch (circular systematic sampling). If several devices share the batch, each draws the same
    number of its own rows, from the same start, and no row has to be sent.

    Attributes:
        start: integer tensor `()`, uniform over the batch.
        count: number of rows; a tensor if the batch size is known only when the step runs.
        batch: the batch size, likewise.
        devices: number of devices that share the batch; `count` and `batch` are multiples of it.
    """

    start: Tensor
    count: Any
    batch: Any
    devices: int = 1


def draw_rows(batch: Any, fraction: float, seed_generator: keras.random.SeedGenerator) -> Rows:
    """Draw the rows of a batch on which the term is computed.

    Args:
        batch: the batch size, a number or a tensor.
        fraction: the part of the rows, in (0, 1]; at least one row is drawn, on each of several devices.
        seed_generator: generator from which the start is drawn.
    """
    share = keras.random.uniform((), seed=seed_generator)
    if isinstance(batch, int):
        devices = _backend.devices_of_a_batch()
        devices = devices if batch % devices == 0 else 1
        count = devices * max(1, int(fraction * (batch // devices)))
        return Rows(ops.cast(ops.floor(share * batch), "int32"), count, batch, devices)
    size = ops.cast(batch, "float32")
    count = ops.maximum(ops.cast(ops.floor(fraction * size), "int32"), 1)
    return Rows(ops.cast(ops.floor(share * size), "int32"), count, batch)


def take_rows(x: Tensor, rows: Rows) -> Tensor:
    """Return the drawn rows of a tensor `(batch, ...)`."""
    start, count, batch, devices = rows
    if not isinstance(batch, int):
        steps = ops.arange(count, dtype="int32") * ops.cast(batch, "int32") // count
        return ops.take(x, (start + steps) % batch, axis=0)
    # Rows are taken along an axis that is not split over devices: otherwise XLA would sum the parts of all devices. If
    # every k-th row is drawn, one row is taken from each group of k.
    parts = count if batch % count == 0 else devices
    size, count = batch // parts, count // parts
    grouped = ops.reshape(x, (parts, size, *ops.shape(x)[1:]))
    if count == 1:
        return ops.take(grouped, start % size, axis=1)
    steps = ops.convert_to_tensor([j * size // count for j in range(count)], "int32")
    return ops.reshape(ops.take(grouped, (start + steps) % size, axis=1), (parts * count, *ops.shape(x)[1:]))


class Thinning:
    """Takes the drawn rows of all tensors that a training step compares, with their masks.

    A plain object: Keras should not track the layers in it.

    Args:
        fraction: the part of each batch, in (0, 1].
    """

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction
        self._take, self._share = _TakeRows(), _MaskShare()

    def draw(self, y_pred: Any, seed_generator: keras.random.SeedGenerator) -> Rows:
        """Draw rows for a batch of outputs."""
        return draw_rows(ops.shape(tree.flatten(y_pred)[0])[0], self.fraction, seed_generator)

    def take(self, structure: Any, rows: Rows) -> Any:
        """Return the rows of each tensor in a structure, with its mask; `None` stays."""
        take = self._take
        take.rows = rows
        try:
            return tree.map_structure(lambda x: None if x is None else take(x), structure)
        finally:
            take.rows = None  # its tensors belong to this step only

    def mask_scales(self, full: Sequence[Tensor], thinned: Sequence[Tensor]) -> list[Tensor]:
        """Return a factor for the loss of each output, so that its expectation is the loss of the whole batch.

        Keras divides a masked loss by the number of values that are not masked, and the drawn rows may have a larger or
        smaller share of these than the batch.
        """
        return [self._share(part) / self._share(whole) for whole, part in zip(full, thinned, strict=True)]


class _TakeRows(keras.layers.Layer):
    """`take_rows` as a layer, because Keras carries masks only through layers."""

    rows: Any = None  # the `Rows` of the step that runs

    def __init__(self) -> None:
        super().__init__(autocast=False, name="take_rows")
        self.supports_masking = True
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        return take_rows(x, self.rows)

    def compute_mask(self, x: Tensor, previous_mask: Tensor | None = None) -> Tensor | None:
        return None if previous_mask is None else take_rows(previous_mask, self.rows)


class _MaskShare(keras.layers.Layer):
    """The share of an output's values that its mask keeps; 1 without a mask."""

    def __init__(self) -> None:
        super().__init__(autocast=False, name="mask_share")
        self.supports_masking = True
        self.built = True

    def call(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return ops.ones(()) if mask is None else ops.maximum(ops.mean(ops.cast(mask, "float32")), 1e-30)

    def compute_mask(self, x: Tensor, previous_mask: Tensor | None = None) -> None:
        return None
