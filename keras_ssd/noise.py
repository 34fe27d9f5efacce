"""Which layers of a model make noise, which layers augment, and which are random in a teacher."""

import functools
import numbers
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from keras_ssd import _backend
from keras_ssd.augmentation import Augmentation
from keras_ssd.graph import Graph, unique
from keras_ssd.keras_names import is_conv_lstm_cell
from keras_ssd.layer_copies import copy_layers

# The attributes that hold the dropout rates of Keras' layers. Recurrent cells hold a seed generator also at rate 0.
_CELL_RATES = ("dropout", "recurrent_dropout")
_DROPOUT_RATES: list[tuple[tuple[type, ...], tuple[str, ...]]] = [
    ((keras.layers.Dropout, keras.layers.AlphaDropout, keras.layers.GaussianDropout), ("rate",)),
    ((keras.layers.Attention,), ("dropout",)),
    ((keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell), _CELL_RATES),
]
# A custom layer names its rates by this attribute, for example `keras_ssd_rates = ("drop_prob",)`.
_DECLARED = "keras_ssd_rates"

_AUGMENTING = ("Rand", "AugMix", "CutMix", "MixUp", "Solarization")
AUGMENTATION: tuple[type, ...] = tuple(
    [Augmentation, *(getattr(keras.layers, name) for name in dir(keras.layers) if name.startswith(_AUGMENTING))]
)


class Noise(NamedTuple):
    """The noise of a teacher.

    Attributes:
        layers: layers that make noise themselves.
        tensors: symbolic tensors that go through dropout, in the teachers only.
        names: names of the chosen layers, as a saved model stores them.
    """

    layers: list[Any]
    tensors: list[Any]
    names: list[str]

    @property
    def described(self) -> str:
        """Return a description of the noise, for an error."""
        return str(self.names) if self.names else "dropout of the head's input" if self.tensors else "none"


def is_augmentation(layer: Any) -> bool:
    """Return whether a layer augments the sample at random, so that it does not count as noise of the teachers.

    A layer with weights does not, even if it holds augmentation: its output consists of features, not of the sample.
    """
    is_layer = isinstance(layer, keras.Layer) and not layer.weights and not is_noise(layer)
    return is_layer and any(isinstance(part, AUGMENTATION) for part in parts_of(layer))


def is_noise(layer: Any) -> bool:
    """Return whether a layer, or a layer in it, is active noise: a seed generator and a rate (if known) above 0."""
    parts = parts_of(layer)
    # `RandAugment` and `AugMix` are made of other augmentations.
    augmenting = set(map(id, parts_of([part for part in parts if isinstance(part, AUGMENTATION)])))
    return any(makes_noise(part) for part in parts if id(part) not in augmenting)


def makes_noise(part: Any) -> bool:
    """Return whether a layer itself is stochastic, whatever its sublayers are.

    A custom layer that holds a seed generator is, unless it declares its rates (`keras_ssd_rates`) and all of them
    are 0.
    """
    if not generators_of(part):
        return False
    rates = _dropout_rates(part)
    if isinstance(part, keras.layers.GaussianNoise):
        rates["stddev"] = part.stddev
    return not rates or any(rate > 0 for rate in rates.values())


def is_exported(layer: Any) -> bool:
    """Return whether the class of a layer is one of `keras.layers`."""
    return getattr(keras.layers, type(layer).__name__, None) is type(layer)


def parts_of(layer: Any) -> list[Any]:
    """Return a layer, or the layers in a list, and all layers they hold, found through their attributes."""
    return _held(layer, keras.Layer, enter=keras.Layer)


def generators_of(part: Any) -> list[Any]:
    """Return the seed generators that a layer holds itself, not those of the layers in it."""
    return _held(list(vars(part).values()), keras.random.SeedGenerator, enter=())


