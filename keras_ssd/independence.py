"""Whether the rows of a batch are independent, so that a batch can be tiled for teachers or cut into parts.

Most layers of Keras compute a row from this row alone. Some do not: a softmax over the batch, a reshape that folds
windows into the batch, a layer with a capacity for a batch. Shapes do not show this. Models with layers that are not
known to keep rows apart are run, without noise, on small batches and on parts of them: the rows must have the same
values in both.
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
from keras_ssd.masks import MaskLayer
from keras_ssd.noise import is_exported, parts_of

# The rows of a batch, and its parts: each pair of three rows. If the rows of a batch set a limit to their values (a
# mean, a maximum), two of three rows lie on the same side of it, but on both sides of the limit that they set alone.
_ROWS, _PARTS = 6, (slice(1, 4, 2), slice(3, None, 2), slice(1, None, 4))
# No other axis is likely to have as many as a symbolic batch.
_SYMBOLIC_ROWS, _SYMBOLIC_PARTS = 183, (slice(None, 61),)
# Two batches have to show a culprit, because values close to a threshold may differ by rounding, or three to show none.
_NUM_BATCHES = 4
# A layer of the user's is also run on more rows, up to this number, if it is small: it may count the rows of a batch.
_MANY_ROWS = 2048
_MANY_ELEMENTS, _MANY_MULTIPLICATIONS = 2**21, 2**28


class RepeatRows(MaskLayer):
    """`(batch, ...)` to `(batch * times, ...)`, batch-major, with the mask and without a gradient.

    It is batch-major so that, under data parallelism, the rows of a sample stay on the device of the sample.
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

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
    unknown = {id(step) for step in (*prefix, *suffix) if not _keeps_rows(step)}
    if not unknown:
        return Independence(by_shape)

    def compared(make_inputs: Callable[..., dict[int, Any]], seed: int, parts: Sequence[slice]) -> Independence | None:
        """Return what a batch and its parts show; `None` if layers fail."""
        try:
            with warnings.catch_warnings(), _backend.teacher_scope(seed), keras.StatelessScope(collect_losses=True):
                warnings.simplefilter("ignore")
                runs = _Runs(make_inputs(graph, seed), parts, unknown)
                shown = _compare(runs, prefix, suffix, suffix_inputs, outputs)
                return shown._replace(has_rows={**by_shape, **shown.has_rows})
        except Exception:  # layers may refuse a batch by any kind of error
            return None

    culprits: list[Any] = []
    for seed in range(_NUM_BATCHES):
        found = compared(_random_inputs, seed, _PARTS)
        if found is None:
            break
        culprits.append(found[1:3])
        if culprits.count(found[1:3]) == (3 if found[1:3] == (None, None) else 2):
            return found
    found = compared(_symbolic_inputs, 0, _SYMBOLIC_PARTS)
    return Independence(by_shape, has_fixed_size=batch is not None) if found is None else found


