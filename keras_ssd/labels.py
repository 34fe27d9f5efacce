"""Which samples of a batch have a target, and what the task's loss and the metrics see: those, and no others.

A target is missing

- where a class is -1 (sparse categorical and binary outputs; what `ignore_class=-1` of Keras' loss means), for each
  position of an output that has several;
- where a one-hot, multi-label or regression target holds NaN, anywhere along its last axis.

Each output of a model may lack its target on its own. Where a loss gives one value for a whole sample, though its
target has several positions, the sample has a target if all its positions have.
"""

import keras
import numpy as np
from keras import ops, tree

from keras_ssd.losses import is_hinge, loss_values, not_masked, weights_per_output

MISSING_CLASS = -1


def missing_like(y):
    """An array of missing targets, of the shape and type of `y`, whose type has to be able to hold them."""
    return np.full_like(y, MISSING_CLASS if y.dtype.kind in "iu" else np.nan)


def able_to_miss(y):
    """A NumPy array as it is, or in a type that can hold a missing target: integers with a sign, floats."""
    return y.astype("int32") if y.dtype.kind in "bu" else y


def target_kinds(distances, losses):
    """What each output's targets are, `"categorical"`, `"binary"` or `"regression"`: to a hinge loss -1 is a class.

    Args:
        distances: of `output_distances`.
        losses: the loss of each output.
    """
    return ["regression" if is_hinge(loss) else one.kind for one, loss in zip(distances, losses, strict=True)]


def in_output_order(y, n_outputs, names):
    """Targets as a flat list in the order of the flat outputs; `None` if there are more or fewer."""
    if isinstance(y, dict) and names and set(names) == set(y):
        return [y[name] for name in names]
    flat = tree.flatten(y)
    return flat if len(flat) == n_outputs else None


def missing_in(y, kinds, names=None, exempt=()):
    """Whether arrays of targets lack any for certain, as far as can be told without the outputs.

    Args:
        y: a structure of arrays.
        kinds: the kind of each output.
        names: of the outputs.
        exempt: places of outputs whose loss leaves out -1 by itself.
    """
    targets = in_output_order(y, len(kinds), names)
    if targets is None:
        targets, kinds = [one for one in tree.flatten(y) if one is not None], [kinds[0]] * len(tree.flatten(y))
    for place, (one, kind) in enumerate(zip(targets, kinds, strict=False)):
        if one is None:
            continue
        array = np.asarray(ops.convert_to_numpy(one))
        if array.dtype.kind == "f" and np.isnan(array).any():
            return True
        if kind != "regression" and place not in exempt and (array == MISSING_CLASS).any():
            return True
    return False


def may_miss(x, y, validation, kinds, names=None):
    """Whether data for training might lack targets: arrays are looked at, other data cannot be looked at beforehand.

    Args:
        x: inputs, or what yields batches of inputs and targets.
        y: targets or `None`.
        validation: likewise `(x, y, ...)`, what yields batches, or `None`.
        kinds: the kind of each output.
        names: of the outputs.
    """
    if _yields_batches(x) if y is None else _may_be_missing_in(y, kinds, names):
        return True
    if isinstance(validation, (tuple, list)):
        return len(validation) > 1 and _may_be_missing_in(validation[1], kinds, names)
    return _yields_batches(validation)


def _may_be_missing_in(y, kinds, names):
    """As `missing_in`, but of a loss of one's own it is not known whether it takes classes."""
    arrays = [np.asarray(ops.convert_to_numpy(one)) for one in tree.flatten(y) if one is not None]
    if any(one.dtype.kind == "i" and (one == MISSING_CLASS).any() for one in arrays):
        return True
    return missing_in(y, kinds, names)


def takes_classes(y, output, kind):
    """Whether targets are classes, so that one of -1 is missing. Otherwise only NaN can say so.

    Integers, one for the scores of several classes, are classes whatever the loss is called.

    Args:
        y: targets of one output, `(batch, ...)`.
        output: what the model puts out, `(batch, ...)`, or its symbolic tensor.
        kind: `"categorical"`, `"binary"` or `"regression"`, see `target_kinds`.
    """
    dtype = keras.backend.standardize_dtype(y.dtype)
    if dtype == "bool" or dtype.startswith("uint"):
        return False
    rank, last = len(output.shape), output.shape[-1]
    is_dense = len(y.shape) == rank and (y.shape[-1] == last or y.shape[-1] != 1)
    if kind == "regression":
        return dtype.startswith("int") and not is_dense and last != 1 and len(y.shape) >= rank - 1
    return kind == "binary" or not is_dense


