"""The distillation term of one training step: guidance weights, and the loss of the student."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
from keras import ops

from keras_ssd._backend import wide
from keras_ssd._typing import Tensor
from keras_ssd.guidance import guidance_weights, guided_target, similarity_scores
from keras_ssd.masks import flatten_features, mask_of, merge_axes, without_masked
from keras_ssd.outputs import Output, finite_or
from keras_ssd.settings import Settings


class StepOutputs(NamedTuple):
    """The outputs and representations of the student and its teachers for one batch.

    Attributes:
        outputs: the student's outputs, a flat list, `(batch, ...)` each, with their Keras masks.
        representation: the student's, `(batch, features)`, with a mask of this shape or without one; or `None`.
        teacher_outputs: a flat list, `(batch, teachers, ...)` each, empty if the teachers stop at the representation.
        teacher_representations: `(batch, teachers, features)`, or `None`.
        scales: the result of `rows.mask_scales` if these are only some rows of the batch, or `None`.
    """

    outputs: list[Tensor]
    representation: Tensor | None
    teacher_outputs: list[Tensor]
    teacher_representations: Tensor | None
    scales: list[Tensor | None] | None = None

    @property
    def compared(self) -> tuple[Tensor, Tensor]:
        """The compared features of student and teachers, `(batch, features)` and `(batch, teachers, features)`.

        These are the representations, or the first output if there are no representations; zeros if they are masked.
        """
        student, teachers = self.representation, self.teacher_representations
        if student is None:
            student, teachers = flatten_features(self.outputs[0]), merge_axes(self.teacher_outputs[0], 2)
        mask = mask_of(student)
        if mask is None:
            return student, teachers
        return without_masked(student, mask), without_masked(teachers, ops.expand_dims(mask, 1))

    @property
    def masks(self) -> list[Tensor | None]:
        """The Keras masks of the outputs."""
        return [mask_of(x) for x in self.outputs]


def weigh_teachers(
    step: StepOutputs, outputs: Sequence[Output], settings: Settings, percentile: float | None = None
) -> Tensor:
    """Return the guidance weights of the teachers, `(batch, teachers)`; every row sums to 1.

    The gradient passes through the scores of representations, as in the paper's released code, but not through the
    scores of outputs ("kl"): a student that teaches itself could lower the term by choosing its teachers. A given
    `percentile` replaces that of the settings.
    """
    if settings.similarity == "kl":
        parts = zip(outputs, step.outputs, step.teacher_outputs, step.masks, strict=True)
        scores = sum(output.scores(*tensors) for output, *tensors in parts if output.is_distilled)
    else:
        scores = similarity_scores(*step.compared, settings.similarity)
    percentile = settings.percentile if percentile is None else percentile
    return guidance_weights(scores, settings.guidance_temperature, percentile)


def distillation_loss(
    step: StepOutputs, guidance: Tensor, outputs: Sequence[Output], settings: Settings, sample_weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the distance between the student and the weighted teachers: in outputs, representation or both.

    `guidance` are the guidance weights `(batch, teachers)`; there is an item of `sample_weights` for each output.
    Also returns the shares of the outputs' targets that count, as `Output.target` returns them.
    """
    loss, shares = 0.0, []
    if settings.distill != "representation":
        scales = step.scales or [None] * len(outputs)
        of_outputs = zip(outputs, step.outputs, step.teacher_outputs, step.masks, sample_weights, scales, strict=True)
        sharpness = settings.target_temperature, settings.target_threshold
        for output, student, teachers, mask, weight, scale in of_outputs:
            if output.is_distilled:
                target, share = output.target(guidance, student, teachers, mask, *sharpness)
                shares += [] if share is None else [share]
                value = output.loss(target, student, weight)
                loss += value if scale is None else value * ops.cast(scale, value.dtype)
    if settings.distill != "outputs":
        own = wide(step.representation)
        target = finite_or(guided_target(guidance, step.teacher_representations), ops.stop_gradient(own))
        loss += representation_loss(target, own, mean_weight(sample_weights), mask_of(step.representation))
    return loss, shares


def representation_loss(
    target: Tensor, student: Tensor, sample_weight: Tensor | None, mask: Tensor | None = None
) -> Tensor:
    """Return the mean squared error over batch and features, `mean_{b,d} (f_S - f_hat)^2`.

    Target, student and mask are `(batch, features)`, the sample weight is `(batch,)` or a scalar. With a mask the mean
    of a sample is over those of its features that are kept.
    """
    if mask is not None:
        kept = ops.cast(mask, student.dtype)
        share = ops.mean(kept, axis=1, keepdims=True)
        # The square of this factor turns the mean over all features into a mean over those that are kept.
        factor = kept / ops.sqrt(ops.where(share > 0, share, 1.0))
        target, student = target * factor, student * factor
    loss = keras.losses.MeanSquaredError(dtype=keras.backend.standardize_dtype(target.dtype))
    return ops.sum(loss(target, student, sample_weight=sample_weight))  # of an empty batch it is `(0,)`, not a scalar


def mean_weight(sample_weights: Sequence[Tensor | None]) -> Tensor | None:
    """Return the mean of the weights over outputs and positions, `(batch,)`; a scalar weight stays a scalar."""
    given = [wide(weight) for weight in sample_weights if weight is not None]
    per_sample = [weight if len(weight.shape) == 0 else ops.mean(merge_axes(weight, 1), axis=1) for weight in given]
    return sum(per_sample) / len(per_sample) if given else None
