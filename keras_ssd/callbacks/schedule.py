"""A schedule for the weight of the distillation term."""

from collections.abc import Callable
from typing import Any

from keras_ssd._typing import Logs
from keras_ssd.callbacks._teacher_callback import TeacherCallback


class KDWeightSchedule(TeacherCallback):
    """Sets the weight of the distillation term at the beginning of every epoch.

    With a ramp from 0, teachers that move with the student ("self", "ema") teach only after they have learnt something.
    The logs show the weight as `kd_weight`; it keeps its last value after `fit`.

    Args:
        schedule: a callable that takes the epoch, counted from 0, and returns the weight, >= 0; for example a
            `keras.optimizers.schedules.LearningRateSchedule`, whose steps are then epochs.

    Raises:
        ValueError: if `schedule` is not callable or does not return a finite weight >= 0, or if the model was wrapped
            with kd_weight=0 or not at all.

    Example:
        >>> ramp = keras.optimizers.schedules.PolynomialDecay(0.0, decay_steps=20, end_learning_rate=0.1)
        >>> ssd.fit(x, y, epochs=100, callbacks=[keras_ssd.callbacks.KDWeightSchedule(ramp)])
    """

    def __init__(self, schedule: Callable[[int], Any]) -> None:
        super().__init__()
        if not callable(schedule):
            raise ValueError(
                "`schedule` should be a callable that takes the epoch, or one of keras.optimizers.schedules. Received: "
                f"schedule={schedule!r}"
            )
        self.schedule = schedule

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Set the weight of this epoch."""
        weight = self.schedule(epoch)
        try:
            self.model.kd_weight = float(weight)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`schedule` should return a finite weight that is not negative. Received: "
                f"{weight} for epoch {epoch} (counted from 0)"
            ) from error

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Add the weight to the logs."""
        if logs is not None:
            logs["kd_weight"] = self.model.kd_weight
