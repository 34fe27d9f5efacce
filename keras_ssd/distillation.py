"""The distillation term of one training step: the weights of the teachers, and the loss of the student."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
from keras import ops

from keras_ssd._backend import wide
from keras_ssd._typing import Tensor
from keras_ssd.guidance import guidance_weights, guided_target, similarity_scores
from keras_ssd.outputs import Output, finite_or
from keras_ssd.settings import Settings
from keras_ssd.teachers import flatten_features


class StepOutputs(NamedTuple):
    """The outputs and representations of the student and its teachers for one batch.

    Attributes:
        outputs: the student's outputs, a flat list, `(batch, ...)` each.
        representation: the student's representation, `(batch, features)`, or `None`.
        teacher_outputs: a flat list, `(batch, teachers, ...)` each, empty if the teachers stop at the representation.
        teacher_representations: `(batch, teachers, features)`, or `None`.
        scales: factors for the losses of the outputs if these are only some rows of the batch, or `None`.
    """

    outputs: list[Tensor]
    representation: Tensor | None
    teacher_outputs: list[Tensor]
    teacher_representations: Tensor | None
    scales: list[Tensor] | None = None

    @property
    def compared(self) -> tuple[Tensor, Tensor]:
        """The compared features of student and teachers, `(batch, features)` and `(batch, teachers, features)`.

        These are the representations, or the first output if there are no representations.
        """
        if self.representation is None:
            return flatten_features(self.outputs[0], 1), flatten_features(self.teacher_outputs[0], 2)
        return self.representation, self.teacher_representations


def weigh_teachers(
    step: StepOutputs, outputs: Sequence[Output], settings: Settings, percentile: float | None = None
) -> Tensor:
    """Return the guidance weights of the teachers.

    The gradient passes through the scores of representations, as in the paper's released code, but not through the
    scores of outputs ("kl"): a student that teaches itself could lower the term by choosing its teachers.

    Args:
        step: a `StepOutputs`.
        outputs: the `Output` of each output.
        settings: a `Settings`.
        percentile: overrides the percentile of the settings. Defaults to `None`.

    Returns:
        `(batch, teachers)`, every row sums to 1.
    """
    if settings.similarity == "kl":
        triples = zip(outputs, step.outputs, step.teacher_outputs, strict=True)
        scores = sum(output.scores(student, teachers) for output, student, teachers in triples if output.is_distilled)
    else:
        scores = similarity_scores(*step.compared, settings.similarity)
    percentile = settings.percentile if percentile is None else percentile
    return guidance_weights(scores, settings.guidance_temperature, percentile)


def distillation_loss(
    step: StepOutputs,
    guidance: Tensor,
    outputs: Sequence[Output],
    settings: Settings,
    sample_weights: Sequence[Tensor | None],
) -> Tensor:
    """Return the distance between the student and the weighted teachers: in outputs, representation or both.

    Args:
        step: a `StepOutputs`.
        guidance: the weights of the teachers, `(batch, teachers)`.
        outputs: the `Output` of each output.
        settings: a `Settings`.
        sample_weights: for each output the sample weights, or `None`.

    Returns:
        Scalar tensor.
    """
    loss = 0.0
    if settings.distill != "representation":
        scales = [None] * len(outputs) if step.scales is None else step.scales
        of_outputs = zip(outputs, step.outputs, step.teacher_outputs, sample_weights, scales, strict=True)
        for output, student, teachers, weight, scale in of_outputs:
            if output.is_distilled:
                value = output.loss(output.target(guidance, student, teachers), student, weight)
                loss += value if scale is None else value * ops.cast(scale, value.dtype)
    if settings.distill != "outputs":
        own = wide(step.representation)
        target = finite_or(guided_target(guidance, step.teacher_representations), ops.stop_gradient(own))
        loss += representation_loss(target, own, mean_weight(sample_weights))
    return loss


def representation_loss(target: Tensor, student: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Return the mean squared error over batch and features, `mean_{b,d} (f_S - f_hat)^2`.

    Args:
        target: `(batch, features)`.
        student: `(batch, features)`.
        sample_weight: `(batch,)` or `None`.
    """
    loss = keras.losses.MeanSquaredError(dtype=keras.backend.standardize_dtype(target.dtype))
    return loss(target, student, sample_weight=sample_weight)


def mean_weight(sample_weights: Sequence[Tensor | None]) -> Tensor | None:
    """Return one weight for each sample, `(batch,)`: the mean over outputs and over weighted positions."""
    given = [wide(weight) for weight in sample_weights if weight is not None]
    if not given:
        return None
    per_sample = [ops.mean(ops.reshape(weight, (ops.shape(weight)[0], -1)), axis=1) for weight in given]
    return sum(per_sample) / len(per_sample)
