"""Held copies of weights, and the moving average of the student's weights: update, lending and taking back."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence, Set
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.graph import call_student
from keras_ssd.noise import parts_of
from keras_ssd.settings import Settings


class HeldWeights(keras.layers.Layer):
    """A copy of a model's weights: a snapshot, a moving average, or the weights of another network.

    Args:
        weights: the variables to copy; later calls take them in the same order.

    Attributes:
        held: the copies, in the order of `weights`.
        steps: number of updates of the average, or of snapshots taken since the model was wrapped.
        is_deployed: 1 while the student carries this average, 0 while it carries its own weights.
    """

    def __init__(self, weights: Sequence[Any], **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.steps = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False, name="steps")
        self.is_deployed = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="is_deployed"
        )
        self.held = [
            # Exact values: mixed precision must not round them when they are read inside a layer.
            self.add_weight(
                shape=v.shape,
                initializer="zeros",
                dtype=v.dtype,
                trainable=False,
                autocast=False,
                # A layout map of `keras.distribution.ModelParallel` finds the copy by the rule for the original.
                name=v.path.replace("/", "_").replace(".", "_"),
                **_aggregation(v),
            )
            for v in weights
        ]
        self.built = True
        self.copy(weights)

    def copy(self, weights: Sequence[Any]) -> None:
        """Copy the current values of `weights`. Through NumPy: on JAX two variables must not share a buffer."""
        for held, variable in zip(self.held, weights, strict=True):
            held.assign(ops.convert_to_numpy(variable.value))

    def write(self, weights: Sequence[Any]) -> None:
        """Assign the held values to `weights`."""
        for held, variable in zip(self.held, weights, strict=True):
            variable.assign(ops.convert_to_numpy(held.value))

    def values(self, weights: Sequence[Any]) -> list[tuple[Any, Tensor]]:
        """Return `(variable, held value)` pairs for `keras.StatelessScope`."""
        return [(variable, held.value) for held, variable in zip(self.held, weights, strict=True)]

    def average(self, weights: Sequence[Any], momentum: float) -> None:
        """Move towards `weights`: `held = m * held + (1 - m) * weights` with `m = min(momentum, t / (t + 9))`.

        `t` counts the calls, so the first call copies the weights, and the start of training is soon forgotten.
        """
        t = ops.cast(self.steps.value, "float32")
        _backend.move_average(self.held, weights, ops.minimum(momentum, t / (t + 9.0)))
        self.steps.assign(self.steps.value + 1)
        self.is_deployed.assign(ops.zeros_like(self.is_deployed.value))


class Averaging:
    """Updates the moving average, and lends it to the student between two `fit`s.

    The student carries its own, raw weights while it is trained, and the average at all other times: from the end of
    `fit` (or `write_average`) to the next training step. So outside of training there is only one set of weights, the
    student's. Any code may change them; the next training detects it.

    A plain object: Keras saves the average itself with the model, but not this object.

    Args:
        student: the `keras.Model` that is trained.
        average: the `HeldWeights` of `averaged_variables(student)`.
        momentum: momentum of the average, 0-1.
    """

    def __init__(self, student: keras.Model, average: HeldWeights, momentum: float) -> None:
        self._student, self._average, self._momentum = student, average, momentum
        self.variables, self.states = averaged_variables(student), recurrent_states(student)
        self._lent: tuple[list[np.ndarray], np.ndarray] | None = None  # raw weights, and the digest of those lent

    @property
    def is_in_training(self) -> bool:
        """Return whether the student carries raw weights, so that evaluation has to use the average instead."""
        return _number(self._average.steps) > 0 and not _number(self._average.is_deployed)

    def update(self) -> None:
        """Move the average one step towards the student's weights."""
        self._average.average(self.variables, self._momentum)

    def lend(self) -> None:
        """Write the average to the student, until training continues."""
        if not self.is_in_training:
            return
        raw = arrays(self.variables)
        self._average.write(self.variables)
        self._average.is_deployed.assign(np.ones((), "int32"))
        self._lent = raw, _digest(arrays(self.variables))

    def lent(self) -> tuple[list[np.ndarray], np.ndarray] | None:
        """Return the raw weights and the digest of the weights lent, or `None` if the student carries others."""
        if self._lent is None or self.is_in_training:
            return None
        return self._lent if np.array_equal(self._lent[1], _digest(arrays(self.variables))) else None

    def note_lent(self, raw: list[np.ndarray], digest: np.ndarray | None) -> None:
        """Note the raw weights of a file; the average and the student's weights are loaded by themselves.

        Args:
            raw: the raw weights.
            digest: the digest of the weights lent; what was loaded for only a part of the layers differs from it.
                `None` if the file has no raw weights.
        """
        self._lent = None if digest is None or len(raw) != len(self.variables) else (raw, digest)

    def call(self, inputs: Any) -> tuple[Any, list[Tensor]]:
        """Run the student with the averaged weights; this changes only the states of stateful layers.

        Args:
            inputs: one batch.

        Returns:
            `(outputs, losses)`, with the losses that its layers add.
        """
        weights = self._average.values(self.variables)
        replaced = {id(variable) for variable, _ in weights}
        unaveraged = [*self._student.variables, *self.states]
        others = {id(v): (v, v.value) for v in unaveraged if id(v) not in replaced}.values()
        with keras.StatelessScope([*weights, *others], collect_losses=True) as scope:
            outputs = call_student(self._student, inputs, training=False)
        for variable, value in others:
            updated = scope.get_current_value(variable)
            if updated is not value:
                variable.assign(updated)
        # New tensors: Keras distinguishes losses by identity, and these belong to the layers of the student.
        return outputs, [loss + 0 for loss in scope.losses]

    @contextlib.contextmanager
    def carried(self) -> Iterator[None]:
        """Let the student carry the average within the context, also during training."""
        if not self.is_in_training:
            yield
            return
        raw, replicas = arrays(self.variables), _backend.values_of_replicas(self.variables)
        try:
            self.lend()
            yield
        finally:
            self._take(raw)
            for variable, value in replicas:
                variable.assign(value)

    def restart(self) -> None:
        """Restart the average from the student's current weights."""
        self._lent = None
        self._average.copy(self.variables)
        for state in (self._average.steps, self._average.is_deployed):
            state.assign(np.zeros((), "int32"))

    def take_back(self) -> None:
        """Restore the raw weights of the previous training; called before training.

        An average belongs to the weights it was made of: if the student was given other weights since, the average
        restarts from these. A layer that was frozen since keeps its current weights.
        """
        if self.is_in_training:
            return
        pairs = zip(arrays(self.variables), arrays(self._average.held), strict=True)
        if _number(self._average.steps) == 0 or not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            self.restart()
            return
        frozen = {id(v) for layer in parts_of(self._student) if not layer.trainable for v in layer.weights}
        lent = self.lent()
        self._take(None if lent is None else lent[0], but=frozen)

    def _take(self, raw: list[np.ndarray] | None, but: Set[int] = frozenset()) -> None:
        for variable, value in zip(self.variables, raw or [], strict=raw is not None):
            if id(variable) not in but:
                variable.assign(value)
        self._lent = None
        self._average.is_deployed.assign(np.zeros((), "int32"))


