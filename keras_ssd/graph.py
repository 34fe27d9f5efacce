"""A Keras model as a flat list of layer calls that can be run in parts, on other inputs and with other weights."""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import tree

from keras_ssd.keras_names import functional_class, graph_fixes_training


class Step:
    """One call of one layer (or operation) in a model's graph.

    Attributes:
        layer: the `keras.Layer` or `keras.Operation`: the user's own object, not a copy.
        args, kwargs: its arguments, in which symbolic tensors stand for values.
        inputs, outputs: the symbolic input and output tensors, as flat lists.
        fixed_training: the value of `training` that the user gave in the graph, which holds in every call of the model
            (Keras takes a given `None` for `False`); `None` if none was given, or if this version of Keras ignores it.
    """

    def __init__(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[keras.KerasTensor]
    ) -> None:
        self.layer = layer
        self.args = args
        # `run` passes `training`. Masks passed by name are kept: they are tensors.
        self.kwargs = {name: value for name, value in kwargs.items() if name != "training"}
        is_fixed = "training" in kwargs and graph_fixes_training()
        self.fixed_training = bool(kwargs["training"]) if is_fixed else None
        self.inputs = [x for x in tree.flatten((args, self.kwargs)) if isinstance(x, keras.KerasTensor)]
        self.outputs = outputs

    def run(self, values: dict[int, Any], training: bool | None) -> None:
        """Call the layer on `values`, a dict by `id` of the symbolic tensors, and add its outputs to the dict."""
        args, kwargs = tree.map_structure(lambda x: values.get(id(x), x), (self.args, self.kwargs))
        if isinstance(self.layer, keras.Layer):
            kwargs["training"] = training if self.fixed_training is None else self.fixed_training
        results = self._flat(self.layer(*args, **kwargs))
        values.update(zip(map(id, self.outputs), results, strict=True))

    def with_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Step":
        """Return a call of the same layer with other arguments, in the same order."""
        step = copy.copy(self)
        step.args, step.kwargs = args, kwargs
        step.inputs = [x for x in tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        return step

    def with_layer(self, layer: Any) -> "Step":
        """Return a call of another layer with the same arguments."""
        step = copy.copy(self)
        step.layer = layer
        return step

    def _flat(self, results: Any) -> list[Any]:
        return tree.flatten(results)


class _WholeModel(Step):
    """A subclassed model as one step: one symbolic tensor for its whole structure of inputs, one for the outputs."""

    def _flat(self, results: Any) -> list[Any]:
        return [results]


class Graph:
    """The layer calls of a model in an order in which they can be run.

    Nested Functional and Sequential models are expanded into their layers. A subclassed model is a single step.

    Attributes:
        model: the model.
        steps: list of `Step`.
        inputs: the symbolic inputs, structured as the model takes them.
        outputs: the symbolic outputs, a flat list.
        nested: `(model, its symbolic outputs)` for each call of a nested model that was expanded.
        moved: the replacements of symbolic tensors by `with_layers_after`, by `id` of the replaced tensor.
        is_opaque: whether the model is subclassed, so that its layers are unknown.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.steps: list[Step] = []
        self.nested: list[tuple[keras.Model, list[keras.KerasTensor]]] = []
        self.moved: dict[int, keras.KerasTensor] = {}
        self._enclosing_training: bool | None = None  # as fixed in the call of the nested model that is replayed
        self.is_opaque = not is_functional(model)
        if self.is_opaque:
            self.inputs, output = keras.KerasTensor((None,)), keras.KerasTensor((None,))
            self.steps = [_WholeModel(model, (self.inputs,), {}, [output])]
            self.outputs = [output]
            return
        with _unique_names(model):
            self.inputs, self.outputs = self._replay(model)

    def _replay(self, model: keras.Model, inputs: Any = None) -> tuple[Any, list[keras.KerasTensor]]:
        """Call the layers of `model` again, on new symbolic inputs, and record the calls.

        `clone_model` with a `call_function` is the exported way to walk a graph. It does not report which tensors
        became the outputs, so they are marked by layers that record nothing.
        """
        markers = [keras.layers.Identity(name=f"keras_ssd_output_{index}") for index in range(len(model.outputs))]
        model_inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        marked = keras.Model(model_inputs, [marker(x) for marker, x in zip(markers, model.outputs, strict=True)])
        outputs: dict[int, keras.KerasTensor] = {}

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if layer in markers:
                outputs[markers.index(layer)] = args[0]
                return args[0]
            return self._record(layer, *args, **kwargs)

        if inputs is None:
            inputs = _new_inputs(marked)
        else:
            inputs = tree.pack_sequence_as(marked.input, tree.flatten(inputs))
        replayed = keras.models.clone_model(marked, inputs, clone_function=lambda layer: layer, call_function=call)
        return replayed.input, [outputs[index] for index in range(len(markers))]

    def _record(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if self._enclosing_training is not None and isinstance(layer, keras.Layer):
            kwargs.setdefault("training", self._enclosing_training)
        if args and is_functional(layer) and _takes_unchanged(layer, args[0]):
            enclosing = self._enclosing_training
            if "training" in kwargs and graph_fixes_training():
                self._enclosing_training = bool(kwargs["training"])
            _, outputs = self._replay(layer, args[0])
            self._enclosing_training = enclosing
            self.nested.append((layer, outputs))
            reference = outputs if isinstance(layer, keras.Sequential) else layer.output
            packed = tree.pack_sequence_as(reference, outputs)
            return packed[0] if isinstance(packed, (list, tuple)) and len(packed) == 1 else packed
        outputs = layer(*args, **kwargs)
        self.steps.append(Step(layer, args, kwargs, tree.flatten(outputs)))
        return outputs

    def with_layers_after(self, layers: Sequence[tuple[keras.KerasTensor, keras.Layer]]) -> "Graph":
        """Return this graph with additional layers after some of its tensors; the graph itself is not changed.

        Args:
            layers: pairs of a symbolic tensor and the layer to insert between it and all steps that read it.

        Returns:
            A `Graph`, whose attribute `moved` maps the `id` of each of these tensors to its replacement.
        """
        if not layers:
            return self
        graph = copy.copy(self)
        graph.steps, graph.moved = [], {}
        after = {id(tensor): layer for tensor, layer in layers}

        def insert(tensors: Iterable[keras.KerasTensor]) -> None:
            for x in tensors:
                if id(x) in after:
                    moved = after[id(x)](x)
                    graph.steps.append(Step(after[id(x)], (x,), {}, [moved]))
                    graph.moved[id(x)] = moved

        insert(tree.flatten(self.inputs))
        for step in self.steps:
            args, kwargs = tree.map_structure(lambda x: graph.moved.get(id(x), x), (step.args, step.kwargs))
            graph.steps.append(step.with_arguments(args, kwargs))
            insert(step.outputs)
        graph.outputs = [graph.moved.get(id(x), x) for x in self.outputs]
        return graph

    def needed(self, targets: Iterable[keras.KerasTensor], sources: Iterable[keras.KerasTensor] = ()) -> list[Step]:
        """Return the steps, in order, that lead from the symbolic tensors `sources` (and the inputs) to `targets`."""
        known = {id(x) for x in sources}
        open_tensors = {id(x) for x in targets} - known
        steps = []
        for step in reversed(self.steps):
            if any(id(x) in open_tensors for x in step.outputs):
                steps.append(step)
                open_tensors |= {id(x) for x in step.inputs} - known
        return steps[::-1]

    def producer(self, tensor: keras.KerasTensor) -> Step | None:
        """Return the step that returns a symbolic tensor; `None` for an input."""
        return next((step for step in self.steps if any(x is tensor for x in step.outputs)), None)

    def reader(self, tensors: Sequence[keras.KerasTensor]) -> Callable[..., list[Any]]:
        """Return a callable `(x, training=...)` that runs the model once and returns the values of symbolic `tensors`.

        Layers are called in the same order as in the user's model, because a layer that is called twice updates its
        statistics and draws its noise twice.
        """
        if self.is_opaque:
            output = self.outputs[0]

            def read(x: Any, training: bool | None) -> list[Any]:
                is_needed = any(t is output for t in tensors)
                results = call_student(self.model, x, training) if is_needed else None
                return [results if t is output else x for t in tensors]

            return read
        symbolic = tree.flatten(self.inputs)
        with _unique_names(self.model):
            # Inputs are cast and completed as in the user's model.
            entry = keras.Model(self.inputs, symbolic)
        steps = self.needed(tensors)
        unread = last_reads(steps, tensors)

        def run(x: Any, training: bool | None) -> list[Any]:
            values = dict(zip(map(id, symbolic), tree.flatten(entry(x, training=training)), strict=True))
            for step, keys in zip(steps, unread, strict=True):
                step.run(values, training)
                for key in keys:
                    del values[key]
            return [values[id(t)] for t in tensors]

        return run


def last_reads(steps: Sequence[Step], outputs: Sequence[keras.KerasTensor]) -> list[set[int]]:
    """Return for each step the ids of the symbolic tensors that no later step reads and that need not be kept."""
    later, result = {id(x) for x in outputs}, []  # type: set[int], list[set[int]]
    for step in reversed(steps):
        own = {id(x) for x in step.inputs + step.outputs}
        result.append(own - later)
        later |= own
    return result[::-1]


def _new_inputs(model: keras.Model) -> Any:
    """Return new symbolic inputs like those of a model, in their structure."""
    layers = {id(layer.output): layer for layer in model.operations if isinstance(layer, keras.layers.InputLayer)}

    def like(x: keras.KerasTensor) -> keras.KerasTensor:
        # Keras' own cloning would lose the flag that an input is optional.
        optional = getattr(layers.get(id(x)), "optional", False)
        options = {"optional": True} if optional else {}
        return keras.Input(batch_shape=x.shape, dtype=x.dtype, sparse=x.sparse, name=x.name, **options)

    return tree.map_structure(like, model.input)


def is_functional(model: Any) -> bool:
    """Return whether a model is a graph of layers: Functional or Sequential, with a `call` that is Keras' own."""
    kind: Any = type(model)
    if issubclass(kind, keras.Sequential):
        return kind.call is keras.Sequential.call
    return issubclass(kind, functional_class()) and kind.call is functional_class().call


@contextlib.contextmanager
def _unique_names(model: keras.Model) -> Iterator[None]:
    """Give every layer of a model and of its nested models a unique name while a graph is built.

    Keras requires unique names in a graph; members of an ensemble, made by the same function, have equal names.
    """
    renamed: list[tuple[Any, str]] = []
    # The inputs of a Sequential are not among its layers, and keep their names.
    taken = {x.name for x in model.inputs} if isinstance(model, keras.Sequential) else set()
    try:
        for operation in _operations(model):
            name = operation.name
            if name in taken:
                renamed.append((operation, name))
                operation.name = f"{name}_keras_ssd_{len(renamed)}"
            taken.add(name)
        yield
    finally:
        for operation, name in renamed:
            operation.name = name


def _operations(model: keras.Model) -> list[Any]:
    """Return the layers and operations of a model's graph and of all graphs nested in it, each once."""
    found: dict[int, Any] = {}
    queue = [model]
    while queue:
        graph = queue.pop()
        for operation in graph.layers if isinstance(graph, keras.Sequential) else graph.operations:
            if id(operation) not in found:
                found[id(operation)] = operation
                if is_functional(operation):
                    queue.append(operation)
    return list(found.values())


def _takes_unchanged(model: keras.Model, inputs: Any) -> bool:
    """Return whether a nested model takes these inputs as they are, so that a call would not cast or reshape them."""
    return [(len(x.shape), x.dtype) for x in tree.flatten(inputs)] == [(len(x.shape), x.dtype) for x in model.inputs]


def output_structure(model: keras.Model) -> Any:
    """Return the symbolic outputs of a model, structured as it returns them."""
    structure = model.outputs if isinstance(model, keras.Sequential) else model.output
    return structure[0] if isinstance(structure, (list, tuple)) and len(structure) == 1 else structure


def takes_training(model: keras.Model) -> bool:
    """Return whether the `call` of a model takes `training`; without it, Keras trains the model with noise off."""
    if is_functional(model):
        return True
    parameters = inspect.signature(model.call).parameters
    return "training" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def call_student(model: keras.Model, inputs: Any, training: bool | None) -> Any:
    """Call a model as Keras' own training step does, which passes `training` only to a `call` that takes it."""
    return model(inputs, training=training if takes_training(model) else False)


def unique(items: Iterable[Any]) -> list[Any]:
    """Return the items without those that are the same object as an earlier one."""
    return list({id(item): item for item in items}.values())
