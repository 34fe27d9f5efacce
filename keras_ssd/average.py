"""`WeightAverage`: the moving average of a model's weights, its update, and its exchange with the model's weights."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.copies import add_copy, arrays, assign, averaged_variables
from keras_ssd.noise import parts_of
from keras_ssd.untracked import Untracked


class WeightAverage(keras.layers.Layer):
    """An exponential moving average of a model's weights, which is deployed in the model between trainings.

    There are two sets of weights: those of the model and those of this layer. During training the model holds the raw
    weights, which the optimizer changes, and this layer their average. When training ends, the two are exchanged
    (`deploy`): then the model holds the average and this layer the raw weights, and the next training exchanges them
    back (`resume`). Both sets are Keras variables, so every file holds both.

    The average is held in float32 where the weights have fewer bits. When it is deployed, a variable's constraint is
    applied to it, and a raw weight that is exactly 0 (pruned, for example) is 0.

    Args:
        model: a built `keras.Model`.
        momentum: m, 0-1. Step t computes `average = m_t * average + (1 - m_t) * weights`, `m_t = min(m, t / (t + 9))`,
            so the first step copies the weights, and the start of training is soon forgotten.

    Attributes:
        other: the weights that the model does not hold: the average during training, the raw weights otherwise.
        steps: number of updates.
        is_deployed: 1 if the model holds the average, 0 if it holds the raw weights.
        digest: the SHA-256 of the weights that were deployed, which tells whether the model was changed since.

    Example:
        >>> average = WeightAverage(model, momentum=0.99)
        >>> average.update()  # after each step of the optimizer
        >>> average.deploy()  # the model holds the average
    """

    def __init__(self, model: keras.Model, momentum: float, **kwargs: Any) -> None:
        super().__init__(trainable=False, dtype="float32", autocast=False, **kwargs)
        self.momentum = momentum
        self._raw = Untracked(None)  # the raw weights while `deployed` holds the average in the model
        # While the average is deployed: each of its arrays that the model holds rounded or constrained, else `None`.
        self._kept = Untracked([])
        self._trained = Untracked(None)  # the digests of both sets of weights as training left them
        self._model, self._averaged = Untracked(model), Untracked(averaged_variables(model))
        self.steps = self._add_number("steps")
        self.is_deployed = self._add_number("is_deployed")
        self.digest = self._add_number("digest", (32,))
        self.other = [add_copy(self, variable, wide=True) for variable in self._weights]
        self.built = True
        self.restart()

    def _add_number(self, name: str, shape: tuple[int, ...] = ()) -> Any:
        return self.add_weight(shape=shape, initializer="zeros", dtype="int32", trainable=False, name=name)

    @property
    def _weights(self) -> list[Any]:
        return self._averaged.content

    def update(self) -> None:
        """Move the average one step towards the model's weights.

        If the average is deployed (in a custom loop that goes on after `deploy`), it starts again from the model's
        weights.
        """
        t = ops.cast(self.steps.value, "float32")
        momentum = ops.minimum(self.momentum, t / (t + 9.0)) * ops.cast(1 - self.is_deployed.value, "float32")
        _backend.move_average(self.other, self._weights, momentum)
        self.steps.assign(self.steps.value + 1)
        self.is_deployed.assign(ops.zeros_like(self.is_deployed.value))

    def values(self, is_training: bool = True) -> list[tuple[Any, Tensor]]:
        """Return `(variable, average)` pairs for `keras.StatelessScope`.

        Args:
            is_training: whether the model is known to hold the raw weights. If not, the average is the model's own
                weights in case it is deployed. Defaults to `True`.
        """
        pairs = [(v, ops.cast(other.value, v.dtype)) for v, other in zip(self._weights, self.other, strict=True)]
        if is_training:
            return pairs
        return [(v, ops.where(self.is_deployed.value > 0, v.value, value)) for v, value in pairs]

    @property
    def holds_average(self) -> bool:
        """Return whether this layer holds the average, so that the model's weights are raw."""
        return _number(self.steps) > 0 and not _number(self.is_deployed)

    def note_end_of_training(self) -> None:
        """Note the weights as training left them, before callbacks may change them a last time."""
        if self.holds_average:
            self._trained.content = self._digests()

    def deploy(self) -> None:
        """Exchange the weights: the model holds the average afterwards. Without an update it stays as it is.

        It also stays as it is if only its own weights, not the average, were changed since `note_end_of_training`: a
        callback that loads other weights at the end of training means these.
        """
        trained, self._trained.content = self._trained.content, None
        if not self.holds_average:
            return
        pairs = [] if trained is None else zip(trained, self._digests(), strict=True)
        if [np.array_equal(*pair) for pair in pairs] == [False, True]:
            self.restart()
            return
        raw, average = arrays(self._weights), arrays(self.other)
        assign(self._weights, self._deployable(raw))
        assign(self.other, raw)
        self._note(deployed=average)

    def resume(self) -> None:
        """Exchange the weights back: the model holds the raw weights afterwards. Called before training.

        If the model's weights were changed from outside, the average restarts from them. A layer that is frozen keeps
        its current weights.
        """
        if self.holds_average:
            return
        if not self._is_unchanged():
            self.restart()
            return
        deployed = arrays(self._weights)
        frozen = {id(v) for layer in parts_of(self._model.content) if not layer.trainable for v in layer.weights}
        for variable, raw in zip(self._weights, arrays(self.other), strict=True):
            if id(variable) not in frozen:
                variable.assign(raw)
        kept = self._kept.content or [None] * len(deployed)  # empty after unpickling
        assign(self.other, [d if k is None else k for d, k in zip(deployed, kept, strict=True)])
        self._note()

    def restart(self) -> None:
        """Restart the average from the model's current weights."""
        assign(self.other, arrays(self._weights))
        self.steps.assign(np.zeros((), "int32"))
        self._note()

    def _note(self, deployed: Sequence[np.ndarray] | None = None) -> None:
        """Note whether the model holds raw weights or a deployed average, and keep what it does not hold exactly."""
        held = [] if deployed is None else arrays(self._weights)
        self.is_deployed.assign(np.array(deployed is not None, "int32"))
        self.digest.assign(np.zeros((32,), "int32") if deployed is None else _digest(held))
        pairs = zip(deployed or [], held, strict=True)
        self._kept.content = [None if np.array_equal(a, b.astype(a.dtype), equal_nan=True) else a for a, b in pairs]

    def _digests(self) -> tuple[np.ndarray, np.ndarray]:
        return _digest(arrays(self._weights)), _digest(arrays(self.other))

    def _is_unchanged(self) -> bool:
        """Return whether the average is deployed and the model's weights were not changed since."""
        if not _number(self.steps) or not _number(self.is_deployed):
            return False
        return np.array_equal(ops.convert_to_numpy(self.digest.value), _digest(arrays(self._weights)))

    @contextlib.contextmanager
    def deployed(self) -> Iterator[None]:
        """Let the model hold the average within the context, also during training."""
        if not self.holds_average or self._raw.content is not None:
            yield
            return
        raw, replicas = arrays(self._weights), _backend.values_of_replicas(self._weights)
        self._raw.content = raw
        try:
            assign(self._weights, self._deployable(raw))
            yield
        finally:
            self._raw.content = None
            assign(self._weights, raw)
            for variable, value in replicas:
                variable.assign(value)

    def _deployable(self, raw: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the average with the constraints of the variables, and with the zeros of the raw weights."""
        result = []
        for variable, zeros_of, value in zip(self._weights, raw, arrays(self.other), strict=True):
            if variable.constraint is not None:
                value = ops.convert_to_numpy(variable.constraint(ops.convert_to_tensor(value)))
            if variable.trainable:
                value = np.where(zeros_of == 0, np.zeros_like(value), value)
            result.append(value)
        return result

    # The model in a file holds the deployed weights, so files also hold raw and averaged weights.

    def state(self) -> dict[str, Any]:
        """Return raw weights, average and steps, arrays by name, for a file whose model holds the deployed weights."""
        is_average = self.holds_average
        steps = _number(self.steps) if is_average or self._is_unchanged() else 0
        raw = self._raw.content or arrays(self.other if steps and not is_average else self._weights)
        average = arrays(self.other) if is_average else self._kept.content if steps else []
        sets = {"raw": raw, "average": average}
        values = {f"{name}_{i}": v for name, held in sets.items() for i, v in enumerate(held) if v is not None}
        return {"steps": np.array(steps), **values}

    def load_state(self, state: dict[str, Any], is_training: bool) -> None:
        """Load what `state` returned; the model holds the deployed weights of the same file.

        Args:
            state: arrays by name.
            is_training: whether training is running, so that the model gets the raw weights.
        """
        deployed = arrays(self._weights)
        raw = [np.asarray(state[f"raw_{i}"]) for i in range(len(deployed))]
        average = [np.asarray(state.get(f"average_{i}", value)) for i, value in enumerate(deployed)]
        self.steps.assign(np.asarray(state["steps"], "int32"))
        if is_training or not int(state["steps"]):
            assign(self._weights, raw)
            assign(self.other, average)
            self._note()
        else:
            assign(self.other, raw)
            self._note(deployed=average)


def _digest(values: Sequence[np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).tobytes())
    return np.frombuffer(digest.digest(), "uint8").astype("int32")


def _number(variable: Any) -> int:
    return int(ops.convert_to_numpy(variable.value))
