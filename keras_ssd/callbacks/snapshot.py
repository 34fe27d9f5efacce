"""The paper's pipeline in a single `fit`: plain training, then distillation from the best weights."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd._backend import variable_scope
from keras_ssd._typing import Logs
from keras_ssd.callbacks._teacher_callback import TeacherCallback
from keras_ssd.copies import arrays, assign, copied_variables
from keras_ssd.keras_names import constant_learning_rate
from keras_ssd.settings import check_integer, check_number

# Parts of the names of metrics that fall or rise: "loss", "val_auc", "val_mean_absolute_error", ...
_FALLING = ("loss", "error", "mse", "mae", "mape", "msle", "entropy", "divergence", "hinge", "poisson", "false_")
_RISING = ("acc", "auc", "precision", "recall", "f1", "iou", "io_u", "score", "r2", "similarity", "sensitiv", "true_")


class TeacherSnapshot(TeacherCallback):
    """Trains plainly, then distils from the best weights: the paper's pipeline in a single `fit`.

    For models wrapped with `teacher="snapshot"`. The run begins as plain training, bit for bit equal to training the
    user's model, and no teacher is run (`kd_loss` is 0 in the logs). When the monitored value has stopped improving, or
    at `at_epoch`, teacher and student get the best weights, the optimizer is reset, and the remaining epochs distil.
    The training step is compiled once for each of the two stages.

    The switch happens at the end of an epoch, in the order of the list of callbacks. Put `TeacherSnapshot` before
    `BackupAndRestore` and `ModelCheckpoint`, so that they store the switched model. `BackupAndRestore` restores the
    stage, but neither the best weights so far nor the number of epochs waited: both start again after a kill. With
    `at_epoch` and `restore_best_weights=False` nothing is lost.

    `EarlyStopping` and `ReduceLROnPlateau` keep counting across the switch unless they are named in `restart`. Give
    `EarlyStopping` more patience than this callback: otherwise it ends the run before there is a teacher.

    Args:
        monitor: name of the value in the logs. Defaults to `"val_loss"`.
        patience: number of epochs without improvement after which the snapshot is taken. Defaults to `10`.
        mode: `"min"`, `"max"`, or `"auto"`, which decides by the name. Defaults to `"auto"`.
        min_delta: smallest change that counts as an improvement, >= 0. Defaults to `0.0`.
        restore_best_weights: whether the snapshot holds the best weights or the last weights: of a model that averages
            its weights (`ema_momentum`), the validated average. Defaults to `True`.
        start_from_epoch: number of epochs to ignore at the beginning. Defaults to `0`.
        at_epoch: number of plain epochs, at least 1, which replaces `patience`. Each generation takes the same number.
            Defaults to `None`.
        generations: K, the number of snapshots: the best student of a generation becomes the teacher of the next
            (born-again networks). Defaults to `1`.
        learning_rate: learning rate of the distilling stages. Defaults to `None`: that at the beginning of `fit`.
        restart: callbacks of the same `fit` that restart with every snapshot; their `on_train_begin` is called.
            Defaults to none.
        verbose: whether to print when a snapshot is taken. Defaults to `0`.

    Attributes:
        generation: number of snapshots taken; 0 is the plain stage.
        snapshot_epochs: the epochs after which snapshots were taken, counted from 0.
        best: the best value of this generation.
        best_epoch: its epoch.

    Raises:
        ValueError: if an argument is out of range, the model is not wrapped with `teacher="snapshot"`, or the logs do
            not hold the monitored value.

    Example:
        >>> ssd = keras_ssd.wrap(model, teacher="snapshot")
        >>> snapshot = keras_ssd.callbacks.TeacherSnapshot(patience=10)
        >>> ssd.fit(x, y, validation_split=0.2, epochs=200, callbacks=[snapshot])
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        mode: str = "auto",
        min_delta: float = 0.0,
        restore_best_weights: bool = True,
        start_from_epoch: int = 0,
        at_epoch: int | None = None,
        generations: int = 1,
        learning_rate: float | None = None,
        restart: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] = (),
        verbose: int | str = 0,
    ) -> None:
        super().__init__()
        if not isinstance(monitor, str):
            raise ValueError(f"`monitor` should be a name in the logs. Received: monitor={monitor!r}")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f'`mode` should be "auto", "min" or "max". Received: mode={mode!r}')
        check_integer("patience", patience, 0)
        check_integer("start_from_epoch", start_from_epoch, 0)
        check_integer("generations", generations, 1)
        check_integer("at_epoch", at_epoch, 1, ", or None for `patience`", optional=True)
        check_number("min_delta", min_delta, "[0, inf)")
        at_start = ", or None for the rate at the beginning of `fit`"
        check_number("learning_rate", learning_rate, "(0, inf)", at_start, optional=True)
        restart = keras.tree.flatten(restart)
        for item in restart:
            if not isinstance(item, keras.callbacks.Callback):
                raise ValueError(f"`restart` should hold callbacks of the same fit. Received: {item!r}")
        self.monitor = monitor
        self.patience = patience
        self.mode = mode
        self.min_delta = min_delta
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.at_epoch = at_epoch
        self.generations = generations
        self.learning_rate = learning_rate
        self.restart = restart
        self.verbose = verbose
        self._is_tracking = at_epoch is None or restore_best_weights
        self._rises = self._is_tracking and _direction(monitor, mode) == "max"
        self._start_rate: float | None = None
        self._forget()

    def _forget(self) -> None:
        self.generation = 0
        self.snapshot_epochs: list[int] = []
        self._stage_is_known = False
        self._was_seen = False
        self._begin_generation()

    def _begin_generation(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.wait = 0
        self._best_weights: list[np.ndarray] | None = None

    def set_model(self, model: Any) -> None:
        """Refuse models that cannot take a snapshot, and note the learning rate before anything changes it."""
        super().set_model(model)
        if model.settings.kind != "snapshot":
            raise ValueError(
                'TeacherSnapshot needs a model wrapped with teacher="snapshot". Received: '
                f'teacher={model.settings.kind!r}. Use keras_ssd.wrap(model, teacher="snapshot").'
            )
        fresh_optimizer(model.optimizer)  # fails here rather than after the plain stage
        self._start_rate = constant_learning_rate(model.optimizer)
        if self.learning_rate is not None and self._start_rate is None:
            raise ValueError(
                "`learning_rate` cannot be set on an optimizer that follows a schedule: the schedule starts again with "
                f"every snapshot. Received: learning_rate={self.learning_rate}. Leave it out, or compile with a float."
            )

    def on_train_begin(self, logs: Logs = None) -> None:
        """Begin with the plain stage."""
        self._forget()
        self.model._set_step_kind(teaches=False)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Restore the stage of a resumed run."""
        if self._stage_is_known:
            return
        # Only now have BackupAndRestore, wherever it is in the list, and `initial_epoch` taken effect.
        self._stage_is_known = True
        steps = self.model.distillation.num_snapshots
        if epoch == 0:
            steps.assign(np.zeros((), "int32"))
        self.generation = min(int(ops.convert_to_numpy(steps.value)), self.generations)
        if self.generation == 0 and self.at_epoch is not None and epoch >= self.at_epoch:
            self._take(epoch - 1)
        self.model._set_step_kind(teaches=self.generation > 0)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Take the snapshot if it is time."""
        if self.generation >= self.generations:
            return
        if self._is_tracking and epoch >= self.start_from_epoch:
            self._track(epoch, logs or {})
        if self.at_epoch is None:
            is_due = self.wait > 0 and self.wait >= self.patience
        else:
            is_due = epoch + 1 >= self.at_epoch * (self.generation + 1)
        is_last = epoch + 1 >= (self.params or {}).get("epochs", math.inf) or self.model.stop_training
        if is_due and not is_last:
            self._take(epoch)

    def on_train_end(self, logs: Logs = None) -> None:
        """Warn if there was no snapshot."""
        self._best_weights = None
        # Without a single epoch (a run resumed after its end) the stage is unknown.
        if self.generation == 0 and self._stage_is_known:
            warnings.warn(
                "Training ended before TeacherSnapshot had taken a snapshot, so nothing was distilled: it was plain "
                "training. Train for more epochs, or lower `patience` or `at_epoch`. EarlyStopping needs more patience "
                "than TeacherSnapshot.",
                stacklevel=2,
            )

    def _track(self, epoch: int, logs: dict[str, Any]) -> None:
        value = logs.get(self.monitor)
        if value is None:
            # Validation does not have to run in every epoch (`validation_freq`).
            if self._was_seen:
                return
            raise ValueError(
                f"`monitor` names a value that is not in the logs. Received: monitor={self.monitor!r}; the logs hold "
                f"{sorted(logs)}. Pass validation_data to `fit` for the names that begin with `val_`; if "
                "`validation_freq` skips the first epochs, pass their number as `start_from_epoch`. With "
                "`at_epoch`, restore_best_weights=False needs no monitor."
            )
        self._was_seen = True
        value = float(value)
        gain = math.inf if self.best is None else value - self.best if self._rises else self.best - value
        if math.isfinite(value) and gain > self.min_delta:
            self.best, self.best_epoch, self.wait = value, epoch, 0
            if self.restore_best_weights:
                self._best_weights = self._deployed_weights()
        else:
            self.wait += 1

    def _take(self, epoch: int) -> None:
        weights = self._deployed_weights() if self._best_weights is None else self._best_weights
        assign(copied_variables(self.model.student), weights)
        if self.model.average is not None:
            self.model.average.restart()
        self.model.take_snapshot()
        rate = self._start_rate if self.learning_rate is None else self.learning_rate
        with variable_scope(self.model):
            restart_optimizer(self.model.optimizer, self.model.trainable_variables, rate)
        self.generation += 1
        self.snapshot_epochs.append(epoch)
        if self.verbose:
            source = f"epoch {epoch + 1}" if self.best_epoch is None else f"epoch {self.best_epoch + 1}, the best"
            print(f"\nEpoch {epoch + 1}: TeacherSnapshot {self.generation} of {self.generations}, weights of {source}")
        self._begin_generation()
        self.model._set_step_kind(teaches=True)
        for callback in self.restart:
            callback.on_train_begin()

    def _deployed_weights(self) -> list[np.ndarray]:
        with self.model._deployed():
            return arrays(copied_variables(self.model.student))


def fresh_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return a new optimizer with the same settings; raise `ValueError` if they cannot be read."""
    try:
        return type(optimizer).from_config(optimizer.get_config())
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"TeacherSnapshot resets the optimizer, but the settings of {optimizer!r} cannot be read from its "
            f"`get_config` ({error}). Define `get_config` (it returns every argument of `__init__`), and use a "
            "keras.optimizers.schedules.LearningRateSchedule instead of a function."
        ) from error


def restart_optimizer(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[Any], learning_rate: float | None
) -> None:
    """Reset every variable of an optimizer to its initial value: slots, step count, loss scale.

    The optimizer stays the same object, so nothing is compiled again. Without a learning rate a schedule starts again.
    """
    fresh = fresh_optimizer(optimizer)
    if optimizer.built:
        fresh.build(variables)
    for variable, initial in zip(optimizer.variables, fresh.variables, strict=True):
        # Through NumPy: on JAX two variables must not share a buffer.
        variable.assign(initial.numpy())
    if learning_rate is not None:
        optimizer.learning_rate = learning_rate


def _direction(monitor: str, mode: str) -> str:
    if mode != "auto":
        return mode
    name = monitor.lower()
    # A loss may be called "precision_loss", so the falling names are checked first.
    for direction, parts in (("min", _FALLING), ("max", _RISING)):
        if any(part in name for part in parts):
            return direction
    raise ValueError(
        f"`mode` cannot be inferred from the name of the monitored value. Received: monitor={monitor!r}, "
        'mode="auto". Pass mode="min" or mode="max".'
    )
