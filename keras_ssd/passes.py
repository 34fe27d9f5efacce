"""N stochastic passes of the layers after the first noise layer of a network; the layers before it are run once."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.graph import Graph, Step, last_reads
from keras_ssd.layer_copies import LayerCopies
from keras_ssd.noise import (
    Noise,
    dropout_for,
    is_augmentation,
    is_noise,
    layer_for_passes,
    refuse_augmentation,
    seed_states,
)

# The size of one layer's output that fits into a processor's cache.
_CACHED_BYTES = 2 * 2**20

# The largest number of teachers for which a repeating layer is made in advance: PyTorch's compiler cannot make layers.
_REPEATS_MADE = 32

# Batch sizes that no other axis is likely to have, to follow the batch through the layers.
_MARKED_BATCH, _OTHER_BATCH = 61, 59


class _RepeatForTeachers(keras.layers.Layer):
    """`(batch, ...)` to `(batch * teachers, ...)`, batch-major, with the mask and without a gradient.

    It is batch-major, because under data parallelism the rows of a sample then stay on the device that holds the
    sample, and a layer, because Keras carries masks only through layers.
    """

    def __init__(self, num_teachers: int) -> None:
        super().__init__(autocast=False, name="repeat_for_teachers")
        self.num_teachers = num_teachers
        self.supports_masking = True
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        return ops.repeat(ops.stop_gradient(x), self.num_teachers, axis=0)

    def compute_mask(self, x: Tensor, previous_mask: Tensor | None = None) -> Tensor | None:
        return None if previous_mask is None else ops.repeat(previous_mask, self.num_teachers, axis=0)


class StochasticPasses:
    """N passes of a network with its noise switched on and everything else in inference mode.

    The layers before the first noise layer give the same values in every pass: they are run once (or, for a teacher
    that shares the student's weights, not at all: the student's own values are the `cut_values`). The rest is run on a
    batch of `batch * num_teachers` rows.

    Args:
        graph: the teacher network's `Graph`.
        noise: the result of `choose_noise`; an empty `Noise` gives deterministic passes.
        outputs: the symbolic tensors to return.
        shares_prefix: whether all values before the cut are given.
        augmented: whether the passes branch off after augmentation (of a sample that was augmented elsewhere), not
            before it. Augmentation itself is off in the passes.
        dropout_rate: rate of the dropout that `noise` adds; it also overrides the rates of the noise layers.

    Attributes:
        cut: the symbolic tensors whose values `run` takes.
        cut_has_batch: for each of these tensors, whether it has a row for each sample.
        is_random: for each output, whether it depends on noise.
        is_row_wise: whether the batch can be tiled, so that several passes are run at a time.
        mixes_samples: whether the passes compute with several samples of a batch together.
        prefix: the steps that `run` runs once.
        suffix: the steps that `run` runs for every pass.
    """

    def __init__(
        self,
        graph: Graph,
        noise: Noise,
        outputs: Sequence[Any],
        shares_prefix: bool,
        augmented: bool = True,
        dropout_rate: float | None = None,
    ) -> None:
        if not augmented:
            refuse_augmentation(graph, noise.layers)
        added = [(x, dropout_for(x, dropout_rate or 0.0)) for x in noise.tensors]
        graph = graph.with_layers_after(added)
        noise_layers = [*noise.layers, *(layer for _, layer in added)]
        self.outputs = [graph.moved.get(id(x), x) for x in outputs]
        # What the graph fixes to training mode is random in every pass, also if it was not chosen.
        noise_layers += [s.layer for s in graph.steps if s.fixed_training and is_noise(s.layer)]
        noise_ids = {id(layer) for layer in noise_layers}
        random_tensors: set[int] = set()
        for step in graph.steps:
            is_on = id(step.layer) in noise_ids and step.fixed_training is not False
            if is_on or any(id(x) in random_tensors for x in step.inputs):
                random_tensors.update(map(id, step.outputs))
        self.is_random = [id(x) in random_tensors for x in self.outputs]
        needed = graph.needed(self.outputs)
        self.suffix = [step for step in needed if any(id(x) in random_tensors for x in step.outputs)]
        self._suffix_inputs = _unique(
            [x for step in self.suffix for x in step.inputs if id(x) not in random_tensors]
            + [x for x, is_random in zip(self.outputs, self.is_random, strict=True) if not is_random]
        )
        augmentations = [x for step in graph.steps if is_augmentation(step.layer) for x in step.outputs]
        shared = [x for x in augmentations if id(x) not in random_tensors]
        self.prefix: list[Step] = []
        # Otherwise a teacher without noise would be the student's own training pass, and a teacher of clean samples
        # would see the augmented ones.
        if shares_prefix and noise_layers and (augmented or not shared):
            self.cut = self._suffix_inputs
        else:
            self.prefix = graph.needed(self._suffix_inputs, shared if augmented else [])
            produced = {id(x) for step in self.prefix for x in step.outputs}
            read = _unique([x for step in self.prefix for x in step.inputs] + self._suffix_inputs)
            self.cut = [x for x in read if id(x) not in produced]
        self._has_batch, self.is_row_wise = _find_batch(graph, self._suffix_inputs)
        self.mixes_samples = _mixes_samples(graph, needed, self.suffix)
        self.is_row_wise = self.is_row_wise and not self.mixes_samples
        self.cut_has_batch = [self._has_batch.get(id(x), True) for x in self.cut]
        layers = {id(s.layer): s.layer for s in self.prefix + self.suffix if isinstance(s.layer, keras.Layer)}
        self.layers = list(layers.values())
        self.variables = _unique([v for layer in self.layers for v in layer.variables])
        self._seed_states = seed_states([layer for layer in self.layers if id(layer) in noise_ids])
        copies = LayerCopies()
        noise_of = {id(x): layer_for_passes(x, dropout_rate, copies) for x in self.layers if id(x) in noise_ids}
        # The steps to run for every pass, and whether each of them makes noise.
        self._runs = [
            (step.with_layer(noise_of.get(id(step.layer), step.layer)), id(step.layer) in noise_ids)
            for step in self.suffix
        ]
        sizes = [math.prod(x.shape[1:]) for step in self.suffix for x in step.outputs if None not in x.shape[1:]]
        self._row_bytes = 4 * max(sizes, default=0)
        self._last_read = last_reads(self.suffix, self.outputs)
        self._repeats = {n: _RepeatForTeachers(n) for n in range(1, _REPEATS_MADE + 1)}
        for step in self.suffix:
            if getattr(step.layer, "stateful", False):
                raise ValueError(
                    f"The layer {step.layer.name!r} is stateful: it keeps one state per row of the batch, which the "
                    "teachers, run side by side in one batch, would mix up. Build it with stateful=False."
                )

    def run(
        self,
        cut_values: Sequence[Tensor],
        num_teachers: int,
        seed_generator: keras.random.SeedGenerator,
        weights: Sequence[tuple[Any, Tensor]] = (),
        chunk: int | None = None,
    ) -> list[Any]:
        """Evaluate the passes.

        Args:
            cut_values: the values of `self.cut`.
            num_teachers: N, the number of passes.
            seed_generator: `keras.random.SeedGenerator` from which all noise is drawn. The layers' own generators are
                neither read nor changed.
            weights: list of `(variable, value)` that replace the network's weights.
            chunk: number of passes in one batch. Defaults to `None`: all passes, or on a CPU as many as its cache
                holds.

        Returns:
            For each output a tensor `(batch, num_teachers, ...)`. No gradient flows into any of them, and no
            variable is changed except the state of `seed_generator`.
        """
        chunk = min(chunk or self._chunk_in_cache(cut_values, num_teachers), num_teachers)
        if not self.is_row_wise:
            chunk = 1
        mapping = {id(v): (v, ops.stop_gradient(v.value)) for v in self.variables}
        mapping.update({id(v): (v, ops.stop_gradient(value)) for v, value in weights if id(v) in mapping})
        values = {id(x): value for x, value in zip(self.cut, cut_values, strict=True)}
        n_chunks = math.ceil(num_teachers / chunk)
        # For each chunk one row for every generator, after a first row for layers that use PyTorch's global generator.
        seeds = keras.random.randint((n_chunks, len(self._seed_states) + 1, 2), 0, 2**31 - 1, seed=seed_generator)
        seeds = _backend.seeds_of_this_replica(seeds)

        if self.prefix:
            scope = keras.StatelessScope(list(mapping.values()), collect_losses=True)
            with scope, _backend.teacher_scope(seeds[0, 0, 0]):
                for step in self.prefix:
                    step.run(values, training=False)

        def passes(n: int, seeds: Tensor) -> list[Any]:
            states = [(v, ops.cast(seeds[i + 1], v.dtype)) for i, v in enumerate(self._seed_states)]
            scope = keras.StatelessScope(list(mapping.values()) + states, collect_losses=True)
            with scope, _backend.teacher_scope(seeds[0, 0]):
                return self._run_suffix(dict(values), n)

        n_full = num_teachers // chunk
        if n_full > 1:
            parts = _backend.map_in_turn(lambda seeds: passes(chunk, seeds), seeds[:n_full])
            results = [_merge_chunks(part) for part in parts]
        else:
            results = passes(chunk, seeds[0])
        if num_teachers > n_full * chunk:
            rest = passes(num_teachers - n_full * chunk, seeds[n_full])
            results = [ops.concatenate(pair, axis=1) for pair in zip(results, rest, strict=True)]
        return results

    def _chunk_in_cache(self, cut_values: Sequence[Tensor], num_teachers: int) -> int:
        """Return the largest divisor of `num_teachers` for which every layer's output stays in a processor's cache.

        If it does not, a single batch takes up to half as long again as one pass after the other.
        """
        if not _backend.gains_from_small_batches():
            return num_teachers
        batch = tree.flatten(cut_values)[0].shape[0] or 1
        fitting = _CACHED_BYTES // max(self._row_bytes * batch, 1)
        return max(n for n in range(1, num_teachers + 1) if num_teachers % n == 0 and n <= max(fitting, 1))

    def _run_suffix(self, values: dict[int, Any], n: int) -> list[Any]:
        repeat = self._repeats[n] if n in self._repeats else _RepeatForTeachers(n)
        for x in self._suffix_inputs:
            if self._has_batch[id(x)] and values[id(x)] is not None:
                values[id(x)] = tree.map_structure(repeat, values[id(x)])
        for (step, is_noise_on), last_read in zip(self._runs, self._last_read, strict=True):
            step.run(values, training=is_noise_on)
            for key in last_read:
                del values[key]
        return [tree.map_structure(lambda x: _split(x, n), values[id(x)]) for x in self.outputs]


def _find_batch(graph: Graph, tensors: Sequence[Any]) -> tuple[dict[int, bool], bool]:
    """Find out which tensors have one row for each sample, so that repeating rows repeats samples.

    Keras' layers keep the batch on the first axis. Functional operations and custom layers may fold positions into it,
    or return values without a batch; if the graph has any, the batch is followed through them.

    Args:
        graph: the `Graph`.
        tensors: symbolic tensors in it.

    Returns:
        A dict by `id` of each tensor whether it has rows to repeat, and whether every tensor has either one row for
        each sample or no batch. If not, teachers can only be run one at a time.
    """
    batch = tree.flatten(graph.inputs)[0].shape[0]
    has_batch = {id(x): len(x.shape) > 0 and x.shape[0] == batch for x in tensors}
    steps = [] if graph.is_opaque else graph.needed(tensors)
    if all(_keeps_rows(step.layer) for step in steps):
        return has_batch, True
    try:
        values = _run_marked(graph, steps, _MARKED_BATCH)
        sizes = {id(x): values[id(x)].shape[0] if len(values[id(x)].shape) else 0 for x in tensors}
    except Exception:  # a custom layer that accepts no other batch size may raise any kind of error
        sizes = {id(x): None if has_batch[id(x)] else 0 for x in tensors}
    if any(size is None or (size > _MARKED_BATCH and size % _MARKED_BATCH == 0) for size in sizes.values()):
        warnings.warn(
            f"The model {graph.model.name!r} moves samples along the first axis before the first noise layer (a "
            "reshape, or a custom layer, that folds windows into the batch), so the teachers are run one at a time, "
            "which is slower. To run them side by side, put the first noise layer before it, or fold within a layer.",
            stacklevel=2,
        )
        return dict.fromkeys(has_batch, True), False
    return {key: size == _MARKED_BATCH for key, size in sizes.items()}, True


def _mixes_samples(graph: Graph, needed: Sequence[Step], suffix: Sequence[Step]) -> bool:
    """Find out whether the passes compute with several samples together, as a matrix `(batch, batch)` of scores does.

    Such passes need the whole batch, and one batch for each teacher. Only shapes are looked at: an operation that
    mixes samples without an axis for them, such as subtracting the mean over the batch, is not found.

    Args:
        graph: the `Graph`.
        needed: its steps.
        suffix: those of them that are run for every pass.
    """
    if graph.is_opaque or all(_keeps_rows(step.layer) for step in suffix):
        return False
    shapes = []
    for batch in (_MARKED_BATCH, _OTHER_BATCH):
        try:
            values = _run_marked(graph, needed, batch)
        except Exception:  # a layer that accepts one batch size only, which has to be that of each teacher then
            return tree.flatten(graph.inputs)[0].shape[0] is not None
        shapes.append([tuple(values[id(x)].shape[1:]) for step in suffix for x in step.outputs])
    if shapes[0] == shapes[1]:
        return False
    warnings.warn(
        f"The model {graph.model.name!r} combines the samples of a batch behind the first noise layer (as scores of "
        "each sample against each do), so the teachers are run one at a time, on whole batches, which is slower.",
        stacklevel=2,
    )
    return True


def _keeps_rows(layer: Any) -> bool:
    """Return whether a layer is one of Keras' own layers, which return a row for each row."""
    return getattr(keras.layers, type(layer).__name__, None) is type(layer) and not isinstance(
        layer, keras.layers.Lambda
    )


def _run_marked(graph: Graph, steps: Sequence[Step], batch: int) -> dict[int, Any]:
    """Run steps on symbolic inputs with a recognisable batch size, and with 64 for unknown lengths."""
    values = {
        id(x): keras.KerasTensor((batch, *(64 if size is None else size for size in x.shape[1:])), x.dtype)
        for x in tree.flatten(graph.inputs)
    }
    for step in steps:
        step.run(values, training=False)
    return values


def _split(x: Tensor, n: int) -> Tensor:
    """Turn `(batch * n, ...)` into `(batch, n, ...)`."""
    return ops.reshape(x, (-1, n, *_static_tail(x, 1)))


def _merge_chunks(x: Tensor) -> Tensor:
    """Turn `(chunks, batch, n, ...)` into `(batch, chunks * n, ...)`."""
    chunks, n = x.shape[0], x.shape[2]
    return ops.reshape(ops.swapaxes(x, 0, 1), (-1, chunks * n, *_static_tail(x, 3)))


def _static_tail(x: Tensor, start: int) -> list[Any]:
    shape = ops.shape(x)
    return [shape[axis] for axis in range(start, len(x.shape))]


def _unique(items: Sequence[Any]) -> list[Any]:
    return list({id(item): item for item in items}.values())
