"""Type aliases for values that Keras leaves untyped."""

from typing import Any

# A tensor of the backend, a NumPy array or a Keras variable: Keras ships no types.
Tensor = Any

# The shape of a tensor; `None` for an unknown size.
Shape = tuple[int | None, ...]
# The logs that Keras passes to callbacks.
Logs = dict[str, Any] | None
