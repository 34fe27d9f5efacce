"""Keras masks of outputs and representations: how they are read, and means of unmasked elements."""

import math
from typing import Any

import keras
from keras import ops

from keras_ssd._typing import Tensor


def mask_of(x: Tensor) -> Tensor | None:
    """Return the Keras mask of a layer's output, `None` if it has none."""
    return _read_mask(x)


def fitted(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a mask with an element for each element of a tensor.

    Args:
        mask: boolean tensor of the first axes of `x`, `(batch, time)` for example, or `None`.
        x: `(batch, ...)`.

    Returns:
        Boolean tensor of the shape of `x`; `None` without a mask, or if its axes are not the first axes of `x`.
    """
    if mask is None:
        return None
    rank = len(x.shape)
    while len(mask.shape) > rank and mask.shape[-1] == 1:
        mask = ops.squeeze(mask, axis=-1)
    sizes = list(zip(mask.shape, x.shape, strict=False))
    if len(mask.shape) > rank or any(a != b and None not in (a, b) and a != 1 for a, b in sizes):
        return None
    for _ in range(rank - len(mask.shape)):
        mask = ops.expand_dims(mask, -1)
    return ops.logical_and(ops.cast(mask, "bool"), ops.ones_like(x, dtype="bool"))


def without_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return a tensor with zeros at its masked elements; the mask may have axes of size 1."""
    return x if mask is None else ops.where(mask, x, ops.zeros_like(x))


def masked_mean(x: Tensor, mask: Tensor | None, axis: int) -> Tensor:
    """Return the mean over the elements that a mask keeps, 0 if it keeps none."""
    if mask is None:
        return ops.mean(x, axis=axis)
    count = ops.sum(ops.cast(mask, x.dtype), axis=axis)
    return ops.sum(without_masked(x, mask), axis=axis) / ops.maximum(count, 1.0)


def kept_share(mask: Tensor) -> Tensor:
    """Return the share of the elements that a mask keeps, as a scalar above 0."""
    mask = ops.cast(mask, "float32")
    size = ops.cast(math.prod(ops.shape(mask)), "float32")
    return ops.maximum(ops.sum(mask) / ops.maximum(size, 1.0), 1e-30)


def merge_axes(x: Tensor, start: int, stop: int | None = None) -> Tensor:
    """Merge the axes of a tensor from `start` to before `stop` into one, an axis of size 1 if there are none."""
    shape = ops.shape(x)
    stop = len(shape) if stop is None else stop
    return ops.reshape(x, (*shape[:start], math.prod(shape[start:stop]), *shape[stop:]))


def flatten_features(x: Tensor) -> Tensor:
    """Return the features of each sample, `(batch, features)`, with a mask of the same shape if `x` has a mask."""
    return _flatten_features(x)


class _MaskLayer(keras.layers.Layer):
    """A layer without state. Keras gives masks to layers only."""

    def __init__(self, name: str) -> None:
        super().__init__(autocast=False, dtype="float32", name=name)
        self.supports_masking = True
        self.built = True


class _ReadMask(_MaskLayer):
    def call(self, x: Tensor, mask: Tensor | None = None) -> Tensor | None:
        return mask

    def compute_mask(self, x: Tensor, previous_mask: Any = None) -> None:
        return None


class _FlattenFeatures(_MaskLayer):
    def call(self, x: Tensor) -> Tensor:
        return merge_axes(x, 1)

    def compute_mask(self, x: Tensor, previous_mask: Any = None) -> Tensor | None:
        mask = fitted(previous_mask, x)
        return None if mask is None else merge_axes(mask, 1)


# Shared by all models: no model tracks them, and `keras.RematScope` does not apply to them.
_read_mask, _flatten_features = _ReadMask("read_mask"), _FlattenFeatures("flatten_features")
