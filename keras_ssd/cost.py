"""The cost of teachers in counted multiplications, and the part of each batch that keeps them cheap."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from keras_ssd.graph import Graph, Step
from keras_ssd.noise import parts_of
from keras_ssd.passes import StochasticPasses

# A training step is about three forward passes: the student's own, and two for the gradients.
_PASSES_OF_A_STEP = 3
# The largest cost of teachers, relative to a plain step, unless the user sets the fraction.
_BOUND = 0.25
# Replaces an unknown length, which is the same for teachers and student.
_OPEN_LENGTH = 64
_SMALLEST_FRACTION = 1 / 1024


class TeacherCost(NamedTuple):
    """The cost of the teachers of a training step.

    Attributes:
        fraction: the part of each batch on which the distillation term is computed.
        relative: the counted multiplications of the teachers, divided by those of a plain training step.
    """

    fraction: float
    relative: float


def teacher_cost(
    student: Graph, passes: StochasticPasses, num_teachers: int, fraction: float | None = None
) -> TeacherCost:
    """Count the cost of the teachers, for a given fraction or the largest fraction that keeps them cheap.

    Args:
        student: the student's `Graph`.
        passes: the teachers' passes.
        num_teachers: N.
        fraction: the part of each batch. Defaults to `None`: the largest of 1, 1/2, 1/4, ... for which the stochastic
            passes stay below a quarter of a plain training step (three forward passes). Teachers with their own
            weights also run the layers before the noise once, at most one forward pass. This is counted, but it does
            not affect the choice.
    """
    plain = _PASSES_OF_A_STEP * (_count(student.needed(student.outputs)) or 1)
    repeated, once = num_teachers * _count(passes.suffix), _count(passes.prefix)
    if student.is_opaque and passes.suffix and passes.suffix[0].layer is student.model:
        plain, repeated = _PASSES_OF_A_STEP, num_teachers  # in calls of the whole model: its layers are unknown
    if fraction is None:
        fraction = 1.0
        if passes.takes_rows:
            while fraction * repeated > _BOUND * plain and fraction > _SMALLEST_FRACTION:
                fraction /= 2
    return TeacherCost(fraction, fraction * (repeated + once) / plain)


def _count(steps: Sequence[Step]) -> float:
    return sum(multiplications(step) for step in steps)


def multiplications(step: Step) -> float:
    """Return roughly the multiplications of one layer call for one sample: those with weights and those of attention.

    Args:
        step: the call.
    """
    layer = step.layer
    put_out = max((_size(x) for x in step.outputs), default=1)
    if not isinstance(layer, keras.layers.Layer):
        return put_out
    total = float(put_out)
    for part in parts_of(layer):
        kernels = [v for v in _own_weights(part) if len(v.shape) > 1]
        if isinstance(part, keras.layers.Embedding):
            continue
        if isinstance(part, keras.layers.MultiHeadAttention):
            length = max((_positions(x) for x in step.inputs), default=1)
            width = math.prod(part.query_dense.kernel.shape[1:]) if part.built and hasattr(part, "query_dense") else 1
            total += 2 * length * length * width
        for kernel in kernels:
            total += math.prod(kernel.shape) * _times(part, kernel, step)
    return total


def _own_weights(part: Any) -> list[Any]:
    inner = {id(v) for other in parts_of(part) if other is not part for v in other.weights}
    return [v for v in part.weights if id(v) not in inner]


def _times(part: Any, kernel: Any, step: Step) -> float:
    """Return the number of positions at which a kernel is applied."""
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    if isinstance(part, depthwise):
        features = math.prod(kernel.shape[-2:])
        return max(_size(x) for x in step.outputs) / features
    if part is step.layer and hasattr(part, "kernel_size") and len(step.outputs) == 1:
        transposed = (
            keras.layers.Conv1DTranspose,
            keras.layers.Conv2DTranspose,
            keras.layers.Conv3DTranspose,
        )
        if isinstance(part, transposed):
            return max(_size(x) for x in step.inputs) / kernel.shape[-1]
        return _size(step.outputs[0]) / kernel.shape[-1]
    if isinstance(step.layer, (keras.layers.RNN, keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)):
        return max((_length(x) for x in step.inputs), default=1)
    if isinstance(step.layer, (keras.layers.Bidirectional, keras.layers.TimeDistributed)):
        return max((_length(x) for x in step.inputs), default=1)
    return max((_positions(x) for x in (*step.inputs, *step.outputs)), default=1)


def _size(x: Any) -> float:
    return math.prod(_OPEN_LENGTH if n is None else n for n in x.shape[1:])


def _length(x: Any) -> float:
    return _size(x) / _size_behind(x, 2) if len(x.shape) > 2 else 1


def _positions(x: Any) -> float:
    return math.prod(_OPEN_LENGTH if n is None else n for n in x.shape[1:-1])


def _size_behind(x: Any, axis: int) -> float:
    return math.prod(_OPEN_LENGTH if n is None else n for n in x.shape[axis:]) or 1
