"""Whether the rows of a batch are independent, so that a batch can be tiled for teachers or cut into parts.

Most layers of Keras compute a row from this row alone. Some do not: a softmax over the batch, a reshape that folds
windows into the batch, a layer with a capacity for a batch. Shapes do not show this. Models with layers that are not
known to keep rows apart are run once, without noise, on a small batch and on every third row of it: the rows must have
the same values in both.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd.graph import Graph, Step
from keras_ssd.keras_names import is_elementwise, is_of_keras, slices_within_rows
from keras_ssd.noise import parts_of
from keras_ssd.repeating import RepeatForTeachers

# The rows of the larger and the smaller batch, which holds every third of them.
_ROWS, _STRIDE = 6, 3
_FEW = _ROWS // _STRIDE
# Batch sizes that no other axis is likely to have, for symbolic batches.
_MARKED, _MARKED_FEW = 61, 59
# A layer of the user's is also run on more rows, up to this number, if it is small: it may count the rows of a batch.
_MANY_ROWS = 256
_MANY_ELEMENTS, _MANY_MULTIPLICATIONS = 2**18, 2**27


class Independence(NamedTuple):
    """Knowledge about the rows of a batch.

    Attributes:
        has_rows: for each tensor, by `id`, whether it has one row for each sample.
        suffix_culprit: the layer because of which the batch of the suffix cannot be tiled; `None` if it can.
        prefix_culprit: the layer that makes the prefix of a part of the batch differ from that part of the prefix.
        moves: whether the culprit moves samples to other rows; otherwise it combines the samples of a batch.
        has_fixed_size: whether the model takes batches of one size only, which each pass must have.
    """

    has_rows: dict[int, bool]
    suffix_culprit: Any = None
    prefix_culprit: Any = None
    moves: bool = False
    has_fixed_size: bool = False


def examine(
    graph: Graph,
    needed: Sequence[Step],
    suffix: Sequence[Step],
    suffix_inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> Independence:
    """Find out which tensors have a row for each sample, and which parts of a graph keep rows apart.

    Args:
        graph: a `Graph`.
        needed: its steps that lead to the outputs.
        suffix: those of them that are run for every pass.
        suffix_inputs: symbolic tensors that the suffix takes.
        outputs: symbolic tensors that the passes return.

    Returns:
        An `Independence`. Rows count as independent if the layers cannot be run.
    """
    batch = tree.flatten(graph.inputs)[0].shape[0]
    by_shape = {id(x): len(x.shape) > 0 and x.shape[0] == batch for step in needed for x in step.inputs}
    by_shape.update({id(x): len(x.shape) > 0 and x.shape[0] == batch for x in suffix_inputs})
    if all(_keeps_rows(step) for step in needed):
        return Independence(by_shape)
    parts = [step for step in needed if all(step is not other for other in suffix)], suffix, suffix_inputs, outputs
    verdict = None
    # Values close to a threshold may differ by rounding: only what differs for two batches is believed.
    for seed in (0, 1):
        try:
            runs = _Runs(_ROWS, _FEW, functools.partial(_random_inputs, graph, seed=seed))
            with warnings.catch_warnings(), _backend.teacher_scope(seed):
                warnings.simplefilter("ignore")
                with keras.StatelessScope(collect_losses=True):
                    verdict = _compare(runs, *parts, by_shape)
        except Exception:  # layers may refuse a batch by any kind of error
            verdict = None
            break
        if verdict.suffix_culprit is None and verdict.prefix_culprit is None:
            return verdict
    if verdict is not None:
        return verdict
    try:
        return _compare(_Runs(_MARKED, _MARKED_FEW, functools.partial(_symbolic_inputs, graph)), *parts, by_shape)
    except Exception:
        return Independence(by_shape, has_fixed_size=batch is not None)


class _Runs:
    """The values of a graph for a batch and for some rows of it.

    Args:
        rows, few: the two batch sizes.
        make_inputs: a function of a batch size that returns a dict of values by `id` of the symbolic inputs.
    """

    def __init__(self, rows: int, few: int, make_inputs: Callable[[int], dict[int, Any]]) -> None:
        self.rows, self.few = rows, few
        self.is_symbolic = rows == _MARKED
        self.all = make_inputs(rows)
        if self.is_symbolic:
            self.part = make_inputs(few)
        else:
            self.part = {key: self.take(value) for key, value in self.all.items()}

    def take(self, values: Any) -> Any:
        """Return the rows of the smaller batch, of each tensor in a structure."""
        return tree.map_structure(lambda x: x[::_STRIDE], values)

    def run(self, step: Step) -> None:
        """Run a step on both batches, without noise."""
        step.run(self.all, training=False)
        step.run(self.part, training=False)

    def state(self, tensor: Any) -> str:
        """Return `"rows"`, `"none"` (no row for each sample), `"moved"` or `"mixed"` for a symbolic tensor."""
        pairs = zip(tree.flatten(self.all[id(tensor)]), tree.flatten(self.part[id(tensor)]), strict=True)
        states = {self._state(a, b) for a, b in pairs if a is not None and b is not None}
        return next((state for state in ("mixed", "moved", "rows") if state in states), "none")

    def _state(self, a: Any, b: Any) -> str:
        shapes = tuple(a.shape), tuple(b.shape)
        if len(shapes[0]) != len(shapes[1]) or shapes[0][1:] != shapes[1][1:]:
            return "mixed"
        sizes = tuple(shape[0] if shape else 0 for shape in shapes)
        if self.is_symbolic and None in sizes:
            return "rows"  # unknown, not moved
        if sizes[0] == sizes[1]:
            return "none" if self.is_symbolic or _equal(a, b) else "mixed"
        if sizes == (self.rows, self.few):
            return "rows" if self.is_symbolic or _equal(a[::_STRIDE], b) else "mixed"
        return "moved" if sizes[0] * self.few == sizes[1] * self.rows else "mixed"


def _compare(
    runs: _Runs,
    prefix: Sequence[Step],
    suffix: Sequence[Step],
    suffix_inputs: Sequence[Any],
    outputs: Sequence[Any],
    by_shape: dict[int, bool],
) -> Independence:
    """Run both batches and compare them: first the prefix, then the suffix on rows of the values of the prefix."""
    prefix_culprit = _run_steps(runs, prefix)
    states = {id(x): runs.state(x) for x in suffix_inputs}
    if "moved" in states.values():
        culprit = _first_mover(runs, prefix)
        return Independence({**by_shape, **dict.fromkeys(states, True)}, culprit, culprit, moves=True)
    if "mixed" not in states.values() and not prefix_culprit.counts:
        prefix_culprit = _NONE  # later layers undid the move or the combination
    has_rows = {id(x): _first_size(runs.all[id(x)]) in (runs.rows, None) for x in suffix_inputs}
    for x in suffix_inputs:  # each pass takes rows of these values, whatever the prefix makes of a part of the batch
        if states[id(x)] == "mixed" and not runs.is_symbolic:
            runs.part[id(x)] = runs.take(runs.all[id(x)]) if has_rows[id(x)] else runs.all[id(x)]
    culprit = _run_steps(runs, suffix)
    states_of_outputs = {runs.state(x) for x in outputs}
    if "moved" in states_of_outputs and culprit.layer is None:
        culprit = _Culprit(_first_mover(runs, suffix))
    elif not states_of_outputs & {"mixed", "moved"} and not culprit.counts:
        culprit = _NONE
    moves = culprit.layer is not None and "mixed" not in states_of_outputs and not culprit.counts
    return Independence({**by_shape, **has_rows}, culprit.layer, prefix_culprit.layer, moves)


class _Culprit(NamedTuple):
    """The first layer that combines rows, and whether it does because it counts them."""

    layer: Any = None
    counts: bool = False


_NONE = _Culprit()


def _run_steps(runs: _Runs, steps: Sequence[Step]) -> _Culprit:
    """Run steps on both batches; return the first layer whose rows differ, `_NONE` if there is none."""
    culprit = _NONE
    for step in steps:
        runs.run(step)
        states = [runs.state(x) for x in step.outputs]
        if culprit.layer is not None:
            continue
        if "mixed" in states:
            if _is_random(runs, step):  # go on with the same draws
                runs.part.update({id(x): runs.take(runs.all[id(x)]) for x in step.outputs})
            else:
                culprit = _Culprit(step.layer)
        elif _counts_rows(runs, step, states):
            culprit = _Culprit(step.layer, counts=True)
    return culprit


def _first_mover(runs: _Runs, steps: Sequence[Step]) -> Any:
    return next((step.layer for step in steps if any(runs.state(x) == "moved" for x in step.outputs)), None)


def _first_size(value: Any) -> int | None:
    first = tree.flatten(value)[0]
    return first.shape[0] if len(first.shape) else 0


def _is_random(runs: _Runs, step: Step) -> bool:
    """Return whether a layer draws random numbers also in inference mode, so that two calls differ."""
    if runs.is_symbolic:
        return False
    again = dict(runs.all)
    step.run(again, training=False)
    pairs = [zip(*(tree.flatten(v[id(x)]) for v in (runs.all, again)), strict=True) for x in step.outputs]
    return not all(_equal(a, b) for pair in pairs for a, b in pair)


def _counts_rows(runs: _Runs, step: Step, states: Sequence[str]) -> bool:
    """Return whether a layer computes a row differently if there are many rows, as a layer with a capacity does."""
    inputs = [x for x in step.inputs if runs.all[id(x)] is not None]
    kept = [runs.state(x) for x in inputs]
    if runs.is_symbolic or _keeps_rows(step) or set(states) != {"rows"} or set(kept) - {"rows", "none"}:
        return False
    repeated = [x for x, state in zip(inputs, kept, strict=True) if state == "rows"]
    values = tree.flatten([runs.all[id(x)] for x in (*repeated, *step.outputs)])
    elements = sum(math.prod(x.shape) for x in values)
    weights = sum(math.prod(v.shape) for v in getattr(step.layer, "weights", []))
    rows = min(_MANY_ROWS, _ROWS * _MANY_ELEMENTS // max(elements, 1), _MANY_MULTIPLICATIONS // max(weights, 1))
    copies = rows // _ROWS
    if copies < 2:
        return False
    many = dict(runs.all)
    for x in repeated:
        many[id(x)] = tree.map_structure(RepeatForTeachers(copies), runs.all[id(x)])
    step.run(many, training=False)
    for x in step.outputs:
        for a, b in zip(tree.flatten(many[id(x)]), tree.flatten(runs.all[id(x)]), strict=True):
            if tuple(a.shape) != (len(b) * copies, *b.shape[1:]) or not _equal(a[::copies], b):
                return not _is_random(runs, step)
    return False


def _equal(a: Any, b: Any) -> bool:
    """Return whether two tensors have the same values but for rounding, relative to the largest one."""
    is_float = keras.backend.is_float_dtype(keras.backend.standardize_dtype(a.dtype))
    tolerance = 1e-3 if str(keras.backend.standardize_dtype(a.dtype)) in ("float32", "float64") else 3e-2
    a, b = (np.asarray(ops.convert_to_numpy(ops.cast(x, "float32") if is_float else x)) for x in (a, b))
    if not is_float:
        return np.array_equal(a, b)
    scale = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
    return bool(np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True))


def _random_inputs(graph: Graph, rows: int, seed: int) -> dict[int, Any]:
    """Return random values for the inputs of a graph; of integers 0 and 1 only, which most layers accept as indices.

    The shape of a subclassed model's input is the one that it was built with. Its type is not known: it gets values
    between 0 and 2, which are indices, too.
    """
    generator = np.random.default_rng(seed)
    if graph.is_opaque:
        shapes = graph.model.get_build_config()["input_shape"]
        if isinstance(shapes, dict) or not isinstance(shapes[0], (int, type(None))):
            raise ValueError("The structure of the inputs is not known.")
        x = generator.uniform(0, 2, (rows, *_lengths(shapes))).astype("float32")
        return {id(graph.inputs): ops.convert_to_tensor(x)}

    def random(x: Any) -> Any:
        if x.sparse:
            raise ValueError("Sparse inputs are not made.")
        shape = (rows, *_lengths(x.shape))
        if keras.backend.is_float_dtype(x.dtype):
            return ops.convert_to_tensor(generator.normal(size=shape), x.dtype)
        if not keras.backend.is_int_dtype(x.dtype) and x.dtype != "bool":
            raise ValueError(f"Inputs of {x.dtype} are not made.")
        # 1 comes first, because a sequence begins with unmasked steps.
        return ops.convert_to_tensor(-np.sort(-generator.integers(0, 2, shape), axis=-1), x.dtype)

    return {id(x): random(x) for x in tree.flatten(graph.inputs)}


def _symbolic_inputs(graph: Graph, rows: int) -> dict[int, Any]:
    return {id(x): keras.KerasTensor((rows, *_lengths(x.shape)), x.dtype) for x in tree.flatten(graph.inputs)}


def _lengths(shape: Any) -> list[int]:
    """Return a shape without the batch, with numbers in place of unknown sizes."""
    unknown = 64 if len(shape) < 4 else 32
    return [unknown if size is None else size for size in shape[1:]]


def _keeps_rows(step: Step) -> bool:
    """Return whether a step is known to return a row for each row, computed from this row alone."""
    tensors = [*step.inputs, *step.outputs]
    rank = min((len(x.shape) for x in tensors), default=0)
    if rank < 2 or step.fixed_training:
        return False
    if not isinstance(step.layer, keras.Layer):
        if slices_within_rows(step.layer, step.args):
            return True
        return is_elementwise(step.layer) and _has_only_tensors_of_one_rank(step)
    return all(_is_row_wise(part, rank) for part in parts_of(step.layer))


def _has_only_tensors_of_one_rank(step: Step) -> bool:
    others = [x for x in tree.flatten((step.args, step.kwargs)) if not isinstance(x, keras.KerasTensor)]
    ranks = {len(x.shape) for x in (*step.inputs, *step.outputs)}
    return len(ranks) == 1 and all(x is None or np.ndim(x) == 0 for x in others)


def _is_row_wise(layer: Any, rank: int) -> bool:
    """Return whether a layer is one of Keras' with no function of the user's, and does nothing along the batch."""
    is_exported = getattr(keras.layers, type(layer).__name__, None) is type(layer)
    if not is_exported or isinstance(layer, keras.layers.Lambda):
        return False
    for name, value in vars(layer).items():
        if name.strip("_") in ("axis", "axes", "attention_axes"):
            if any(isinstance(n, int) and (n == 0 or n <= -rank) for n in tree.flatten(value)):
                return False
        elif callable(value) and not isinstance(value, keras.Layer):
            if not is_of_keras(value) and not is_of_keras(type(value)):
                return False
    return True
