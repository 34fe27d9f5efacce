"""Names for what Keras leaves untyped."""

from typing import Any

# A tensor of the backend, a NumPy array or a Keras variable: Keras ships no types.
Tensor = Any