def averaged_variables(model: keras.Model) -> list[Any]:
    """Return the weights of a model that can be averaged: all but the states of stateful recurrent layers."""
    states = {id(state) for state in recurrent_states(model)}
    return [v for v in model.weights if id(v) not in states]


def recurrent_states(model: keras.Model) -> list[Any]:
    """Return the states of the stateful recurrent layers of a model, which Keras does not count as its variables."""
    stateful = [layer for layer in parts_of(model) if getattr(layer, "stateful", False)]
    states = [state for layer in stateful for state in keras.tree.flatten(getattr(layer, "states", None))]
    return [state for state in states if state is not None]


def arrays(variables: Sequence[Any]) -> list[np.ndarray]:
    """Return copies of the values of variables."""
    return [np.array(ops.convert_to_numpy(v.value)) for v in variables]


def _digest(values: list[np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).tobytes())
    return np.frombuffer(digest.digest(), "uint8")


def _number(variable: Any) -> int:
    return int(ops.convert_to_numpy(variable.value))


def _aggregation(variable: Any) -> dict[str, str]:
    """Return how the replicas of `tf.distribute` agree on the average of a variable, as arguments of `add_weight`.

    Trained weights are the same on all replicas, so Keras' default suffices; its name differs between versions.
    In Keras each replica has its own statistics (BatchNormalization); the teacher should be one network, so it holds
    their mean.
    """
    if variable.trainable:
        return {}
    return {"aggregation": "mean" if keras.backend.is_float_dtype(variable.dtype) else "only_first_replica"}


class HeldWeightsMethods:
    """The methods of `SSDModel` with which users update and copy held weights."""

    settings: Settings
    student: Any
    _averaging: Any
    _evaluate_with_average: Any
    _fit_state: Any
    _held_weights: Any

    def update_average(self) -> None:
        """Move the moving average one step towards the student's weights.

        `fit` and `train_on_batch` do this automatically. In a custom loop, call it after every optimizer step.
        """
        self._check_averages("update_average").update()

    def write_average(self) -> None:
        """Write the averaged weights to the student. `fit` does this when it ends.

        Call it after training with `train_on_batch` or a custom loop, before you deploy the student. A later `fit` or
        `train_on_batch` continues from the raw weights, a custom loop from the weights of the student.

        Raises:
            ValueError: if no average is held, or while `fit` runs.
        """
        averaging = self._check_averages("write_average")
        if self._fit_state.is_running:
            raise ValueError(
                "write_average() cannot be called while `fit` runs, which trains the raw weights and writes the "
                "average itself when it ends. For a file in the midst of training use `save`, `save_weights` or "
                "ModelCheckpoint: the student in the file carries the average."
            )
        averaging.lend()
        self._evaluate_with_average(False)

    def _check_averages(self, method: str) -> Any:
        if self._averaging is None:
            raise ValueError(
                f"{method}() is for models that hold a moving average: wrap with an `ema_momentum` above 0. Received: "
                f"teacher={self.settings.kind!r}, ema_momentum={self.settings.ema_momentum}"
            )
        return self._averaging

    def take_snapshot(self) -> None:
        """Copy the student's current weights to the teacher (`teacher="snapshot"`); wrapping does this once."""
        if self.settings.kind != "snapshot" or self._held_weights is None:
            raise ValueError(
                'take_snapshot() is for models wrapped with teacher="snapshot" and a kd_weight above 0. Received: '
                f"teacher={self.settings.kind!r}, kd_weight={self.settings.kd_weight}"
            )
        self._held_weights.copy(averaged_variables(self.student))
        self._held_weights.steps.assign(np.array(ops.convert_to_numpy(self._held_weights.steps.value) + 1, "int32"))
