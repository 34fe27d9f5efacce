"""The attributes and methods that a wrapped model shares with the student."""

from collections.abc import Callable
from typing import Any

import keras

# Attributes of the wrapped model that are the student's.
ATTRIBUTES = (
    "input",
    "input_names",
    "input_shape",
    "inputs",
    "layers",
    "output",
    "output_shape",
    "outputs",
)
# Methods of the wrapped model that are the student's.
METHODS = ("compute_output_shape", "compute_output_spec", "count_params", "get_layer")


def shares_face(cls: type) -> type:
    """Let a class of models answer as its attribute `student` does, for all names above."""
    for name in ATTRIBUTES:
        setattr(cls, name, property(_reader(name), doc=f"`{name}` of the student."))
    for name in METHODS:
        setattr(cls, name, _method(name))
    return cls


def _reader(name: str) -> Callable[[Any], Any]:
    def read(model: Any) -> Any:
        try:
            return getattr(model.student, name)
        except AttributeError:
            # A Sequential has an `output` only where it was called; in another model the wrapper was called instead.
            return getattr(keras.Layer, name).__get__(model)

    return read


def _method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.student, name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"Return the result of the student's `{name}`."
    return method
