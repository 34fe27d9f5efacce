"""`SSDModel`: a Keras model whose training step distils the model's own stochastic passes into itself."""

import contextlib
import inspect
import threading

import keras
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd.averaging import Averaging
from keras_ssd.distillation import Passes, distillation_loss, teacher_weights
from keras_ssd.graph import is_functional
from keras_ssd.guidance import guided_target
from keras_ssd.joining import JoinedDataset
from keras_ssd.labels import find_targets, for_metrics, for_task_loss, may_miss, missing_in, target_kinds
from keras_ssd.losses import may_take_minus_one, output_distances, per_output
from keras_ssd.saving import can_be_written_beside, check_config, restored, written_beside
from keras_ssd.settings import PAPER, SEMI_SUPERVISED, Settings, check_weight
from keras_ssd.teachers import HeldWeights, Roles, resolve_kind
from keras_ssd.uncertainty import predict_stochastic


class _Phase(threading.local):
    """What the current thread is doing: `tf.distribute` runs the replicas of one step in several threads."""

    training = None
    evaluating = False
    student_pass = None


_phase = _Phase()


@contextlib.contextmanager
def _in_phase(**changes):
    before = {name: getattr(_phase, name) for name in changes}
    for name, value in changes.items():
        setattr(_phase, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(_phase, name, value)


class _Steering:
    """What callbacks set for the length of a `fit`, and what is known of its data.

    A plain object: none of it is state that Keras should save.

    Attributes:
        teaching: whether training steps run the teachers.
        figures: a metric that is shown the teachers of every training step, or `None`.
        labels_may_miss: whether the data might hold samples without a target, as far as is known.
        joined_dataset: what `fit` trains on, if `join_unlabelled` made it.
    """

    teaching = True
    figures = None
    labels_may_miss = False
    joined_dataset = None


@keras.saving.register_keras_serializable(package="keras_ssd")
class SSDModel(keras.Model):
    """A model that is trained by stochastic self-distillation (arXiv 2504.14307).

    One training step evaluates the student once and a teacher, the same network by default, `n_teachers` times with its
    dropout on. The teachers are scored by their similarity to the student, weighted, filtered and averaged to a target,
    and `kd_weight * L_kd` is added to the task loss. Everything else, in `fit` and around it, is Keras' own.

    `keras_ssd.wrap` is the short way to make one; it documents the arguments.

    Attributes:
        student: the user's own model, which is trained in place.
        settings: the options, defaults filled in.
        kd_weight: the current weight of the distillation term; can be assigned between epochs.
    """

    def __init__(
        self,
        model,
        teacher="self",
        n_teachers=None,
        distill=None,
        kd_weight=None,
        task_weight=1.0,
        similarity=None,
        guidance_temperature=None,
        percentile=None,
        temperature=3.0,
        representation=None,
        stochastic_layers=None,
        dropout_rate=None,
        teacher_chunk=None,
        seed=None,
        momentum=0.99,
        average=None,
        augmented_teachers=True,
        confidence_weighted=False,
        **kwargs,
    ):
        _check_model("model", model)
        kind, teacher = resolve_kind(teacher)
        teacher_model = teacher.student if isinstance(teacher, SSDModel) else teacher
        if teacher_model is not None:
            _check_model("teacher", teacher_model)
        # Without a graph there is no representation: outputs are distilled, as for any other frozen teacher.
        as_frozen = kind == "snapshot" and distill is None and similarity is None and not is_functional(model)
        settings = Settings(
            kind,
            "model" if as_frozen else None,
            n_teachers=n_teachers,
            distill=distill,
            kd_weight=kd_weight,
            task_weight=task_weight,
            similarity=similarity,
            guidance_temperature=guidance_temperature,
            percentile=percentile,
            temperature=temperature,
            dropout_rate=dropout_rate,
            teacher_chunk=teacher_chunk,
            momentum=momentum,
            augmented_teachers=bool(augmented_teachers),
            confidence_weighted=bool(confidence_weighted),
        )
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(f"`seed` should be an integer or None. Received: seed={seed!r}")
        roles = Roles(model, teacher_model, settings, representation, stochastic_layers)

        # Averaging is most of what a constant learning rate leaves to gain. Without teachers all is as in plain Keras.
        by_default = kind == "ema" or (kind == "self" and settings.kd_weight > 0)
        self._average = average = by_default if average is None else bool(average)
        kwargs["name"] = kwargs.get("name") or f"ssd_{model.name}"
        with _backend.variable_scope(model):
            super().__init__(dtype=model.dtype_policy, autocast=False, **kwargs)
            self.student = model
            self.teacher_seed_generator = keras.random.SeedGenerator(_backend.derived_seed() if seed is None else seed)
            self.held_weights = None
            if kind != "self":
                self.held_weights = HeldWeights(roles.teacher_network.weights, name="held_weights")
            # The average that teaches is the one that is deployed; other teachers leave it to be held beside them.
            self.averaged_weights = self.held_weights if kind == "ema" else None
            if average and kind != "ema":
                self.averaged_weights = HeldWeights(model.weights, name="averaged_weights")
            self._averaging = None
            if self.averaged_weights is not None:
                self._averaging = Averaging(model, self.averaged_weights, settings.momentum)
            # A weight of 0 from the start means no teachers at all: nothing here may differ from a plain model then.
            self.distills = settings.kd_weight > 0
            if self.distills:
                self._kd_weight = self.add_weight(
                    shape=(), initializer="zeros", dtype="float32", trainable=False, autocast=False, name="kd_weight"
                )
                self._kd_weight.assign(settings.kd_weight)
                self._kd_loss_tracker = keras.metrics.Mean(name="kd_loss")
        if isinstance(teacher, SSDModel) and teacher.averages:
            self.held_weights.copy(teacher.averaged_weights.held)
        self.settings = settings
        # A plain object, so that Keras does not take the layers it refers to for layers of this model.
        self._roles = roles
        self._steering = _Steering()
        self._seed = seed
        self._representation = representation
        # A predicate is stored as the names it chose.
        self._stochastic_layers = None if stochastic_layers is None else roles.stochastic_layers
        if hasattr(model, "output_names"):
            # Lets losses and metrics be given by output name, as for the model itself.
            self.output_names = list(model.output_names)
        self._loss_arguments = {}
        self.built = True

    @classmethod
    def paper(cls, model, **options):
        """The paper's setting in one word.

        The teacher is a snapshot of the weights that `model` has now, which should be trained, best with early stopping
        (the paper reports, and we measured, that a random start ends below the baseline); the student continues from
        the same weights with a fresh optimizer. N = 30, dot product, guidance temperature 5, percentile 90, mean
        squared error of the representations, both losses weighted 1.

        Args:
            model: a built, trained model.
            **options: further arguments of `keras_ssd.wrap`, which take precedence.

        Example:
            >>> model.fit(x, y, callbacks=[keras.callbacks.EarlyStopping(patience=10, restore_best_weights=True)], ...)
            >>> keras_ssd.SSDModel.paper(model).fit(x, y, ...)
        """
        return cls._from_snapshot(model, {**PAPER, **options})

    @classmethod
    def semi_supervised(cls, model, **options):
        """The setting for training sets of which few samples are labelled, see `keras_ssd.join_unlabelled`.

        The teacher is a snapshot of the weights that `model` has now, which should be trained on the labelled samples,
        best with early stopping (or pass `keras_ssd.callbacks.TeacherSnapshot` to `fit`, which does so); the student
        continues from the same weights with a fresh optimizer. Outputs are distilled, of labelled and unlabelled
        samples alike, with weight 1: N = 8, guided by "kl", all teachers kept, T = 3.

        Measured on UCI HAR with 2 % of the labels, this lowers the negative log-likelihood; no variant that was tried
        (other weights and temperatures, moving averages, `augmented_teachers=False`, `confidence_weighted=True`) makes
        unlabelled samples raise the accuracy. Augmentation in the model does: see "Few labels" in the README.

        Args:
            model: a built model, trained on what is labelled.
            **options: further arguments of `keras_ssd.wrap`, which take precedence.

        Example:
            >>> model.fit(x, y, ...)
            >>> data = keras_ssd.join_unlabelled((x, y), x_unlabelled, ratio=3)
            >>> keras_ssd.SSDModel.semi_supervised(model).fit(data, epochs=50)
        """
        return cls._from_snapshot(model, {**SEMI_SUPERVISED, **options})

    @classmethod
    def _from_snapshot(cls, model, options):
        ssd = cls(model, **{"teacher": "snapshot", **options})
        if model.compiled:
            ssd.compile_as(model)
        return ssd

    # What Keras calls.

    def build(self, input_shape=None):
        self.built = True

    def call(self, inputs, training=None):
        if training and self.distills and self.teaching and _phase.training is self:
            outputs, representation, given = self._roles.student_pass(inputs)
            _phase.student_pass = (representation, given)
            return outputs
        if self.averages and not training:
            return self._call_averaged(inputs)
        return self.student(inputs, training=training)

    def train_step(self, *args, **kwargs):
        with _in_phase(training=self, student_pass=None):
            result = super().train_step(*args, **kwargs)
        if self.averaged_weights is not None:
            return _backend.after_train_step(self, result, self._averaging.update)
        return result

    def train_on_batch(self, *args, **kwargs):
        self._begin()
        self._look_at_data("train_on_batch", *args, **kwargs)
        return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        self._look_at_data("test_on_batch", *args, **kwargs)
        return super().test_on_batch(*args, **kwargs)

    def test_step(self, *args, **kwargs):
        with _in_phase(training=None, evaluating=True):
            return super().test_step(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        self._begin()
        self._look_at_data("evaluate", *args, **kwargs)
        with _in_phase(evaluating=True):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        self._begin()
        return super().predict(*args, **kwargs)

    def get_metrics_result(self):
        logs = super().get_metrics_result()
        if _phase.evaluating:
            # There is no teacher in evaluation.
            logs.pop("kd_loss", None)
            if self._steering.figures is not None:
                for name in self._steering.figures.names:
                    logs.pop(name, None)
        return logs

    @property
    def metrics(self):
        figures = self._steering.figures
        return super().metrics + ([] if figures is None else [figures])

    def fit(self, *args, **kwargs):
        teaching = self.teaching
        self._look_at_data("fit", *args, **kwargs)
        self._begin()
        if self.averages:
            self._averaging.take_back()
        try:
            history = super().fit(*args, **kwargs)
        finally:
            # Keras tells callbacks nothing of an exception, so what they switched is switched back here.
            self.teaching = teaching
            self.observe(None)
            self._steering.joined_dataset = None
        if self.averages:
            self._averaging.lend()
        if self.student.compiled and not self.student.optimizer.built:
            # A file of a compiled model whose optimizer has no variables yet cannot be loaded without a warning.
            with _backend.variable_scope(self):
                self.student.optimizer.build(self.student.trainable_variables)
        return history

    def compile(self, *args, **kwargs):
        if self.distills and isinstance(kwargs.get("metrics"), list):
            # Keras Tuner compiles anew with what `self.metrics` holds, which includes our own.
            kwargs["metrics"] = [one for one in kwargs["metrics"] if one is not self._kd_loss_tracker]
        super().compile(*args, **kwargs)
        _backend.restore_compiled(self.student)
        arguments = inspect.signature(keras.Model.compile).bind(self, *args, **kwargs).arguments
        self._loss_arguments = {name: arguments.get(name) for name in ("loss", "loss_weights")}

    def compile_as(self, model):
        """Compile with another model's optimizer settings (its state starts afresh), loss, metrics and options.

        Args:
            model: a compiled `keras.Model`.
        """
        with _backend.variable_scope(self):
            self.compile(**_backend.copied(_backend.compile_arguments(model)))

    def compile_from_config(self, config):
        # Keras skips models whose `compile` is overridden, unless this method is, too.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        task_y, task_weight = self._task_arguments(y, y_pred, sample_weight)
        loss = super().compute_loss(x=x, y=task_y, y_pred=y_pred, sample_weight=task_weight, training=training)
        if not training or _phase.training is not self:
            return loss
        if not self.distills or not self.teaching:
            return loss
        loss = self._weigh_task(loss)
        kd_loss = ops.cast(self._distillation_loss(y_pred, sample_weight), loss.dtype)
        n_samples = ops.shape(tree.flatten(y_pred)[0])[0]
        self._kd_loss_tracker.update_state(kd_loss * _backend.replicas_in_sync(), sample_weight=n_samples)
        return loss + ops.cast(self._kd_weight.value, loss.dtype) * kd_loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        found = self._find_targets(y, y_pred)
        if found is None:
            return super().compute_metrics(x, y, y_pred, sample_weight)
        y, unweighted, weighted = for_metrics(
            *found, y_pred, sample_weight, self._task_losses(len(tree.flatten(y_pred)))
        )
        _backend.update_metrics(self, y, y_pred, unweighted, weighted)
        return self.get_metrics_result()

    # For training loops of one's own.

    def training_loss(self, x, y=None, sample_weight=None):
        """The loss of one training step: task, distillation and regularisation. `fit` minimises the same.

        For loops of your own, under `torch.nn.parallel.DistributedDataParallel` for example; nothing is updated but
        what a forward pass updates (seeds, BatchNormalization, the metric `kd_loss`). The model must be compiled with a
        loss; it needs no optimizer. Under `tf.distribute` it is divided by the number of replicas, as `compute_loss`.
        On JAX, call it within `keras.StatelessScope(..., collect_losses=True)`, whose variables have what was updated.

        Args:
            x: one batch of inputs.
            y: targets.
            sample_weight: as for `train_on_batch`.

        Returns:
            Scalar tensor.

        Example:
            >>> ssd.training_loss(x, y).backward()  # PyTorch
            >>> optimizer.step()
        """
        if not self.compiled:
            raise ValueError(
                f"training_loss() needs a compiled model: {self.name!r} has no loss. Call ssd.compile(loss=...) first."
            )
        if self.distills and y is not None:
            self._let_labels_miss()  # a tensor of a graph cannot be looked at
        with _in_phase(training=self, student_pass=None):
            y_pred = self(x, training=True)
            return self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)

    def update_average(self):
        """Let the moving average, if there is one, take one step towards the student's weights.

        `fit` and `train_on_batch` do so by themselves. In a loop of your own, call it after every optimizer step.
        """
        self._check_averages("update_average")
        self._averaging.update()

    # Samples without a target.

    def _look_at_data(self, method, *args, **kwargs):
        """Find out whether targets might be missing.

        Once they might, it stays so, because training and test step are compiled anew for it.
        """
        arguments = inspect.signature(getattr(keras.Model, method)).bind(self, *args, **kwargs).arguments
        x, y, validation = (arguments.get(name) for name in ("x", "y", "validation_data"))
        kinds, names = self._target_kinds(len(self._roles.activations)), self._names()
        if method == "fit":
            self._steering.joined_dataset = x if isinstance(x, JoinedDataset) else None
        if not self.distills:
            self._refuse_missing(x, y, validation, kinds)
        else:
            if isinstance(x, JoinedDataset):
                x.check_targets(getattr(self.student, "outputs", None), kinds, names)
            if may_miss(x, y, validation, kinds, names):
                self._let_labels_miss()

    def _refuse_missing(self, x, y, validation, kinds):
        """Without distillation a model is the plain one, which takes -1 only where its loss leaves that out."""
        losses = self._task_losses(len(kinds))
        exempt = [place for place, loss in enumerate(losses) if may_take_minus_one(loss)]
        arrays = [y, validation[1] if isinstance(validation, (tuple, list)) and len(validation) > 1 else None]
        lacks = [one is not None and missing_in(one, kinds, self._names(), exempt) for one in arrays]
        if isinstance(x, JoinedDataset) or any(lacks):
            raise ValueError(
                "Samples without a target take part in the distillation term only, and this model was wrapped with "
                "kd_weight=0: it has none. Wrap it with a kd_weight above 0, or leave these samples out."
            )

    def _let_labels_miss(self):
        if not self._steering.labels_may_miss:
            self._steering.labels_may_miss = True
            self._renew_train_function()
            if self.test_function is not None:
                self.make_test_function(force=True)

    def _find_targets(self, y, y_pred):
        """The targets of each output, and which samples have one; `None` where all have."""
        if y is None or not self.distills or not self._steering.labels_may_miss:
            return None
        return find_targets(y, y_pred, self._target_kinds(len(tree.flatten(y_pred))), self._names())

    def _task_arguments(self, y, y_pred, sample_weight):
        """Targets and weights of the task's loss, without samples that have no target."""
        found = self._find_targets(y, y_pred)
        if found is None:
            return y, sample_weight
        return for_task_loss(*found, y_pred, sample_weight, self._task_losses(len(tree.flatten(y_pred))))

    def _task_losses(self, n_outputs):
        """The task's loss of each output, as given to `compile`."""
        return per_output(self._loss_arguments.get("loss"), n_outputs, self._names())

    def _target_kinds(self, n_outputs):
        return target_kinds(self._distances(n_outputs), self._task_losses(n_outputs))

    def _begin(self):
        if self._averaging is not None:
            self._averaging.begin()

    # The distillation term.

    def _weigh_task(self, loss):
        """`task_weight * L_task`; regularisation losses keep their weight."""
        if self.settings.task_weight == 1:
            return loss
        regularisation = sum((ops.sum(ops.cast(x, loss.dtype)) for x in self.losses), start=ops.zeros((), loss.dtype))
        regularisation = regularisation / _backend.replicas_in_sync()
        return self.settings.task_weight * (loss - regularisation) + regularisation

    def _distillation_loss(self, y_pred, sample_weight):
        (representation, given), _phase.student_pass = _phase.student_pass, None
        passes = self._passes(y_pred, representation, given)
        distances = self._distances(len(passes.outputs)) if self.settings.needs_outputs else []
        weights = teacher_weights(passes, distances, self.settings)
        if self._steering.figures is not None:
            predictions = list(zip(distances, passes.teacher_outputs, strict=False))
            self._steering.figures.update_state(weights, *passes.compared, predictions)
        return distillation_loss(passes, weights, distances, self.settings, sample_weight)

    def _passes(self, y_pred, representation, given):
        return Passes(tree.flatten(y_pred), representation, *self._teacher_pass(given))

    def _teacher_pass(self, given):
        weights = [] if self.held_weights is None else self.held_weights.values(self._roles.teacher_network.weights)
        return self._roles.teacher_pass(given, self.settings, self.teacher_seed_generator, weights)

    def _distances(self, n_outputs):
        activations = self._roles.activations
        if len(activations) != n_outputs:
            activations = [None] * n_outputs
        return output_distances(
            activations, names=self._names(), temperature=self.settings.temperature, **self._loss_arguments
        )

    def _names(self):
        """The names of the outputs in the order of the flat outputs, if they have any."""
        return self._roles.output_keys or getattr(self, "output_names", None)

    # For users.

    def predict_stochastic(self, x, **options):
        """Predict with dropout on, many times, and tell mean and uncertainty.

        Of the student and its own noise layers, as after loading it; with the averaged weights where `predict` uses
        them.

        Args:
            x: inputs, as for `predict`.
            **options: as for `keras_ssd.predict_stochastic`, which documents them.

        Returns:
            A `StochasticPrediction`, or several in the structure of the outputs.
        """
        return predict_stochastic(self, x, **options)

    def deployed(self):
        """What `predict` stands for: the student, the variables that hold its deployed weights, the compiled loss."""
        self._begin()
        weights = self.averaged_weights.held if self.averages else self.student.weights
        return self.student, weights, self._loss_arguments.get("loss")

    @property
    def averages(self):
        """Whether evaluation and the student after `fit` use the moving average of the weights."""
        return self._average

    @property
    def kd_weight(self):
        return float(ops.convert_to_numpy(self._kd_weight.value)) if self.distills else 0.0

    @kd_weight.setter
    def kd_weight(self, value):
        check_weight("kd_weight", value)
        if not self.distills:
            if value == 0:
                return
            raise ValueError(
                f"`kd_weight` of a model wrapped with kd_weight=0 cannot be changed: it trains without teachers. "
                f"Received: kd_weight={value}. Wrap the model with a kd_weight above 0."
            )
        self._kd_weight.assign(value)

    @property
    def teachers_classify(self):
        """Whether the teachers are run as far as an output that is a classification."""
        kinds = {distance.kind for distance in self._distances(len(self._roles.activations))}
        return self.settings.needs_outputs and kinds != {"regression"}

    @property
    def teaching(self):
        """Whether training steps run the teachers. Without, they are those of the plain model, bit for bit.

        Can be assigned before and, by callbacks, between epochs; after `fit` it is as it was before. The training
        step is compiled anew when it changes.
        """
        return self._steering.teaching

    @teaching.setter
    def teaching(self, value):
        if bool(value) != self._steering.teaching:
            self._steering.teaching = bool(value)
            self._renew_train_function()

    def observe(self, figures):
        """Show the teachers of every training step to a metric, until `fit` ends. `TeacherMonitor` uses it.

        Args:
            figures: a `keras.metrics.Metric` whose `update_state` takes `(weights, student, teachers, predictions)`:
                the weights of the teachers `(batch, teachers)`, what student and teachers are compared by,
                `(batch, features)` and `(batch, teachers, features)`, and a list of `(OutputDistance, outputs of the
                teachers)`, empty if the teachers stop at the representation. Its `names` are those that it puts into
                the logs. `None` ends it.
        """
        if figures is not self._steering.figures:
            self._steering.figures = figures
            self._renew_train_function()

    def begin_epoch(self, epoch):
        """Let a set that `join_unlabelled` made of arrays draw its order for an epoch. `SeedEachEpoch` uses it.

        Args:
            epoch: its number, counted from 0.
        """
        if self._steering.joined_dataset is not None:
            self._steering.joined_dataset.epoch = epoch

    def _renew_train_function(self):
        if self.train_function is not None:
            self.make_train_function(force=True)

    def take_snapshot(self):
        """Make the student's present weights the teacher's (`teacher="snapshot"`); wrapping does so once."""
        if self.settings.kind != "snapshot":
            raise ValueError(
                'take_snapshot() is for models wrapped with teacher="snapshot". Received: '
                f"teacher={self.settings.kind!r}"
            )
        self.held_weights.copy(self.student.weights)
        self.held_weights.steps.assign(ops.convert_to_numpy(self.held_weights.steps.value) + 1)

    def write_average(self):
        """Give the student the averaged weights (`average=True`, `teacher="ema"`). `fit` does so when it ends.

        Call it yourself after training with `train_on_batch`, and on a wrapper that was saved in mid-training (by
        `ModelCheckpoint`, say) before you deploy its student.
        """
        self._check_averages("write_average")
        self.averaged_weights.write(self.student.weights)

    def _check_averages(self, method):
        if self.averaged_weights is None:
            raise ValueError(
                f'{method}() is for models wrapped with average=True or teacher="ema". Received: '
                f"teacher={self.settings.kind!r}, average={self._average}"
            )

    def teacher_weights(self, x, percentile=None):
        """The weights that the teachers of one batch get, to look at.

        Nothing is changed by it, and it returns the same for the same weights and seed.

        Args:
            x: one batch of inputs, as for `model(x)`.
            percentile: overrides the percentile, 0-100; 0 shows the weights before the filter. Defaults to `None`.

        Returns:
            NumPy array `(batch, teachers)`, every row sums to 1.
        """
        return ops.convert_to_numpy(self._look_at(x, percentile)[0])

    def teacher_representations(self, x):
        """What student and teachers of one batch are compared by, to look at.

        Nothing is changed by it, and it returns the same for the same weights and seed.

        Args:
            x: one batch of inputs, as for `model(x)`.

        Returns:
            `(student, teachers, target)`, NumPy arrays `(batch, features)`, `(batch, teachers, features)` and
            `(batch, features)`: the representations, or the flattened first output where outputs are both compared and
            distilled.
        """
        weights, student, teachers = self._look_at(x)
        return tuple(map(ops.convert_to_numpy, (student, teachers, guided_target(weights, teachers))))

    def _look_at(self, x, percentile=None):
        scope = keras.StatelessScope([(v, v.value) for v in self.variables], collect_losses=True)
        with scope, _backend.teacher_scope(ops.convert_to_tensor(self._seed or 0)):
            passes = self._passes(*self._roles.student_pass(x))
            distances = self._distances(len(passes.outputs)) if self.settings.similarity == "kl" else []
            return teacher_weights(passes, distances, self.settings, percentile), *passes.compared

    def _call_averaged(self, inputs):
        weights = self.averaged_weights.values(self.student.weights)
        replaced = {id(variable) for variable, _ in weights}
        others = [(v, v.value) for v in self.student.variables if id(v) not in replaced]
        with keras.StatelessScope(weights + others, collect_losses=True) as scope:
            outputs = self.student(inputs, training=False)
        for loss in scope.losses:
            # A new tensor: Keras tells losses apart by identity, and these belong to the layers of the student.
            self.add_loss(loss + 0)
        return outputs

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        # `ModelCheckpoint` comes here, too: a process that is killed must not leave half a file where a whole one was.
        if zipped is False or not overwrite or not can_be_written_beside(filepath, ".keras"):
            return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        with written_beside(filepath) as written:
            super().save(written, zipped=zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        is_one_file = kwargs.get("max_shard_size") is None
        if not is_one_file or not overwrite or not can_be_written_beside(filepath, ".weights.h5"):
            return super().save_weights(filepath, overwrite=overwrite, **kwargs)
        with written_beside(filepath) as written:
            super().save_weights(written, **kwargs)

    def get_config(self):
        names = "n_teachers distill kd_weight task_weight guidance_temperature percentile temperature dropout_rate"
        names += " teacher_chunk momentum augmented_teachers confidence_weighted"
        config = {name: getattr(self.settings, name) for name in names.split()}
        student = keras.saving.serialize_keras_object(self.student)
        teacher = self.settings.kind
        if teacher == "model":
            teacher = keras.saving.serialize_keras_object(self._roles.teacher_network)
            teacher.pop("compile_config", None)
        # The wrapper is compiled, its student was at most compiled before: nobody needs that optimizer again.
        student.pop("compile_config", None)
        return {
            "name": self.name,
            "model": student,
            "teacher": teacher,
            "similarity": keras.saving.serialize_keras_object(self.settings.similarity),
            "representation": self._representation,
            "stochastic_layers": self._stochastic_layers,
            "seed": self._seed,
            "average": self._average,
            **config,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        # Of subclasses, too, which pass on what they do not name.
        classes = [one for one in cls.__mro__ if issubclass(one, SSDModel)]
        known = {"name", "trainable"}.union(*(inspect.signature(one.__init__).parameters for one in classes))
        check_config(config, cls.__name__, known, needed={"model", "teacher", "similarity"})
        for name in ("model", "teacher", "similarity"):
            config[name] = restored(name, config[name], custom_objects)
        return cls(**config)


def _check_model(argument, model):
    if isinstance(model, SSDModel) and argument == "model":
        raise ValueError(
            f"`model` is wrapped already: {model.name!r} is an SSDModel. Pass the plain model, `ssd.student`."
        )
    if not isinstance(model, keras.Model):
        raise ValueError(f"`{argument}` should be a keras.Model. Received: {model!r} of type {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"`{argument}` is not built: {model.name!r} has no weights yet. Start it with keras.Input(shape), or call "
            f"it on a batch or `{argument}.build(input_shape)` first."
        )
