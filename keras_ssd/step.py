"""State of a running training step and of a running `fit`, which Keras should not save."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import tree

from keras_ssd import _backend


class StudentPass(NamedTuple):
    """Results of the student's forward pass for the distillation term of the same step.

    Attributes:
        outputs: the student's outputs, structured as the model's.
        representation: `(batch, features)`, or `None`.
        cut_values: the values at the cut, from which the teachers start.
    """

    outputs: Any
    representation: Any
    cut_values: Any


@dataclasses.dataclass(eq=False)
class StepState:
    """The state of the training step that runs in this thread.

    `tf.distribute` runs the replicas of a step in several threads, so TensorFlow has a state for each thread. Elsewhere
    the state is a plain object, which `torch.compile` can follow.
    """

    is_running: bool = False
    is_custom: bool = False  # whether the step belongs to a custom loop
    student_pass: StudentPass | None = None  # of the last call, until `take` returns it

    def take(self, y_pred: Any) -> StudentPass:
        """Return the pass that made `y_pred`, and forget it.

        Raises:
            RuntimeError: if the last call of the model in this step made other outputs, or there was none.
        """
        taken, self.student_pass = self.student_pass, None
        if taken is None:
            raise RuntimeError(
                "compute_loss() found no forward pass to distil: call the model exactly once, with training=True, "
                "before each compute_loss() of a training step."
            )
        if tree.flatten(taken.outputs)[0] is not tree.flatten(y_pred)[0]:
            raise RuntimeError(
                "compute_loss() received outputs of another call than the last: the model was called more than once "
                "with training=True in this training step, or its outputs were changed. Call the wrapped model once "
                "before each compute_loss(), and `self.student(x, training=True)` for further passes."
            )
        return taken


def as_training_step(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Let a `train_step`, also of a subclass, distil and update the average; an inner `train_step` is part of it."""

    @functools.wraps(train_step)
    def distilled(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = self._step
        if state.is_running:
            return train_step(self, *args, **kwargs)
        state.is_running = True
        try:
            result = train_step(self, *args, **kwargs)
        finally:
            state.is_running, state.student_pass = False, None
        if self.average is not None:
            return _backend.after_train_step(self, result, self.average.update)
        return result

    return distilled


class StepKind(NamedTuple):
    """What training steps do.

    Attributes:
        teaches: whether the teachers run. If not, steps equal those of the plain model, bit for bit.
        statistics: a metric that gets the teachers of every step, or `None`.
    """

    teaches: bool = True
    statistics: Any = None


@dataclasses.dataclass(eq=False)
class FitState:
    """State of a running `fit` or evaluation."""

    is_running: bool = False  # whether `fit` runs
    is_evaluating: bool = False  # then logs hold no values of teachers
    kind: StepKind = StepKind()  # of the training steps
    train_functions: dict[StepKind, Any] = dataclasses.field(default_factory=dict)  # compiled for the other kinds
    joined_dataset: Any = None  # the training data of `fit`, if `join_unlabelled` made it
