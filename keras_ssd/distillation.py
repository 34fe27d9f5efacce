"""`Distillation`: the teachers of a model, and the term that they add to the loss of a training step."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.copies import WeightCopies, arrays, assign
from keras_ssd.graph import Graph
from keras_ssd.masks import merge_axes
from keras_ssd.output_records import OutputRecords, per_output, teacher_logits
from keras_ssd.rows import draw_rows, mask_scales, take
from keras_ssd.settings import Settings
from keras_ssd.step import StudentPass
from keras_ssd.teachers import StudentTeacherGraph
from keras_ssd.term import StepOutputs, distillation_loss, weigh_teachers
from keras_ssd.untracked import Untracked


class Distillation(keras.layers.Layer):
    """The teachers of a student (their frozen weights and the generator of their noise), and the term of one step.

    Args:
        student: a built `keras.Model`. It and the network of the teachers are not tracked as parts of the layer.
        settings: `Settings` with a `kd_weight` above 0.
        teacher: another network (`settings.kind == "model"`), or a wrapped model that holds it. Defaults to `None`.
        network: the network itself. Defaults to `None`: the student's.

    Attributes:
        settings: the settings, with the fraction of each batch and the names of the noise layers filled in.
        output_records: the `OutputRecords` of the student's outputs.
        wiring: the `StudentTeacherGraph`.
        kd_weight: variable, the weight of the term.
        teacher_weights: `WeightCopies` of a frozen teacher, or `None`.
        num_snapshots: variable, the number of snapshots taken since the model was wrapped.

    Example:
        >>> distillation = Distillation(model, keras_ssd.settings.resolve("self"))
        >>> student_pass = distillation.student_pass(x)
        >>> distillation.term(student_pass, student_pass.outputs)  # scalar tensor
    """

    def __init__(
        self, student: keras.Model, settings: Settings, teacher: Any = None, network: keras.Model | None = None
    ) -> None:
        super().__init__(trainable=False, dtype="float32", autocast=False, name="distillation")
        graph = Graph(student)
        self.wiring = StudentTeacherGraph(graph, None if network is None else Graph(network), settings)
        # A predicate is stored as the names of the chosen layers.
        chosen = None if settings.stochastic_layers is None else self.wiring.noise.names
        self.settings = dataclasses.replace(settings, stochastic_layers=chosen, kd_fraction=self.wiring.cost.fraction)
        logits = teacher_logits(student, network, teacher) if network is not None and settings.needs_outputs else None
        self.output_records = OutputRecords(student, graph, settings.temperature, logits)
        seed = _backend.derived_seed() if settings.seed is None else int(settings.seed)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.teacher_weights: Any = None
        if settings.kind in ("snapshot", "model"):
            self.teacher_weights = WeightCopies(self.wiring.frozen_variables, name="teacher_weights")
        number: dict[str, Any] = dict(shape=(), initializer="zeros", trainable=False, autocast=False)
        self.num_snapshots = self.add_weight(dtype="int32", name="num_snapshots", **number)
        self.kd_weight = self.add_weight(dtype="float32", name="kd_weight", **number)
        self.kd_weight.assign(settings.kd_weight)
        # Untracked, so that a model around the wrapped one does not list it.
        self._logged = Untracked([keras.metrics.Mean(name="kd_loss")])
        if settings.target_threshold > 0:
            self._logged.content.append(keras.metrics.Mean(name="kd_share"))
        self.built = True

    @property
    def logged(self) -> list[keras.metrics.Metric]:
        """The means of the term and, with a threshold, of the share of targets that reach it, which logs show."""
        return self._logged.content

    @property
    def classifies(self) -> bool:
        """Return whether the teachers are run up to an output that is a classification."""
        known = self.output_records.describe() if self.output_records.are_known else []
        return self.settings.needs_outputs and any(output.kind != "regression" for output in known)

    def student_pass(self, x: Any) -> StudentPass:
        """Run the student once, in training mode, on one batch of inputs."""
        return self.wiring.student_pass(x)

    @_backend.not_compiled
    def term(
        self,
        student_pass: StudentPass,
        y_pred: Any,
        sample_weight: Any = None,
        average: Any = (),
        statistics: Any = None,
    ) -> Tensor:
        """Return the distillation loss of one batch, a scalar without its weight (section 3 of the paper).

        Args:
            student_pass: the result of `student_pass`.
            y_pred: its outputs, with their masks.
            sample_weight: the user's sample weights for the outputs. Defaults to `None`.
            average: with `teacher="ema"` the `(variable, average)` pairs of the student. Defaults to none.
            statistics: a `TeacherStatistics` that gets the teachers. Defaults to `None`.
        """
        records = self.output_records.describe(y_pred)
        representation, cut_values, scales = student_pass.representation, student_pass.cut_values, None
        if self.settings.kd_fraction < 1:
            whole = tree.flatten(y_pred)
            rows = draw_rows(ops.shape(whole[0])[0], self.settings.kd_fraction, self.seed_generator)
            y_pred, representation, sample_weight = take((y_pred, representation, sample_weight), rows)
            pairs = zip(cut_values, self.wiring.passes.cut_has_batch, strict=True)
            cut_values = [take(x, rows) if has_batch else x for x, has_batch in pairs]
            scales = mask_scales(whole, tree.flatten(y_pred))
        step = self.run_teachers(StudentPass(y_pred, representation, cut_values), average)._replace(scales=scales)
        guidance = weigh_teachers(step, records, self.settings)
        if statistics is not None:
            predictions = list(zip(records, step.teacher_outputs, step.masks, strict=False))
            statistics.update_state(guidance, *step.compared, predictions)
        given = sample_weight if self.settings.kd_sample_weight else None
        weights = per_output(given, y_pred, self.output_records.names)
        loss, shares = distillation_loss(step, guidance, records, self.settings, weights)
        num_samples = ops.shape(tree.flatten(student_pass.outputs)[0])[0]
        self.logged[0].update_state(loss * _backend.replicas_in_sync(), sample_weight=num_samples)
        for metric in self.logged[1:] if shares else []:
            metric.update_state(sum(shares) / len(shares))
        return loss

    def run_teachers(self, student_pass: StudentPass, average: Any = ()) -> StepOutputs:
        """Run the teachers from the values at the cut; `average` is as for `term`."""
        frozen = self.teacher_weights
        weights = average if frozen is None else frozen.values(self.wiring.frozen_variables)
        passes, num_teachers, chunk = self.wiring.passes, self.settings.num_teachers, self.settings.teacher_chunk
        teachers = passes.run(student_pass.cut_values, num_teachers, self.seed_generator, weights, chunk)
        representation = merge_axes(teachers.pop(), 2) if self.settings.needs_representation else None
        outputs = tree.flatten(student_pass.outputs)
        return StepOutputs(outputs, student_pass.representation, tree.flatten(teachers), representation)

    def compare_teachers(
        self, x: Any, average: Any = (), percentile: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the guidance weights, and the compared features of student and teachers, for one batch of inputs.

        It changes nothing, and returns the same values for the same weights and seed. `average` is as for `term`; a
        given `percentile` replaces that of the settings.

        Returns:
            `(batch, teachers)`, `(batch, features)` and `(batch, teachers, features)`.
        """
        variables = [*self.wiring.student.variables, *self.variables]
        scope = keras.StatelessScope([(v, v.value) for v in variables], collect_losses=True)
        with scope, _backend.teacher_scope(ops.convert_to_tensor(self.settings.seed or 0)):
            student_pass = self.student_pass(x)
            step = self.run_teachers(student_pass, average)
            records = self.output_records.describe(student_pass.outputs) if self.settings.similarity == "kl" else []
            return weigh_teachers(step, records, self.settings, percentile), *step.compared

    def take_snapshot(self) -> None:
        """Copy the student's current weights to the teacher."""
        self.teacher_weights.copy(self.wiring.frozen_variables)
        self.num_snapshots.assign(np.array(ops.convert_to_numpy(self.num_snapshots.value) + 1, "int32"))

    def state(self) -> dict[str, np.ndarray]:
        """Return the state as arrays by name, for a file; `load_state` takes it."""
        return {str(i): value for i, value in enumerate(arrays(self._stored))}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        assign(self._stored, [np.asarray(state[str(i)]) for i in range(len(self._stored))])

    @property
    def _stored(self) -> list[Any]:
        copies = [] if self.teacher_weights is None else self.teacher_weights.copies
        return [self.num_snapshots, self.kd_weight, self.seed_generator.state, *copies]
