"""The distillation term on a part of each batch: how rows are drawn and taken."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.masks import MaskLayer, mask_of


def draw_rows(batch: Any, fraction: float, seed_generator: keras.random.SeedGenerator) -> Tensor:
    """Draw rows of a batch, evenly spaced from a random start: `(start + floor(j * batch / count)) mod batch`.

    Each row is drawn with the same probability `count / batch`, so that a mean over the drawn rows is, in expectation,
    the mean over the batch (circular systematic sampling). If several devices share the batch, every device draws the
    same number of its own rows; nothing is communicated.

    Args:
        batch: the batch size, a number or a tensor.
        fraction: the part of the rows, in (0, 1]; at least one row is drawn, on each of several devices, but none from
            an empty batch.
        seed_generator: generator from which the start is drawn.

    Returns:
        Integers `(groups, rows of a group)`: the batch consists of groups of equal size, and the rows lie at the same
        places in each group.
    """
    share = keras.random.uniform((), seed=seed_generator)
    return spaced_rows(ops.cast(ops.floor(share * ops.cast(batch, "float32")), "int32"), batch, fraction)


def spaced_rows(start: Tensor, batch: Any, fraction: float) -> Tensor:
    """Return the rows that `draw_rows` draws with a given start, an integer tensor `()`."""
    if not isinstance(batch, int):
        # In 64 bits, because the products exceed 32 bits from 46,341 rows on.
        start, batch = ops.cast(start, "int64"), ops.cast(batch, "int64")
        count = ops.cast(ops.floor(fraction * ops.cast(batch, "float32")), "int64")
        count = ops.minimum(ops.maximum(count, 1), batch)
        steps = ops.arange(count, dtype="int64") * batch // ops.maximum(count, 1)
        return ops.cast((start + steps) % ops.maximum(batch, 1), "int32")[None]
    devices = _backend.devices_of_a_batch()
    devices = devices if batch % devices == 0 else 1
    count = min(devices * max(1, int(fraction * (batch // devices))), batch)
    if count == 0:
        return ops.zeros((1, 0), dtype="int32")
    # If every k-th row is drawn, one row is taken from each group of k; otherwise each device has one group.
    groups = count if batch % count == 0 else devices
    size, count = batch // groups, count // groups
    steps = ops.convert_to_tensor((np.arange(count) * size // count).astype("int32"))
    first = ops.convert_to_tensor((np.arange(groups) * size).astype("int32"))
    return first[:, None] + ((start + steps) % size)[None]


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return the drawn rows (the result of `draw_rows`) of a tensor `(batch, ...)`."""
    (groups, count), shape = ops.shape(rows), ops.shape(x)
    # Rows are taken along an axis that is not split over devices: otherwise XLA would sum the parts of all devices.
    grouped = ops.reshape(x, (groups, shape[0] // groups, *shape[1:]))
    return ops.reshape(ops.take(grouped, rows[0], axis=1), (groups * count, *shape[1:]))


def take(structure: Any, rows: Tensor) -> Any:
    """Return the drawn rows of each tensor in a structure, with its mask.

    `None`, scalars and tensors of one row, which broadcast, are returned as they are.
    """

    def taken(x: Any) -> Any:
        shape: Any = getattr(x, "shape", ())
        return x if len(shape) == 0 or shape[0] == 1 else _take_rows([x, rows])

    return tree.map_structure(taken, structure)


def mask_scales(whole: Sequence[Tensor], taken: Sequence[Tensor]) -> list[Tensor | None]:
    """Return factors for the losses of the drawn rows of outputs, `None` for outputs without a mask.

    They correct masked means, because the drawn rows may contain more or fewer unmasked values than the batch.
    """

    def kept_share(mask: Tensor) -> Tensor:
        size = ops.cast(math.prod(ops.shape(mask)), "float32")
        return ops.maximum(ops.sum(ops.cast(mask, "float32")) / ops.maximum(size, 1.0), 1e-30)

    masks = [(mask_of(x), mask_of(part)) for x, part in zip(whole, taken, strict=True)]
    return [None if mask is None else kept_share(part) / kept_share(mask) for mask, part in masks]


class _TakeRows(MaskLayer):
    """`take_rows` with its mask. The rows are part of the first argument, because `compute_mask` gets no other."""

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        return take_rows(*inputs)

    def compute_mask(self, inputs: Sequence[Tensor], previous_mask: Any = None) -> Tensor | None:
        mask = None if previous_mask is None else previous_mask[0]
        return None if mask is None else take_rows(mask, inputs[1])


_take_rows = _TakeRows()
