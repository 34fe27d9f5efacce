"""Whether the rows of a batch are independent, so that a batch can be tiled for teachers or cut into parts.

Most layers of Keras compute a row from this row alone. Some do not: a softmax over the batch, a reshape that folds
windows into the batch, a layer with a capacity for a batch. Shapes do not show this. Models with layers that are not
known to keep rows apart are run, without noise, on small batches and on every third row of them: the rows must have the
same values in both.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.graph import Graph, Step
from keras_ssd.keras_names import is_elementwise, is_of_keras, slices_within_rows
from keras_ssd.noise import is_exported, parts_of

# The rows of a batch, of which every third one makes the smaller batch. No other axis is likely to have as many as a
# symbolic batch.
_ROWS, _SYMBOLIC_ROWS, _STRIDE = 6, 183, 3
# A row shows that it depends on others only if these change its value: a maximum of the batch may lie in a row that
# both batches have. So several pairs of batches are compared.
_NUM_BATCHES, _NUM_BATCHES_IF_LARGE, _LARGE = 9, 3, 2**30
# A layer of the user's is also run on more rows, up to this number, if it is small: it may count the rows of a batch.
_MANY_ROWS = 2048
_MANY_ELEMENTS, _MANY_MULTIPLICATIONS = 2**21, 2**28


class RepeatRows(keras.layers.Layer):
    """`(batch, ...)` to `(batch * times, ...)`, batch-major, with the mask and without a gradient.

    It is batch-major so that, under data parallelism, the rows of a sample stay on the device of the sample. It is a
    layer because Keras passes masks on through layers only.
    """

    def __init__(self, times: int) -> None:
        super().__init__(autocast=False, dtype="float32", name="repeat_rows")
        self.times, self.supports_masking, self.built = times, True, True

    def call(self, x: Tensor) -> Tensor:
        return ops.repeat(ops.stop_gradient(x), self.times, axis=0)

    def compute_mask(self, x: Tensor, previous_mask: Tensor | None = None) -> Tensor | None:
        return None if previous_mask is None else ops.repeat(previous_mask, self.times, axis=0)


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
    graph: Graph, prefix: Sequence[Step], suffix: Sequence[Step], suffix_inputs: Sequence[Any], outputs: Sequence[Any]
) -> Independence:
    """Find out which tensors have a row for each sample, and which parts of a graph keep rows apart.

    `suffix` are the steps that run for every pass on the symbolic tensors `suffix_inputs`, `prefix` those before them,
    and `outputs` the symbolic tensors that the passes return. Rows count as independent if the layers cannot be run.
    """
    batch = tree.flatten(graph.inputs)[0].shape[0]
    read = [x for step in (*prefix, *suffix) for x in step.inputs] + list(suffix_inputs)
    by_shape = {id(x): len(x.shape) > 0 and x.shape[0] == batch for x in read}
    if all(_keeps_rows(step) for step in (*prefix, *suffix)):
        return Independence(by_shape)

    def compared(make_inputs: Callable[..., dict[int, Any]], number: int = 0, count: bool = False) -> Any:
        """Return the verdict of two batches, and roughly the multiplications of a row; `None` if layers fail."""
        try:
            with warnings.catch_warnings(), _backend.teacher_scope(number), keras.StatelessScope(collect_losses=True):
                warnings.simplefilter("ignore")
                runs = _Runs(make_inputs(graph, number), number % _STRIDE, count)
                verdict = _compare(runs, prefix, suffix, suffix_inputs, outputs, by_shape)
                return verdict, sum(runs.cost(step) for step in (*prefix, *suffix) if not _keeps_rows(step))
        except Exception:  # layers may refuse a batch by any kind of error
            return None

    independent, num_batches = None, _NUM_BATCHES
    culprits: list[Any] = []
    for number in range(_NUM_BATCHES):
        if number == num_batches:
            break
        result = compared(_random_inputs, number, count=number == len(culprits))
        if result is None:
            break
        verdict, cost = result
        num_batches = _NUM_BATCHES if cost < _LARGE else _NUM_BATCHES_IF_LARGE
        if verdict.suffix_culprit is None and verdict.prefix_culprit is None:
            independent = verdict
        elif (found := (verdict.suffix_culprit, verdict.prefix_culprit)) in culprits:
            return verdict  # once would not do: values close to a threshold may differ by rounding
        else:
            culprits.append(found)
    if independent is None:
        symbolic = compared(_symbolic_inputs)
        return symbolic[0] if symbolic else Independence(by_shape, has_fixed_size=batch is not None)
    return independent


class _Runs:
    """The values of a graph, by `id` of the symbolic tensors, for a batch and for some rows of it."""

    def __init__(self, inputs: dict[int, Any], first: int, count: bool) -> None:
        self._first, self.count = first, count
        self.all, self.part = inputs, self.take(inputs)
        self.rows, self.few = (_first_size(next(iter(values.values()))) or 0 for values in (self.all, self.part))

    def take(self, values: Any) -> Any:
        """Return the rows of the smaller batch, of each tensor in a structure."""
        return tree.map_structure(self._every_third, values)

    def _every_third(self, x: Any) -> Any:
        if isinstance(x, keras.KerasTensor):
            return keras.KerasTensor((math.ceil(x.shape[0] / _STRIDE), *x.shape[1:]), x.dtype)
        return x[self._first :: _STRIDE]

    def cost(self, step: Step) -> int:
        """Return roughly the multiplications of a layer for a row: of each position by all weights and values."""
        values = tree.flatten([self.all.get(id(x)) for x in (*step.inputs, *step.outputs)])
        shapes = [x.shape[1:] for x in values if x is not None and len(x.shape) and None not in x.shape]
        positions = max([math.prod(shape[:-1]) for shape in shapes], default=1)
        weights = sum(math.prod(v.shape) for v in getattr(step.layer, "weights", []))
        return positions * (weights + max(map(math.prod, shapes), default=1))

    def state(self, tensor: Any) -> str:
        """Return `"rows"`, `"none"` (no row for each sample), `"moved"` or `"mixed"` for a symbolic tensor."""
        pairs = zip(tree.flatten(self.all[id(tensor)]), tree.flatten(self.part[id(tensor)]), strict=True)
        states = {self._state(a, b) for a, b in pairs if a is not None and b is not None}
        return next((state for state in ("mixed", "moved", "rows") if state in states), "none")

    def _state(self, a: Any, b: Any) -> str:
        if len(a.shape) != len(b.shape) or tuple(a.shape[1:]) != tuple(b.shape[1:]):
            return "mixed"
        sizes = tuple(x.shape[0] if len(x.shape) else 0 for x in (a, b))
        if None in sizes:
            return "rows"  # unknown, not moved
        if sizes[0] == sizes[1]:
            return "none" if _equal(a, b) else "mixed"
        if sizes == (self.rows, self.few):
            return "rows" if _equal(self._every_third(a), b) else "mixed"
        return "moved" if sizes[0] * self.few == sizes[1] * self.rows else "mixed"


class _Culprit(NamedTuple):
    """The first layer that combines rows, and whether it does because it counts them."""

    layer: Any = None
    counts: bool = False


def _compare(runs: _Runs, prefix: Any, suffix: Any, suffix_inputs: Any, outputs: Any, by_shape: Any) -> Independence:
    """Run both batches and compare them: first the prefix, then the suffix on rows of the values of the prefix."""
    in_prefix = _run_steps(runs, prefix)
    states = {id(x): runs.state(x) for x in suffix_inputs}
    if "moved" in states.values():
        mover = _first_mover(runs, prefix)
        return Independence({**by_shape, **dict.fromkeys(states, True)}, mover, mover, moves=True)
    if "mixed" not in states.values() and not in_prefix.counts:
        in_prefix = _Culprit()  # later layers undid the move or the combination
    has_rows = {key: _first_size(runs.all[key]) in (runs.rows, None) for key in states}
    for key in states:  # each pass takes rows of these values, whatever the prefix makes of a part of the batch
        if states[key] == "mixed":
            runs.part[key] = runs.take(runs.all[key]) if has_rows[key] else runs.all[key]
    in_suffix, states_of_outputs = _run_steps(runs, suffix), {runs.state(x) for x in outputs}
    if "moved" in states_of_outputs and in_suffix.layer is None:
        in_suffix = _Culprit(_first_mover(runs, suffix))
    elif not states_of_outputs & {"mixed", "moved"} and not in_suffix.counts:
        in_suffix = _Culprit()
    moves = in_suffix.layer is not None and "mixed" not in states_of_outputs and not in_suffix.counts
    return Independence({**by_shape, **has_rows}, in_suffix.layer, in_prefix.layer, moves)


def _run_steps(runs: _Runs, steps: Sequence[Step]) -> _Culprit:
    """Run steps on both batches, without noise; return the first layer whose rows differ."""
    culprit = _Culprit()
    for step in steps:
        for values in (runs.all, runs.part):
            step.run(values, training=False)
        states = {runs.state(x) for x in step.outputs}
        if culprit.layer is not None:
            continue
        if "mixed" in states and _is_random(runs, step):  # go on with the same draws
            runs.part.update({id(x): runs.take(runs.all[id(x)]) for x in step.outputs})
        elif "mixed" in states:
            culprit = _Culprit(step.layer)
        elif _counts_rows(runs, step, states):
            culprit = _Culprit(step.layer, counts=True)
    return culprit


def _first_mover(runs: _Runs, steps: Sequence[Step]) -> Any:
    return next((step.layer for step in steps if any(runs.state(x) == "moved" for x in step.outputs)), None)


def _first_size(value: Any) -> int | None:
    first = tree.flatten(value)[0]
    return first.shape[0] if len(first.shape) else 0


def _again(step: Step, values: dict[int, Any]) -> list[Any]:
    """Return the outputs of a step for some values, as a flat list."""
    values = dict(values)
    step.run(values, training=False)
    return tree.flatten([values[id(x)] for x in step.outputs])


def _is_random(runs: _Runs, step: Step) -> bool:
    """Return whether a layer draws random numbers also in inference mode, so that two calls differ."""
    before = tree.flatten([runs.all[id(x)] for x in step.outputs])
    return not all(_equal(a, b) for a, b in zip(before, _again(step, runs.all), strict=True))


def _counts_rows(runs: _Runs, step: Step, states: set[str]) -> bool:
    """Return whether a layer computes a row differently if there are many rows, as a layer with a capacity does."""
    kept = {id(x): runs.state(x) for x in step.inputs if runs.all[id(x)] is not None}
    is_symbolic = runs.rows == _SYMBOLIC_ROWS
    if (
        not runs.count
        or is_symbolic
        or _keeps_rows(step)
        or states != {"rows"}
        or set(kept.values()) - {"rows", "none"}
    ):
        return False
    repeated = {key: runs.all[key] for key, state in kept.items() if state == "rows"}
    before = tree.flatten([runs.all[id(x)] for x in step.outputs])
    elements = sum(math.prod(x.shape) for x in [*tree.flatten(list(repeated.values())), *before])
    affordable = _MANY_MULTIPLICATIONS // max(runs.cost(step), 1)
    rows = min(_MANY_ROWS, runs.rows * _MANY_ELEMENTS // max(elements, 1), affordable)
    copies = rows // runs.rows
    if copies < 2:
        return False
    many = tree.map_structure(RepeatRows(copies), repeated)
    for a, b in zip(_again(step, {**runs.all, **many}), before, strict=True):
        if tuple(a.shape) != (len(b) * copies, *b.shape[1:]) or not _equal(a[::copies], b):
            return not _is_random(runs, step)
    return False


def _equal(a: Any, b: Any) -> bool:
    """Return whether tensors have the same values but for rounding, relative to the largest one; symbolic ones do."""
    if isinstance(a, keras.KerasTensor):
        return True
    dtype = keras.backend.standardize_dtype(a.dtype)
    is_float, tolerance = keras.backend.is_float_dtype(dtype), 1e-3 if dtype in ("float32", "float64") else 3e-2
    a, b = (np.asarray(ops.convert_to_numpy(ops.cast(x, "float32") if is_float else x)) for x in (a, b))
    if not is_float:
        return np.array_equal(a, b)
    scale = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
    return bool(np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True))


def _random_inputs(graph: Graph, seed: int) -> dict[int, Any]:
    """Return random values for the inputs of a graph; of integers 0 and 1 only, which most layers accept as indices.

    The shape of a subclassed model's input is the one that it was built with. Its type is not known: it gets values
    between 0 and 2, which are indices, too.
    """
    generator = np.random.default_rng(seed)
    if graph.is_opaque:
        shapes = graph.model.get_build_config()["input_shape"]
        if isinstance(shapes, dict) or not isinstance(shapes[0], (int, type(None))):
            raise ValueError("The structure of the inputs is not known.")
        x = generator.uniform(0, 2, (_ROWS, *_lengths(shapes))).astype("float32")
        return {id(graph.inputs): ops.convert_to_tensor(x)}

    def random(x: Any) -> Any:
        shape = (_ROWS, *_lengths(x.shape))
        if keras.backend.is_float_dtype(x.dtype) and not x.sparse:
            return ops.convert_to_tensor(generator.normal(size=shape), x.dtype)
        if x.sparse or not (keras.backend.is_int_dtype(x.dtype) or x.dtype == "bool"):
            raise ValueError("Sparse inputs and strings are not made.")
        # 1 comes first, because a sequence begins with unmasked steps.
        return ops.convert_to_tensor(-np.sort(-generator.integers(0, 2, shape), axis=-1), x.dtype)

    return {id(x): random(x) for x in tree.flatten(graph.inputs)}


def _symbolic_inputs(graph: Graph, _: int) -> dict[int, Any]:
    inputs = tree.flatten(graph.inputs)
    return {id(x): keras.KerasTensor((_SYMBOLIC_ROWS, *_lengths(x.shape)), x.dtype) for x in inputs}


def _lengths(shape: Any) -> list[int]:
    """Return a shape without the batch, with numbers in place of unknown sizes."""
    unknown = 64 if len(shape) < 4 else 32
    return [unknown if size is None else size for size in shape[1:]]


def _keeps_rows(step: Step) -> bool:
    """Return whether a step is known to return a row for each row, computed from this row alone."""
    ranks = {len(x.shape) for x in (*step.inputs, *step.outputs)}
    if min(ranks, default=0) < 2 or step.fixed_training:
        return False
    if isinstance(step.layer, keras.Layer):
        return all(_is_row_wise(part, min(ranks)) for part in parts_of(step.layer))
    others = [x for x in tree.flatten((step.args, step.kwargs)) if not isinstance(x, keras.KerasTensor)]
    has_scalars_only = all(x is None or np.ndim(x) == 0 for x in others)
    is_elementwise_in_rows = is_elementwise(step.layer) and len(ranks) == 1 and has_scalars_only
    return is_elementwise_in_rows or slices_within_rows(step.layer, step.args)


def _is_row_wise(layer: Any, rank: int) -> bool:
    """Return whether a layer is one of Keras' with no function of the user's, and does nothing along the batch."""
    if not is_exported(layer) or isinstance(layer, keras.layers.Lambda):
        return False
    axes = [value for name, value in vars(layer).items() if name.strip("_") in ("axis", "axes", "attention_axes")]
    if any(isinstance(n, int) and (n == 0 or n <= -rank) for n in tree.flatten(axes)):
        return False
    functions = [value for value in vars(layer).values() if callable(value) and not isinstance(value, keras.Layer)]
    return all(is_of_keras(function) or is_of_keras(type(function)) for function in functions)
