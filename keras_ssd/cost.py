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
    """Return roughly the multiplications of one layer call for one sample, and one for each value that it returns.

    A kernel is applied at every position (of the output, where a convolution has strides), and attention multiplies
    each position with each other position.

    Args:
        step: the call.
    """
    layer = step.layer
    total = float(max((_size(x.shape[1:]) for x in step.outputs), default=1))
    if not isinstance(layer, keras.layers.Layer):
        return total
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    of_inputs, of_outputs = (
        max((_size(x.shape[2:] if channels_first else x.shape[1:-1]) for x in tensors), default=1)
        for tensors in (step.inputs, step.outputs)
    )
    # A transposed convolution applies its kernel at every position of the input, which has fewer than the output.
    positions = min(of_inputs, of_outputs) if hasattr(layer, "kernel_size") else max(of_inputs, of_outputs)
    looked_up: set[int] = set()
    for part in parts_of(layer):
        if isinstance(part, keras.layers.Embedding):
            looked_up.update(id(v) for v in part.weights)
        if isinstance(part, keras.layers.MultiHeadAttention) and part.built:
            total += 2 * of_inputs**2 * math.prod(part.query_dense.kernel.shape[1:])
    kernels = [v for v in layer.weights if len(v.shape) > 1 and id(v) not in looked_up]
    return total + positions * sum(math.prod(v.shape) for v in kernels)


def _size(shape: Sequence[Any]) -> float:
    return math.prod(_OPEN_LENGTH if n is None else n for n in shape)
