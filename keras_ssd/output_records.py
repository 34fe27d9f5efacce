"""The kind of each output of a model, found once per `compile` from the compiled loss and the last layers."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from keras_ssd.graph import Graph, is_functional, output_structure
from keras_ssd.keras_names import compile_arguments
from keras_ssd.outputs import Output

_REGRESSION_LOSSES = frozenset(
    "meansquarederror mse meanabsoluteerror mae meanabsolutepercentageerror mape meansquaredlogarithmicerror msle "
    "huber logcosh cosinesimilarity poisson".split()
)


class OutputRecords:
    """The record of each output of a model, made once for every `compile`.

    The records of a subclassed model are known after its first call.

    Args:
        student: the model.
        graph: its `Graph`; `None` if nothing is distilled.
        temperature: T.
        teacher_from_logits: for the outputs of another network, the result of `teacher_logits`; `None`: the student's.

    Attributes:
        loss: the loss as given to `compile`.
    """

    def __init__(
        self,
        student: keras.Model,
        graph: Graph | None,
        temperature: float,
        teacher_from_logits: list[bool | None] | None,
    ) -> None:
        self._student, self._temperature, self._of_teacher = student, temperature, teacher_from_logits
        self._forms = [] if graph is None or graph.is_opaque else [output_form(graph, x) for x in graph.outputs]
        self._records: list[Output] | None = None
        self.loss: Any = None
        self._loss_weights: Any = None

    @property
    def are_known(self) -> bool:
        """Return whether the outputs can be described before the model is called."""
        return bool(self._forms or self._records)

    def note_compile(self, loss: Any, loss_weights: Any) -> None:
        """Describe the outputs again, by the arguments of `compile`."""
        self.loss, self._loss_weights, self._records = loss, loss_weights, None
        if self._forms:
            self.describe()

    def describe(self, y_pred: Any = None) -> list[Output]:
        """Return the records, in the order of the flat outputs.

        Args:
            y_pred: outputs of the model. Defaults to `None`: the outputs of its graph.
        """
        if self._records is None:
            structure = output_structure(self._student) if y_pred is None and self._forms else y_pred
            num_outputs = len(tree.flatten(structure))
            of_teacher = self._of_teacher
            if of_teacher is not None and len(of_teacher) != num_outputs:
                of_teacher = [of_teacher[0]] * num_outputs
            self._check_axes(structure)
            self._records = describe_outputs(
                self._forms if len(self._forms) == num_outputs else [None] * num_outputs,
                tree.map_structure(lambda _: 0, structure),
                getattr(self._student, "output_names", None),
                self._temperature,
                self.loss,
                self._loss_weights,
                of_teacher,
            )
        return self._records

    def weights_of(self, sample_weight: Any, y_pred: Any) -> list[Any]:
        """Return the sample weights of each output, `None` where there are none.

        Args:
            sample_weight: one tensor for all outputs, a structure like theirs, or a dict of the outputs that have some.
            y_pred: the outputs.
        """
        return per_output(sample_weight, y_pred, getattr(self._student, "output_names", None))

    def _check_axes(self, structure: Any) -> None:
        losses = per_output(self.loss, structure, getattr(self._student, "output_names", None))
        for place, (x, loss) in enumerate(zip(tree.flatten(structure), losses, strict=True)):
            axis = getattr(loss, "axis", -1)
            if isinstance(axis, int) and axis not in (-1, len(x.shape) - 1):
                raise ValueError(
                    f"The classes of output {place} should lie on its last axis, where they are distilled. Received: a "
                    f"loss with axis={axis}, outputs of shape {tuple(x.shape)}. End the model with "
                    "keras.layers.Permute and leave `axis` out, or wrap with kd_weight=0."
                )


def describe_outputs(
    forms: Sequence[str | None],
    structure: Any,
    names: Sequence[str] | None,
    temperature: float,
    loss: Any = None,
    loss_weights: Any = None,
    teacher_from_logits: Sequence[bool | None] | None = None,
) -> list[Output]:
    """Describe each output, first by its compiled loss, then by its last activation.

    A categorical or binary cross-entropy defines the kind of the output; if it has no `from_logits`, the output holds
    probabilities only if the last activation is a softmax or sigmoid. With any other loss (a custom loss, for example)
    a softmax or sigmoid defines the kind; any other output is a regression. If only some outputs have a loss, the
    others are not distilled.

    Args:
        forms: the result of `output_form` for each output.
        structure: the structure of the outputs, with any leaves.
        names: names of the outputs of a functional model, by which losses may be given, or `None`.
        temperature: T.
        loss: as given to `compile`: a single loss, a structure of losses, or a dict by output name.
        loss_weights: likewise; they weigh the terms of several outputs as the task losses. May hold variables.
        teacher_from_logits: for the outputs of another network, the result of `teacher_logits`. Defaults to `None`: as
            for the student.

    Returns:
        An `Output` for each output, in the order of the flat outputs.

    Raises:
        ValueError: if it is unknown whether a classification by another network consists of logits or probabilities.
    """
    losses = per_output(loss, structure, names)
    weights = per_output(loss_weights, structure, names)
    outputs = []
    for place, (form, output_loss, weight) in enumerate(zip(forms, losses, weights, strict=True)):
        kind, from_logits = _kind(output_loss, form)
        weight = 1.0 if weight is None else weight
        if output_loss is None and loss is not None:
            # Outputs without a loss are not distilled.
            weight = 0.0
        of_teacher = None if teacher_from_logits is None else teacher_from_logits[place]
        if teacher_from_logits is not None and of_teacher is None and kind != "regression" and weight != 0.0:
            raise ValueError(
                f"`teacher` does not say whether its output {place} holds logits or probabilities: neither its last "
                "layer nor a loss says so. Compile it with its loss before wrapping, for example "
                "teacher.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True)), or end it with a "
                "softmax, a sigmoid or a layer without activation."
            )
        outputs.append(Output(kind, from_logits, temperature, weight, of_teacher))
    return outputs


def output_form(graph: Graph, tensor: Any) -> str | None:
    """Return the last activation on the path to an output.

    Layers without weights and activation that only move or average values are skipped.

    Args:
        graph: the `Graph`.
        tensor: a symbolic output of the graph.

    Returns:
        `"softmax"`, `"sigmoid"`, `"linear"`, or `None` if it is unknown.
    """
    step = None if graph.is_opaque else graph.producer(tensor)
    if step is None:
        return None
    activation = getattr(step.layer, "activation", None)
    name = getattr(activation, "__name__", type(step.layer).__name__).lower()
    if name in ("softmax", "sigmoid"):
        return name
    if not isinstance(step.layer, keras.layers.Layer):
        return None
    if step.layer.weights:
        return "linear" if name == "linear" else None
    if isinstance(step.layer, _TRANSPARENT):
        forms = {output_form(graph, x) for x in step.inputs}
        return forms.pop() if len(forms) == 1 else None
    return None


_TRANSPARENT = (
    keras.layers.Average,
    keras.layers.Concatenate,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.Reshape,
)


def teacher_logits(model: keras.Model, network: keras.Model, teacher: keras.Model) -> list[bool | None] | None:
    """Return for each output of another network whether it holds logits, by its last layer or its compiled loss.

    Args:
        model: the student.
        network: the teacher's network.
        teacher: the user's argument: the network, or a wrapper of it, either of which may be compiled.

    Returns:
        A list with `True`, `False` or `None` (unknown) for each output. For a subclassed network of the student's own
        class `None` instead of the list: both have the same kind of output.
    """
    if type(network) is type(model) and not is_functional(network):
        return None
    compiled = teacher if teacher.compiled else network
    loss = compile_arguments(compiled).get("loss") if compiled.compiled else None
    graph = Graph(network)
    forms = [output_form(graph, x) for x in graph.outputs]
    losses = per_output(loss, list(graph.outputs), getattr(network, "output_names", None))
    return [
        declared_logits(output_loss) if form is None else form == "linear"
        for form, output_loss in zip(forms, losses, strict=True)
    ]


def declared_logits(loss: Any) -> bool | None:
    """Return the `from_logits` of a loss; `None` if it has none."""
    if isinstance(loss, functools.partial) and "from_logits" in loss.keywords:
        return bool(loss.keywords["from_logits"])
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return None
    if hasattr(loss, "from_logits"):
        return bool(loss.from_logits)
    function = loss.func if isinstance(loss, functools.partial) else loss
    if inspect.isfunction(function):
        parameter = inspect.signature(function).parameters.get("from_logits")
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return bool(parameter.default)
    return None


def per_output(setting: Any, structure: Any, names: Sequence[str] | None) -> list[Any]:
    """Return the setting of each output from one for all outputs, a structure like theirs, or a dict by name.

    Args:
        setting: losses or weights, as given to `compile`.
        structure: the structure of the outputs, with any leaves.
        names: names of the outputs.

    Returns:
        A list in the order of the flat outputs.
    """
    flat = keras.tree.flatten(structure)
    if isinstance(setting, dict) and isinstance(structure, dict):
        keys = sorted(structure)
        known_by_key = set(setting) <= set(keys)
        if known_by_key or not names:
            return [x for key in keys for x in per_output(setting.get(key), structure[key], None)]
    if isinstance(setting, dict):
        known = list(names or [])
        return [setting.get(name) for name in known] if len(known) == len(flat) else [None] * len(flat)
    if isinstance(setting, (list, tuple)):
        if isinstance(structure, (list, tuple)) and len(setting) == len(structure):
            return [x for s, part in zip(setting, structure, strict=True) for x in per_output(s, part, None)]
        return list(setting) if len(setting) == len(flat) else [setting[0]] * len(flat)
    return [setting] * len(flat)


def _kind(loss: Any, form: str | None) -> tuple[str, bool]:
    """Return the kind of an output, and whether it holds logits."""
    name = _name(loss)
    if "crossentropy" in name or name in ("bce", "kldivergence", "kld"):
        is_binary = "binary" in name or name == "bce"
        # The kind of a custom loss ("weighted_crossentropy") follows only from the activation.
        is_open = not is_binary and "categorical" not in name and name not in ("kldivergence", "kld")
        kind = "binary" if is_binary or (is_open and form == "sigmoid") else "categorical"
        declared = declared_logits(loss)
        if declared is None:
            # Divergences of distributions take probabilities; for a custom loss only the activation decides.
            declared = form not in ("softmax", "sigmoid") and name not in ("kldivergence", "kld")
        return kind, declared
    if name in _REGRESSION_LOSSES:
        return "regression", False
    return {"softmax": "categorical", "sigmoid": "binary"}.get(form or "", "regression"), False


def _name(loss: Any) -> str:
    if isinstance(loss, functools.partial):
        loss = loss.func
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return name.lower().replace("_", "")
