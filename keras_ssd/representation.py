"""The representation by which student and teachers are compared: a layer by name, or the input of the last Dense."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from keras_ssd.graph import Graph, Step
from keras_ssd.settings import Settings, level_of_user


def find_representation(graph: Graph, name: str | None) -> Any:
    """Return the symbolic output of the layer with a name, or the input of the last Dense layer if it is `None`.

    A subclassed model has no layers: the result is `None` without a name.

    Raises:
        ValueError: if there is no such layer, or several layers have the name.
    """
    if graph.is_opaque:
        if name is None:
            return None
        raise ValueError(
            f"`representation` cannot be looked up in {graph.model.name!r}: a subclassed model has no graph of layers. "
            f"Received: representation={name!r}. Build the model with the functional API, or distil the outputs."
        )
    if name is None:
        dense = [step for step in graph.needed(graph.outputs) if isinstance(step.layer, keras.layers.Dense)]
        after = list(_steps_after(dense[-1], graph)) if dense else []
        # With weights after it, the last Dense layer is not the head.
        if not dense or any(isinstance(step.layer, keras.Layer) and step.layer.weights for step, _ in after):
            raise ValueError(
                f"`representation` is None, which means the input of the last Dense layer, but the model "
                f"{graph.model.name!r} has no Dense layer as its head. Pass the name of one of its layers: "
                f"{layer_names(graph)}"
            )
        # In an ensemble the input of the last head belongs to only one member.
        leads_to_last = graph.needed(dense[-1].inputs)
        for later, others in after:
            if any(step in dense and step not in leads_to_last for step in graph.needed(others)):
                raise ValueError(
                    f"`representation` is not a layer of the model {graph.model.name!r}, so it means the input of the "
                    f"last Dense layer, but {later.layer.name!r} merges the outputs of several Dense layers. Name a "
                    'layer, or distil only the outputs: distill="outputs" with similarity="kl" or "uniform".'
                )
        return dense[-1].inputs[0]
    called = [(layer, outputs) for layer, outputs in graph.calls if layer.name == name]
    if not called:
        raise ValueError(
            f"`representation` should name a layer of the model {graph.model.name!r}. Received: "
            f"representation={name!r}. Its layers are {layer_names(graph)}"
        )
    if len({id(layer) for layer, _ in called}) > 1:
        raise ValueError(
            f"`representation` names several layers of the model {graph.model.name!r}, in models nested in it. "
            f"Received: representation={name!r}. Give the layer that you mean a unique name."
        )
    return called[-1][1][0]


def find_representations(student: Graph, teacher: Graph, settings: Settings) -> list[Any]:
    """Return the symbolic representations of student and teacher, which may be the same graph.

    Raises:
        ValueError: if a representation is not found, or the two differ in width.
    """
    name = settings.representation
    names = [name if graph is student or name in layer_names(graph) else None for graph in (student, teacher)]
    found = [find_representation(graph, one) for graph, one in zip((student, teacher), names, strict=True)]
    if any(x is None for x in found):
        raise ValueError(
            "A subclassed model has no graph of layers in which a representation could be found. Pass "
            'distill="outputs" with similarity="kl" or "uniform", or build the model with the functional API. '
            f"Received: distill={settings.distill!r}, similarity={settings.similarity!r}"
        )
    widths = [None if None in x.shape[1:] else math.prod(x.shape[1:]) for x in found]
    if widths[0] != widths[1]:
        raise ValueError(
            f"`teacher` has a representation of {widths[1]} features, but the student's has {widths[0]}. Name layers "
            'of equal width by `representation`, or pass distill="outputs" with similarity="kl" or "uniform".'
        )
    layers = [step.layer for step in student.needed(found[:1]) if isinstance(step.layer, keras.Layer)]
    weighted = [layer for layer in layers if layer.weights]
    is_frozen = any(not x.trainable for x in weighted) and not any(x.trainable_weights for x in weighted)
    if settings.distill == "representation" and is_frozen:
        warnings.warn(
            "The distillation term changes nothing: it is a distance of representations, and no trainable weight of "
            f"{student.model.name!r} lies before the representation. Unfreeze some layers before `fit`, or distil the "
            'outputs: distill="outputs" with similarity="kl".',
            stacklevel=level_of_user(),
        )
    return found


def _steps_after(step: Step, graph: Graph) -> Iterator[tuple[Step, list[Any]]]:
    """Yield the steps to the outputs that depend on a step, each with its other inputs."""
    reached = {id(x) for x in step.outputs}
    steps = graph.needed(graph.outputs)
    for later in steps[steps.index(step) + 1 :]:
        others = [x for x in later.inputs if id(x) not in reached]
        if len(others) < len(later.inputs):
            yield later, others
            reached.update(map(id, later.outputs))


def layer_names(graph: Graph) -> list[str]:
    """Return the names of the layers of a graph, and of the nested models that were expanded."""
    return [layer.name for layer, _ in graph.calls]
