"""The passes of one distilled step: the only test code that accesses the internals of the training step."""

import typing

import keras
import numpy as np
from keras import ops

from same_weights import arrays


class StepPasses(typing.NamedTuple):
    """What student and teachers give in one step, as NumPy arrays; representations are `None` where none is needed.

    Attributes:
        outputs: list of the student's outputs, `(batch, ...)`.
        representation: the student's, `(batch, features)`.
        teacher_outputs: list of the teachers' outputs, `(batch, teachers, ...)`.
        teacher_representation: the teachers', `(batch, teachers, features)`.
    """

    outputs: list
    representation: np.ndarray | None
    teacher_outputs: list
    teacher_representation: np.ndarray | None


def run_passes(ssd, x):
    """The passes of a step on `x`, which move generators and statistics as a step does."""
    average = ssd.average.values(is_training=False) if ssd.settings.kind == "ema" else ()
    student_pass = ssd.distillation.student_pass(keras.tree.map_structure(ops.convert_to_tensor, x))
    step = ssd.distillation.run_teachers(student_pass, average)
    teacher_outputs, teacher_representation = step.teacher_outputs, step.teacher_representations

    def array(tensor):
        return None if tensor is None else ops.convert_to_numpy(tensor)

    return StepPasses(
        arrays(step.outputs), array(student_pass.representation), arrays(teacher_outputs), array(teacher_representation)
    )


def passes(ssd, x):
    """The passes of a step on `x`, with no state changed."""
    with keras.StatelessScope([(v, v.value) for v in ssd.variables]):
        return run_passes(ssd, x)
