"""The kind of each output of a model, found once per `compile` from the compiled loss and the last layers."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from keras_ssd._typing import Tensor
from keras_ssd.graph import Graph, is_functional, output_structure
from keras_ssd.keras_names import compile_arguments, loss_argument
from keras_ssd.outputs import Output

_REGRESSION_LOSSES = frozenset(
    "meansquarederror mse meanabsoluteerror mae meanabsolutepercentageerror mape meansquaredlogarithmicerror msle "
    "huber logcosh cosinesimilarity poisson".split()
)
# Layers that only move or average values.
_TRANSPARENT = tuple(
    getattr(keras.layers, name)
    for name in "Average Concatenate Cropping1D Cropping2D Dropout Flatten GlobalAveragePooling1D "
    "GlobalAveragePooling2D Identity Permute Reshape".split()
)


class OutputRecords:
    """The `Output` of each output of a model, found again after every `compile`.

    A categorical or binary cross-entropy defines the kind of the output; if it has no `from_logits`, the output holds
    probabilities only if the last activation is a softmax or sigmoid. With any other loss (a custom loss, for example)
    a softmax or sigmoid defines the kind; any other output is a regression. If only some outputs have a loss, the
    others are not distilled. Loss weights weigh the terms of several outputs as the task losses.

    Args:
        model: the model. If it is subclassed, its outputs are known after its first call.
        graph: its `Graph`.
        temperature: T.
        teacher_from_logits: for teachers that are another network, the result of `teacher_logits`. Defaults to `None`:
            as for the model itself.

    Attributes:
        names: names of the outputs of a functional model, or `None`.
    """

    def __init__(
        self, model: keras.Model, graph: Graph, temperature: float, teacher_from_logits: list[bool | None] | None = None
    ) -> None:
        self.names = getattr(model, "output_names", None)
        self._forms, self._temperature, self._of_teacher = _output_forms(graph), temperature, teacher_from_logits
        self._structure = None if graph.is_opaque else output_structure(model)
        self._records: list[Output] | None = None
        self._loss: Any = None
        self._loss_weights: Any = None

    @property
    def are_known(self) -> bool:
        """Return whether the outputs can be described before the model is called."""
        return self._structure is not None or self._records is not None

    def note_compile(self, loss: Any, loss_weights: Any = None) -> None:
        """Describe the outputs again, by the arguments of `compile`."""
        self._loss, self._loss_weights, self._records = loss, loss_weights, None
        if self.are_known:
            self.describe()

    def describe(self, y_pred: Any = None) -> list[Output]:
        """Return the `Output` of each of the flat outputs; a subclassed model needs its outputs `y_pred`."""
        if self._records is None:
            structure = y_pred if self._structure is None else self._structure
            flat = tree.flatten(structure)
            given = (per_output(setting, structure, self.names) for setting in (self._loss, self._loss_weights))
            found = (_for_each(setting, len(flat)) for setting in (self._forms, self._of_teacher or [None]))
            parts = zip(flat, *given, *found, strict=True)
            self._records = [self._describe(place, *settings) for place, settings in enumerate(parts)]
        return self._records

    def _describe(self, place: int, x: Tensor, loss: Any, weight: Any, form: str | None, is_logits: Any) -> Output:
        axis = loss_argument(loss, "axis")
        if isinstance(axis, int) and axis not in (-1, len(x.shape) - 1):
            raise ValueError(
                f"The classes of output {place} should lie on its last axis. Received: a loss with axis={axis}, and "
                f"outputs of shape {tuple(x.shape)}. End the model with keras.layers.Permute and leave `axis` out, or "
                'wrap with kd_weight=0, or pass loss="mse" to `predict_stochastic`, for mean and variance only.'
            )
        kind, from_logits = _kind(loss, form)
        weight = 1.0 if weight is None else weight
        if loss is None and self._loss is not None:
            weight = 0.0
        if self._of_teacher is not None and is_logits is None and kind != "regression" and weight != 0.0:
            raise ValueError(
                f"`teacher` does not say whether its output {place} holds logits or probabilities: neither its last "
                "layer nor a loss says so. Compile it with its loss before wrapping, for example "
                "teacher.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True)), or end it with a "
                "softmax, a sigmoid or a layer without activation."
            )
        return Output(kind, from_logits, self._temperature, weight, is_logits)


def _output_forms(graph: Graph) -> list[str | None]:
    """Return "softmax", "sigmoid", "linear" or `None` (unknown) for each output; a subclassed model's is unknown."""
    return [None] if graph.is_opaque else [_form(graph, x) for x in graph.outputs]


