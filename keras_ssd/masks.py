"""Keras masks of outputs and representations: how they are read, and means of unmasked elements."""

import math
from typing import Any

import keras
from keras import ops

from keras_ssd._typing import Tensor


def fitted(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a boolean mask of the shape of a tensor, from a mask of its first axes, `(batch, time)` for example.

    The result is `None` without a mask, or if its axes are not the first axes of `x`.
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


def without_masked(x: Tensor, mask: Tensor) -> Tensor:
    """Return a tensor with zeros at its masked elements; the mask may have axes of size 1."""
    return ops.where(mask, x, ops.zeros_like(x))


def masked_mean(x: Tensor, mask: Tensor | None, axis: int) -> Tensor:
    """Return the mean over the elements that a mask keeps, 0 if it keeps none."""
    if mask is None:
        return ops.mean(x, axis=axis)
    count = ops.sum(ops.cast(mask, x.dtype), axis=axis)
    return ops.sum(without_masked(x, mask), axis=axis) / ops.maximum(count, 1.0)


def merge_axes(x: Tensor, start: int, stop: int | None = None) -> Tensor:
    """Merge the axes of a tensor from `start` to before `stop` into one, an axis of size 1 if there are none."""
    shape = ops.shape(x)
    stop = len(shape) if stop is None else stop
    return ops.reshape(x, (*shape[:start], math.prod(shape[start:stop]), *shape[stop:]))


class MaskLayer(keras.layers.Layer):
    """A layer without state, because Keras gives masks to layers only.

    An instance is shared by all models: no model tracks it, and `keras.RematScope` does not apply to it.
    """

    def __init__(self) -> None:
        # TensorFlow opens a scope with the name, which must not begin with an underscore.
        super().__init__(autocast=False, dtype="float32", name=type(self).__name__.strip("_"))
        self.supports_masking = True
        self.built = True


class _MaskOf(MaskLayer):
    """Returns the Keras mask of a layer's output, `None` if it has none."""

    def call(self, x: Tensor, mask: Tensor | None = None) -> Tensor | None:
        return mask

    def compute_mask(self, x: Tensor, previous_mask: Any = None) -> None:
        return None


class _FlattenFeatures(MaskLayer):
    """Returns the features of each sample, `(batch, features)`, with a mask of the same shape if there is a mask."""

    def call(self, x: Tensor) -> Tensor:
        return merge_axes(x, 1)

    def compute_mask(self, x: Tensor, previous_mask: Any = None) -> Tensor | None:
        mask = fitted(previous_mask, x)
        return None if mask is None else merge_axes(mask, 1)


mask_of, flatten_features = _MaskOf(), _FlattenFeatures()
