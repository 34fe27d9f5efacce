"""The user's model inside the wrapper: its changes, and the interface that the wrapper shares with it."""

from typing import Any

import keras

from keras_ssd.checks import check_model as check_model
from keras_ssd.checks import check_overrides as check_overrides
from keras_ssd.compiled import compile_record, constant_learning_rate


class StudentWatch:
    """Detects changes of the student between two calls: a new `compile`, frozen layers, other variables.

    Args:
        student: the plain model.
    """

    def __init__(self, student: keras.Model) -> None:
        self.note_compile(student)
        self._variables = self._evaluated = [id(v) for v in student.weights]

    def note_compile(self, student: keras.Model) -> None:
        """Record that the wrapper was compiled, which overrides an earlier `compile` of the student."""
        self._record = compile_record(student)
        self._rate = _learning_rate(student)
        self._trained: tuple[Any, list[int]] = (None, [])

    def follow_learning_rate(self, ssd: Any) -> None:
        """Copy a learning rate that was assigned to the student's optimizer since the wrapper was compiled."""
        rate = _learning_rate(ssd.student)
        if rate is not None and rate != self._rate and _learning_rate(ssd) is not None:
            ssd.optimizer.learning_rate = rate
        self._rate = rate

    def before_evaluation(self, ssd: Any) -> None:
        """Compile the wrapper like the student if it was never compiled, and detect new variables."""
        if not ssd.compiled and compile_record(ssd.student) is not None:
            ssd._compile_as(ssd.student)
        variables = [id(v) for v in ssd.student.weights]
        if variables != self._evaluated:  # quantised, for example: traced functions use the former variables
            self._evaluated = variables
            ssd._forget_evaluation_functions()

    def before_training(self, ssd: Any) -> None:
        """Compile the wrapper like the student if that was compiled later, and check the trainable variables.

        Raises:
            ValueError: if the optimizer, the moving average or the snapshot belongs to other variables.
        """
        record = compile_record(ssd.student)
        if record is not None and record is not self._record:
            ssd._compile_as(ssd.student)
        self.follow_learning_rate(ssd)
        self.check_held_copies(ssd)
        trainable = [id(v) for v in ssd.trainable_variables]
        if not ssd.compiled or ssd.optimizer is None:
            return
        optimizer, trained = self._trained
        if optimizer is ssd.optimizer and trained != trainable:
            raise ValueError(
                f"The trainable weights of {ssd.student.name!r} have changed since the last training, and the "
                "optimizer still has the former variables. Call `ssd.compile(...)` (or `model.compile(...)`, which "
                "the wrapper follows) after freezing, unfreezing or adding weights."
            )
        self._trained = ssd.optimizer, trainable

    def check_held_copies(self, ssd: Any) -> None:
        """Raise `ValueError` if the moving average or the snapshot belongs to other variables than the student's."""
        holds_copies = ssd._averages or (ssd._distills and ssd.settings.kind == "snapshot")
        if holds_copies and [id(v) for v in ssd.student.weights] != self._variables:
            raise ValueError(
                f"The weights of {ssd.student.name!r} are no longer the wrapped ones (LoRA, quantisation, a new "
                "layer), so the held copies (moving average, snapshot) belong to other weights. Wrap the model again, "
                "keras_ssd.wrap(ssd.student, ...), or save the model itself, ssd.student.save(...)."
            )


class LearningRateFollower(keras.callbacks.Callback):
    """Passes a learning rate on that a user's callback assigned to the optimizer of the plain model in this epoch."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Copy the rate, if it was assigned."""
        self.model._watch.content.follow_learning_rate(self.model)


class StudentInterface:
    """Attributes and methods that a wrapped model shares with the plain model, for users, callbacks and recipes.

    Layers, shapes and tensors are the student's; exports, counts and summaries cover the deployed model.
    """

    student: keras.Model
    test_function: Any  # compiled, of `evaluate` and `predict`
    predict_function: Any

    @property
    def inputs(self) -> Any:
        """The symbolic inputs of the student."""
        return self._of_student("inputs")

    @property
    def outputs(self) -> Any:
        """The symbolic outputs of the student."""
        return self._of_student("outputs")

    @property
    def input(self) -> Any:
        """The symbolic input of the student, in its own structure."""
        return self._of_student("input")

    @property
    def output(self) -> Any:
        """The symbolic output of the student, in its own structure."""
        return self._of_student("output")

    @property
    def input_shape(self) -> Any:
        """The shape of the student's inputs."""
        return self._of_student("input_shape")

    @property
    def output_shape(self) -> Any:
        """The shape of the student's outputs."""
        return self._of_student("output_shape")

    @property
    def input_names(self) -> Any:
        """The names of the student's inputs."""
        return self._of_student("input_names")

    def _of_student(self, name: str) -> Any:
        student = getattr(self, "student", None)
        if student is None:
            raise AttributeError(name)  # Keras asks before there is a student
        return getattr(student, name)

    def quantize(self, *args: Any, **kwargs: Any) -> Any:
        """Quantise the student in place, with the deployed weights. Later training needs a new wrapper."""
        averaging = self._averaging  # type: ignore[attr-defined]
        if averaging is not None:
            averaging.lend()
        return self.student.quantize(*args, **kwargs)

    def get_layer(self, name: str | None = None, index: int | None = None) -> keras.layers.Layer:
        """Return a layer of the student, by its name or index."""
        return self.student.get_layer(name=name, index=index)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Return the shape of the student's outputs for a shape of inputs."""
        return self.student.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Return the student's symbolic outputs for symbolic inputs."""
        return self.student.compute_output_spec(*args, **kwargs)

    def count_params(self) -> int:
        """Return the number of parameters of the student, which is the deployed model."""
        return self.student.count_params()

    def summary(self, *args: Any, **kwargs: Any) -> Any:
        """Print the student's summary, without the additional variables for training, which are not deployed."""
        return self.student.summary(*args, **kwargs)

    def set_weights(self, weights: list[Any]) -> None:
        """Set all weights, as returned by `get_weights`, or only the student's, as returned by its `get_weights`."""
        if len(weights) == len(self.student.weights) != len(self.weights):  # type: ignore[attr-defined]
            self.student.set_weights(weights)
        else:
            super().set_weights(weights)  # type: ignore[misc]

    @property
    def stop_training(self) -> bool:
        """Return whether `fit` should end. Closures written for the plain model may set it on that model."""
        return self._stop_training or getattr(getattr(self, "student", None), "stop_training", False)

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        self._stop_training = value
        if not value and hasattr(self, "student"):
            self.student.stop_training = False


def _learning_rate(model: keras.Model) -> float | None:
    """Return the learning rate of a model's optimizer, `None` if there is none or it follows a schedule."""
    optimizer = getattr(model, "optimizer", None) if model.compiled else None
    return None if optimizer is None else constant_learning_rate(optimizer)
