"""A Keras model as a flat list of layer calls that can be run in parts, on other inputs and with other weights."""

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import tree

from keras_ssd.keras_names import automatic_mask, functional_class, graph_fixes_training


@dataclasses.dataclass(eq=False)
class Step:
    """One call of one layer (or operation) in a model's graph.

    Attributes:
        layer: the `keras.Layer` or `keras.Operation`: the user's own object, not a copy.
        args, kwargs: its arguments, in which symbolic tensors stand for values. Masks passed by name are kept.
        outputs: the symbolic output tensors, a flat list.
        fixed_training: the value of `training` that the user gave in the graph, which holds in every call of the model
            (Keras takes a given `None` for `False`); `None` if none was given, or if this version of Keras ignores it.
        is_whole_model: whether the layer is a subclassed model: one symbolic tensor stands for its whole structure of
            inputs, and one for the outputs.
        inputs: the symbolic input tensors, a flat list.
    """

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[keras.KerasTensor]
    fixed_training: bool | None = None
    is_whole_model: bool = False

    def __post_init__(self) -> None:
        self.kwargs = dict(self.kwargs)
        if "training" in self.kwargs:
            training = self.kwargs.pop("training")
            self.fixed_training = bool(training) if graph_fixes_training() else None
        self.inputs = [x for x in tree.flatten((self.args, self.kwargs)) if isinstance(x, keras.KerasTensor)]

    def run(self, values: dict[int, Any], training: bool | None) -> None:
        """Call the layer on `values`, a dict by `id` of the symbolic tensors, and add its outputs to the dict."""
        args, kwargs = _replaced((self.args, self.kwargs), values)
        if isinstance(self.layer, keras.Layer):
            kwargs["training"] = training if self.fixed_training is None else self.fixed_training
        results = self.layer(*args, **kwargs)
        results = [results] if self.is_whole_model else tree.flatten(results)
        values.update(zip(map(id, self.outputs), results, strict=True))