def choose_noise(
    graph: Graph,
    stochastic_layers: str | Sequence[str] | Callable | None = None,
    dropout_rate: float | None = None,
    passes: str = "teachers",
    views: bool = False,
) -> Noise:
    """Choose the noise in the passes of a graph, and with `views` the augmentation, which is then noise like any other.

    Args:
        graph: a `Graph`.
        stochastic_layers: `None` (every noise layer except augmentation; if there is none, the input of the head, if
            `dropout_rate` is given), the name of a layer or several names, a predicate `layer -> bool`, or an empty
            tuple (no noise: a deterministic teacher). A noise layer makes its own noise; the output of any other layer
            goes through dropout, in these passes only.
        dropout_rate: rate of this dropout.
        passes: name of the passes in errors: teachers, or passes.
        views: whether each pass augments the sample itself. Without dropout, augmentation is then enough.

    Returns:
        A `Noise`.

    Raises:
        ValueError: if a name is unknown, no layer is chosen, or dropout is needed without a rate.
    """
    # A layer that is fixed to inference mode in all of its calls makes no noise.
    free = {id(step.layer) for step in graph.steps if step.fixed_training is not False}
    layers = unique(layer for layer, _ in graph.calls if isinstance(layer, keras.Layer))
    noise = [layer for layer in layers if id(layer) in free and is_noise(layer)]
    views_of = [layer for layer in layers if views and id(layer) in free and is_augmentation(layer)]
    if stochastic_layers is None:
        if not noise and dropout_rate is not None and not graph.is_opaque:
            return Noise(views_of, _what_feeds_the_head(graph), [])
        if not noise and views_of:
            return Noise(views_of, [], [])
        chosen = noise
    elif callable(stochastic_layers):
        chosen = [layer for layer in layers if stochastic_layers(layer)]
    else:
        names = [stochastic_layers] if isinstance(stochastic_layers, str) else list(stochastic_layers)
        if not names:
            return Noise(views_of, [], [])
        unknown = sorted(set(names) - set(_names(layers)))
        if unknown:
            raise ValueError(
                f"`stochastic_layers` should name layers of the model. Unknown: {unknown}. Its noise layers are "
                f"{_names(noise)}, all its layers {_names(layers)}."
            )
        chosen = [layer for layer in layers if layer.name in names]
    if not chosen:
        raise ValueError(_no_noise_message(graph, layers, stochastic_layers, passes))
    chosen_ids = set(map(id, chosen))
    shared = set(_names(chosen)) & {layer.name for layer in layers if id(layer) not in chosen_ids}
    if shared:
        raise ValueError(
            f"`stochastic_layers` selected layers whose names are not unique, in nested models: {sorted(shared)}. A "
            "saved model finds them by name; give each layer a unique name."
        )
    own = [layer for layer in chosen if id(layer) in free and any(map(makes_noise, parts_of(layer)))]
    quiet_ids = chosen_ids - set(map(id, own))
    quiet = [layer for layer in chosen if id(layer) in quiet_ids]
    if quiet and (dropout_rate is None or graph.is_opaque):
        raise ValueError(
            f"`stochastic_layers` names layers that make no noise of their own: {_names(quiet)}. Pass "
            f"`dropout_rate` (0.3, for example) to send their outputs through dropout in the {passes}, or name noise "
            f"layers, which here are {_names(noise)}."
        )
    if dropout_rate is not None and own and not quiet and not _rates_to_replace(own):
        warnings.warn(
            f"`dropout_rate` has no effect: the noise layers {_names(own)} have no dropout rate that is known. They "
            "keep their own noise. A custom layer tells which of its attributes are dropout rates by an attribute of "
            f'its class: `{_DECLARED} = ("rate",)`, for example.',
            stacklevel=2,
        )
    for layer in own:
        shape = getattr(layer, "noise_shape", None)
        if shape is not None and shape[0] == 1:
            raise ValueError(
                f"The layer {layer.name!r} has noise_shape={shape}: one draw for a whole batch makes all {passes} "
                "identical. Use `None` as the first entry of `noise_shape`, or leave the layer out of "
                "`stochastic_layers`."
            )
    outputs = [x for layer, tensors in graph.calls if id(layer) in quiet_ids for x in tensors]
    return Noise(unique([*views_of, *own]), _floats(outputs), _names(chosen))