class _Runs:
    """The values of a graph, by `id` of the symbolic tensors, for a batch and for parts of it."""

    def __init__(self, inputs: dict[int, Any], parts: Sequence[slice], unknown: set[int]) -> None:
        self.all, self.unknown = dict(inputs), unknown
        self._rows = _first_size(next(iter(inputs.values()))) or 0
        self.parts = [({key: _rows(x, part) for key, x in inputs.items()}, part) for part in parts]

    def run(self, steps: Sequence[Step], mixer: Any = None, mover: Any = None) -> tuple[Any, Any]:
        """Run steps on all batches, without noise; return the first layers that combine rows and that move them."""
        for step in steps:
            for values in (self.all, *(values for values, _ in self.parts)):
                step.run(values, training=False)
            if mixer is mover is None and id(step) not in self.unknown:
                continue
            states = {self.state(x) for x in step.outputs}
            if "moved" in states and mover is None:
                mover = step.layer
            if "mixed" in states and mixer is None and _is_random(step, self.all):  # go on with the same draws
                self.set_parts(step.outputs)
            elif "mixed" in states and mixer is None:
                mixer = step.layer
        return mixer, mover

    def set_parts(self, tensors: Sequence[Any]) -> None:
        """Replace values of the parts by rows of the batch, or by the same values if they have no rows."""
        for values, part in self.parts:
            for x in tensors:
                value = self.all[id(x)]
                values[id(x)] = _rows(value, part) if self.has_rows(x) else value

    def has_rows(self, tensor: Any) -> bool:
        """Return whether a symbolic tensor has a row for each sample."""
        return _first_size(self.all[id(tensor)]) in (self._rows, None)

    def state(self, tensor: Any) -> str:
        """Return `"rows"`, `"none"` (no row for each sample), `"moved"` or `"mixed"` for a symbolic tensor."""
        states = {
            self._state(a, b, part)
            for values, part in self.parts
            for a, b in zip(tree.flatten(self.all[id(tensor)]), tree.flatten(values[id(tensor)]), strict=True)
            if a is not None and b is not None
        }
        return next((state for state in ("mixed", "moved", "rows") if state in states), "none")

    def _state(self, a: Any, b: Any, part: slice) -> str:
        if len(a.shape) != len(b.shape) or tuple(a.shape[1:]) != tuple(b.shape[1:]):
            return "mixed"
        sizes, few = (_first_size(a), _first_size(b)), len(range(self._rows)[part])
        if None in sizes:
            return "rows"  # unknown, not moved
        if sizes[0] == sizes[1]:
            return "none" if _equal(a, b) else "mixed"
        if sizes == (self._rows, few):
            return "rows" if _equal(_rows(a, part), b) else "mixed"
        return "moved" if sizes[0] * few == sizes[1] * self._rows else "mixed"

    def counter(self, steps: Sequence[Step]) -> Any:
        """Return the first layer that computes rows differently if there are many, as a layer with a capacity does."""
        return next((step.layer for step in steps if id(step) in self.unknown and self._counts_rows(step)), None)

    def _counts_rows(self, step: Step) -> bool:
        states, outputs = {id(x): self.state(x) for x in step.inputs}, [self.all[id(x)] for x in step.outputs]
        repeated = {key: self.all[key] for key, state in states.items() if state == "rows"}
        tensors = tree.flatten([*repeated.values(), *outputs])
        has_rows = not set(states.values()) - {"rows", "none"} and set(map(self.state, step.outputs)) == {"rows"}
        if not has_rows or any(map(_is_symbolic, tensors)):
            return False
        shapes = [x.shape[1:] for x in tensors]
        weights = sum(math.prod(v.shape) for v in getattr(step.layer, "weights", []))
        # Roughly, for a row: at each position all weights and values.
        multiplications = max(math.prod(shape[:-1]) for shape in shapes) * (weights + max(map(math.prod, shapes)))
        elements = sum(map(math.prod, shapes))
        affordable = _MANY_ELEMENTS // max(elements, 1), _MANY_MULTIPLICATIONS // max(multiplications, 1)
        copies = min(_MANY_ROWS, *affordable) // self._rows
        if copies < 2:
            return False
        many = _outputs(step, {**self.all, **tree.map_structure(RepeatRows(copies), repeated)})
        pairs = list(zip(many, tree.flatten(outputs), strict=True))
        is_same = all(len(a) == len(b) * copies and _equal(a[::copies], b) for a, b in pairs)
        return not is_same and not _is_random(step, self.all)


def _compare(runs: _Runs, prefix: Any, suffix: Any, suffix_inputs: Any, outputs: Any) -> Independence:
    """Run all batches and compare them: first the prefix, then the suffix on rows of the values of the prefix."""
    mixer, mover = runs.run(prefix)
    states = {id(x): runs.state(x) for x in suffix_inputs}
    if "moved" in states.values():
        return Independence(dict.fromkeys(states, True), mover, mover, moves=True)
    # Each pass takes rows of these values, whatever the prefix makes of a part of the batch.
    runs.set_parts([x for x in suffix_inputs if states[id(x)] == "mixed"])
    has_rows = {id(x): runs.has_rows(x) for x in suffix_inputs}
    # A layer that combines or moves rows is no culprit if later layers undo it.
    in_prefix = mixer if "mixed" in states.values() else runs.counter(prefix)
    leading = max((i for i, step in enumerate(suffix, 1) if id(step) in runs.unknown), default=0)
    mixer, mover = runs.run(suffix[:leading])
    if mixer is mover is None:  # the other layers keep rows apart
        return Independence(has_rows, runs.counter(suffix[:leading]), in_prefix)
    mixer, mover = runs.run(suffix[leading:], mixer, mover)
    shown = {runs.state(x) for x in outputs} & {"mixed", "moved"}
    in_suffix = (mover if mixer is None else mixer) if shown else runs.counter(suffix)
    return Independence(has_rows, in_suffix, in_prefix, moves=shown == {"moved"})


def _rows(values: Any, part: slice) -> Any:
    """Return the rows of a part, of each tensor in a structure."""

    def rows(x: Any) -> Any:
        return keras.KerasTensor((len(range(x.shape[0])[part]), *x.shape[1:]), x.dtype) if _is_symbolic(x) else x[part]

    return tree.map_structure(rows, values)


def _outputs(step: Step, values: dict[int, Any]) -> list[Any]:
    """Return the outputs of a step for some values, as a flat list; the values are not changed."""
    values = dict(values)
    step.run(values, training=False)
    return tree.flatten([values[id(x)] for x in step.outputs])


def _is_random(step: Step, values: dict[int, Any]) -> bool:
    """Return whether a layer draws random numbers also in inference mode, so that two calls differ."""
    return not all(map(_equal, *(_outputs(step, values) for _ in range(2))))


def _first_size(value: Any) -> Any:
    """Return the size of the first axis: 0 of a scalar, `None` if it is unknown."""
    shape = tree.flatten(value)[0].shape
    return shape[0] if len(shape) else 0


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, keras.KerasTensor)


def _equal(a: Any, b: Any) -> bool:
    """Return whether tensors have the same values but for rounding, relative to the largest one; symbolic ones do."""
    if _is_symbolic(a):
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
