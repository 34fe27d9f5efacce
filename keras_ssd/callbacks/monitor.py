"""Statistics of the teachers in the logs, and warnings of a collapse."""

import math
import warnings

from keras_ssd._backend import variable_scope
from keras_ssd._typing import Logs
from keras_ssd.callbacks._teacher_callback import TeacherCallback
from keras_ssd.callbacks.statistics import TeacherStatistics
from keras_ssd.settings import check_integer, check_number


class TeacherMonitor(TeacherCallback):
    """Adds statistics of the teachers to the logs, and warns once if the teachers collapse.

    The statistics come from the teachers of the training batches, so they need no additional pass;
    `keras_ssd.callbacks.statistics.teacher_statistics` defines them. They are Keras metrics while `fit` runs, so
    History, CSVLogger, TensorBoard and the progress bar show them, and they are absent from validation. In epochs that
    are not measured, or that have no teachers, they are NaN. `teacher_disagreement` exists for classification, if the
    teachers are run up to the outputs. `kd_fraction` and `teacher_cost` are the values of `SSDModel.teacher_cost`.

    Args:
        every: number of epochs from one measured epoch to the next, starting with the first. Defaults to `1`.
        norm_factor: warn when the norm of the representation exceeds this multiple of the first measured norm, > 1.
            Defaults to `10.0`.

    Raises:
        ValueError: if an argument is out of range, or the model does not distil.

    Example:
        >>> history = ssd.fit(x, y, epochs=20, callbacks=[keras_ssd.callbacks.TeacherMonitor()])
        >>> history.history["teacher_spread"]
    """

    def __init__(self, every: int = 1, norm_factor: float = 10.0) -> None:
        super().__init__()
        check_integer("every", every, 1)
        check_number("norm_factor", norm_factor, "(1, inf)")
        self.every = every
        self.norm_factor = norm_factor
        self._first_norm: float | None = None
        self._warned: set[str] = set()

    def on_train_begin(self, logs: Logs = None) -> None:
        """Attach the metric; `SSDModel.fit` detaches it, after an exception as well."""
        self._first_norm = None
        self._warned = set()
        has_votes = self.model.distillation.classifies
        known = (kind.statistics for kind in self.model._fit_state.train_functions)
        # One metric for all trainings: with another one the step would be compiled again.
        statistics = next((metric for metric in known if metric and metric.has_votes == has_votes), None)
        if statistics is None:
            with variable_scope(self.model):
                statistics = TeacherStatistics(has_votes)
        self.model._set_step_kind(statistics=statistics)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Measure this epoch, if it is due."""
        if epoch % self.every == 0:
            statistics = self.model._fit_state.kind.statistics
            if statistics is not None:
                statistics.activate()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Add the cost of the teachers to the logs, and warn of a collapse."""
        logs = {} if logs is None else logs
        logs["kd_fraction"], logs["teacher_cost"] = self.model.teacher_cost
        statistics = {name: float(logs[name]) for name in TeacherStatistics.names if name in logs}
        # Weights are finite by construction, so NaN here means that nothing was measured.
        if math.isnan(statistics.get("effective_teachers", math.nan)):
            return
        norm = statistics["representation_norm"]
        if not all(map(math.isfinite, statistics.values())):
            wrong = [name for name, value in statistics.items() if not math.isfinite(value)]
            self._warn(
                "values",
                f"In epoch {epoch + 1} the student or its teachers are not finite: {wrong}. Lower the learning rate or "
                "clip gradients (`clipnorm`), and add keras.callbacks.TerminateOnNaN.",
            )
        elif self._first_norm is None:
            self._first_norm = norm
        elif norm > self.norm_factor * self._first_norm:
            self._warn(
                "norm",
                f"The norm of the representation has run away, from {self._first_norm:.3g} to {norm:.3g} in epoch "
                f'{epoch + 1}. Distil outputs (distill="outputs", similarity="kl"), or use similarity="uniform" or '
                '"cosine", a frozen teacher (teacher="snapshot") or a smaller kd_weight.',
            )
        # Rounding leaves a tiny spread if the teachers are equal.
        if self.model.settings.num_teachers > 1 and statistics["teacher_spread"] < 1e-6:
            self._warn(
                "spread",
                f"All teachers are identical (spread 0 in epoch {epoch + 1}): their noise is off, or the units after "
                "it are dead. Check the rates of the noise layers and `dropout_rate`, and choose a `representation` "
                "after an active noise layer.",
            )

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, stacklevel=2)
