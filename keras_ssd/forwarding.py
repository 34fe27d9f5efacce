"""The attributes and methods that a wrapped model shares with the student."""

from typing import Any

import keras

FORWARDED = (
    *("input", "input_names", "input_shape", "inputs", "layers", "output", "output_shape", "outputs"),
    *("compute_output_shape", "compute_output_spec", "count_params", "get_layer"),
)


def forwards_to_student(cls: type) -> type:
    """Let a class of models answer as its attribute `student` does, for all names above."""
    for name in FORWARDED:
        setattr(cls, name, _forwarded(name))
    return cls


def _forwarded(name: str) -> property:
    def read(model: Any) -> Any:
        try:
            return getattr(model.student, name)
        except AttributeError:
            # A Sequential has an `output` only where it was called; in another model the wrapper was called instead.
            return getattr(keras.Layer, name).__get__(model)

    return property(read, doc=f"`{name}` of the student.")
