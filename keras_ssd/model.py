"""`SSDModel`: a Keras model whose training step distils the model's own stochastic passes into itself."""

import contextlib
import fractions
import functools
import inspect
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd import _backend, files, keras_names
from keras_ssd._typing import Tensor
from keras_ssd.average import WeightAverage
from keras_ssd.checks import check_model, check_overrides
from keras_ssd.cost import TeacherCost
from keras_ssd.distillation import Distillation
from keras_ssd.forwarding import forwards_to_student, is_of_student
from keras_ssd.graph import is_functional, takes_training
from keras_ssd.guidance import guided_target
from keras_ssd.settings import OPTIONS, check_number, resolve, warn_of_a_share
from keras_ssd.step import FitState, StepState, as_training_step
from keras_ssd.teachers import check_replaceable, resolve_kind
from keras_ssd.uncertainty import predict_stochastic
from keras_ssd.unlabelled import as_joined_dataset, weigh_metrics
from keras_ssd.untracked import Untracked

# PyTorch's modules look up their parts in a method, which its compiler cannot find through `super()`.
_GET_OF_MODULE = getattr(keras.Model, "__getattr__", None)
# Keras' own signatures: tools that log trainings replace its methods.
_COMPILE, _FIT = inspect.signature(keras.Model.compile), inspect.signature(keras.Model.fit)


def _evaluating(name: str) -> Any:
    """Return the method of `keras.Model` with this name, run while the student holds the deployed weights."""

    @functools.wraps(getattr(keras.Model, name))
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._evaluation():
            return getattr(super(SSDModel, self), name)(*args, **kwargs)

    return method


