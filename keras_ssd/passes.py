"""N stochastic passes of the layers after the first noise layer of a network; the layers before it are run once."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.graph import Graph, last_reads, unique
from keras_ssd.independence import RepeatRows, examine
from keras_ssd.noise import (
    Noise,
    dropout_for,
    is_augmentation,
    is_noise,
    layers_for_passes,
    refuse_augmentation,
    seed_states,
)
from keras_ssd.settings import level_of_user

# The size of one layer's output that fits into a processor's cache.
_CACHED_BYTES = 2 * 2**20
# Made in advance, because PyTorch's compiler cannot make layers; by the number of passes.
_REPEATS = {n: RepeatRows(n) for n in range(1, 33)}


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
            before it. Augmentation itself is off in the passes, unless `noise` holds it.
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
        self.outputs = [graph.moved.get(id(x), x) for x in outputs]
        # Noise layers that the graph fixes to training mode are random in every pass, also if they were not chosen.
        always_on = [step.layer for step in graph.steps if step.fixed_training and is_noise(step.layer)]
        noise_layers = unique([*noise.layers, *(layer for _, layer in added), *always_on])
        noise_ids = set(map(id, noise_layers))
        random_tensors: set[int] = set()
        for step in graph.steps:
            is_on = id(step.layer) in noise_ids and step.fixed_training is not False
            if is_on or any(id(x) in random_tensors for x in step.inputs):
                random_tensors.update(map(id, step.outputs))
        self.is_random = [id(x) in random_tensors for x in self.outputs]
        needed = graph.needed(self.outputs)
        self.suffix = [step for step in needed if any(id(x) in random_tensors for x in step.outputs)]
        for step in self.suffix:
            if getattr(step.layer, "stateful", False):
                raise ValueError(
                    f"The layer {step.layer.name!r} is stateful: it keeps one state per row of the batch, which the "
                    f"{passes}, run side by side in one batch, would mix up. Build it with stateful=False."
                )
        read = [x for step in self.suffix for x in step.inputs] + self.outputs
        self._suffix_inputs = unique(x for x in read if id(x) not in random_tensors)
        augmentations = [x for step in graph.steps if is_augmentation(step.layer) for x in step.outputs]
        shared = [x for x in augmentations if id(x) not in random_tensors]
        # Teachers without noise or of clean samples run the prefix again: the student's own pass has its noise on and
        # sees augmented samples.
        is_given = shares_prefix and noise_layers and (augmented or not shared)
        self.prefix = [] if is_given else graph.needed(self._suffix_inputs, shared if augmented else [])
        produced = {id(x) for step in self.prefix for x in step.outputs}
        read = [x for step in self.prefix for x in step.inputs] + self._suffix_inputs
        self.cut = unique(x for x in read if id(x) not in produced)
        before = [step for step in needed if all(step is not other for other in self.suffix)]
        self._rows = examine(graph, before, self.suffix, self._suffix_inputs, self.outputs)
        self.cut_has_batch = [self._rows.has_rows.get(id(x), True) for x in self.cut]
        self.is_row_wise = self._rows.suffix_culprit is None and not self._rows.has_fixed_size
        self.takes_rows = self.is_row_wise and (self._rows.prefix_culprit is None or not self.prefix)
        self._model_name = graph.model.name
        if self._rows.suffix_culprit is not None:
            self._warn(
                f"{{culprit}}, so the {passes} are run one at a time, on whole batches: the layers after the first "
                f"noise layer run once for each of them, which is slower. To run the {passes} side by side, "
                "{remedy}, or choose noise layers after it by `stochastic_layers`.",
                self._rows.suffix_culprit,
            )
        layers = unique(s.layer for s in self.prefix + self.suffix if isinstance(s.layer, keras.Layer))
        self.variables = unique(v for layer in layers for v in layer.variables)
        noisy = [layer for layer in layers if id(layer) in noise_ids]
        self._seed_states = seed_states(noisy)
        noise_of = dict(zip(map(id, noisy), layers_for_passes(noisy, dropout_rate), strict=True))
        # The steps to run for every pass, whether each of them makes noise, and the values that no later step reads.
        self._runs = [
            (dataclasses.replace(s, layer=noise_of.get(id(s.layer), s.layer)), id(s.layer) in noise_ids, keys)
            for s, keys in zip(self.suffix, last_reads(self.suffix, self.outputs), strict=True)
        ]
        sizes = [math.prod(x.shape[1:]) for step in self.suffix for x in step.outputs if None not in x.shape[1:]]
        self._row_bytes = 4 * max(sizes, default=0)

    def warn_of_whole_batches(self) -> None:
        """Warn if a part of a batch would not give that part of the outputs because of the layers before the noise."""
        if self.is_row_wise and not self.takes_rows:
            self._warn(
                "{culprit} before the first noise layer, so the teachers are given whole batches (kd_fraction=1), "
                "which is slower. To give them a part of each batch, {remedy}.",
                self._rows.prefix_culprit,
            )

    def _warn(self, message: str, layer: Any) -> None:
        does, remedy = "combines the samples of a batch", "compute every sample without the others in this layer"
        if self._rows.moves:
            does, remedy = "moves samples along the first axis", "fold and unfold the batch within one layer"
        culprit = f"The layer {layer.name!r} of the model {self._model_name!r} {does}"
        warnings.warn(message.format(culprit=culprit, remedy=remedy), stacklevel=level_of_user())

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
        if self.is_row_wise and chunk is None and _backend.gains_from_small_batches():
            # One batch whose values do not fit into the cache takes up to 1.5 times as long as sequential passes.
            batch = tree.flatten(cut_values)[0].shape[0] or 1
            chunk = chunk_size(num_teachers, _CACHED_BYTES // max(self._row_bytes * batch, 1))
        chunk = min(chunk or num_teachers, num_teachers) if self.is_row_wise else 1
        mapping = {id(v): (v, ops.stop_gradient(v.value)) for v in self.variables}
        mapping.update({id(v): (v, ops.stop_gradient(value)) for v, value in weights if id(v) in mapping})
        values = {id(x): value for x, value in zip(self.cut, cut_values, strict=True)}
        # For each chunk one row for every generator, after a first row for layers that use PyTorch's global generator.
        shape = math.ceil(num_teachers / chunk), len(self._seed_states) + 1, 2
        seeds = keras.random.randint(shape, 0, 2**31 - 1, seed=seed_generator)
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
            # From `(chunks, batch, n, ...)` to `(batch, chunks * n, ...)`.
            results = [ops.reshape(ops.swapaxes(x, 0, 1), (-1, n_full * chunk, *ops.shape(x)[3:])) for x in parts]
        else:
            results = passes(chunk, seeds[0])
        if num_teachers > n_full * chunk:
            rest = passes(num_teachers - n_full * chunk, seeds[n_full])
            results = [ops.concatenate(pair, axis=1) for pair in zip(results, rest, strict=True)]
        return results

    def _run_suffix(self, values: dict[int, Any], n: int) -> list[Any]:
        repeat = _REPEATS.get(n) or RepeatRows(n)
        for key in map(id, self._suffix_inputs):
            if self._rows.has_rows[key] and values[key] is not None:
                values[key] = tree.map_structure(repeat, values[key])
        for step, is_noise_on, last_read in self._runs:
            step.run(values, training=is_noise_on)
            for key in last_read:
                del values[key]
        results = [values[id(x)] for x in self.outputs]
        return tree.map_structure(lambda x: ops.reshape(x, (-1, n, *ops.shape(x)[1:])), results)


def chunk_size(num_passes: int, limit: int) -> int:
    """Return the number of passes in a batch, at most `limit`: a divisor of all passes, if there is a large one."""
    limit = min(max(limit, 1), num_passes)
    divisor = max(n for n in range(1, limit + 1) if num_passes % n == 0)
    return divisor if 2 * divisor >= limit else math.ceil(num_passes / math.ceil(num_passes / limit))