def dropout_for(tensor: Any, rate: float) -> keras.layers.Layer:
    """Return a dropout layer for a symbolic tensor `(batch, ..., features)`: of whole channels if it has positions.

    Neighbouring positions of a feature map have similar values, so dropping single values makes hardly any noise
    (Tompson et al. 2015, arXiv 1411.4280). Keras' spatial dropout drops whole channels.
    """
    kind = getattr(keras.layers, f"SpatialDropout{len(tensor.shape) - 2}D", keras.layers.Dropout)
    state = random.getstate()
    try:  # an unseeded layer draws a seed from Python's generator, which would change the seeds of later layers
        return kind(rate, dtype=tensor.dtype)
    finally:
        random.setstate(state)


def seed_states(layers: Sequence[Any]) -> list[Any]:
    """Return the states of all seed generators that layers hold, each once."""
    return unique(g.state for layer in layers for part in parts_of(layer) for g in generators_of(part))


def layers_for_passes(layers: Sequence[Any], dropout_rate: float | None) -> list[Any]:
    """Return noise layers whose BatchNormalization stays in inference mode, and with another rate if it is given.

    On PyTorch's CPU the dropout masks of Keras' layers are made of random bits, which is faster than Keras' way.
    Each of them is the layer itself, which is not changed, or a copy that shares its variables.
    """
    parts = parts_of(list(layers))
    # Keras' way to switch a BatchNormalization that a layer calls itself to inference mode.
    frozen = [part for part in parts if isinstance(part, keras.layers.BatchNormalization) and part.trainable]
    changes: dict[int, dict[str, Any]] = {id(part): {"trainable": False} for part in frozen}
    for part, name in [] if dropout_rate is None else _rates_to_replace(parts):
        changes.setdefault(id(part), {})[name] = dropout_rate
    if _backend.draws_masks_slowly():
        # A layer of the user's is not copied for this: a copy does not follow attributes that are assigned later.
        of_keras = parts_of([layer for layer in layers if all(map(is_exported, parts_of(layer)))])
        for part in [part for part in of_keras if type(part) is keras.layers.Dropout]:
            change = changes.setdefault(id(part), {})
            change["call"] = functools.partial(_backend.dropout_from_bits, part, change.get("rate"))
    holders = [part for part in parts if any(id(inner) in changes for inner in parts_of(part))]
    return copy_layers(layers, {id(part): changes.get(id(part), {}) for part in holders})


def refuse_augmentation(graph: Graph, layers: Sequence[Any]) -> None:
    """Refuse noise layers that also augment, because the teachers should see the clean sample."""
    for layer in layers:
        if any(isinstance(part, AUGMENTATION) for part in parts_of(layer)):
            what = f"the subclassed model {layer.name!r} holds" if graph.is_opaque else f"{layer.name!r} is or holds"
            raise ValueError(
                f"`augmented_teachers` is False, but {what} augmentation that is switched on together with the noise "
                "of the teachers. Use a functional model with separate layers for noise and augmentation, and name "
                "no augmentation in `stochastic_layers`; or leave augmented_teachers=True."
            )


def check_views(graph: Graph, layers: Sequence[Any]) -> None:
    """Refuse noise layers without augmentation of each sample by itself, for teachers with views of their own.

    Teachers run side by side in one batch, so each row should draw its own numbers.
    """
    found: list[Any] = [part for part in parts_of(list(layers)) if isinstance(part, AUGMENTATION)]
    # Two of them mix samples, the third draws one crop for a whole batch.
    of_batches = [part.name for part in found if type(part).__name__ in ("CutMix", "MixUp", "RandomCrop")]
    if of_batches or not found:
        lack = f"augments whole batches by {of_batches}" if of_batches else "has no augmentation layers for teachers"
        raise ValueError(
            f'`augmented_teachers` is "each", but the model {graph.model.name!r} {lack}. Put layers that augment each '
            "sample by itself into it (keras.layers.RandomFlip, keras_ssd.augmentation.Jitter, ...), or leave "
            "augmented_teachers=True."
        )


