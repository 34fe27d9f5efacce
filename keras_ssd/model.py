"""`SSDModel`: a Keras model whose training step distils the model's own stochastic passes into itself."""

import functools
import inspect
from typing import Any

import keras
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.averaging import Averaging, HeldWeights, HeldWeightsMethods, averaged_variables
from keras_ssd.compiled import compile_arguments, copied, restore_compiled
from keras_ssd.cost import TeacherCost
from keras_ssd.distillation import StepOutputs, distillation_loss, weigh_teachers
from keras_ssd.graph import Graph, call_student, is_functional
from keras_ssd.inspection import Inspection
from keras_ssd.output_records import OutputRecords, teacher_logits
from keras_ssd.rows import draw_rows, mask_scales, take
from keras_ssd.settings import Settings, check_weight
from keras_ssd.step import FitState, Untracked, as_training_step, current_evaluation, current_step, values_set
from keras_ssd.storage import Storage
from keras_ssd.student import LearningRateFollower, StudentInterface, StudentWatch, check_model, check_overrides
from keras_ssd.teachers import StudentTeacherGraph, check_replaceable, resolve_kind
from keras_ssd.unlabelled import as_joined_dataset, weigh_metrics

# Keras' own: tools that log trainings put functions of their own in the place of its methods.
_COMPILE, _FIT = inspect.signature(keras.Model.compile), inspect.signature(keras.Model.fit)


