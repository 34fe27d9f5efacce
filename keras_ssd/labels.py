"""Which samples of a batch have a target, and what the task's loss and the metrics see: those, and no others.

A target is missing

- where a class is -1 (sparse categorical and binary outputs; what `ignore_class=-1` of Keras' loss means), for each
  position of an output that has several;
- where a one-hot, multi-label or regression target holds NaN, anywhere along its last axis.

Each output of a model may lack its target on its own.
"""

import keras
import numpy as np
from keras import ops, tree

from keras_ssd.losses import weights_per_output

MISSING_CLASS = -1


def missing_like(y):
    """An array of missing targets, of the shape and type of `y`, whose type has to be able to hold them."""
    return np.full_like(y, MISSING_CLASS if y.dtype.kind in "iu" else np.nan)


def able_to_miss(y):
    """A NumPy array as it is, or in a type that can hold a missing target: integers with a sign, floats."""
    return y.astype("int32") if y.dtype.kind in "bu" else y


def missing_in(targets, kinds):
    """Whether NumPy-like targets, one for each output, lack any, as far as can be told without the outputs.

    Args:
        targets: a structure of arrays.
        kinds: the kind of each output, see `has_target`.
    """
    arrays = [np.asarray(ops.convert_to_numpy(y)) for y in tree.flatten(targets) if y is not None]
    if len(kinds) != len(arrays):
        kinds = [kinds[0]] * len(arrays)
    return any(
        (y.dtype.kind == "f" and np.isnan(y).any()) or (kind != "regression" and (y == MISSING_CLASS).any())
        for y, kind in zip(arrays, kinds, strict=True)
    )


def may_miss(x, y, validation, kinds):
    """Whether data for training might lack targets: arrays are looked at, other data cannot be looked at beforehand.

    Args:
        x: inputs, or what yields batches of inputs and targets.
        y: targets or `None`.
        validation: likewise `(x, y, ...)`, what yields batches, or `None`.
        kinds: the kind of each output, see `has_target`.
    """
    if _yields_batches(x) if y is None else missing_in(y, kinds):
        return True
    if isinstance(validation, (tuple, list)):
        return len(validation) > 1 and missing_in(validation[1], kinds)
    return _yields_batches(validation)


def has_target(y, output, kind):
    """Which samples (and positions) have a target.

    Args:
        y: targets of one output, `(batch, ...)`.
        output: what the model put out, `(batch, ...)`.
        kind: `"categorical"`, `"binary"` or `"regression"`, see `keras_ssd.losses`.

    Returns:
        Truth values of the shape that the losses of the output have, the batch and its positions.
    """
    dtype = keras.backend.standardize_dtype(y.dtype)
    rank, last = len(output.shape), output.shape[-1]
    is_dense = len(y.shape) == rank and (y.shape[-1] == last or y.shape[-1] != 1)
    found = ops.ones_like(y, dtype="bool")
    if keras.backend.is_float_dtype(dtype):
        found = ops.logical_not(ops.isnan(y))
    if kind == "binary" or (kind == "categorical" and not is_dense):
        if dtype != "bool" and not dtype.startswith("uint"):
            found = ops.logical_and(found, ops.not_equal(y, MISSING_CLASS))
    return ops.all(found, axis=-1) if len(y.shape) == rank and rank > 1 else found


def find_targets(y, y_pred, kinds):
    """`has_target` for each output of a model, structured as `y`; `None` if targets and outputs do not correspond."""
    outputs, targets = tree.flatten(y_pred), tree.flatten(y)
    if len(outputs) != len(targets) or any(one is None for one in targets):
        return None
    return tree.pack_sequence_as(y, [has_target(*one) for one in zip(targets, outputs, kinds, strict=True)])


def for_task_loss(y, found, sample_weight, reductions):
    """Targets and weights that leave what is missing out of the task's loss, given the reduction of each output's."""
    weights = weights_per_output(sample_weight, len(reductions))
    weights = [loss_weight(*one) for one in zip(tree.flatten(found), weights, reductions, strict=True)]
    return without_missing(y, found), tree.pack_sequence_as(found, weights)


def for_metrics(y, found, sample_weight):
    """Targets, weights of `metrics` and weights of `weighted_metrics` that leave what is missing out of both."""
    flat = tree.flatten(found)
    weights = weights_per_output(sample_weight, len(flat))
    weights = [metric_weight(*one) for one in zip(flat, weights, strict=True)]
    unweighted = tree.map_structure(lambda one: metric_weight(one, None), found)
    return without_missing(y, found), unweighted, tree.pack_sequence_as(found, weights)


def without_missing(y, found):
    """Targets in which a harmless 0 stands for each that is missing."""
    return tree.map_structure(lambda y, one: ops.where(_expanded(one, len(y.shape)), y, ops.zeros_like(y)), y, found)


def loss_weight(found, sample_weight, reduction):
    """Weights that leave missing targets out of a loss, so that it is the mean over the others.

    Keras divides by the size of the batch; what is missing from it is made up for. Where nothing is missing the weights
    are the user's, exactly.

    Args:
        found: from `has_target`.
        sample_weight: the user's weights or `None`.
        reduction: of the loss.
    """
    weight = ops.cast(found, keras.config.floatx())
    if reduction in ("sum_over_batch_size", "mean"):
        size = ops.cast(ops.size(weight), weight.dtype)
        weight = weight * ops.divide_no_nan(size, ops.sum(weight))
    return metric_weight(weight, sample_weight)


def metric_weight(found, sample_weight):
    """The user's weights, 0 where the target is missing."""
    weight = ops.cast(found, keras.config.floatx())
    if sample_weight is None:
        return weight
    rank = max(len(weight.shape), len(sample_weight.shape))
    return _expanded(weight, rank) * ops.cast(_expanded(sample_weight, rank), weight.dtype)


def _yields_batches(data):
    """Whether data is neither arrays nor nothing: a data set, a generator."""
    return data is not None and not isinstance(data, (tuple, list, dict)) and not hasattr(data, "shape")


def _expanded(x, rank):
    return ops.reshape(x, ops.shape(x) + (1,) * (rank - len(x.shape)))
