"""N stochastic passes of the layers after the first noise layer of a network; the layers before it are run once."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.graph import Graph, Step, last_reads, unique
from keras_ssd.independence import examine
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
from keras_ssd.repeating import RepeatForTeachers
from keras_ssd.settings import level_of_user

# The size of one layer's output that fits into a processor's cache.
_CACHED_BYTES = 2 * 2**20

# The largest number of teachers for which a repeating layer is made in advance: PyTorch's compiler cannot make layers.
_REPEATS_MADE = 32


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
        passes: name of the passes in errors and warnings: teachers, or passes.

    Attributes:
        cut: the symbolic tensors whose values `run` takes.
        cut_has_batch: for each of these tensors, whether it has a row for each sample.
        is_random: for each output, whether it depends on noise.
        is_row_wise: whether the batch can be tiled, so that several passes are run at a time.
        takes_rows: whether the passes of a part of a batch are that part of the passes of the batch.
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
        passes: str = "teachers",
    ) -> None:
        if not augmented:
            refuse_augmentation(graph, noise.layers)
        added = [(x, dropout_for(x, dropout_rate or 0.0)) for x in noise.tensors]
        graph = graph.with_layers_after(added)
        noise_layers = [*noise.layers, *(layer for _, layer in added)]
        self.outputs = [graph.moved.get(id(x), x) for x in outputs]
        # Noise layers that the graph fixes to training mode are random in every pass, also if they were not chosen.
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
        self._suffix_inputs = unique(
            [x for step in self.suffix for x in step.inputs if id(x) not in random_tensors]
            + [x for x, is_random in zip(self.outputs, self.is_random, strict=True) if not is_random]
        )
        augmentations = [x for step in graph.steps if is_augmentation(step.layer) for x in step.outputs]
        shared = [x for x in augmentations if id(x) not in random_tensors]
        self.prefix: list[Step] = []
        # Teachers without noise or of clean samples run the prefix again: the student's own pass has its noise on and
        # sees augmented samples.
        if shares_prefix and noise_layers and (augmented or not shared):
            self.cut = self._suffix_inputs
        else:
            self.prefix = graph.needed(self._suffix_inputs, shared if augmented else [])
            produced = {id(x) for step in self.prefix for x in step.outputs}
            read = unique([x for step in self.prefix for x in step.inputs] + self._suffix_inputs)
            self.cut = [x for x in read if id(x) not in produced]
        self._rows = examine(graph, needed, self.suffix, self._suffix_inputs, self.outputs)
        self._has_batch = self._rows.has_rows
        self.is_row_wise = self._rows.suffix_culprit is None and not self._rows.has_fixed_size
        self.takes_rows = self.is_row_wise and (self._rows.prefix_culprit is None or not self.prefix)
        self._model_name = graph.model.name
        if self._rows.suffix_culprit is not None:
            what, remedy = self._describe_culprit(self._rows.suffix_culprit)
            warnings.warn(
                f"{what}, so the {passes} are run one at a time, on whole batches: the layers after the first noise "
                f"layer run once for each of them, which is slower. To run the {passes} side by side, {remedy}, or "
                "choose noise layers after it by `stochastic_layers`.",
                stacklevel=level_of_user(),
            )
        self.cut_has_batch = [self._has_batch.get(id(x), True) for x in self.cut]
        self.layers = unique([s.layer for s in self.prefix + self.suffix if isinstance(s.layer, keras.Layer)])
        self.variables = unique([v for layer in self.layers for v in layer.variables])
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
        self._repeats = {n: RepeatForTeachers(n) for n in range(1, _REPEATS_MADE + 1)}
        for step in self.suffix:
            if getattr(step.layer, "stateful", False):
                raise ValueError(
                    f"The layer {step.layer.name!r} is stateful: it keeps one state per row of the batch, which the "
                    f"{passes}, run side by side in one batch, would mix up. Build it with stateful=False."
                )

    def warn_of_whole_batches(self) -> None:
        """Warn if a part of a batch would not give that part of the outputs because of the layers before the noise."""
        if self.is_row_wise and not self.takes_rows:
            what, remedy = self._describe_culprit(self._rows.prefix_culprit)
            warnings.warn(
                f"{what} before the first noise layer, so the teachers are given whole batches (kd_fraction=1), which "
                f"is slower. To give them a part of each batch, {remedy}.",
                stacklevel=level_of_user(),
            )

    def _describe_culprit(self, layer: Any) -> tuple[str, str]:
        """Describe how a layer makes rows depend on each other, and return the remedy."""
        if self._rows.moves:
            does, remedy = "moves samples along the first axis", "fold and unfold the batch within one layer"
        else:
            does, remedy = "combines the samples of a batch", "compute every sample without the others in this layer"
        return f"The layer {layer.name!r} of the model {self._model_name!r} {does}", remedy

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
        """Return the number of passes for which every layer's output stays in a processor's cache.

        Otherwise one large batch takes up to 1.5 times as long as sequential passes.
        """
        if not _backend.gains_from_small_batches():
            return num_teachers
        batch = tree.flatten(cut_values)[0].shape[0] or 1
        return chunk_size(num_teachers, _CACHED_BYTES // max(self._row_bytes * batch, 1))

    def _run_suffix(self, values: dict[int, Any], n: int) -> list[Any]:
        repeat = self._repeats[n] if n in self._repeats else RepeatForTeachers(n)
        for x in self._suffix_inputs:
            if self._has_batch[id(x)] and values[id(x)] is not None:
                values[id(x)] = tree.map_structure(repeat, values[id(x)])
        for (step, is_noise_on), last_read in zip(self._runs, self._last_read, strict=True):
            step.run(values, training=is_noise_on)
            for key in last_read:
                del values[key]
        return [tree.map_structure(lambda x: _split(x, n), values[id(x)]) for x in self.outputs]


def chunk_size(num_passes: int, limit: int) -> int:
    """Return the number of passes in a batch, at most `limit`: a divisor of all passes, if there is a large one."""
    limit = min(max(limit, 1), num_passes)
    divisor = max(n for n in range(1, limit + 1) if num_passes % n == 0)
    return divisor if 2 * divisor >= limit else math.ceil(num_passes / math.ceil(num_passes / limit))


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