def _form(graph: Graph, tensor: Any) -> str | None:
    step = graph.producer(tensor)
    if step is None:
        return None
    activation = getattr(step.layer, "activation", None)
    name = getattr(activation, "__name__", type(step.layer).__name__).lower()
    if name in ("softmax", "sigmoid"):
        return name
    if getattr(step.layer, "weights", None):
        return "linear" if name == "linear" else None
    forms = {_form(graph, x) for x in step.inputs} if isinstance(step.layer, _TRANSPARENT) else set()
    return forms.pop() if len(forms) == 1 else None


def teacher_logits(model: keras.Model, network: keras.Model, teacher: Any) -> list[bool | None] | None:
    """Return for each output of another network whether it holds logits (`None`: unknown), by its layers or its loss.

    The user's argument `teacher` is the network or a wrapper of it, either of which may be compiled. For a subclassed
    network of the student's own class the result is `None`: both have the same kind of output.
    """
    if type(network) is type(model) and not is_functional(network):
        return None
    compiled = teacher if teacher.compiled else network
    loss = compile_arguments(compiled).get("loss") if compiled.compiled else None
    graph = Graph(network)
    losses = per_output(loss, list(graph.outputs), getattr(network, "output_names", None))
    pairs = zip(_output_forms(graph), losses, strict=True)
    return [_declared_logits(loss) if form is None else form == "linear" for form, loss in pairs]


def _declared_logits(loss: Any) -> bool | None:
    """Return the `from_logits` of a loss, its attribute or the default of its argument; `None` if it has none."""
    try:
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
        if (declared := loss_argument(loss, "from_logits")) is not None:
            return bool(declared)
        default = inspect.signature(loss).parameters["from_logits"].default
    except (KeyError, TypeError, ValueError):  # no such argument; no signature; a name that Keras does not know
        return _declared_logits(loss.func) if isinstance(loss, functools.partial) else None
    return None if default is inspect.Parameter.empty else bool(default)


def per_output(setting: Any, structure: Any, names: Sequence[str] | None) -> list[Any]:
    """Return the setting of each flat output, for losses or weights as given to `compile`.

    A setting is one for all outputs, a structure like theirs, or a dict by the keys of the structure or by the names
    of the outputs; outputs that a dict leaves out get `None`.
    """
    count = len(tree.flatten(structure))
    if isinstance(setting, dict):
        if isinstance(structure, dict) and (set(setting) <= set(structure) or not names):
            return [x for key in sorted(structure) for x in per_output(setting.get(key), structure[key], None)]
        return [setting.get(name) for name in names] if names and len(names) == count else [None] * count
    if not isinstance(setting, (list, tuple)):
        return [setting] * count
    if isinstance(structure, (list, tuple)) and len(setting) == len(structure):
        return [x for s, part in zip(setting, structure, strict=True) for x in per_output(s, part, None)]
    return _for_each(setting, count)


def _for_each(items: Sequence[Any], count: int) -> list[Any]:
    """Return an item for each output; the first item stands for all if there are more or fewer."""
    return list(items) if len(items) == count else [items[0]] * count


def _kind(loss: Any, form: str | None) -> tuple[str, bool]:
    """Return the kind of an output, and whether it holds logits."""
    function = loss.func if isinstance(loss, functools.partial) else loss
    name = function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
    name = name.lower().replace("_", "")
    is_divergence = name in ("kldivergence", "kld")  # of distributions: it takes probabilities
    if "crossentropy" not in name and name != "bce" and not is_divergence:
        by_form = {"softmax": "categorical", "sigmoid": "binary"}.get(form or "", "regression")
        return "regression" if name in _REGRESSION_LOSSES else by_form, False
    # The kind of a custom loss ("weighted_crossentropy") follows only from the activation.
    is_open = not is_divergence and "categorical" not in name
    is_binary = "binary" in name or name == "bce" or (is_open and form == "sigmoid")
    declared = _declared_logits(loss)
    if declared is None:
        declared = form not in ("softmax", "sigmoid") and not is_divergence
    return "binary" if is_binary else "categorical", declared
