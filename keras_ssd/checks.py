"""Which models can be wrapped: plain, built models whose training is Keras' own."""

from typing import Any

import keras

from keras_ssd.keras_names import is_hub_task, model_classes, package_of

# The methods in which a task of KerasHub runs its preprocessor. Without a preprocessor they do what Keras' own do.
_PREPROCESSING = "compile evaluate fit predict predict_on_batch test_on_batch train_on_batch".split()
# Methods for training and prediction, which the wrapper would replace by its own.
_REPLACED = sorted(
    "compute_loss compute_metrics get_metrics_result metrics predict_step stateless_compute_loss test_step "
    "train_step".split()
    + _PREPROCESSING
)


def check_model(argument: str, model: Any, wrapper: Any = None) -> None:
    """Raise unless the value of an argument is a plain, built `keras.Model`, and no instance of a class `wrapper`."""
    if wrapper is not None and isinstance(model, wrapper):
        raise ValueError(
            f"`{argument}` is wrapped already: {model.name!r} is an {type(model).__name__}. Pass the plain model, "
            "`ssd.student`."
        )
    if not isinstance(model, keras.Model):
        raise ValueError(f"`{argument}` should be a keras.Model. Received: {model!r} of type {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"`{argument}` is not built: {model.name!r} has no weights yet. Call it on a batch first: "
            f"`{argument}(x[:1])`. A Sequential model may begin with keras.Input(shape) instead."
        )


def check_overrides(model: keras.Model) -> None:
    """Raise if a model's class overrides methods for training or prediction, which the wrapper would not call."""
    is_task = is_hub_task(model)
    if is_task and getattr(model, "preprocessor", None) is not None:
        raise ValueError(
            f"`model` has a preprocessor, which its own `fit` and `predict` run: {model.name!r} of type "
            f"{type(model).__name__}. The wrapper would train on data that was not preprocessed. Make the model with "
            "preprocessor=None (or wrap its backbone with a head) and preprocess the data before training: "
            "dataset.map(preprocessor)."
        )

    def is_own(name: str) -> bool:
        owner = next((c for c in type(model).__mro__ if name in vars(c)), None)
        # The methods of a task only add its preprocessor to those of `keras.Model`.
        adds_nothing = is_task and name in _PREPROCESSING and package_of(owner) == "keras_hub"
        return owner not in (None, *model_classes()) and not adds_nothing

    overridden = [name for name in _REPLACED if is_own(name)]
    if not overridden:
        return
    what = f"`model` has a class that overrides {overridden}: {model.name!r} of type {type(model).__name__}."
    if all(isinstance(getattr(model, name, None), keras.Model) for name in ("student", "teacher")):
        raise ValueError(
            f"{what} It trains a student with a teacher of its own, which the wrapper would not do. Wrap the student: "
            "keras_ssd.wrap(model.student, teacher=model.teacher)."
        )
    raise ValueError(
        f"{what} The wrapper trains and predicts with its own methods, so these would never be called. Wrap a plain "
        "model (for a functional model: keras.Model(model.inputs, model.outputs)) and move the code of these methods "
        "into a layer, the loss, the data or a subclass of keras_ssd.SSDModel."
    )
