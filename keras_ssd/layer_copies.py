"""Copies of layers that share all variables with the originals and differ in single attributes."""

import copy
import functools
import types
from collections.abc import Collection, Mapping
from typing import Any

import keras

from keras_ssd.keras_names import is_graph_node


class LayerCopies:
    """Copies a layer and the layers in it that have to differ, so that the user's layers are never changed.

    A copy has the attributes of the original at the time it is made: the same variables, seed generators and values.
    References to a layer that was copied are replaced by its copy: in attributes, lists, dicts, the graphs of nested
    models, bound methods and closures. A layer that is held in several places has one copy.
    """

    def __init__(self) -> None:
        # By `id` of an original: the original, which keeps the `id` from being used again, and its copy.
        self._copies: dict[int, tuple[Any, Any]] = {}

    def copy(self, layer: Any, changes: Mapping[int, Mapping[str, Any]]) -> Any:
        """Return a copy of a layer in which some attributes are replaced.

        Args:
            layer: a `keras.Layer`.
            changes: by `id` of each layer to copy the values of its attributes that change, by name. Layers that are
                not in it, and the layers in them, are shared.

        Returns:
            The copy; the layer itself if it is not to be copied.
        """
        return self._copy(layer, changes)

    def _copy(self, item: Any, changes: Mapping[int, Mapping[str, Any]]) -> Any:
        if id(item) in self._copies:
            return self._copies[id(item)][1]
        if isinstance(item, keras.Layer):
            return self._copy_layer(item, changes) if id(item) in changes else item
        if isinstance(item, Mapping):
            copies = {key: self._copy(value, changes) for key, value in item.items()}
            return copies if any(copies[key] is not value for key, value in item.items()) else item
        if isinstance(item, (list, tuple, set, frozenset)):
            return self._copy_sequence(item, changes)
        if isinstance(item, functools.partial):
            parts = item.func, item.args, item.keywords
            function, args, keywords = (self._copy(part, changes) for part in parts)
            is_same = all(a is b for a, b in zip(parts, (function, args, keywords), strict=True))
            return item if is_same else functools.partial(function, *args, **keywords)
        if isinstance(item, types.MethodType):
            owner = self._copy(item.__self__, changes)
            return item if owner is item.__self__ else types.MethodType(item.__func__, owner)
        if isinstance(item, types.FunctionType) and item.__closure__:
            return self._copy_function(item, changes)
        if is_graph_node(item):
            layer = self._copy(item.operation, changes)
            if layer is item.operation:
                return item
            node = copy.copy(item)
            node.operation = layer
            return node
        return item

    def _copy_layer(self, layer: Any, changes: Mapping[int, Mapping[str, Any]]) -> Any:
        new_values = dict(changes[id(layer)])
        kind = type(layer)
        if "trainable" in new_values:
            # An attribute of a class: Keras would pass an assigned value on to the variables, which are shared.
            kind = type(kind.__name__, (kind,), {"trainable": new_values.pop("trainable")})
        made = object.__new__(kind)
        self._copies[id(layer)] = layer, made  # before its attributes, which may lead back to it
        attributes = {name: self._copy(value, changes) for name, value in vars(layer).items()}
        vars(made).update({**attributes, **new_values})
        return made

    def _copy_sequence(self, item: Collection[Any], changes: Mapping[int, Mapping[str, Any]]) -> Any:
        copies = [self._copy(value, changes) for value in item]
        if all(a is b for a, b in zip(copies, item, strict=True)):
            return item
        if hasattr(item, "_fields"):
            return type(item)(*copies)
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(item, kind))
        return kind(copies)

    def _copy_function(self, function: Any, changes: Mapping[int, Mapping[str, Any]]) -> Any:
        self._copies[id(function)] = function, function  # a function may refer to itself
        cells = []
        for cell in function.__closure__:
            try:
                value = self._copy(cell.cell_contents, changes)
                cells.append(cell if value is cell.cell_contents else types.CellType(value))
            except ValueError:  # the cell is empty
                cells.append(cell)
        if all(a is b for a, b in zip(cells, function.__closure__, strict=True)):
            return function
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
        )
        made.__kwdefaults__ = function.__kwdefaults__
        self._copies[id(function)] = function, made
        return made
