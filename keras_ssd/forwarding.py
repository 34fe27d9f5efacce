"""The attributes and methods that a wrapped model shares with the student, and those that are set on the student."""

import functools
from typing import Any

import keras

# Those that `keras.Model` has itself. What it lacks, such as `inputs`, is found by `SSDModel.__getattr__`.
FORWARDED = "compute_output_shape compute_output_spec count_params get_layer input layers output".split()
# Attributes that Keras sets on the model that it trains, beside properties and names that begin with an underscore.
_SET_BY_KERAS = ("history", "stop_evaluating", "stop_predicting")


def is_of_student(model: Any, name: str) -> bool:
    """Return whether an attribute can be set, is the student's, and is neither the wrapper's own nor set by Keras."""
    is_own = name in vars(model) or hasattr(type(model), name)
    if name.startswith("_") or name in _SET_BY_KERAS or is_own:
        return False
    described = getattr(type(model.student), name, None)
    is_read_only = isinstance(described, property) and described.fset is None
    return hasattr(model.student, name) and not is_read_only


def forwards_to_student(cls: type) -> type:
    """Let a class of models answer as its attribute `student` does, for all names above."""
    for name in FORWARDED:
        setattr(cls, name, property(functools.partial(_read, name=name), doc=f"`{name}` of the student."))
    return cls


def _read(model: Any, name: str) -> Any:
    try:
        return getattr(model.student, name)
    except AttributeError:
        # A Sequential has an `output` only where it was called; in another model the wrapper was called instead.
        return getattr(keras.Layer, name).__get__(model)
