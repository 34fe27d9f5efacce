"""Which layers of a model are noise, where its graph is cut, and N stochastic passes of what lies behind the cut."""

import contextlib
import math

import keras
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd.augmentation import Augmentation

# What says how much noise a layer makes. Recurrent layers hold a seed generator even where their dropout is 0.
_RATES = ("rate", "dropout", "recurrent_dropout", "stddev")
_DROPOUT_RATES = ("rate", "dropout", "recurrent_dropout")

# What a processor's cache holds of one layer's output.
_CACHED_BYTES = 2 * 2**20

_AUGMENTATION = (
    Augmentation,
    *(
        getattr(keras.layers, name)
        for name in dir(keras.layers)
        if name.startswith("Random") or name in ("AugMix", "CutMix", "MixUp", "RandAugment")
    ),
)


def is_augmentation(layer):
    """Whether a layer is random augmentation, no noise of the teachers: one of Keras', one of ours, or several.

    A layer with weights is not, even if it holds augmentation: its output is a network's, not the sample.
    """
    if not isinstance(layer, keras.Layer) or layer.weights or is_noise(layer):
        return False
    return any(isinstance(part, _AUGMENTATION) for part in _parts(layer))


def is_noise(layer):
    """Whether a layer, or a layer inside it, is active noise: a seed generator and a rate (if any) above 0."""
    return any(_makes_noise(part) for part in _parts(layer) if not isinstance(part, _AUGMENTATION))


def is_silent_noise(layer):
    """Whether a layer would be noise if its rate were not 0 (to say so in an error)."""
    return any(isinstance(part, (keras.layers.Dropout, keras.layers.GaussianNoise)) for part in _parts(layer))


def select_layers(graph, stochastic_layers=None):
    """The layers of a graph that are random in a teacher pass.

    Args:
        graph: a `Graph`.
        stochastic_layers: `None` (every noise layer except augmentation), one name or several, a predicate
            `layer -> bool` on the graph's layers, or an empty tuple (none: a deterministic teacher).

    Returns:
        A list of layers.

    Raises:
        ValueError: if a name is unknown, or no layer is left, or a chosen one is not noise.
    """
    layers = list({id(s.layer): s.layer for s in graph.steps if isinstance(s.layer, keras.Layer)}.values())
    noise = [layer for layer in layers if is_noise(layer)]
    if stochastic_layers is None:
        chosen = noise
    elif callable(stochastic_layers):
        chosen = [layer for layer in layers if stochastic_layers(layer)]
    else:
        names = [stochastic_layers] if isinstance(stochastic_layers, str) else list(stochastic_layers)
        if not names:
            return []
        unknown = sorted(set(names) - {layer.name for layer in layers})
        if unknown:
            raise ValueError(
                "`stochastic_layers` should name layers of the model. Unknown: "
                f"{unknown}. Its noise layers are {[layer.name for layer in noise]}."
            )
        chosen = [layer for layer in layers if layer.name in names]
    if not chosen:
        raise ValueError(_no_noise_message(graph, layers, stochastic_layers))
    mute = [layer.name for layer in chosen if not any(_makes_noise(part) for part in _parts(layer))]
    if mute:
        raise ValueError(
            f"`stochastic_layers` names layers that make no noise: {mute} (no seed generator, or a rate of 0). The "
            f"model's noise layers are {[layer.name for layer in noise]}."
        )
    shared = {layer.name for layer in chosen} & {layer.name for layer in layers if layer not in chosen}
    if shared:
        raise ValueError(
            f"`stochastic_layers` chose layers whose names others have, too, in nested models: {sorted(shared)}. A "
            "saved model finds them by name; give each a name of its own."
        )
    for layer in chosen:
        shape = getattr(layer, "noise_shape", None)
        if shape is not None and shape[0] == 1:
            raise ValueError(
                f"The layer {layer.name!r} has noise_shape={shape}: one draw for a whole batch makes all teachers "
                "identical. Use `None` as the first entry of `noise_shape`, or leave the layer out of "
                "`stochastic_layers`."
            )
    return chosen


