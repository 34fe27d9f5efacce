"""The base of the callbacks that need teachers."""

from typing import Any

import keras

from keras_ssd.model import SSDModel


class TeacherCallback(keras.callbacks.Callback):
    """A callback that needs a model with teachers, and refuses others.

    Attributes:
        needs_teachers: `True`. `keras_ssd.tuner`, which trains plain and distilled models with the same callbacks,
            leaves out callbacks with this attribute when it trains a plain model.
    """

    needs_teachers = True

    def set_model(self, model: Any) -> None:
        """Set the model of `fit`.

        Raises:
            ValueError: if the model is not wrapped, or has no teachers.
        """
        name = type(self).__name__
        if not isinstance(model, SSDModel):
            raise ValueError(
                f"{name} needs a model from keras_ssd.wrap. Received: a model of type {type(model).__name__}. Call "
                "`fit` of the wrapped model."
            )
        if model.distillation is None:
            raise ValueError(
                f"{name} needs a model that distils, but {model.name!r} was wrapped with kd_weight=0, which means no "
                "teachers at all. Wrap it with a kd_weight above 0."
            )
        super().set_model(model)
