"""Type aliases for values that Keras leaves untyped."""

from collections.abc import Callable
from typing import Any, Literal

# A tensor of the backend, a NumPy array or a Keras variable: Keras ships no types.
Tensor = Any

# The shape of a tensor; `None` for an unknown size.
Shape = tuple[int | None, ...]
# The logs that Keras passes to callbacks.
Logs = dict[str, Any] | None

# Values of the options `teacher`, `distill` and `similarity`, which editors complete.
Kind = Literal["self", "snapshot", "ema"]
Distill = Literal["outputs", "representation", "both"]
Similarity = Literal["dot", "cosine", "euclidean", "kl", "uniform"] | Callable[[Tensor, Tensor], Tensor]