class Graph:
    """The layer calls of a model in an order in which they can be run.

    Nested Functional and Sequential models are expanded into their layers. A subclassed model is a single step.

    Attributes:
        model: the model.
        steps: list of `Step`.
        inputs: the symbolic inputs, structured as the model takes them.
        outputs: the symbolic outputs, a flat list.
        nested: `(model, its symbolic outputs)` for each call of a nested model that was expanded.
        moved: by `id` of a symbolic tensor the one that takes its place: the output of the layer that
            `with_layers_after` inserts. While the model is read, also the tensors of nested models for those of calls.
        is_opaque: whether the model is subclassed, so that its layers are unknown.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.steps: list[Step] = []
        self.nested: list[tuple[keras.Model, list[keras.KerasTensor]]] = []
        self.moved: dict[int, keras.KerasTensor] = {}
        self._walked: list[keras.Model] = []  # kept, because `moved` knows their tensors by `id`
        self.is_opaque = not is_functional(model)
        if self.is_opaque:
            self.inputs, output = keras.KerasTensor((None,)), keras.KerasTensor((None,))
            self.steps = [Step(model, (self.inputs,), {}, [output], is_whole_model=True)]
            self.outputs = [output]
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warned when the model was built
            self.inputs, self.outputs = self._replay(model, {})

    def _replay(self, model: keras.Model, training: dict[str, Any], inputs: Any = None) -> tuple[Any, list[Any]]:
        """Record the calls of the layers of `model`; return its inputs and outputs.

        `clone_model` with a `call_function` is the exported way to walk a graph. A nested model is walked on inputs of
        its own, which are replaced by the tensors that it is called on, and so are the outputs of its call.
        """
        functional = keras.Model(model.inputs[0] if isinstance(model, keras.Sequential) else model.input, model.outputs)
        own_inputs = _new_inputs(functional, inputs)
        if inputs is not None:
            self.moved.update(zip(map(id, tree.flatten(own_inputs)), inputs, strict=True))

        def record(layer: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = layer(*args, **kwargs)
            has_own_mask = bool(args) and _is_masked_by_name(args[0], kwargs.get("mask"))
            if isinstance(layer, keras.Layer) and graph_fixes_training():
                kwargs = {**training, **kwargs}
            args, kwargs = _replaced((args, kwargs), self.moved)
            if args and not has_own_mask and is_functional(layer) and _takes_unchanged(layer, args[0]):
                # The layers within get their masks with the values.
                given = {"training": kwargs["training"]} if "training" in kwargs else {}
                _, own_outputs = self._replay(layer, given, tree.flatten(args[0]))
                self.nested.append((layer, own_outputs))
                self.moved.update(zip(map(id, tree.flatten(outputs)), own_outputs, strict=True))
            else:
                self.steps.append(Step(layer, args, kwargs, tree.flatten(outputs)))
            return outputs

        self._walked.append(keras.models.clone_model(functional, own_inputs, lambda layer: layer, call_function=record))
        return own_inputs, _replaced(self._walked[-1].outputs, self.moved)

    def with_layers_after(self, layers: Sequence[tuple[keras.KerasTensor, keras.Layer]]) -> "Graph":
        """Return a graph in which each layer comes between a symbolic tensor and all steps that read it."""
        graph, after = copy.copy(self), {id(tensor): layer for tensor, layer in layers}
        graph.steps, graph.moved = [], {}

        def insert(tensors: Iterable[keras.KerasTensor]) -> None:
            for x in tensors:
                if id(x) in after:
                    graph.moved[id(x)] = after[id(x)](x)
                    graph.steps.append(Step(after[id(x)], (x,), {}, [graph.moved[id(x)]]))

        insert(tree.flatten(self.inputs))
        for step in self.steps:
            args, kwargs = _replaced((step.args, step.kwargs), graph.moved)
            graph.steps.append(dataclasses.replace(step, args=args, kwargs=kwargs))
            insert(step.outputs)
        graph.outputs = _replaced(self.outputs, graph.moved)
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

    @property
    def calls(self) -> list[tuple[Any, list[keras.KerasTensor]]]:
        """`(layer, its symbolic outputs)` for each call of a layer, and of a nested model that was expanded."""
        return [(step.layer, step.outputs) for step in self.steps] + self.nested

    def producer(self, tensor: keras.KerasTensor) -> Step | None:
        """Return the step that returns a symbolic tensor; `None` for an input."""
        return next((step for step in self.steps if any(x is tensor for x in step.outputs)), None)

    def reader(self, tensors: Sequence[keras.KerasTensor]) -> Callable[..., list[Any]]:
        """Return a callable `(x, training=...)` that runs the model once and returns the values of symbolic `tensors`.

        Layers are called in the same order as in the user's model, because a layer that is called twice updates its
        statistics and draws its noise twice.
        """
        symbolic, steps = tree.flatten(self.inputs), self.needed(tensors)
        runs = list(zip(steps, last_reads(steps, tensors), strict=True))
        has_training = takes_training(self.model)
        # Inputs are cast and completed as in the user's model.
        entry = None if self.is_opaque else keras.Model(self.inputs, symbolic)

        def run(x: Any, training: bool | None) -> list[Any]:
            # Like Keras' own training step, which passes `training` only to a `call` that takes it.
            training = training if has_training else False
            inputs = [x] if entry is None else tree.flatten(entry(x, training=training))
            values = dict(zip(map(id, symbolic), inputs, strict=True))
            for step, keys in runs:
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


def _replaced(structure: Any, replacements: dict[int, Any]) -> Any:
    """Return a structure in which objects are replaced, by `id`."""
    return tree.map_structure(lambda x: replacements.get(id(x), x), structure)


def _new_inputs(model: keras.Model, called_on: Any = None) -> Any:
    """Return new symbolic inputs like those of a model, in their structure."""
    layers = {id(layer.output): layer for layer in model.operations if isinstance(layer, keras.layers.InputLayer)}

    def like(x: keras.KerasTensor, shape: Any) -> keras.KerasTensor:
        # Keras' own cloning would lose the flag that an input is optional.
        options = {"optional": True} if getattr(layers.get(id(x)), "optional", False) else {}
        return keras.Input(batch_shape=shape, dtype=x.dtype, sparse=x.sparse, name=x.name, **options)

    own = tree.flatten(model.input)
    new = [like(x, y.shape) for x, y in zip(own, called_on or own, strict=True)]
    return tree.pack_sequence_as(model.input, new)


def is_functional(model: Any) -> bool:
    """Return whether a model is a graph of layers: Functional or Sequential, with a `call` that is Keras' own."""
    kinds = (keras.Sequential, functional_class())  # the second is a base of the first
    kind: Any = next((kind for kind in kinds if isinstance(model, kind)), None)
    return kind is not None and type(model).call is kind.call


def _takes_unchanged(model: keras.Model, inputs: Any) -> bool:
    """Return whether a nested model takes these inputs as they are: a call would not cast, reshape or reorder them."""
    if isinstance(inputs, dict) and (isinstance(model, keras.Sequential) or not isinstance(model.input, dict)):
        return False  # Keras finds the inputs by their names
    given = [x for x in tree.flatten(inputs) if x is not None]  # an optional input may be left out
    return [(len(x.shape), x.dtype) for x in given] == [(len(x.shape), x.dtype) for x in model.inputs]


def _is_masked_by_name(inputs: Any, mask: Any) -> bool:
    """Return whether a call was given a mask for a tensor that has none: the layers of a nested model would miss it."""
    pairs = zip(tree.flatten(inputs), tree.flatten(mask), strict=False)
    return any(given is not None and automatic_mask(x) is None for x, given in pairs)


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


def unique(items: Iterable[Any]) -> list[Any]:
    """Return the items without those that are the same object as an earlier one."""
    return list({id(item): item for item in items}.values())