@keras.saving.register_keras_serializable(package="keras_ssd")
@forwards_to_student
class SSDModel(keras.Model):
    """A model that is trained by stochastic self-distillation (arXiv 2504.14307).

    One training step evaluates the student once and a teacher, by default the same network, `num_teachers` times with
    its noise on. The teachers are scored by their similarity to the student, weighted, filtered and averaged to a
    target, and `kd_weight * L_kd` is added to the task loss. Everything else is Keras' own. Optimizer, loss, metrics
    and layers are the student's, and files are files of the student.

    During training the student holds the raw weights, and validation uses their moving average. When `fit` ends, also
    with an exception, the average is deployed in the student. The next `fit` or `train_on_batch` continues from the raw
    weights; if the student's weights were changed in the meantime, training and average restart from them.

    `keras_ssd.wrap` is the short way to create an `SSDModel`.

    Args:
        model: a built `keras.Model`.
        teacher: as for `keras_ssd.wrap`.
        **options: the options of `keras_ssd.wrap`, which documents them; `name`, as for any `keras.Model`.

    Attributes:
        student: the user's own model, which is trained in place.
        settings: the options, defaults filled in; they cannot be changed.
        distillation: the `Distillation` layer, or `None` with `kd_weight=0`.
        average: the `WeightAverage` layer, or `None` with `ema_momentum=0`.
    """

    student: keras.Model
    train_function: Any

    def __init__(self, model: keras.Model, teacher: Any = "self", **options: Any) -> None:
        check_model("model", model, wrapper=SSDModel)
        kind, teacher = resolve_kind(teacher)
        network = teacher.student if isinstance(teacher, SSDModel) else teacher
        if network is not None:
            check_model("teacher", network)
        check_overrides(model)
        keras_names.check_mode()
        keras_options = {name: options.pop(name) for name in ("name", "trainable") if name in options}
        # Names of PyTorch's parameters must not contain a point, as in MobileNet's 1.00.
        keras_options["name"] = keras_options.get("name") or f"ssd_{model.name}".replace(".", "_")
        # Without a graph there is no representation, so outputs are distilled, as for other frozen teachers.
        is_open = options.get("distill") is None and options.get("similarity") is None
        as_model = kind == "snapshot" and is_open and not is_functional(model)
        settings = resolve(kind, "model" if as_model else None, **options)
        with _backend.variable_scope(model), keras_names.no_rematerialization():
            super().__init__(dtype=model.dtype_policy, autocast=False, **keras_options)
            self.student, self._takes_training = model, takes_training(model)
            self._teacher_network = Untracked(network)
            self._fit_state, self._step = FitState(), _backend.for_each_thread(StepState)
            self._compile_record, self._holds_old_metrics = Untracked(None), False
            # A weight of 0 from the start means no teachers at all: then nothing may differ from a plain model.
            self.distillation: Any = None
            if settings.distills:
                with teacher._deployed() if isinstance(teacher, SSDModel) else contextlib.nullcontext():
                    self.distillation = Distillation(model, settings, teacher, network)
                settings = self.distillation.settings
            check_replaceable(model, network, settings)
            self.average: Any = None
            if settings.averages:
                self.average = WeightAverage(model, settings.ema_momentum, name="average")
        self.settings = settings
        self._variables_of_student = self._evaluated = Untracked(model.weights)
        self.built = True
        keras_names.note_input_shape(self, getattr(model, "input_shape", None))
        self._share_compile()

    # Methods that Keras calls, in the order of a training step.

    def build(self, input_shape: Any = None) -> None:
        """Do nothing: the student is already built."""
        self.built = True

    @as_training_step
    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().train_step(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "train_step" in vars(cls):
            setattr(cls, "train_step", as_training_step(cls.train_step))  # noqa: B010

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Run the student. In a training step the pass also returns the values at the cut."""
        if training and self._is_taught():
            self._step.student_pass = self.distillation.student_pass(inputs)
            return self._step.student_pass.outputs
        # As Keras' own training step does, which passes `training` only to a `call` that takes it.
        return self.student(inputs, training=training if self._takes_training else False)

    def _is_taught(self) -> bool:
        return self.distillation is not None and self._fit_state.kind.teaches and self._step.is_running

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        if not training or not self._is_taught():
            return loss
        student_pass = self._step.take(y_pred)
        average = self.average.values(not self._step.is_custom) if self.settings.kind == "ema" else ()
        term = self.distillation.term(student_pass, y_pred, sample_weight, average, self._fit_state.kind.statistics)
        return loss + ops.cast(self.distillation.kd_weight.value, loss.dtype) * ops.cast(term, loss.dtype)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        before, self._fit_state.is_evaluating = self._fit_state.is_evaluating, True
        try:
            return super().test_step(*args, **kwargs)
        finally:
            self._fit_state.is_evaluating = before

    def get_metrics_result(self) -> dict[str, Any]:
        logs = super().get_metrics_result()
        if self._fit_state.is_evaluating:
            for metric in self._metrics_of_teachers():
                for name in getattr(metric, "names", (metric.name,)):
                    logs.pop(name, None)
        return logs

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return super().metrics + self._metrics_of_teachers()

    def _metrics_of_teachers(self) -> list[keras.metrics.Metric]:
        """Return the metrics that only training has."""
        of_term = [] if self.distillation is None else self.distillation.logged
        return [metric for metric in (*of_term, self._fit_state.kind.statistics) if metric is not None]

    # Compilation: the student's `compile` is the truth.

    @functools.wraps(keras.Model.compile)
    def compile(self, *args: Any, **kwargs: Any) -> None:
        arguments = _COMPILE.bind(self, *args, **kwargs).arguments
        arguments.pop("self")
        if self.distillation is not None and isinstance(arguments.get("metrics"), list):
            # Keras Tuner compiles again with the metrics in `self.metrics`, which include the wrapper's own metrics.
            arguments["metrics"] = [m for m in arguments["metrics"] if m not in self.distillation.logged]
        with _backend.variable_scope(self):
            self.student.compile(**arguments)
        self._share_compile()

    def _share_compile(self) -> None:
        """Compile with the student's own optimizer, loss and metrics, if the student was compiled since."""
        record = keras_names.compile_record(self.student)
        if record is None or record is self._compile_record.content:
            return
        arguments = keras_names.compile_arguments(self.student)
        arguments["optimizer"] = self.student.optimizer
        if not self.settings.kd_sample_weight:
            weigh_metrics(arguments)
        with _backend.variable_scope(self):
            super().compile(**arguments, auto_scale_loss=False)
        keras_names.share_compiled(self.student, self, metrics=self.settings.kd_sample_weight)
        self._compile_record, self._holds_old_metrics = Untracked(record), True
        self._fit_state.train_functions.clear()
        if self.distillation is not None:
            self.distillation.output_records.note_compile(arguments.get("loss"), arguments.get("loss_weights"))

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as stored. Keras skips models that override `compile` unless they also override this method."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        _backend.build_optimizer(self)

    @property
    def optimizer(self) -> Any:
        """The student's optimizer."""
        return getattr(self.student, "optimizer", None)

    @optimizer.setter
    def optimizer(self, value: Any) -> None:
        self.student.optimizer = value

    # Training and evaluation.

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        given = _FIT.bind(self, *args, **kwargs).arguments
        given.pop("self")
        if self.average is not None and not isinstance(given.get("callbacks"), keras.callbacks.CallbackList):
            # Before the callbacks of the user, which may load other weights at the end.
            note = keras.callbacks.LambdaCallback(on_train_end=lambda _: self.average.note_end_of_training())
            given["callbacks"] = [note, *keras.tree.flatten(given.get("callbacks") or [])]
        state = self._fit_state
        self._begin_training()
        kind, state.is_running = state.kind, True
        try:
            state.joined_dataset = as_joined_dataset(given.get("x"), self.settings, given.get("y"), self.loss)
            return super().fit(**given)
        finally:
            # Keras does not notify callbacks of an exception, so what they switched is switched back here.
            state.is_running, state.joined_dataset = False, None
            self._set_step_kind(**kind._asdict())
            if self.average is not None:
                with contextlib.suppress(*_backend.ERRORS_OF_LOST_WEIGHTS):
                    self.average.deploy()

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._begin_training()
        return super().train_on_batch(*args, **kwargs)

    evaluate, predict = _evaluating("evaluate"), _evaluating("predict")
    test_on_batch, predict_on_batch = _evaluating("test_on_batch"), _evaluating("predict_on_batch")

    def _follow_student(self) -> None:
        """Share a `compile` of the student, whose metrics may hold values of an earlier training."""
        self._share_compile()
        if self._holds_old_metrics:
            self.student.reset_metrics()
            self._holds_old_metrics = False

    def _begin_training(self) -> None:
        self._follow_student()
        self._check_copies()
        # Creating variables while TensorFlow traces a step makes it trace the step twice and keep both traces.
        _backend.build_optimizer(self)
        if self.average is not None:
            self.average.resume()

    @contextlib.contextmanager
    def _evaluation(self) -> Any:
        if not self._fit_state.is_running:
            self._follow_student()
            if not _are_same(self.student.weights, self._evaluated.content):
                # Quantised, for example: traced functions use the former variables.
                self.test_function = self.predict_function = None
                self._evaluated = Untracked(self.student.weights)
        before, self._fit_state.is_evaluating = self._fit_state.is_evaluating, True
        try:
            with self._deployed():
                yield
        finally:
            self._fit_state.is_evaluating = before

    def _deployed(self) -> Any:
        """Return the context in which the student holds the deployed weights, also during training."""
        return contextlib.nullcontext() if self.average is None else self.average.deployed()

    def _check_copies(self) -> None:
        """Raise `ValueError` if the moving average or the snapshot belongs to other variables than the student's."""
        holds_copies = self.average is not None or (self.distillation is not None and self.settings.kind == "snapshot")
        if holds_copies and not _are_same(self.student.weights, self._variables_of_student.content):
            raise ValueError(
                f"The weights of {self.student.name!r} have changed since it was wrapped (LoRA, quantisation, a new "
                "layer), so the moving average or snapshot belongs to other weights. Wrap the model again, "
                "keras_ssd.wrap(ssd.student, ...), or save the model itself, ssd.student.save(...)."
            )

    # Attributes and methods of the student; forwarding.py lists more.

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the student that the wrapper lacks, such as a counter that a callback reads."""
        if _GET_OF_MODULE is not None:
            try:
                return _GET_OF_MODULE(self, name)
            except AttributeError:
                pass
        if name.startswith("_") or name == "student" or hasattr(type(self), name):
            return object.__getattribute__(self, name)  # raises, for a property with the error that it raised
        return getattr(self.student, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; of one that the wrapper lacks and the student has, the student's."""
        if self._is_complete() and is_of_student(self, name):
            setattr(self.student, name, value)
        elif self._is_complete() and name in ("settings", *OPTIONS) and name != "kd_weight":
            raise AttributeError(
                f"`{name}` of a wrapped model cannot be changed: its teachers are built for it. Wrap the model again, "
                "keras_ssd.wrap(ssd.student, ...). Of the options only `kd_weight` can be assigned."
            )
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute; of one that `__setattr__` sets on the student, the student's."""
        if self._is_complete() and is_of_student(self, name):
            delattr(self.student, name)
        else:
            super().__delattr__(name)

    def _is_complete(self) -> bool:
        """Return whether `__init__` has ended; a subclass may always set attributes of its own."""
        return type(self) is SSDModel and "settings" in vars(self)

    def __repr__(self) -> str:
        settings, shown = self.settings, "kd_weight=0"
        if self.distillation is not None:
            fraction = fractions.Fraction(settings.kd_fraction).limit_denominator(10_000)
            shown = f"teacher={settings.kind!r}, num_teachers={settings.num_teachers}, kd_weight={settings.kd_weight}"
            shown += f", kd_fraction={fraction}"
        return f"{type(self).__name__}({shown}, ema_momentum={settings.ema_momentum})"

    @functools.wraps(keras.Model.summary)
    def summary(self, *args: Any, **kwargs: Any) -> Any:
        print_line = kwargs.get("print_fn") or (args[2] if len(args) > 2 else None) or print
        print_line(repr(self))
        return self.student.summary(*args, **kwargs)

    def set_weights(self, weights: list[Any]) -> None:
        """Set all weights, as returned by `get_weights`, or only the student's, as returned by its `get_weights`.

        `get_weights` also returns the moving average, which callbacks that restore the best weights have to restore.
        """
        if len(weights) == len(self.student.weights) != len(self.weights):
            self.student.set_weights(weights)
            if self.average is not None:
                self.average.restart()
        else:
            super().set_weights(weights)

    @property
    def stop_training(self) -> bool:
        """Whether `fit` should end. It is an attribute of the student, so that user code may set it on either model."""
        return self.student.stop_training

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        self.student.stop_training = value

    def quantize(self, *args: Any, **kwargs: Any) -> Any:
        """Quantise the student in place, with the deployed weights. Later training needs a new wrapper."""
        if self.average is not None:
            self.average.deploy()
        return self.student.quantize(*args, **kwargs)

    # Files. `files.py` writes and reads them.

    def save(self, filepath: Any, overwrite: bool = True, zipped: bool | None = None, **kwargs: Any) -> None:
        """Save the student with the state of the optimizer, and the state that is needed to continue the training.

        `keras.models.load_model` reads the plain, compiled model from the file, also where keras_ssd is not installed;
        `keras_ssd.load_model` reads the wrapped model. The student in the file holds the deployed weights.

        The arguments are those of `keras.Model.save`. An `.h5` file holds the student only.
        """
        files.save(self, filepath, overwrite, zipped, **kwargs)

    def save_weights(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """Save the student's weights, and in the same file the state that is needed to continue the training.

        The plain model loads the deployed weights from the file, `load_weights` of the wrapped model loads all. A file
        in several parts (`max_shard_size`), or at a URL, holds the student only.

        The arguments are those of `keras.Model.save_weights`.
        """
        files.save_weights(self, filepath, overwrite, **kwargs)

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Load all weights from a file of a wrapped model, or the student's weights from a file of the plain model.

        In the second case the moving average restarts from the loaded weights.

        The arguments are those of `keras.Model.load_weights`.
        """
        files.load_weights(self, filepath, skip_mismatch, **kwargs)

    @functools.wraps(keras.Model.export)
    def export(self, *args: Any, **kwargs: Any) -> Any:
        with self._deployed():
            return self.student.export(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return files.get_config(self)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        return files.from_config(cls, SSDModel, config, custom_objects)

    # For callbacks.

    def _set_step_kind(self, **changes: Any) -> None:
        """Change what training steps do, at the beginning or the end of an epoch; `fit` restores it when it ends.

        The compiled function of each kind of step is kept, so none is compiled twice.

        Args:
            **changes: fields of `keras_ssd.step.StepKind`.
        """
        state = self._fit_state
        former, state.kind = state.kind, state.kind._replace(**changes)
        if former != state.kind and self.train_function is not None:
            state.train_functions[former] = self.train_function
            self.train_function = state.train_functions.pop(state.kind, None)
            # `jax.jit` takes the same method for the same function, whatever state it reads; a `partial` is another.
            own = vars(self).get("train_step")
            setattr(self, "train_step", functools.partial(own or self.train_step))  # noqa: B010
            try:
                self.make_train_function()
            finally:
                delattr(self, "train_step")
                if own is not None:
                    setattr(self, "train_step", own)  # noqa: B010

    # For users.

    @property
    def kd_weight(self) -> float:
        """The current weight of the distillation term; can be assigned between epochs."""
        return 0.0 if self.distillation is None else float(ops.convert_to_numpy(self.distillation.kd_weight.value))

    @kd_weight.setter
    def kd_weight(self, value: float) -> None:
        check_number("kd_weight", value, "[0, inf)")
        if self.distillation is not None:
            self.distillation.kd_weight.assign(value)
        elif value != 0:
            raise ValueError(
                f"`kd_weight` of a model wrapped with kd_weight=0 cannot be changed: it trains without teachers. "
                f"Received: kd_weight={value}. Wrap the model with a kd_weight above 0."
            )

    @property
    def teacher_cost(self) -> TeacherCost:
        """The part of each batch that is distilled, and the teachers' multiplications relative to a plain step."""
        return TeacherCost(0.0, 0.0) if self.distillation is None else self.distillation.wiring.cost

    def training_loss(self, x: Any, y: Any = None, sample_weight: Any = None) -> Tensor:
        """Return the loss of one training step: task, distillation and regularisation.

        It is for custom loops, for example under `torch.nn.parallel.DistributedDataParallel`, and needs a loss but no
        optimizer. It updates the state that a forward pass updates (seeds, BatchNormalization, the metric `kd_loss`).
        Under `tf.distribute` the loss is divided by the number of replicas, as in `compute_loss`. On JAX, call it
        within `keras.StatelessScope(..., collect_losses=True)`, which then holds the updated values.

        Args:
            x: one batch of inputs.
            y: targets.
            sample_weight: as for `train_on_batch`.

        Returns:
            Scalar tensor.

        Example:
            >>> loss = ssd.training_loss(x, y)  # then loss.backward() and optimizer.step() on PyTorch
        """
        self._share_compile()
        if not self.compiled:
            raise ValueError(
                f"training_loss() needs a compiled model: {self.name!r} has no loss. Call ssd.compile(loss=...) first."
            )
        state = self._step
        state.is_running = state.is_custom = True
        try:
            y_pred = self(x, training=True)
            return self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
        finally:
            state.is_running = state.is_custom = False
            state.student_pass = None

    def update_average(self) -> None:
        """Move the moving average one step towards the student's weights.

        `fit` and `train_on_batch` do this automatically. In a custom loop, call it after every optimizer step.
        """
        self._check_averages("update_average").update()

    def write_average(self) -> None:
        """Deploy the average in the student. `fit` does this when it ends.

        Call it after training with `train_on_batch` or a custom loop, before you deploy the student. A later `fit` or
        `train_on_batch` continues from the raw weights, a custom loop from the weights of the student.

        Raises:
            ValueError: if no average is held, or while `fit` runs.
        """
        average = self._check_averages("write_average")
        if self._fit_state.is_running:
            raise ValueError(
                "write_average() cannot be called while `fit` runs, which trains the raw weights and deploys the "
                "average itself when it ends. For a file during training use `save`, `save_weights` or "
                "ModelCheckpoint: the student in the file holds the average."
            )
        average.deploy()

    def _check_averages(self, method: str) -> WeightAverage:
        if self.average is None:
            raise ValueError(
                f"{method}() is for models that hold a moving average: wrap with an `ema_momentum` above 0. Received: "
                f"teacher={self.settings.kind!r}, ema_momentum={self.settings.ema_momentum}"
            )
        return self.average

    def take_snapshot(self) -> None:
        """Copy the student's current weights to the teacher (`teacher="snapshot"`); wrapping does this once."""
        if self.settings.kind != "snapshot" or self.distillation is None:
            raise ValueError(
                'take_snapshot() is for models wrapped with teacher="snapshot" and a kd_weight above 0. Received: '
                f"teacher={self.settings.kind!r}, kd_weight={self.settings.kd_weight}"
            )
        self.distillation.take_snapshot()

    def predict_stochastic(self, x: Any, **options: Any) -> Any:
        """Predict many times with the student's own noise on; see `keras_ssd.predict_stochastic`.

        Args:
            x: inputs, as for `predict`.
            **options: as for `keras_ssd.predict_stochastic`.

        Returns:
            A `StochasticPrediction`, or several in the structure of the outputs.
        """
        return predict_stochastic(self, x, **options)

    def guidance_weights(self, x: Any, percentile: float | None = None) -> np.ndarray:
        """Return the guidance weights of the teachers for one batch, always the same for the same weights and seed.

        Args:
            x: one batch of inputs, as for `model(x)`.
            percentile: overrides the percentile, 0-100; 0 returns the weights before the filter. Defaults to `None`.

        Returns:
            NumPy array `(batch, teachers)`, every row sums to 1.
        """
        return ops.convert_to_numpy(self._compare_teachers(x, percentile)[0])

    def teacher_representations(self, x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the features by which `guidance_weights` compares the student and the teachers.

        Args:
            x: one batch of inputs, as for `model(x)`.

        Returns:
            `(student, teachers, target)`, NumPy arrays `(batch, features)`, `(batch, teachers, features)` and
            `(batch, features)`: the representations, or the flattened first output if outputs are both compared and
            distilled.
        """
        guidance, student, teachers = self._compare_teachers(x)
        return tuple(map(ops.convert_to_numpy, (student, teachers, guided_target(guidance, teachers))))

    def _compare_teachers(self, x: Any, percentile: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if self.distillation is None:
            raise ValueError(
                f"{self.name!r} was wrapped with kd_weight=0: it has no teachers. Wrap it with a kd_weight above 0."
            )
        if percentile is not None:
            check_number("percentile", percentile, "[0, 100]", " (0 keeps all)")
            warn_of_a_share(percentile)
        is_average = self.settings.kind == "ema" and self.average.holds_average
        return self.distillation.compare_teachers(x, self.average.values() if is_average else (), percentile)


def _are_same(variables: list[Any], others: list[Any]) -> bool:
    return len(variables) == len(others) and all(a is b for a, b in zip(variables, others, strict=True))
