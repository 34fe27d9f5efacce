"""State of a running training step, evaluation or `fit`, which Keras should not save."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from keras_ssd import _backend


class TrainingStep(threading.local):
    """The values that `call` passes to `compute_loss`, because Keras passes only the outputs.

    Each thread has its own: `tf.distribute` runs the replicas of one step in several threads.

    Attributes:
        model: the model whose training step this thread runs.
        student_pass: the representation, and the values from which the teachers branch off.
    """

    model: Any = None
    student_pass: Any = None

    def take_student_pass(self) -> tuple[Any, Any]:
        """Return `student_pass` and delete it.

        Raises:
            RuntimeError: if there is none, in a custom `train_step`.
        """
        taken, self.student_pass = self.student_pass, None
        if taken is None:
            raise RuntimeError(
                "compute_loss() distils the outputs of the model call just before it: call the model once, with "
                "training=True, before each compute_loss() of a training step."
            )
        return taken


class Evaluation(threading.local):
    """The state of an evaluation in this thread, in which the logs hold no values of teachers."""

    is_running = False


@contextlib.contextmanager
def values_set(scope: Any, **values: Any) -> Iterator[None]:
    """Set attributes of a `TrainingStep` or `Evaluation` within the context."""
    before = {name: getattr(scope, name) for name in values}
    vars(scope).update(values)
    try:
        yield
    finally:
        vars(scope).update(before)


current_step, current_evaluation = TrainingStep(), Evaluation()


def as_training_step(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Let a `train_step`, also of a subclass, distil and update the average; an inner `train_step` is part of it."""

    @functools.wraps(train_step)
    def distilled(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current_step.model is self:
            return train_step(self, *args, **kwargs)
        with values_set(current_step, model=self, student_pass=None):
            result = train_step(self, *args, **kwargs)
        if self._averaging is not None:
            return _backend.after_train_step(self, result, self._averaging.update)
        return result

    return distilled


class FitState:
    """State of a running `fit`.

    Attributes:
        is_running: whether `fit` runs.
        teaches: whether training steps run the teachers.
        statistics: a metric that gets the teachers of every training step, or `None`.
        joined_dataset: the training data of `fit`, if `join_unlabelled` made it.
    """

    is_running = False
    teaches = True
    statistics: Any = None
    joined_dataset: Any = None


class Untracked:
    """Holds an object that Keras should not track as part of a model."""

    def __init__(self, content: Any) -> None:
        self.content = content
