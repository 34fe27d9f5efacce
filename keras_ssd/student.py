"""The user's model inside the wrapper: its checks, its changes, and the interface that the wrapper shares with it."""

from typing import Any

import keras

from keras_ssd.compiled import compile_record, constant_learning_rate, is_of_keras

# Methods that a user's class may override and that the wrapper would replace by Keras' own.
_REPLACED = (
    "compile",
    "compute_loss",
    "compute_metrics",
    "evaluate",
    "fit",
    "get_metrics_result",
    "metrics",
    "predict",
    "predict_on_batch",
    "predict_step",
    "stateless_compute_loss",
    "test_on_batch",
    "test_step",
    "train_on_batch",
    "train_step",
)


def check_model(argument: str, model: Any, wrapper: Any = None) -> None:
    """Raise unless `model` is a plain, built `keras.Model`.

    Args:
        argument: name of the argument, for the error.
        model: value of the argument.
        wrapper: a class of which `model` must not be an instance.
    """
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
    """Refuse a model whose class overrides methods for training or prediction, which the wrapper would not call.

    Raises:
        ValueError: if there are such methods. The message names them, and says what to do.
    """
    if hasattr(model, "preprocessor"):  # a task of KerasHub
        if model.preprocessor is not None:
            raise ValueError(
                f"`model` has a preprocessor, which its own `fit` and `predict` run: {model.name!r} of type "
                f"{type(model).__name__}. The wrapper would train on data that was not preprocessed. Make the model "
                "with preprocessor=None (or wrap its backbone with a head) and preprocess the data before training: "
                "dataset.map(preprocessor)."
            )
        return
    overridden = [name for name in _REPLACED if not _is_of_keras(model, name)]
    if overridden:
        raise ValueError(
            f"`model` has a class that overrides {overridden}: {model.name!r} of type {type(model).__name__}. The "
            "wrapper trains and predicts with its own methods, so these would never be called. Wrap a plain model "
            "(for a functional model: keras.Model(model.inputs, model.outputs)) and move the code of these methods "
            "into a layer, the loss, the data or a subclass of keras_ssd.SSDModel."
        )


def _is_of_keras(model: keras.Model, name: str) -> bool:
    owner = next((c for c in type(model).__mro__ if name in vars(c)), None)
    return owner is None or is_of_keras(owner)


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
