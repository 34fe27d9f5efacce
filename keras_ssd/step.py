"""What is true while a training step, an evaluation or a `fit` runs: none of it is state that Keras should save."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


class TrainingStep(threading.local):
    """What `call` hands to `compute_loss`, to which Keras passes nothing but the outputs.

    Of each thread its own: `tf.distribute` runs the replicas of one step in several threads.

    Attributes:
        model: the model whose training step this thread runs.
        student_pass: the representation, and what the teachers branch off from.
    """

    model: Any = None
    student_pass: Any = None


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
