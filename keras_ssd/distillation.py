"""The distillation term of one training step: what is put out, how teachers are weighted, what the student loses."""

from typing import Any, NamedTuple

from keras import ops

from keras_ssd._backend import wide
from keras_ssd.guidance import guidance_weights, guided_target, similarity_scores
from keras_ssd.losses import finite_or, mean_weight, representation_loss, weights_per_output
from keras_ssd.teachers import flatten_features


class Passes(NamedTuple):
    """What the student and its teachers put out for one batch.

    Attributes:
        outputs: of the student, a flat list, `(batch, ...)` each.
        representation: of the student, `(batch, features)`, or `None`.
        teacher_outputs: a flat list, `(batch, teachers, ...)` each, empty if the teachers stop at the representation.
        teacher_representations: `(batch, teachers, features)`, or `None`.
    """

    outputs: list
    representation: Any
    teacher_outputs: list
    teacher_representations: Any

    @property
    def compared(self):
        """What student and teachers are compared by, `(batch, features)` and `(batch, teachers, features)`.

        Their representations, or their first output where there are none.
        """
        if self.representation is None:
            return flatten_features(self.outputs[0], 1), flatten_features(self.teacher_outputs[0], 2)
        return self.representation, self.teacher_representations


def teacher_weights(passes, distances, settings, percentile=None):
    """The teachers' weights.

    The gradient passes through the scores of representations, as in the paper's released code, but not through those of
    outputs ("kl"): a student that is taught by itself could lower the term by choosing teachers.

    Args:
        passes: a `Passes`.
        distances: the `losses.OutputDistance` of each output, where outputs are compared.
        settings: a `Settings`.
        percentile: overrides that of the settings. Defaults to `None`.

    Returns:
        `(batch, teachers)`, every row sums to 1.
    """
    if settings.similarity == "kl":
        triples = zip(distances, passes.outputs, passes.teacher_outputs, strict=True)
        scores = sum(one.scores(own, theirs) for one, own, theirs in triples if one.weight > 0)
    else:
        scores = similarity_scores(*passes.compared, settings.similarity)
    percentile = settings.percentile if percentile is None else percentile
    return guidance_weights(scores, settings.guidance_temperature, percentile)


def distillation_loss(passes, weights, distances, settings, sample_weight):
    """The distance of the student from what its teachers, weighted, say: of outputs, representation or both.

    Args:
        passes: a `Passes`.
        weights: of the teachers, `(batch, teachers)`.
        distances: the `losses.OutputDistance` of each output, where outputs are distilled.
        settings: a `Settings`.
        sample_weight: the user's weights of the samples, one for all outputs or in their structure, or `None`.

    Returns:
        Scalar tensor.
    """
    sample_weights = weights_per_output(sample_weight, len(passes.outputs))
    loss = 0.0
    if settings.distill != "representation":
        of_outputs = zip(distances, passes.outputs, passes.teacher_outputs, sample_weights, strict=True)
        for one, own, theirs, sample in of_outputs:
            if one.weight == 0:
                continue
            confidence = one.confidence(weights, theirs) if settings.confidence_weighted else None
            loss += one.loss(one.target(weights, own, theirs), own, sample, confidence)
    if settings.distill != "outputs":
        own = wide(passes.representation)
        target = finite_or(guided_target(weights, passes.teacher_representations), ops.stop_gradient(own))
        loss += representation_loss(target, own, mean_weight(sample_weights))
    return loss
