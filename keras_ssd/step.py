"""What is true while a training step, an evaluation or a `fit` runs: none of it is state that Keras should save."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from keras_ssd import _backend


class TrainingStep(threading.local):
    """What `call` hands to `compute_loss`, to which Keras passes nothing but the outputs.

    Of each thread its own: `tf.distribute` runs the replicas of one step in several threads.

    Attributes:
        model: the model whose training step this thread runs.
        student_pass: the representation, and what the teachers branch off from.
    """

    model: Any = None
    student_pass: Any = None

    def take_student_pass(self) -> tuple[Any, Any]:
        """Return `student_pass` and forget it.

        Raises:
            RuntimeError: if there is none, in a `train_step` of the user's own.
        """
        taken, self.student_pass = self.student_pass, None
        if taken is None:
            raise RuntimeError(
                "compute_loss() distils what the model put out just before: call the model once, with training=True, "
                "before each compute_loss() of a training step."
            )
        return taken


class Evaluation(threading.local):
    """Whether this thread evaluates, so that logs hold nothing of teachers."""

    is_running = False


@contextlib.contextmanager
def values_set(scope: Any, **values: Any) -> Iterator[None]:
    """Set attributes of a `TrainingStep` or `Evaluation` while the context lasts."""
    before = {name: getattr(scope, name) for name in values}
    vars(scope).update(values)
    try:
        yield
    finally:
        vars(scope).update(before)


current_step, current_evaluation = TrainingStep(), Evaluation()


def as_training_step(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Let a `train_step`, that of a subclass, too, distil and feed the average; one that it calls is a part of it."""

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
    """What is true for the length of a `fit`.

    Attributes:
        is_running: whether `fit` runs.
        teaches: whether training steps run the teachers.
        statistics: a metric that is shown the teachers of every training step, or `None`.
        joined_dataset: what `fit` trains on, if `join_unlabelled` made it.
    """

    is_running = False
    teaches = True
    statistics: Any = None
    joined_dataset: Any = None


class Untracked:
    """Holds what Keras should not take for a part of a model."""

    def __init__(self, content: Any) -> None:
        self.content = content
