"""Repeat the rows of a batch, so that several teachers are run in one batch."""

import keras
from keras import ops

from keras_ssd._typing import Tensor


class RepeatForTeachers(keras.layers.Layer):
    """`(batch, ...)` to `(batch * teachers, ...)`, batch-major, with the mask and without a gradient.

    It is batch-major so that, under data parallelism, the rows of a sample stay on the device of the sample. It is a
    layer because Keras passes masks on through layers only.
    """

    def __init__(self, num_teachers: int) -> None:
        super().__init__(autocast=False, name="repeat_for_teachers")
        self.num_teachers = num_teachers
        self.supports_masking = True
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        return ops.repeat(ops.stop_gradient(x), self.num_teachers, axis=0)

    def compute_mask(self, x: Tensor, previous_mask: Tensor | None = None) -> Tensor | None:
        return None if previous_mask is None else ops.repeat(previous_mask, self.num_teachers, axis=0)