def _what_feeds_the_head(graph: Graph) -> list[Any]:
    """Return the input of the last layer with weights on the path to each output."""
    tensors: list[Any] = []
    for output in graph.outputs:
        heads = [s for s in graph.needed([output]) if isinstance(s.layer, keras.Layer) and s.layer.weights]
        if not heads:
            raise ValueError(
                f"An output of the model {graph.model.name!r} depends on no layer with weights, so there is no head "
                "before which `dropout_rate` could act. Name layers by `stochastic_layers`."
            )
        tensors += heads[-1].inputs
    return _floats(tensors)


def _floats(tensors: Sequence[Any]) -> list[Any]:
    return unique(x for x in tensors if keras.backend.is_float_dtype(x.dtype))


def _no_noise_message(graph: Graph, layers: list[Any], stochastic_layers: Any, passes: str) -> str:
    if stochastic_layers is not None:
        return (
            f"`stochastic_layers` chose no layer: the predicate was False for all of {_names(layers)}. Choose at least "
            "one layer" + (", or pass an empty tuple for a deterministic teacher." if passes == "teachers" else ".")
        )
    lack = "has no noise layer (Dropout, GaussianNoise, a recurrent layer with `dropout`, a custom layer with a "
    lack += "`keras.random.SeedGenerator`, ...)"
    remedy = f"Pass dropout_rate=0.3, which drops features before the head in the {passes} only"
    if graph.is_opaque:
        remedy = "Give it a keras.layers.Dropout with a rate above 0, or build it with the functional API"
    kinds = (keras.layers.Dropout, keras.layers.GaussianNoise)
    silent = [layer for layer in layers if any(isinstance(part, kinds) for part in parts_of(layer))]
    if silent:
        lack = f"has only noise layers with a rate of 0, {_names(silent)}"
        remedy += "; or give one of these layers a rate above 0"
    return f"The model {graph.model.name!r} {lack}, so all {passes} would be identical. {remedy}."


def _names(layers: Sequence[Any]) -> list[str]:
    return [layer.name for layer in layers]


def _dropout_rates(part: Any) -> dict[str, Any]:
    """Return the dropout rates of a layer by attribute: of Keras' layers, and those that a custom layer declares."""
    names = getattr(part, _DECLARED, None)
    if names is None:
        names = [of_kinds for kinds, of_kinds in _DROPOUT_RATES if isinstance(part, kinds)]
        names += [_CELL_RATES] if is_conv_lstm_cell(part) else []
    names = keras.tree.flatten(names)
    unknown = [name for name in names if not hasattr(part, name)]
    if unknown:
        raise ValueError(
            f"`{_DECLARED}` should name attributes of the layer {part.name!r} of type {type(part).__name__}. It has no "
            f"{unknown}. Received: {_DECLARED}={names}"
        )
    values = {name: getattr(part, name) for name in names}
    return {n: v for n, v in values.items() if not isinstance(v, bool) and isinstance(v, numbers.Real)}


def _rates_to_replace(layers: list[Any]) -> list[tuple[Any, str]]:
    """Return `(part, attribute)` of all dropout in noise layers that is on."""
    parts = [part for part in parts_of(layers) if makes_noise(part) and not isinstance(part, AUGMENTATION)]
    return [(part, name) for part in parts for name, rate in _dropout_rates(part).items() if rate > 0]


def _held(item: Any, wanted: Any, enter: Any) -> list[Any]:
    """Return all objects of a class in nested containers, and in the attributes of objects of the classes `enter`."""
    found, queue = {}, [item]
    while queue:
        item = queue.pop()
        if isinstance(item, wanted):
            if id(item) in found:
                continue
            found[id(item)] = item
        if isinstance(item, enter):
            queue.extend(vars(item).values())
        elif isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            queue.extend(item)
    return list(found.values())