def has_target(y, output, kind):
    """Which samples (and positions) have a target.

    Args:
        y: targets of one output, `(batch, ...)`.
        output: what the model put out, `(batch, ...)`.
        kind: `"categorical"`, `"binary"` or `"regression"`, see `target_kinds`.

    Returns:
        Truth values, the batch and its positions.
    """
    found = ops.ones_like(y, dtype="bool")
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(y.dtype)):
        found = ops.logical_not(ops.isnan(y))
    if takes_classes(y, output, kind):
        found = ops.logical_and(found, ops.not_equal(y, MISSING_CLASS))
    rank = len(output.shape)
    return ops.all(found, axis=-1) if len(y.shape) == rank and rank > 1 else found


def find_targets(y, y_pred, kinds, names):
    """Targets and `has_target` of each output, two lists; `None` if targets and outputs do not correspond.

    An output that is not trained may be given `None`.
    """
    outputs = tree.flatten(y_pred)
    targets = in_output_order(y, len(outputs), names)
    if targets is None:
        return None
    pairs = zip(targets, outputs, kinds, strict=True)
    return targets, [None if one[0] is None else has_target(*one) for one in pairs]


def for_task_loss(targets, found, y_pred, sample_weight, losses):
    """Targets and weights, structured as the outputs, that leave what is missing out of the task's loss.

    Args:
        targets: of each output, a list.
        found: of each, from `has_target`.
        y_pred: the outputs.
        sample_weight: the user's weights or `None`.
        losses: of each output.
    """

    def of_one(y, one, output, weight, loss):
        if y is None:
            return None, weight
        ignored = getattr(loss, "ignore_class", None)
        clean = without_missing(y, one, instead=1 if ignored == 0 else 0)
        one = _for_values(one, loss, clean, output)
        kept = _kept(one, output, clean, ignored)
        return clean, loss_weight(one, weight, getattr(loss, "reduction", "sum_over_batch_size"), kept)

    return _for_each(of_one, targets, found, y_pred, sample_weight, losses)


def for_metrics(targets, found, y_pred, sample_weight, losses):
    """Targets, weights of `metrics` and of `weighted_metrics`, structured as the outputs, without what is missing.

    The arguments are those of `for_task_loss`.
    """

    def of_one(y, one, output, weight, loss):
        if y is None:
            return None, None, weight
        clean = without_missing(y, one)
        one = _for_values(one, loss, clean, output)
        return clean, metric_weight(one, None), metric_weight(one, weight)

    return _for_each(of_one, targets, found, y_pred, sample_weight, losses)


def _for_each(of_one, targets, found, y_pred, sample_weight, losses):
    """What `of_one` makes of each output, a tuple of structures like that of the outputs."""
    outputs = tree.flatten(y_pred)
    given = weights_per_output(sample_weight, len(outputs))
    results = [of_one(*one) for one in zip(targets, found, outputs, given, losses, strict=True)]
    return tuple(tree.pack_sequence_as(y_pred, list(part)) for part in zip(*results, strict=True))


def _for_values(found, loss, y, output):
    """`found` for each value that a loss gives: where that is one for several positions, it counts if all are found."""
    if loss is None or len(found.shape) == 1:
        return found
    rank = max(1, len(loss_values(loss, y, output).shape))
    return ops.all(found, axis=tuple(range(rank, len(found.shape)))) if len(found.shape) > rank else found


def _kept(found, output, y, ignored):
    """What Keras keeps of a loss by itself, and divides by: what is not masked and not of an ignored class."""
    kept = not_masked(output, found)
    if ignored is not None and len(y.shape) == len(found.shape):
        kept = kept * ops.cast(ops.not_equal(y, ops.cast(ignored, y.dtype)), kept.dtype)
    return kept


def without_missing(y, found, instead=0):
    """Targets in which a harmless value stands for each that is missing."""
    return ops.where(_expanded(found, len(y.shape)), y, ops.full_like(y, instead))


def loss_weight(found, sample_weight, reduction, kept=1.0):
    """Weights that leave missing targets out of a loss, so that it is the mean over the others.

    Keras divides by the size of the batch, or by the number of those it keeps; what is missing from it is made up for.
    Where nothing is missing the weights are the user's, exactly.

    Args:
        found: from `has_target`.
        sample_weight: the user's weights or `None`.
        reduction: of the loss.
        kept: 1 for what Keras keeps by itself, 0 for the rest. Defaults to `1.0`: all.
    """
    weight = ops.cast(found, keras.config.floatx())
    if reduction in ("sum_over_batch_size", "mean"):
        kept = ops.cast(kept, weight.dtype) * ops.ones_like(weight)
        weight = weight * ops.divide_no_nan(ops.sum(kept), ops.sum(kept * weight))
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
