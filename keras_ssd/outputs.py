"""One output of a model, and the distance between student and teachers on it: scores, targets and losses."""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_ssd import guidance
from keras_ssd._backend import wide
from keras_ssd._typing import Tensor
from keras_ssd.masks import fitted, masked_mean, merge_axes, without_masked


@dataclasses.dataclass
class Output:
    """One output of a model: its kind, scores, targets and loss.

    Classifications are distilled by the Kullback-Leibler divergence of tempered distributions,
    `T^2 * KL(sum_i a_i softmax(z_T,i / T) || softmax(z_S / T))`, regressions by the mean squared error. A unit of a
    binary output is a distribution over two classes; the divergence is averaged over the units, as in Keras' binary
    cross-entropy.

    In the methods, `student` is the student's output `(batch, ...)`, `teachers` that of the teachers `(batch, teachers,
    ...)`, `weights` the guidance weights `(batch, teachers)`, and `mask` the Keras mask of the student's output.

    Attributes:
        kind: `"categorical"` (exclusive classes, the last axis), `"binary"` (one value per unit) or `"regression"`.
        from_logits: whether the student's output holds logits, not probabilities.
        temperature: T > 0.
        weight: factor of this output's term, a number or a variable. Defaults to 1.
        teacher_from_logits: whether the teachers' output holds logits. Defaults to `None`: as the student's.
    """

    kind: str
    from_logits: bool
    temperature: float
    weight: Any = 1.0
    teacher_from_logits: bool | None = None

    def __post_init__(self) -> None:
        if self.teacher_from_logits is None:
            self.teacher_from_logits = self.from_logits

    @property
    def is_distilled(self) -> bool:
        """Return whether the weight is not zero, or is a variable."""
        return not isinstance(self.weight, (int, float)) or self.weight > 0

    def scores(self, student: Tensor, teachers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return minus the divergence of each teacher from the student, averaged over unmasked positions.

        It is `(batch, teachers)`, and 0 for a sample without unmasked positions. For regression it is minus half the
        mean squared difference: the divergence of two normal distributions of unit variance.
        """
        batch, num_teachers = ops.shape(student)[0], teachers.shape[1]
        mask = self._position_mask(mask, student)
        student = ops.stop_gradient(self._features(student))
        teachers = self._features(teachers, 2)
        if self.kind == "regression":
            width = ops.cast(ops.shape(student)[1], student.dtype)
            if mask is not None:
                student = without_masked(student, mask)
                teachers = without_masked(teachers, ops.expand_dims(mask, 1))
                width = ops.maximum(ops.sum(ops.cast(mask, student.dtype), axis=1, keepdims=True), 1.0)
            return guidance.similarity_scores(student, teachers, "euclidean") / (2 * width)
        # A row for each position, so that the equations take (batch * positions, teachers, classes).
        rows = merge_axes(student, 0, 2), merge_axes(ops.swapaxes(teachers, 1, 2), 0, 2)
        scores = ops.reshape(guidance.similarity_scores(*rows, "kl"), (batch, ops.shape(student)[1], num_teachers))
        return masked_mean(scores, None if mask is None else ops.expand_dims(mask, -1), axis=1)

    def target(
        self,
        weights: Tensor,
        student: Tensor,
        teachers: Tensor,
        mask: Tensor | None = None,
        temperature: float = 1.0,
        threshold: float = 0.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weighted mean of the teachers' tempered distributions (or values), without a gradient to them.

        It is `(batch, ...)`, for a binary output `(batch, ..., 2)`. Distributions are `guidance.sharpened` with a
        temperature. The student's own distribution replaces targets that do not count, so that there is no term and no
        gradient: of samples whose target is not finite, and at positions where the likeliest class, before it is
        sharpened, is below the threshold (FixMatch, arXiv 2001.07685, eq. 4).

        Also returns the share of unmasked positions (or binary units) that count, `(batch,)`, if one of the two is set.
        """
        shape = ops.shape(student) + ((2,) if self.kind == "binary" else ())
        own, share = ops.stop_gradient(self._probabilities(student)), None
        mean = guidance.guided_target(weights, merge_axes(self._probabilities(teachers, 2), 2))
        target = finite_or(mean, merge_axes(own, 1))
        if self.kind != "regression" and (temperature != 1 or threshold > 0):
            target = ops.reshape(target, ops.shape(own))
            is_finite = ops.all(ops.isfinite(mean), axis=1, keepdims=True)
            counts = ops.logical_and(is_finite, ops.any(target >= threshold, axis=-1))
            target = ops.where(ops.expand_dims(counts, -1), guidance.sharpened(target, temperature), own)
            share = masked_mean(ops.cast(counts, target.dtype), self._position_mask(mask, student), axis=1)
        return ops.reshape(target, shape), share

    def loss(self, target: Tensor, student: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Return the distillation loss, reduced, weighted, masked and scaled over replicas as Keras' own losses."""
        loss_of = _OutputLoss(name="kd_loss", dtype=keras.backend.standardize_dtype(target.dtype))
        loss_of.output = self
        # The sum turns what Keras returns for an empty batch, `(0,)`, into a scalar.
        loss = ops.sum(loss_of(target, student, sample_weight=sample_weight))
        is_number = isinstance(self.weight, (int, float))
        return (self.weight if is_number else ops.cast(ops.convert_to_tensor(self.weight), loss.dtype)) * loss

    def values(self, target: Tensor, student: Tensor) -> Tensor:
        """Return the loss of each sample and position."""
        if self.kind == "regression":
            return ops.mean(ops.square(target - student), axis=-1)
        log_student = ops.log_softmax(self._features(student), axis=-1)
        target = ops.reshape(target, ops.shape(log_student))
        log_target = ops.log(ops.maximum(target, 1e-30))  # 0 log 0 = 0
        divergence = ops.sum(target * (log_target - log_student), axis=-1) * self.temperature**2
        if self.kind == "binary":
            return ops.mean(ops.reshape(divergence, ops.shape(student)), axis=-1)
        return ops.reshape(divergence, ops.shape(student)[:-1])

    def disagreement(self, teachers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the share of the teachers outside the majority, averaged over unmasked positions or units, `(batch,)`.

        It is for classifications.
        """
        mask = self._position_mask(mask, teachers[:, 0])
        if self.kind == "binary":
            votes = merge_axes(teachers, 2) > (0.0 if self.teacher_from_logits else 0.5)
            share = ops.mean(ops.cast(votes, "float32"), axis=1)
            majority = ops.maximum(share, 1.0 - share)
        else:
            classes = ops.argmax(merge_axes(teachers, 2, len(teachers.shape) - 1), axis=-1)
            votes = ops.one_hot(classes, teachers.shape[-1], dtype="float32")
            majority = ops.sort(ops.mean(votes, axis=1), axis=-1)[..., -1]  # `ops.max` refuses an empty batch
        return masked_mean(1.0 - majority, mask, axis=1)

    def _position_mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """Return the mask of each position (of each unit or value unless categorical), `(batch, positions)`."""
        mask = fitted(mask, x[..., 0] if self.kind == "categorical" else x)
        return None if mask is None else merge_axes(mask, 1)

    def _features(self, x: Tensor, start: int = 1) -> Tensor:
        """Return tempered logits, over two classes for a binary output; the values themselves for regression.

        `start` is the number of axes before the positions, 2 for the teachers. The positions are merged into one axis,
        because TensorFlow's softmax takes at most five axes.
        """
        x = wide(x)
        if self.kind == "regression":
            return merge_axes(x, start)
        x = merge_axes(x, start, len(x.shape) - (self.kind == "categorical"))
        if not (self.from_logits if start == 1 else self.teacher_from_logits):
            floor = keras.config.epsilon()
            x = ops.clip(x, floor, 1.0 - floor) if self.kind == "binary" else ops.maximum(x, floor)
            x = ops.log(x) - ops.log1p(-x) if self.kind == "binary" else ops.log(x)
        x = x / self.temperature
        return ops.stack([x, ops.zeros_like(x)], axis=-1) if self.kind == "binary" else x

    def _probabilities(self, x: Tensor, start: int = 1) -> Tensor:
        features = self._features(x, start)
        return features if self.kind == "regression" else ops.softmax(features, axis=-1)


class _OutputLoss(keras.losses.Loss):
    """`Output.values` as a Keras loss: the base class handles weights, masks, reduction and replicas."""

    output: Output

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self.output.values(y_true, y_pred)


def finite_or(target: Tensor, own: Tensor) -> Tensor:
    """Return `target`, with `own` in its place for the samples (rows) in which it is not finite."""
    axes = tuple(range(1, len(target.shape)))
    return ops.where(ops.all(ops.isfinite(target), axis=axes, keepdims=True), target, own)
