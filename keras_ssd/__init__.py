"""keras-ssd: train any Keras model by stochastic self-distillation.

`wrap(model)` returns a `keras.Model` whose `fit` distils the model's own stochastic passes (dropout on) into the model
itself. `SSDModel` is the class of the result, and `load_model` reads it from a file. `guidance` holds the equations
(arXiv 2504.14307), `callbacks` the callbacks for `fit`, `augmentation` layers for sensor windows, and `plotting` the
plots.
"""

try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in ("tensorflow", "jax", "jaxlib", "torch"):
        raise
    raise ModuleNotFoundError(
        f"Keras found no backend: the package `{error.name}` is not installed. Install one with "
        '`pip install "keras-ssd[tensorflow]"`, `"keras-ssd[jax]"` or `"keras-ssd[torch]"`. For the last two, set the '
        "environment variable KERAS_BACKEND to `jax` or `torch` before importing.",
        name=error.name,
    ) from error

from keras_ssd import augmentation, callbacks, guidance, plotting
from keras_ssd._version import __version__
from keras_ssd.comparison import compare
from keras_ssd.files import load_model
from keras_ssd.model import SSDModel
from keras_ssd.paired_scores import Comparison
from keras_ssd.settings import AVERAGING, PAPER, SEMI_SUPERVISED
from keras_ssd.uncertainty import predict_stochastic
from keras_ssd.unlabelled import join_unlabelled
from keras_ssd.wrapping import wrap

del keras

__all__ = [
    "AVERAGING",
    "Comparison",
    "PAPER",
    "SEMI_SUPERVISED",
    "SSDModel",
    "__version__",
    "augmentation",
    "callbacks",
    "compare",
    "guidance",
    "join_unlabelled",
    "load_model",
    "plotting",
    "predict_stochastic",
    "wrap",
]