@keras.saving.register_keras_serializable(package="keras_ssd")
class SSDModel(Inspection, HeldWeightsMethods, Storage, StudentInterface, keras.Model):
    """A model that is trained by stochastic self-distillation (arXiv 2504.14307).

    One training step evaluates the student once and a teacher, by default the same network, `num_teachers` times with
    its noise on. The teachers are scored by their similarity to the student, weighted, filtered and averaged to a
    target, and `kd_weight * L_kd` is added to the task loss. Everything else in `fit` and around it is Keras' own.

    During training the student carries its own, raw weights, and validation uses their moving average. When `fit` ends,
    also with an exception, the average is written to the student, so that `student`, `predict`, `evaluate` and `export`
    agree. The next `fit` or `train_on_batch` continues from the raw weights; if the student was given other weights in
    the meantime, training starts from these and the average restarts.

    `keras_ssd.wrap` is the short way to create an `SSDModel`.

    Args:
        model: a built `keras.Model`.
        teacher: as for `keras_ssd.wrap`.
        **options: the options of `keras_ssd.wrap`, which documents them; `name`, as for any `keras.Model`.

    Attributes:
        student: the user's own model, which is trained in place.
        settings: the options, defaults filled in.
        kd_weight: the current weight of the distillation term; can be assigned between epochs.
    """

    def __init__(self, model: keras.Model, teacher: Any = "self", **options: Any) -> None:
        check_model("model", model, wrapper=SSDModel)
        kind, teacher_model = resolve_kind(teacher)
        network = teacher_model.student if isinstance(teacher_model, SSDModel) else teacher_model
        if network is not None:
            check_model("teacher", network)
        check_overrides(model)
        keras_options = {name: options.pop(name) for name in ("name", "trainable") if name in options}
        # Without a graph there is no representation: outputs are distilled, as for any other frozen teacher.
        is_open = options.get("distill") is None and options.get("similarity") is None
        as_model = kind == "snapshot" and is_open and not is_functional(model)
        settings = Settings(kind, "model" if as_model else None, **options)
        graph = Graph(model) if settings.distills else None
        wiring: Any = None
        if graph is not None:
            wiring = StudentTeacherGraph(graph, None if network is None else Graph(network), settings)
            if settings.stochastic_layers is not None:
                # A predicate is stored as the names of the chosen layers.
                settings.stochastic_layers = wiring.noise.names
        check_replaceable(model, network, settings)
        keras_options["name"] = keras_options.get("name") or _name_of(model)
        with _backend.variable_scope(model):
            super().__init__(dtype=model.dtype_policy, autocast=False, **keras_options)
            self.student = model
            self.settings = settings
            # In a plain object, so that Keras does not track the layers they refer to as layers of this model.
            self._wiring, self._teacher_network = wiring, Untracked(network)
            self._fit_state = FitState()
            self._add_state(settings)
        if wiring is not None:
            settings.kd_fraction = wiring.cost.fraction
        if isinstance(teacher_model, SSDModel) and teacher_model._averages and wiring is not None:
            self._held_weights.copy(teacher_model._deployed()[1])
        is_compared = network is not None and graph is not None and settings.needs_outputs
        of_teacher = teacher_logits(model, network, teacher_model) if is_compared else None
        self._outputs = OutputRecords(model, graph, settings.temperature, of_teacher)
        self._evaluates_average = False
        self._evaluation_functions = Untracked({})
        self._watch = Untracked(StudentWatch(model))
        if hasattr(model, "output_names"):
            # Allows losses and metrics by output name, as for the model itself.
            self.output_names = list(model.output_names)
        # Keras records the shape, which TensorFlow's converter to LiteRT needs.
        shape = getattr(model, "input_shape", None)
        if isinstance(shape, tuple):
            self.build(shape)
        self.built = True

    def _add_state(self, settings: Settings) -> None:
        """Add the variables next to those of the student: held weights, the weight of the term, its mean, the seed."""
        seed = _backend.derived_seed() if settings.seed is None else int(settings.seed)
        self._teacher_seed_generator = keras.random.SeedGenerator(seed)
        self._held_weights: Any = None
        if settings.distills and settings.kind != "self":
            self._wiring.teacher_variables = averaged_variables(self._wiring.teacher_network)
            self._held_weights = HeldWeights(self._wiring.teacher_variables, name="held_weights")
        # With "ema" the teaching average is also the deployed one; with other teachers the average is held separately.
        self._averaged_weights: Any = self._held_weights if settings.kind == "ema" else None
        if settings.averages and self._averaged_weights is None:
            self._averaged_weights = HeldWeights(averaged_variables(self.student), name="averaged_weights")
        self._averaging: Any = None
        if self._averaged_weights is not None:
            self._averaging = Averaging(self.student, self._averaged_weights, settings.ema_momentum)
        # A weight of 0 from the start means no teachers at all: then nothing may differ from a plain model.
        if settings.distills:
            self._kd_weight = self.add_weight(
                shape=(), initializer="zeros", dtype="float32", trainable=False, autocast=False, name="kd_weight"
            )
            self._kd_weight.assign(settings.kd_weight)
            self._kd_loss_tracker = keras.metrics.Mean(name="kd_loss")

    # Methods that Keras calls, in the order of a training step.

    def build(self, input_shape: Any = None) -> None:
        """Do nothing: the student is already built."""
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Run the student. Training also computes where the teachers branch off; evaluation uses the average."""
        if training and self._is_taught():
            outputs, representation, cut_values = self._wiring.student_pass(inputs)
            current_step.student_pass = representation, cut_values
            return outputs
        if self._evaluates_average and not training:
            return self._call_averaged(inputs)
        return call_student(self.student, inputs, training)

    def _is_taught(self) -> bool:
        return self._distills and self._fit_state.teaches and current_step.model is self

    @as_training_step
    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().train_step(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "train_step" in vars(cls):
            setattr(cls, "train_step", as_training_step(cls.train_step))  # noqa: B010

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        if not training or not self._is_taught():
            return loss
        kd_loss = ops.cast(self._distillation_loss(y_pred, sample_weight), loss.dtype)
        num_samples = ops.shape(tree.flatten(y_pred)[0])[0]
        self._kd_loss_tracker.update_state(kd_loss * _backend.replicas_in_sync(), sample_weight=num_samples)
        return loss + ops.cast(self._kd_weight.value, loss.dtype) * kd_loss

    def _distillation_loss(self, y_pred: Any, sample_weight: Any) -> Tensor:
        representation, cut_values = current_step.take_student_pass()
        outputs = self._outputs.describe(y_pred)
        scales = None
        if self.settings.kd_fraction < 1:
            whole = tree.flatten(y_pred)
            rows = draw_rows(ops.shape(whole[0])[0], self.settings.kd_fraction, self._teacher_seed_generator)
            y_pred, representation, sample_weight = take((y_pred, representation, sample_weight), rows)
            cut_values = self._wiring.take_rows(cut_values, rows)
            scales = mask_scales(whole, tree.flatten(y_pred))
        step = self._run_teachers(y_pred, representation, cut_values)._replace(scales=scales)
        guidance = weigh_teachers(step, outputs, self.settings)
        if self._fit_state.statistics is not None:
            predictions = list(zip(outputs, step.teacher_outputs, step.masks, strict=False))
            self._fit_state.statistics.update_state(guidance, *step.compared, predictions)
        weights = self._outputs.weights_of(sample_weight if self.settings.kd_sample_weight else None, y_pred)
        return distillation_loss(step, guidance, outputs, self.settings, weights)

    def _run_teachers(self, y_pred: Any, representation: Tensor | None, cut_values: Any) -> StepOutputs:
        weights: list[Any] = []
        if self._held_weights is not None:
            weights = self._held_weights.values(self._wiring.teacher_variables)
        passes = self._wiring.teacher_pass(cut_values, self.settings, self._teacher_seed_generator, weights)
        return StepOutputs(tree.flatten(y_pred), representation, *passes)

    def _call_averaged(self, inputs: Any) -> Any:
        outputs, losses = self._averaging.call(inputs)
        for loss in losses:
            self.add_loss(loss)
        return outputs

    # Keras' methods, with something added.

    @functools.wraps(keras.Model.compile)
    def compile(self, *args: Any, **kwargs: Any) -> None:
        arguments = _COMPILE.bind(self, *args, **kwargs).arguments
        arguments.pop("self")
        if self._distills and isinstance(arguments.get("metrics"), list):
            # Keras Tuner compiles again with the metrics in `self.metrics`, which include the wrapper's own metric.
            arguments["metrics"] = [m for m in arguments["metrics"] if m is not self._kd_loss_tracker]
        if not self.settings.kd_sample_weight:
            weigh_metrics(arguments)
        super().compile(**arguments)
        restore_compiled(self.student)
        self._watch.content.note_compile(self.student)
        self._evaluation_functions.content.clear()
        self._outputs.note_compile(arguments.get("loss"), arguments.get("loss_weights"))

    def _compile_as(self, model: keras.Model) -> None:
        """Compile with another model's optimizer settings (with fresh state), loss, metrics and options."""
        with _backend.variable_scope(self):
            self.compile(**copied(compile_arguments(model)))

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as stored. Keras skips models that override `compile`, unless they override this method, too."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        _backend.build_optimizer(self, self)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        arguments = _FIT.bind(self, *args, **kwargs).arguments
        arguments.pop("self")
        if not isinstance(arguments.get("callbacks"), keras.callbacks.CallbackList):
            # The last one, so that it sees what the others did.
            arguments["callbacks"] = [*tree.flatten(arguments.get("callbacks") or []), LearningRateFollower()]
        self._watch.content.before_training(self)
        state = self._fit_state
        state.joined_dataset = as_joined_dataset(arguments.get("x"), self.settings, arguments.get("y"), self.loss)
        teaches = state.teaches
        self._begin_training()
        state.is_running = True
        try:
            return super().fit(**arguments)
        finally:
            # Keras does not notify callbacks of an exception, so the flags they switched are switched back here.
            state.is_running, state.joined_dataset = False, None
            self._teaches = teaches
            self._observe(None)
            self._end_training()

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._watch.content.before_training(self)
        self._begin_training()
        return super().train_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._begin_evaluation()
        with values_set(current_evaluation, is_running=True):
            return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.test_on_batch)
    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._begin_evaluation()
        return super().test_on_batch(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with values_set(current_step, model=None), values_set(current_evaluation, is_running=True):
            return super().test_step(*args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        self._begin_evaluation()
        return super().predict(*args, **kwargs)

    @functools.wraps(keras.Model.predict_on_batch)
    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._begin_evaluation()
        return super().predict_on_batch(*args, **kwargs)

    def get_metrics_result(self) -> dict[str, Any]:
        logs = super().get_metrics_result()
        if current_evaluation.is_running:
            # Evaluation has no teachers.
            statistics = self._fit_state.statistics
            for name in ("kd_loss", *(() if statistics is None else statistics.names)):
                logs.pop(name, None)
        return logs

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        statistics = self._fit_state.statistics
        return super().metrics + ([] if statistics is None else [statistics])

    # Before and after training.

    def _begin_training(self) -> None:
        # Creating variables while TensorFlow traces a step makes it trace the step twice and keep both traces.
        _backend.build_optimizer(self, self)
        if self._averaging is not None:
            self._averaging.take_back()
            self._evaluate_with_average(True)

    def _end_training(self) -> None:
        """Write the average to the student, also after an exception, so that student and wrapper agree."""
        if self._averaging is not None:
            try:
                self._averaging.lend()
            except (RuntimeError, TypeError):
                if not _backend.gives_weights_away():
                    raise
                return
            self._evaluate_with_average(False)
        self._build_optimizer_of_student()

    def _build_optimizer_of_student(self) -> None:
        # Loading a file of a compiled model warns if its optimizer had no variables yet.
        _backend.build_optimizer(self.student, self)

    def _begin_evaluation(self) -> None:
        if not self._fit_state.is_running:
            self._watch.content.before_evaluation(self)
            self._evaluate_with_average(self._averaging is not None and self._averaging.is_in_training)

    def _evaluate_with_average(self, value: bool) -> None:
        """Let evaluation use the average or the student's weights; each has its own compiled functions."""
        if value == self._evaluates_average:
            return
        functions = self._evaluation_functions.content
        functions[self._evaluates_average] = self.test_function, self.predict_function
        self._evaluates_average = value
        self.test_function, self.predict_function = functions.get(value, (None, None))

    def _forget_evaluation_functions(self) -> None:
        self.test_function = self.predict_function = None
        self._evaluation_functions.content.clear()

    # For the callbacks and tools of this package.

    @property
    def _distills(self) -> bool:
        """Return whether there are teachers."""
        return self.settings.distills

    @property
    def _averages(self) -> bool:
        """Return whether a moving average of the weights is held and deployed."""
        return self._averaging is not None

    @property
    def _teaches(self) -> bool:
        """Return whether training steps run the teachers. If not, they equal those of the plain model, bit for bit.

        Can be assigned between epochs, which compiles the training step again; `fit` restores it at the end.
        """
        return self._fit_state.teaches

    @_teaches.setter
    def _teaches(self, value: bool) -> None:
        if bool(value) != self._fit_state.teaches:
            self._fit_state.teaches = bool(value)
            self._renew_train_function()

    def _observe(self, statistics: Any) -> None:
        """Pass the teachers of every training step to a metric until `fit` ends; `None` stops this.

        Args:
            statistics: a `keras_ssd.callbacks.statistics.TeacherStatistics`.
        """
        if statistics is not self._fit_state.statistics:
            self._fit_state.statistics = statistics
            self._renew_train_function()

    def _renew_train_function(self) -> None:
        if self.train_function is not None:
            self.make_train_function(force=True)

    def _begin_epoch(self, epoch: int) -> None:
        """Let a data set that `join_unlabelled` made from arrays draw its order for an epoch."""
        if self._fit_state.joined_dataset is not None:
            self._fit_state.joined_dataset.epoch = epoch

    @property
    def _teachers_classify(self) -> bool:
        """Return whether the teachers are run up to an output that is a classification."""
        known = self._outputs.describe() if self._outputs.are_known else []
        return self.settings.needs_outputs and any(output.kind != "regression" for output in known)

    def _deployed(self) -> tuple[keras.Model, list[Any], Any]:
        """Return the student, the variables that hold its deployed weights, and the compiled loss."""
        is_in_training = self._averaging is not None and self._averaging.is_in_training
        weights = self._averaged_weights.held if is_in_training else averaged_variables(self.student)
        return self.student, weights, self._outputs.loss

    # For users.

    @property
    def kd_weight(self) -> float:
        return float(ops.convert_to_numpy(self._kd_weight.value)) if self._distills else 0.0

    @kd_weight.setter
    def kd_weight(self, value: float) -> None:
        check_weight("kd_weight", value)
        if self._distills:
            self._kd_weight.assign(value)
        elif value != 0:
            raise ValueError(
                f"`kd_weight` of a model wrapped with kd_weight=0 cannot be changed: it trains without teachers. "
                f"Received: kd_weight={value}. Wrap the model with a kd_weight above 0."
            )

    @property
    def teacher_cost(self) -> TeacherCost:
        """The part of each batch that is distilled, and the teachers' multiplications relative to a plain step."""
        return TeacherCost(0.0, 0.0) if self._wiring is None else self._wiring.cost

    def training_loss(self, x: Any, y: Any = None, sample_weight: Any = None) -> Tensor:
        """Return the loss of one training step, which `fit` minimises: task, distillation and regularisation.

        It is for custom loops, for example under `torch.nn.parallel.DistributedDataParallel`. It updates only the state
        that a forward pass updates (seeds, BatchNormalization, the metric `kd_loss`). The model must be compiled with a
        loss; it needs no optimizer. Under `tf.distribute` the loss is divided by the number of replicas, as in
        `compute_loss`. On JAX, call it within `keras.StatelessScope(..., collect_losses=True)`, which then holds the
        updated values.

        Args:
            x: one batch of inputs.
            y: targets.
            sample_weight: as for `train_on_batch`.

        Returns:
            Scalar tensor.

        Example:
            >>> loss = ssd.training_loss(x, y)  # then loss.backward() and optimizer.step() on PyTorch
        """
        if not self.compiled:
            raise ValueError(
                f"training_loss() needs a compiled model: {self.name!r} has no loss. Call ssd.compile(loss=...) first."
            )
        with values_set(current_step, model=self, student_pass=None):
            y_pred = self(x, training=True)
            return self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def _name_of(model: keras.Model) -> str:
    """Return the name of a wrapper. Names of PyTorch's parameters must not contain a point, as in MobileNet's 1.00."""
    return f"ssd_{model.name}".replace(".", "_")