def _no_noise_message(graph, layers, stochastic_layers):
    if stochastic_layers is not None:
        return (
            "`stochastic_layers` chose no layer: the predicate was False for all of "
            f"{[layer.name for layer in layers]}. Choose at least one noise layer, or pass an empty tuple for a "
            "deterministic teacher."
        )
    silent = [layer.name for layer in layers if is_silent_noise(layer)]
    if silent:
        return (
            f"The noise layers {silent} of the model {graph.model.name!r} all have a rate of 0, so all teachers would "
            "be identical. Give at least one of them a rate above 0."
        )
    return (
        f"The model {graph.model.name!r} has no noise layer (Dropout, GaussianNoise, a recurrent layer with `dropout`, "
        "a custom layer with a `keras.random.SeedGenerator`, ...), so all teachers would be identical. Add one, for "
        "example keras.layers.Dropout(0.3) before the last Dense layer."
    )


def _refuse_augmentation(graph, stochastic_layers):
    for layer in stochastic_layers:
        if any(isinstance(part, _AUGMENTATION) for part in _parts(layer)):
            what = f"the subclassed model {layer.name!r} holds" if graph.is_opaque else f"{layer.name!r} is or holds"
            raise ValueError(
                f"`augmented_teachers` is False, but {what} augmentation that is switched on together with the noise "
                "of the teachers. Use a functional model with layers of their own for noise and augmentation, and name "
                "no augmentation in `stochastic_layers`; or leave augmented_teachers=True."
            )


def _parts(layer):
    """A layer and all layers it holds, found through its attributes."""
    return _held(layer, keras.Layer, enter=keras.Layer)


def _generators(part):
    """The seed generators that a layer holds itself, not those of the layers in it."""
    return _held(list(vars(part).values()), keras.random.SeedGenerator, enter=())


def _held(item, wanted, enter):
    """All objects of a class in nested containers, and in the attributes of objects of the classes `enter`."""
    found, queue = {}, [item]
    while queue:
        item = queue.pop()
        if isinstance(item, wanted):
            if id(item) in found:
                continue
            found[id(item)] = item
        if enter and isinstance(item, enter):
            queue.extend(vars(item).values())
        elif isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            queue.extend(item)
    return list(found.values())


def _makes_noise(part):
    if not _generators(part):
        return False
    rates = _rates(part, _RATES)
    return not rates or any(rate > 0 for rate in rates.values())


