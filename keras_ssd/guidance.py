"""Student-guided knowledge distillation: the equations of arXiv 2504.14307, section 3, as pure functions.

Symbols: `f_S` is the student's representation (batch, features), `f_T` the representations of the stochastic teachers
(batch, teachers, features), `phi` the scores and `a` the weights, both (batch, teachers).

All functions work on any Keras backend, take arrays or tensors, and compute in float32 or wider: dot products overflow
float16.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd._backend import is_concrete, outside_of_graph, wide
from keras_ssd._typing import Tensor

SIMILARITIES = ("dot", "cosine", "euclidean", "kl", "uniform")


def similarity_scores(
    student: Tensor, teachers: Tensor, similarity: str | Callable[[Tensor, Tensor], Tensor] = "dot"
) -> Tensor:
    """Score every stochastic teacher by its similarity to the student, `phi[b, i]`.

    | similarity | `phi[b, i]` |
    |---|---|
    | `"dot"` | the dot product `<f_S[b], f_T[b, i]>` (the paper) |
    | `"cosine"` | the cosine of the angle between the two; 0 if one of them is zero or its norm overflows |
    | `"euclidean"` | minus the squared distance |
    | `"kl"` | minus KL(softmax(f_T[b, i]), softmax(f_S[b])): the features are logits |
    | `"uniform"` | 0 for every teacher: no guidance |

    Args:
        student: `(batch, features)`.
        teachers: `(batch, teachers, features)`.
        similarity: one of the names above, or a callable that takes `(student, teachers)` and returns the scores, a
            tensor of floats `(batch, teachers)`. Defaults to `"dot"`.

    Returns:
        Scores `(batch, teachers)`. A teacher that holds NaN or infinity gets the score NaN (and passes no gradient), so
        that `guidance_weights` leaves it out.

    Raises:
        ValueError: if `similarity` is neither known nor callable, or is a callable that fails, or returns something
            other than such scores.

    Example:
        >>> similarity_scores([[1.0, 2.0]], [[[1.0, 0.0], [0.0, 1.0]]], "dot")  # [[1., 2.]]
    """
    student, teachers = wide(student), wide(teachers)
    finite = ops.all(ops.isfinite(teachers), axis=-1)
    # NaN for a teacher that is not finite, computed from it: a constant NaN would stop `jax_debug_nans` in every step.
    total = ops.stop_gradient(ops.sum(teachers, axis=-1))
    spoiled = total - total
    # Without this the gradient of a score that is discarded later would still be 0 * NaN = NaN.
    teachers = ops.where(ops.expand_dims(finite, -1), teachers, ops.zeros_like(teachers))
    if callable(similarity):
        scores = _custom_scores(student, teachers, similarity)
    elif similarity == "dot":
        scores = _dot(student, teachers)
    elif similarity == "cosine":
        scores = _dot(_unit(student), _unit(teachers))
    elif similarity == "euclidean":
        scores = -ops.sum(ops.square(teachers - ops.expand_dims(student, 1)), axis=-1)
    elif similarity == "kl":
        log_teachers = ops.log_softmax(teachers, axis=-1)
        log_student = ops.expand_dims(ops.log_softmax(student, axis=-1), 1)
        scores = -ops.sum(ops.exp(log_teachers) * (log_teachers - log_student), axis=-1)
    elif similarity == "uniform":
        scores = ops.zeros_like(teachers[:, :, 0])
    else:
        raise ValueError(f"`similarity` should be one of {SIMILARITIES} or a callable. Received: {similarity!r}")
    return ops.where(finite, scores, ops.cast(spoiled, scores.dtype))


def guidance_weights(scores: Tensor, temperature: float = 5.0, percentile: float = 90.0) -> Tensor:
    """Turn scores into guidance weights: softmax, percentile filter, renormalisation.

    `a[b, :] = softmax(phi[b, :] / h)`; every weight below the `percentile`-th percentile of its row (linear
    interpolation between order statistics, as `numpy.percentile`) is set to 0; the rest is divided by its sum. A
    percentile of 90 keeps 3 of 30 teachers but only 1 of 8. The gradient passes through the weights that are kept, as
    in the paper's released code; the filter itself has none.

    A teacher whose score is not finite gets weight 0. If no score of a row is finite, all of its weights are equal (and
    if its teachers are not finite, neither is its target; the training step then omits the term for this sample).

    Args:
        scores: `(batch, teachers)`.
        temperature: `h` > 0. Defaults to `5.0`, the value in the paper's released code.
        percentile: epsilon, from 0 (keep every teacher) to 100 (keep the best). Defaults to `90.0`.

    Returns:
        Weights `(batch, teachers)`, finite and not negative; every row sums to 1.

    Raises:
        ValueError: if `temperature` is not above 0 or `percentile` is outside 0-100.

    Example:
        >>> guidance_weights([[0.0, 0.0, 9.0]], temperature=1.0, percentile=90.0)  # [[0., 0., 1.]]
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` should be a positive float. Received: temperature={temperature}")
    if not 0 <= percentile <= 100:
        raise ValueError(f"`percentile` should lie between 0 and 100. Received: percentile={percentile}")
    # In float32 smaller temperatures are 0, and 0 / 0 is NaN; larger temperatures are infinite. At these limits the
    # best teacher already takes all the weight, or all teachers weigh the same.
    temperature = min(max(temperature, 1e-37), 1e38)
    scores = wide(scores)
    valid = ops.isfinite(scores)
    # A row without any finite score counts as a row of equal scores.
    valid = ops.logical_or(valid, ops.logical_not(ops.any(valid, axis=-1, keepdims=True)))
    scores = ops.where(ops.isfinite(scores), scores, ops.zeros_like(scores))
    lowest = ops.full_like(scores, np.finfo(keras.backend.standardize_dtype(scores.dtype)).min)
    # Subtracting the maximum before dividing keeps tiny temperatures and huge scores finite. Sorted, because `ops.max`
    # refuses an empty batch.
    best = ops.sort(ops.stop_gradient(ops.where(valid, scores, lowest)), axis=-1)[:, -1:]
    exponentials = ops.exp(ops.where(valid, (scores - best) / temperature, ops.zeros_like(scores)))
    exponentials = ops.where(valid, exponentials, ops.zeros_like(scores))
    weights = exponentials / ops.sum(exponentials, axis=-1, keepdims=True)
    if percentile > 0 and scores.shape[-1] != 1:
        # The smallest weight that is kept is the upper order statistic, wherever the interpolation falls between two.
        # Rounded, because 100 * 5 / 29 should fall on an order statistic.
        position = math.ceil(round(percentile * (weights.shape[-1] - 1) / 100, 9))
        # Not `ops.top_k`: under data parallelism XLA would gather the whole batch for it on every device.
        threshold = ops.sort(ops.stop_gradient(weights), axis=-1)[:, position : position + 1]
        weights = ops.where(weights >= threshold, weights, ops.zeros_like(weights))
        weights = weights / ops.sum(weights, axis=-1, keepdims=True)
    return weights


def guided_target(weights: Tensor, teachers: Tensor) -> Tensor:
    """Return the target of the distillation, `sum_i a[b, i] f_T[b, i]`.

    Args:
        weights: `(batch, teachers)`.
        teachers: `(batch, teachers, features)`.

    Returns:
        The weighted mean `(batch, features)`, NaN where a teacher with a weight above 0 is not finite. A teacher with
        weight 0 does not enter the mean, even if it is not finite.

    Example:
        >>> guided_target([[0.25, 0.75]], [[[4.0], [8.0]]])  # [[7.]]
    """
    weights, teachers = wide(weights), wide(teachers)
    used = ops.where(ops.expand_dims(weights > 0, -1), teachers, ops.zeros_like(teachers))
    unchecked = ops.stop_gradient(_weighted_sum(weights, used))
    # The gradient of a weight is its teacher: if not finite, it would reach the student even from a discarded target.
    target = _weighted_sum(weights, ops.where(ops.isfinite(teachers), teachers, ops.zeros_like(teachers)))
    return ops.where(ops.isfinite(unchecked), target, unchecked - unchecked)


def sharpened(target: Tensor, temperature: float) -> Tensor:
    """Return distributions with all probabilities to the power `1 / T`, normalised (MixMatch, arXiv 1905.02249, eq. 7).

    Args:
        target: probabilities `(..., classes)`.
        temperature: T > 0. 1 changes nothing; near 0 the most probable class gets all.

    Example:
        >>> sharpened([[0.75, 0.25]], 0.5)  # [[0.9, 0.1]]
    """
    return ops.softmax(ops.log(ops.maximum(wide(target), 1e-30)) / max(temperature, 1e-30), axis=-1)


def _weighted_sum(weights: Tensor, teachers: Tensor) -> Tensor:
    return ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), teachers), axis=1)


def _custom_scores(student: Tensor, teachers: Tensor, similarity: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    shapes = f"a student of shape {tuple(student.shape)} and teachers of shape {tuple(teachers.shape)}"
    try:
        scores = ops.convert_to_tensor(similarity(student, teachers))
    except Exception as error:  # a user's function may raise any kind of error
        raise ValueError(
            f"`similarity` should take (student, teachers) and return scores (batch, teachers). It failed for "
            f"{shapes}: {type(error).__name__}: {error}"
        ) from error
    expected, received = tuple(teachers.shape[:2]), tuple(scores.shape)
    if len(received) != 2 or any(a != b and None not in (a, b) for a, b in zip(expected, received, strict=True)):
        raise ValueError(
            f"`similarity` should return scores of shape (batch, teachers), here {expected}, for {shapes}. Received: "
            f"scores of shape {received}"
        )
    dtype = keras.backend.standardize_dtype(scores.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(f"`similarity` should return floats. Received: scores of dtype {dtype}")
    if not (is_concrete(scores) and is_concrete(student)):
        if _is_never_finite(similarity, tuple(teachers.shape[1:])):
            raise ValueError("`similarity` should return finite scores. Received: none for random features")
    else:
        found, given = ops.any(ops.isfinite(scores), axis=-1), ops.all(ops.isfinite(student), axis=-1)
        if not bool(ops.all(ops.logical_or(found, ops.logical_not(given)))):
            raise ValueError(
                "`similarity` should return finite scores. Received: a sample with a finite student, for which no "
                "teacher has a finite score"
            )
    return scores


def _is_never_finite(similarity: Callable[[Tensor, Tensor], Tensor], shape: tuple[Any, ...]) -> bool:
    """Return whether no score of random features is finite, of any numbers, positive ones, or distributions.

    While a step is traced the features have no values.
    """
    if None in shape:
        return False
    features = np.random.default_rng(0).normal(size=(3, 4, *shape)).astype("float32")
    features[1] = np.abs(features[1])
    features[2] = np.exp(features[2]) / np.exp(features[2]).sum(axis=-1, keepdims=True)
    try:
        with outside_of_graph():
            scores = [similarity(ops.convert_to_tensor(x[:, 0]), ops.convert_to_tensor(x)) for x in features]
            return not any(np.isfinite(ops.convert_to_numpy(one)).any() for one in scores)
    except Exception:  # it may not take values while a step is traced
        return False


def _dot(student: Tensor, teachers: Tensor) -> Tensor:
    return ops.squeeze(ops.matmul(teachers, ops.expand_dims(student, -1)), axis=-1)


def _unit(x: Tensor) -> Tensor:
    # A vector of zeros stays zero, and its gradient small.
    squared_norm = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.where(squared_norm < 1e-24, ops.ones_like(squared_norm), squared_norm))
