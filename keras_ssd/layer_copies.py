"""Copies of layers that share all variables with the originals and differ in single attributes."""

import contextlib
import copy
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_ssd.keras_names import is_graph_node


def copy_layers(layers: Sequence[Any], changes: Mapping[int, Mapping[str, Any]]) -> list[Any]:
    """Return copies of layers in which some attributes are replaced. The user's layers are not changed.

    A copy has the attributes of the original at the time it is made: the same variables, seed generators and values.
    References to a layer that was copied are replaced by its copy: in attributes, lists, dicts, the graphs of nested
    models, bound methods and closures. A layer that is held in several places has one copy.

    Args:
        layers: the layers.
        changes: the new values of attributes by name, by `id` of each layer to copy, also of layers in other layers.
            All other layers, and the layers in them, are shared.
    """
    # By `id` of an original: the original, which keeps the `id` from being used again, and its copy.
    copies: dict[int, tuple[Any, Any]] = {}

    def copied(item: Any) -> Any:
        if id(item) in copies:
            return copies[id(item)][1]
        if isinstance(item, keras.Layer):
            return copied_layer(item) if id(item) in changes else item
        parts, rebuild = _taken_apart(item)
        if isinstance(item, types.FunctionType):
            copies[id(item)] = item, item  # a function may refer to itself
        new = [copied(part) for part in parts]
        result = item if all(a is b for a, b in zip(new, parts, strict=True)) else rebuild(new)
        if isinstance(item, types.FunctionType):
            copies[id(item)] = item, result
        return result

    def copied_layer(layer: Any) -> Any:
        kind, new_values = type(layer), dict(changes[id(layer)])
        if "trainable" in new_values:
            # An attribute of a class: Keras would pass an assigned value on to the variables, which are shared.
            kind = type(kind.__name__, (kind,), {"trainable": new_values.pop("trainable")})
        made = object.__new__(kind)
        copies[id(layer)] = layer, made  # before its attributes, which may lead back to it
        vars(made).update({**{name: copied(value) for name, value in vars(layer).items()}, **new_values})
        return made

    return [copied(layer) for layer in layers]


def _taken_apart(item: Any) -> tuple[Sequence[Any], Callable[[list[Any]], Any]]:
    """Return the parts of an object that may be or hold layers, and a function that makes the object of new parts."""
    if isinstance(item, Mapping):
        return list(item.values()), lambda parts: dict(zip(item, parts, strict=True))
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return item, lambda parts: type(item)(*parts)
    for kind in (list, tuple, set, frozenset):
        if isinstance(item, kind):
            return list(item), kind
    if isinstance(item, functools.partial):
        return (item.func, item.args, item.keywords), lambda new: functools.partial(new[0], *new[1], **new[2])
    if isinstance(item, types.MethodType):
        return (item.__self__,), lambda new: types.MethodType(item.__func__, *new)
    if isinstance(item, types.FunctionType):
        return item.__closure__ or (), functools.partial(_with_cells, item)
    if isinstance(item, types.CellType):
        with contextlib.suppress(ValueError):  # the cell is empty
            return (item.cell_contents,), lambda new: types.CellType(*new)
    if is_graph_node(item):
        return (item.operation,), functools.partial(_with_operation, item)
    return (), lambda _: item


def _with_cells(function: Any, cells: list[Any]) -> Any:
    code, name, defaults = function.__code__, function.__name__, function.__defaults__
    made = types.FunctionType(code, function.__globals__, name, defaults, tuple(cells))
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _with_operation(node: Any, operations: list[Any]) -> Any:
    made = copy.copy(node)
    (made.operation,) = operations
    return made