def _rates(part, names):
    values = {name: vars(part).get(name) for name in names}
    return {name: v for name, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


class _RepeatForTeachers(keras.layers.Layer):
    """`(batch, ...)` to `(batch * teachers, ...)`, batch-major, with the mask and without a gradient.

    Batch-major, because under data parallelism the rows of a sample then stay on the device that holds the sample. A
    layer, because Keras carries masks through layers only.
    """

    def __init__(self, n_teachers):
        super().__init__(autocast=False, name="repeat_for_teachers")
        self.n_teachers = n_teachers
        self.supports_masking = True
        self.built = True

    def call(self, x):
        return ops.repeat(ops.stop_gradient(x), self.n_teachers, axis=0)

    def compute_mask(self, x, previous_mask=None):
        return None if previous_mask is None else ops.repeat(previous_mask, self.n_teachers, axis=0)


class StochasticPasses:
    """N passes of a network with its noise switched on and everything else in inference mode.

    All that lies before the first noise layer is the same in every pass: it is run once (or, for a teacher that shares
    the student's weights, not at all: the student's own values are `given`). The rest is run on a batch of
    `batch * n_teachers` rows.

    Args:
        graph: the teacher network's `Graph`.
        stochastic_layers: the layers that are random, from `select_layers`; an empty list gives deterministic passes.
        wanted: the symbolic tensors to return.
        shares_prefix: whether everything before the cut is given.
        augmented: whether the passes branch off behind augmentation (of the sample that somebody else augmented), not
            before it. Augmentation itself is off in them.
        dropout_rate: overrides the rate of the stochastic layers, in these passes only.

    Attributes:
        given: the symbolic tensors whose values `run` takes.
        is_random: for each wanted tensor, whether it lies behind a noise layer.
    """

    def __init__(self, graph, stochastic_layers, wanted, shares_prefix, augmented=True, dropout_rate=None):
        if not augmented:
            _refuse_augmentation(graph, stochastic_layers)
        self.wanted = wanted
        self.dropout_rate = dropout_rate
        self._stochastic = {id(layer) for layer in stochastic_layers}
        random_tensors = set()
        for step in graph.steps:
            if id(step.layer) in self._stochastic or any(id(x) in random_tensors for x in step.inputs):
                random_tensors.update(map(id, step.outputs))
        self.is_random = [id(x) in random_tensors for x in wanted]
        needed = graph.needed(wanted)
        self._suffix = [step for step in needed if any(id(x) in random_tensors for x in step.outputs)]
        self._cut = _unique(
            [x for step in self._suffix for x in step.inputs if id(x) not in random_tensors]
            + [x for x, is_random in zip(wanted, self.is_random, strict=True) if not is_random]
        )
        shared = [x for step in graph.steps if is_augmentation(step.layer) for x in step.outputs]
        shared = [x for x in shared if id(x) not in random_tensors]
        if shares_prefix and stochastic_layers and (augmented or not shared):
            self.given, self._prefix = self._cut, []
        else:
            shared = shared if augmented else []
            self._prefix = graph.needed(self._cut, given=shared)
            produced = {id(x) for step in self._prefix for x in step.outputs}
            read = _unique([x for step in self._prefix for x in step.inputs] + self._cut)
            self.given = [x for x in read if id(x) not in produced]
        batch = tree.flatten(graph.inputs)[0].shape[0]
        self._has_batch = {id(x): len(x.shape) > 0 and x.shape[0] == batch for x in self._cut}
        layers = {id(s.layer): s.layer for s in self._prefix + self._suffix if isinstance(s.layer, keras.Layer)}
        self.layers = list(layers.values())
        self.variables = _unique([v for layer in self.layers for v in layer.variables])
        random_layers = [layer for layer in self.layers if id(layer) in self._stochastic]
        self._seed_states = _unique([g.state for x in random_layers for part in _parts(x) for g in _generators(part)])
        sizes = [math.prod(x.shape[1:]) for step in self._suffix for x in step.outputs if None not in x.shape[1:]]
        self._row_bytes = 4 * max(sizes, default=0)
        self._last_read = _last_reads(self._suffix, wanted)
        # Made beforehand, for any usual number: PyTorch's compiler cannot make a layer in the midst of a step.
        self._repeats = {n: _RepeatForTeachers(n) for n in range(1, 33)}
        for step in self._suffix:
            if getattr(step.layer, "stateful", False):
                raise ValueError(
                    f"The layer {step.layer.name!r} is stateful: it keeps one state per row of the batch, which the "
                    "teachers, run side by side in one batch, would mix up. Build it with stateful=False."
                )

    def run(self, given, n_teachers, seed_generator, weights=(), chunk=None):
        """Evaluate the passes.

        Args:
            given: the values of `self.given`.
            n_teachers: N, the number of passes.
            seed_generator: `keras.random.SeedGenerator` that all noise is drawn from. The layers' own generators are
                neither read nor moved.
            weights: list of `(variable, value)` that replace the network's weights.
            chunk: how many passes are run in one batch. Defaults to `None`: all of them, or on a processor as many as
                its cache holds.

        Returns:
            For each wanted tensor a tensor `(batch, n_teachers, ...)`. No gradient flows into any of them, and no
            variable is changed except the state of `seed_generator`.
        """
        chunk = min(chunk or self._chunk_in_cache(given, n_teachers), n_teachers)
        mapping = {id(v): (v, ops.stop_gradient(v.value)) for v in self.variables}
        mapping.update({id(v): (v, ops.stop_gradient(value)) for v, value in weights if id(v) in mapping})
        values = {id(x): value for x, value in zip(self.given, given, strict=True)}
        n_chunks = math.ceil(n_teachers / chunk)
        seeds = keras.random.randint((n_chunks, len(self._seed_states) + 1, 2), 0, 2**31 - 1, seed=seed_generator)
        seeds = _backend.seeds_of_this_replica(seeds)

        if self._prefix:
            scope = keras.StatelessScope(list(mapping.values()), collect_losses=True)
            with scope, _backend.teacher_scope(seeds[0, 0, 0]):
                for step in self._prefix:
                    step.run(values, training=False)

        def passes(n, seeds):
            states = [(v, ops.cast(seeds[i + 1], v.dtype)) for i, v in enumerate(self._seed_states)]
            scope = keras.StatelessScope(list(mapping.values()) + states, collect_losses=True)
            with scope, _backend.teacher_scope(seeds[0, 0]):
                return self._run_suffix(dict(values), n)

        n_full = n_teachers // chunk
        if n_full > 1:
            parts = _backend.map_in_turn(lambda seeds: passes(chunk, seeds), seeds[:n_full])
            results = [_merge_chunks(part) for part in parts]
        else:
            results = passes(chunk, seeds[0])
        if n_teachers > n_full * chunk:
            rest = passes(n_teachers - n_full * chunk, seeds[n_full])
            results = [ops.concatenate(pair, axis=1) for pair in zip(results, rest, strict=True)]
        return results

    def _chunk_in_cache(self, given, n_teachers):
        """The largest divisor of `n_teachers` for which the output of every layer stays in a processor's cache.

        Where it does not, all in one batch takes up to half as long again as one pass after the other.
        """
        if not _backend.gains_from_small_batches():
            return n_teachers
        batch = tree.flatten(given)[0].shape[0] or 1
        fitting = _CACHED_BYTES // max(self._row_bytes * batch, 1)
        return max(n for n in range(1, n_teachers + 1) if n_teachers % n == 0 and n <= max(fitting, 1))

    def _run_suffix(self, values, n):
        repeat = self._repeats[n] if n in self._repeats else _RepeatForTeachers(n)
        for x in self._cut:
            if self._has_batch[id(x)]:
                values[id(x)] = tree.map_structure(repeat, values[id(x)])
        for step, read in zip(self._suffix, self._last_read, strict=True):
            if id(step.layer) in self._stochastic:
                with _teaching(step.layer, self.dropout_rate):
                    step.run(values, training=True)
            else:
                step.run(values, training=False)
            for key in read:
                del values[key]
        return [tree.map_structure(lambda x: _split(x, n), values[id(x)]) for x in self.wanted]


@contextlib.contextmanager
def _teaching(layer, dropout_rate):
    """Noise of a layer on, at another rate if one is given, with what it holds of BatchNormalization in inference mode.

    `trainable = False` is Keras' way to say the latter to a BatchNormalization that a layer calls by itself.
    """
    parts = _parts(layer)
    frozen = [part for part in parts if isinstance(part, keras.layers.BatchNormalization) and part.trainable]
    changed = []
    if dropout_rate is not None:
        for part in parts:
            if _makes_noise(part) and not isinstance(part, _AUGMENTATION):
                changed += [(part, name, rate) for name, rate in _rates(part, _DROPOUT_RATES).items() if rate > 0]
    try:
        for part in frozen:
            part.trainable = False
        for part, name, _ in changed:
            setattr(part, name, dropout_rate)
        yield
    finally:
        for part in frozen:
            part.trainable = True
        for part, name, rate in changed:
            setattr(part, name, rate)


def _split(x, n):
    """`(batch * n, ...)` to `(batch, n, ...)`."""
    return ops.reshape(x, (-1, n, *_static_tail(x, 1)))


def _merge_chunks(x):
    """`(chunks, batch, n, ...)` to `(batch, chunks * n, ...)`."""
    chunks, n = x.shape[0], x.shape[2]
    return ops.reshape(ops.swapaxes(x, 0, 1), (-1, chunks * n, *_static_tail(x, 3)))


def _static_tail(x, start):
    shape = ops.shape(x)
    return [shape[axis] for axis in range(start, len(x.shape))]


def _last_reads(steps, wanted):
    """For each step what no later one reads, so that it need not be kept: ids of symbolic tensors."""
    later, result = {id(x) for x in wanted}, []
    for step in reversed(steps):
        own = {id(x) for x in step.inputs + step.outputs}
        result.append(own - later)
        later |= own
    return result[::-1]


def _unique(items):
    return list({id(item): item for item in items}.values())
