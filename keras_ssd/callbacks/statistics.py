"""Statistics of the teachers of a batch: a pure function, and the metric that averages it over an epoch."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd._backend import is_concrete, wide
from keras_ssd._typing import Tensor
from keras_ssd.outputs import Output


class TeacherStatistics(keras.metrics.Metric):
    """Means of `teacher_statistics` over the batches of an epoch. `TeacherMonitor` makes and uses it.

    It computes nothing, and its result is NaN, until `activate` is called; every `reset_state` deactivates it.

    Args:
        has_votes: whether the model has classifications, for which the teachers' disagreement is computed.

    Attributes:
        names: the names of the statistics, which are the keys of the result.
    """

    names: tuple[str, ...] = (
        "teacher_spread",
        "effective_teachers",
        "teachers_kept",
        "target_similarity",
        "representation_norm",
        "teacher_disagreement",
    )

    def __init__(self, has_votes: bool, name: str = "teacher_statistics", **kwargs: Any) -> None:
        super().__init__(name=name, dtype="float32", **kwargs)
        self.has_votes = has_votes
        if not has_votes:
            self.names = self.names[:-1]
        self.total = self.add_variable((len(self.names),), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")
        self.active = self.add_variable((), "zeros", name="active")

    def activate(self) -> None:
        """Compute the statistics until the next `reset_state`."""
        self.active.assign(np.ones((), "float32"))

    def update_state(
        self,
        weights: Tensor,
        student: Tensor,
        teachers: Tensor,
        predictions: Sequence[tuple[Output, Tensor, Tensor | None]] = (),
    ) -> None:
        """Add a batch; for the arguments see `teacher_statistics`."""
        predictions = [item for item in predictions if item[0].kind != "regression"]
        n_samples = ops.cast(ops.shape(student)[0], "float32")

        def compute() -> Tensor:
            statistics = teacher_statistics(weights, student, teachers, predictions)
            return ops.stack([statistics[name] for name in self.names]) * n_samples

        is_active = self.active.value > 0
        total = ops.cond(is_active, compute, lambda: ops.zeros((len(self.names),)))
        self.total.assign(self.total.value + total)
        self.count.assign(self.count.value + ops.where(is_active, n_samples, 0.0))

    def result(self) -> dict[str, Tensor]:
        """Return a dict of the means; if there was no batch NaN, or 0 while a step is traced.

        A traced NaN would stop every step under `jax_debug_nans`.
        """
        count = ops.maximum(self.count.value, 1.0)
        if is_concrete(count) and not bool(ops.any(self.count.value > 0)):
            return dict.fromkeys(self.names, float("nan"))
        means = self.total.value / count
        return {name: means[index] for index, name in enumerate(self.names)}


def teacher_statistics(
    weights: Tensor,
    student: Tensor,
    teachers: Tensor,
    predictions: Sequence[tuple[Output, Tensor, Tensor | None]] = (),
) -> dict[str, Tensor]:
    r"""Describe the teachers of one batch by a few numbers, averaged over the samples.

    | statistic | for one sample |
    |---|---|
    | `teacher_spread` | `sqrt(sum_d var_i f_T[i, d] / mean_i \|f_T[i]\|^2)`: 0 if the teachers are equal, at most 1 |
    | `effective_teachers` | `exp(-sum_i a[i] log a[i])`, between 1 and N, after the percentile |
    | `teachers_kept` | share of the teachers whose weight is not 0 |
    | `target_similarity` | cosine of the student and the target `sum_i a[i] f_T[i]` |
    | `representation_norm` | `\|f_S\|` |
    | `teacher_disagreement` | share of the teachers whose prediction differs from that of the majority |

    Args:
        weights: `(batch, teachers)`, the guidance weights `a`.
        student: `(batch, features)`, `f_S`.
        teachers: `(batch, teachers, features)`, `f_T`.
        predictions: list of `(Output, teachers' output (batch, teachers, ...), Keras mask or None)` of classifications;
            without it, there is no `teacher_disagreement`.

    Returns:
        A dict of scalar tensors without a gradient, 0 for an empty batch. A statistic is not finite if the student or a
        teacher is not.

    Example:
        >>> teacher_statistics([[0.5, 0.5]], [[2.0]], [[[1.0], [3.0]]])["teacher_spread"]  # sqrt(1) / sqrt(5) = 0.447
    """
    weights, student, teachers = (ops.stop_gradient(wide(x)) for x in (weights, student, teachers))
    tiny = keras.config.epsilon() ** 2
    variance = ops.sum(ops.mean(ops.square(teachers - ops.mean(teachers, axis=1, keepdims=True)), axis=1), axis=-1)
    power = ops.mean(ops.sum(ops.square(teachers), axis=-1), axis=1)
    entropy = -ops.sum(weights * ops.log(ops.maximum(weights, 1e-30)), axis=-1)
    # Not `guided_target`, which hides teachers that are not finite.
    target = ops.sum(ops.expand_dims(weights, -1) * teachers, axis=1)
    norm, target_norm = ops.norm(student, axis=-1), ops.norm(target, axis=-1)
    statistics = {
        "teacher_spread": ops.sqrt(variance / ops.maximum(power, tiny)),
        "effective_teachers": ops.exp(entropy),
        "teachers_kept": ops.mean(ops.cast(weights > 0, weights.dtype), axis=-1),
        "target_similarity": ops.sum(student * target, axis=-1) / ops.maximum(norm * target_norm, tiny),
        "representation_norm": norm,
    }
    if predictions:
        shares = [output.disagreement(ops.stop_gradient(wide(x)), mask) for output, x, mask in predictions]
        statistics["teacher_disagreement"] = sum(shares) / len(shares)
    n_samples = ops.maximum(ops.cast(ops.shape(student)[0], "float32"), 1.0)
    return {name: ops.sum(value) / n_samples for name, value in statistics.items()}
