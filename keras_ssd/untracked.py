"""A holder for objects that Keras should not track as part of a model or layer."""

from typing import Any


class Untracked:
    """Holds an object that Keras should not track.

    Attributes:
        content: the object.
    """

    def __init__(self, content: Any) -> None:
        self.content = content
