"""One output of a model, and the distance between student and teachers on it: scores, targets and losses."""

from typing import Any

import keras
from keras import ops

from keras_ssd import _backend, guidance
from keras_ssd._typing import Tensor


class Output:
    """One output of a model: its kind, scores, targets and loss.

    The kind is one of
    - `"categorical"`: logits or probabilities of exclusive classes, the last axis;
    - `"binary"`: one logit or probability per unit;
    - `"regression"`: values.

    The first two are distilled by the Kullback-Leibler divergence of tempered distributions,
    `T^2 * KL(sum_i a_i softmax(z_T,i / T) || softmax(z_S / T))`, the last by the mean squared error. A unit of a binary
    output is a distribution over two classes; the divergence is averaged over the units, as in Keras' binary
    cross-entropy.

    Args:
        kind: one of the three above.
        from_logits: whether the student's output holds logits, not probabilities.
        temperature: T > 0.
        weight: factor of this output's term, a number or a variable.
        teacher_from_logits: whether the teachers' output holds logits. Defaults to `None`: as the student's.
    """

    def __init__(
        self,
        kind: str,
        from_logits: bool,
        temperature: float,
        weight: Any = 1.0,
        teacher_from_logits: bool | None = None,
    ) -> None:
        self.kind = kind
        self.from_logits = from_logits
        self.teacher_from_logits = from_logits if teacher_from_logits is None else teacher_from_logits
        self.temperature = temperature
        self.weight = weight

    def __repr__(self) -> str:
        return f"Output({self.kind!r}, from_logits={self.from_logits}, weight={self.weight})"

    @property
    def is_distilled(self) -> bool:
        """Return whether the output has a weight; a variable counts as a weight, whatever its value."""
        return not isinstance(self.weight, (int, float)) or self.weight > 0

    def scores(self, student: Tensor, teachers: Tensor) -> Tensor:
        """Return minus the divergence of each teacher from the student, averaged over positions.

        Args:
            student: `(batch, ...)`.
            teachers: `(batch, teachers, ...)`.

        Returns:
            `(batch, teachers)`. For regression, minus half the mean squared difference: the divergence of two normal
            distributions of unit variance.
        """
        batch, num_teachers = ops.shape(student)[0], teachers.shape[1]
        student = ops.stop_gradient(self._features(student, self.from_logits))
        teachers = self._features(teachers, self.teacher_from_logits)
        if self.kind == "regression":
            student = ops.reshape(student, (batch, -1))
            teachers = ops.reshape(teachers, (batch, num_teachers, -1))
            width = ops.cast(ops.shape(student)[1], student.dtype)
            return guidance.similarity_scores(student, teachers, "euclidean") / (2 * width)
        # One row for each position, so that the equations see (batch * positions, teachers, classes).
        n_classes = teachers.shape[-1]
        teachers = ops.swapaxes(ops.reshape(teachers, (batch, num_teachers, -1, n_classes)), 1, 2)
        scores = guidance.similarity_scores(
            ops.reshape(student, (-1, n_classes)), ops.reshape(teachers, (-1, num_teachers, n_classes)), "kl"
        )
        return ops.mean(ops.reshape(scores, (batch, -1, num_teachers)), axis=1)

    def target(self, weights: Tensor, student: Tensor, teachers: Tensor) -> Tensor:
        """Return the weighted mean of the teachers' tempered distributions (or values), without a gradient to them.

        If a sample's target is not finite, the student's own distribution replaces it: no term, no gradient.

        Args:
            weights: `(batch, teachers)`.
            student: `(batch, ...)`.
            teachers: `(batch, teachers, ...)`.

        Returns:
            `(batch, ...)`, for a binary output `(batch, ..., 2)`.
        """
        own = ops.stop_gradient(self._probabilities(student, self.from_logits))
        teachers = self._probabilities(teachers, self.teacher_from_logits)
        flat = ops.reshape(teachers, (ops.shape(teachers)[0], teachers.shape[1], -1))
        target = ops.reshape(guidance.guided_target(weights, flat), ops.shape(own))
        return finite_or(target, own)

    def loss(self, target: Tensor, student: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Return the distillation loss, reduced, weighted, masked and scaled over replicas as Keras' own losses.

        Args:
            target: the result of `target`.
            student: `(batch, ...)`.
            sample_weight: the user's sample weights, or `None`.
        """
        loss = _OutputLoss(self, dtype=keras.backend.standardize_dtype(target.dtype))(
            target, student, sample_weight=sample_weight
        )
        is_number = isinstance(self.weight, (int, float))
        return (self.weight if is_number else ops.cast(ops.convert_to_tensor(self.weight), loss.dtype)) * loss

    def values(self, target: Tensor, student: Tensor) -> Tensor:
        """Return the loss of each sample and position."""
        if self.kind == "regression":
            return ops.mean(ops.square(target - student), axis=-1)
        log_student = ops.log_softmax(self._features(student, self.from_logits), axis=-1)
        # 0 log 0 = 0
        log_target = ops.log(ops.maximum(target, 1e-30))
        divergence = ops.sum(target * (log_target - log_student), axis=-1) * self.temperature**2
        return ops.mean(divergence, axis=-1) if self.kind == "binary" else divergence

    def _features(self, x: Tensor, from_logits: bool) -> Tensor:
        """Return tempered logits, over two classes for a binary output; the values themselves for regression."""
        x = _backend.wide(x)
        if self.kind == "regression":
            return x
        if not from_logits:
            floor = keras.config.epsilon()
            x = ops.clip(x, floor, 1.0 - floor) if self.kind == "binary" else ops.maximum(x, floor)
            x = ops.log(x) - ops.log1p(-x) if self.kind == "binary" else ops.log(x)
        x = x / self.temperature
        return ops.stack([x, ops.zeros_like(x)], axis=-1) if self.kind == "binary" else x

    def _probabilities(self, x: Tensor, from_logits: bool) -> Tensor:
        features = self._features(x, from_logits)
        return features if self.kind == "regression" else ops.softmax(features, axis=-1)


class _OutputLoss(keras.losses.Loss):
    """`Output.values` as a Keras loss: the base class handles weights, masks, reduction and replicas."""

    def __init__(self, output: Output, dtype: str) -> None:
        super().__init__(name="kd_loss", dtype=dtype)
        self.output = output

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self.output.values(y_true, y_pred)


def finite_or(target: Tensor, own: Tensor) -> Tensor:
    """Return `target`, with `own` in its place for the samples (rows) in which it is not finite."""
    axes = tuple(range(1, len(target.shape)))
    return ops.where(ops.all(ops.isfinite(target), axis=axes, keepdims=True), target, own)
