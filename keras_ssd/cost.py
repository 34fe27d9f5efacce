"""The cost of teachers in counted multiplications, and the part of each batch that keeps them cheap."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import keras

from keras_ssd.graph import Graph, Step
from keras_ssd.noise import parts_of
from keras_ssd.passes import StochasticPasses

_PASSES_OF_A_STEP = 3  # the forward passes that a training step costs: its own, and about two for the gradients
_BOUND = 0.25  # the largest cost of teachers, relative to a plain step, unless the user sets the fraction
_OPEN_LENGTH = 64  # replaces an unknown length, which is the same for teachers and student
_SMALLEST_FRACTION = 1 / 1024


class TeacherCost(NamedTuple):
    """The part of each batch that is distilled, and the teachers' multiplications relative to a plain step."""

    fraction: float
    relative: float


def teacher_cost(student: Graph, passes: StochasticPasses, num_teachers: int, fraction: float | None) -> TeacherCost:
    """Count the cost of teachers, on a given fraction or the largest of 1, 1/2, 1/4, ... that is within the bound."""
    steps = student.needed(student.outputs), passes.suffix, passes.prefix
    forward, suffix, prefix = (sum(map(multiplications, part)) for part in steps)
    if student.is_opaque and passes.suffix and passes.suffix[0].layer is student.model:
        forward = suffix = 1  # in calls of the whole model: its layers are unknown
    plain, repeated = _PASSES_OF_A_STEP * (forward or 1), num_teachers * suffix
    if fraction is None:
        fraction = 1.0
        while passes.takes_rows and fraction * repeated > _BOUND * plain and fraction > _SMALLEST_FRACTION:
            fraction /= 2
    return TeacherCost(fraction, fraction * (repeated + prefix) / plain)  # the prefix does not affect the choice


def multiplications(step: Step) -> float:
    """Return roughly the multiplications of a layer call for one sample, and one for each value that it returns."""
    layer, values = step.layer, _largest(step.outputs, slice(1, None))
    if not isinstance(layer, keras.layers.Layer):
        return values
    axes = slice(2, None) if getattr(layer, "data_format", None) == "channels_first" else slice(1, -1)
    positions = _largest(step.inputs, axes), _largest(step.outputs, axes)
    # A kernel is applied at each position of the smaller side: of the output with strides, of the input if transposed.
    applied = (min if hasattr(layer, "kernel_size") else max)(positions)
    parts = parts_of(layer)
    looked_up = {id(v) for part in parts if isinstance(part, keras.layers.Embedding) for v in part.weights}
    kernels = sum(math.prod(v.shape) for v in layer.weights if len(v.shape) > 1 and id(v) not in looked_up)
    attention = (part for part in parts if isinstance(part, keras.layers.MultiHeadAttention) and part.built)
    size = sum(math.prod(part.query_dense.kernel.shape[1:]) for part in attention)  # heads times their size
    return values + applied * kernels + 2 * positions[0] ** 2 * size


def _largest(tensors: Iterable[keras.KerasTensor], axes: slice) -> float:
    return max((float(math.prod(n or _OPEN_LENGTH for n in x.shape[axes])) for x in tensors), default=1.0)
