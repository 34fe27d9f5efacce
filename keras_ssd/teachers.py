"""The argument `teacher`, and the combined passes of student and teacher: their results, and the cut."""

import os
import zipfile
from collections.abc import Sequence
from typing import Any

import keras

from keras_ssd._typing import Tensor
from keras_ssd.copies import copied_variables
from keras_ssd.cost import teacher_cost
from keras_ssd.graph import Graph, output_structure
from keras_ssd.masks import flatten_features, merge_axes
from keras_ssd.noise import choose_noise, parts_of
from keras_ssd.passes import StochasticPasses
from keras_ssd.representation import check_representations, check_single_head, find_representation, layer_names
from keras_ssd.rows import take
from keras_ssd.settings import KINDS, Settings
from keras_ssd.step import StudentPass


def resolve_kind(teacher: Any) -> tuple[str, keras.Model | None]:
    """Split the argument `teacher` into its kind and, for `"model"`, the network.

    Returns:
        `("self" | "snapshot" | "ema", None)` or `("model", keras.Model)`.

    Raises:
        ValueError: if `teacher` is none of these, or a file that cannot be loaded.
    """
    if isinstance(teacher, keras.Model):
        return "model", teacher
    if isinstance(teacher, (str, os.PathLike)):
        if teacher in KINDS:
            return str(teacher), None
        path = os.fspath(teacher)
        if not path.endswith(".keras"):
            raise ValueError(
                f"`teacher` should be one of {KINDS}, a keras.Model or the path of a .keras file. Received: "
                f"teacher={teacher!r}"
            )
        if not os.path.isfile(path):
            raise ValueError(f"`teacher` names a .keras file that does not exist: {path!r}")
        return "model", _load(path)
    raise ValueError(
        f"`teacher` should be one of {KINDS}, a keras.Model or the path of a .keras file. Received: "
        f"teacher={teacher!r} of type {type(teacher).__name__}"
    )


def _load(path: str) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises nearly any kind of error, depending on the fault of the file
        if zipfile.is_zipfile(path):
            remedy = (
                "If it needs custom classes, register them with @keras.saving.register_keras_serializable() and "
                "import them first. Otherwise load it with keras.models.load_model(path, custom_objects=..., and "
                "safe_mode=False if you trust it to run code), and pass the model."
            )
        else:
            remedy = "It is not a complete .keras archive: save it again with `model.save(path)`."
        raise ValueError(
            f"`teacher` names a file that cannot be loaded: {path!r}. {remedy} Keras says: "
            f"{type(error).__name__}: {error}"
        ) from error


class StudentTeacherGraph:
    """The combined passes of student and teacher: their results, and the cut.

    Args:
        student: the `Graph` of the student.
        teacher: the `Graph` of another network, or `None` if the teachers share the student's network.
        settings: `Settings`.

    Attributes:
        passes: `StochasticPasses` of the teacher.
        noise: the `Noise` of the teachers.
        student: the student.
        frozen_variables: the weights of the teacher network that a frozen teacher copies.
        cost: the `TeacherCost`, with the fraction of each batch on which the term is computed.
    """

    def __init__(self, student: Graph, teacher: Graph | None, settings: Settings) -> None:
        is_shared = teacher is None
        teacher = student if teacher is None else teacher
        self.student = student.model
        is_frozen = settings.kind in ("snapshot", "model")
        self.frozen_variables = copied_variables(teacher.model) if is_frozen else []
        self.noise = choose_noise(teacher, settings.stochastic_layers, settings.dropout_rate)
        if not is_shared:
            _check_inputs(student, teacher)
        if settings.needs_outputs and not is_shared:
            _check_outputs(student, teacher)
        self._num_outputs = len(teacher.outputs) if settings.needs_outputs else 0
        self._has_representation = settings.needs_representation
        representations = _find_representations(student, teacher, settings) if self._has_representation else []
        if settings.representation is not None and not self._has_representation:
            find_representation(student, settings.representation)  # a wrong name is an error, even if not needed
        self.passes = StochasticPasses(
            teacher,
            self.noise,
            teacher.outputs[: self._num_outputs] + representations[1:],
            shares_prefix=settings.kind == "self",
            augmented=settings.augmented_teachers,
            dropout_rate=settings.dropout_rate,
        )
        self._check_noise(settings)
        if not self.passes.takes_rows and settings.kd_fraction is not None and settings.kd_fraction < 1:
            raise ValueError(
                "`kd_fraction` should be 1 or None for a model whose layers combine or move the samples of a batch: a "
                f"part of the batch would change its outputs. Received: kd_fraction={settings.kd_fraction}"
            )
        self.passes.warn_of_whole_batches()
        self.cost = teacher_cost(student, self.passes, settings.num_teachers, settings.kd_fraction)
        student_reads = list(student.outputs) + representations[:1]
        self._num_student_reads = len(student_reads)
        self._read_student = student.reader(student_reads + (self.passes.cut if is_shared else []))
        self._read_cut = None if is_shared else teacher.reader(self.passes.cut)
        self._structure = None if student.is_opaque else output_structure(student.model)

    def student_pass(self, x: Any) -> StudentPass:
        """Run the student once, in training mode, on a batch of inputs, structured as the model takes them."""
        results = self._read_student(x, training=True)
        student_results, cut_values = results[: self._num_student_reads], results[self._num_student_reads :]
        representation = flatten_features(student_results.pop()) if self._has_representation else None
        if self._structure is None:
            outputs = student_results[0]
        else:
            outputs = keras.tree.pack_sequence_as(self._structure, student_results)
        if self._read_cut is not None:
            cut_values = self._read_cut(x, training=False)
        return StudentPass(outputs, representation, cut_values)

    def take_rows(self, cut_values: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """Return the drawn rows of the values at the cut; values without a batch stay whole."""
        pairs = zip(cut_values, self.passes.cut_has_batch, strict=True)
        return [take(x, rows) if has_batch else x for x, has_batch in pairs]

    def teacher_pass(
        self,
        cut_values: Sequence[Tensor],
        settings: Settings,
        seed_generator: keras.random.SeedGenerator,
        weights: Sequence[tuple[Any, Tensor]],
    ) -> tuple[list[Tensor], Tensor | None]:
        """Run the teachers.

        Args:
            cut_values: the values from `student_pass`.
            settings: `Settings`.
            seed_generator: generator of the teachers' noise.
            weights: `(variable, value)` pairs that replace the network's weights.

        Returns:
            `(outputs, representation)`: a flat list of `(batch, teachers, ...)`, empty if the settings need none, and
            `(batch, teachers, features)` or `None`.
        """
        results = self.passes.run(cut_values, settings.num_teachers, seed_generator, weights, settings.teacher_chunk)
        representation = merge_axes(results.pop(), 2) if self._has_representation else None
        return keras.tree.flatten(results), representation

    def _check_noise(self, settings: Settings) -> None:
        has_noise = bool(self.noise.layers or self.noise.tensors)
        if not has_noise:
            if settings.num_teachers > 1:
                raise ValueError(
                    "An empty `stochastic_layers` makes a deterministic teacher, so all teachers would be identical. "
                    f'Pass num_teachers=1 and similarity="uniform" with it. Received: '
                    f"num_teachers={settings.num_teachers}"
                )
            return
        if self._has_representation and not self.passes.is_random[-1]:
            raise ValueError(
                "`representation` lies before the first active noise, so it is the same for all teachers. Received: "
                f"representation={settings.representation!r}; the noise is {self.noise.described}. Name a layer after "
                "the noise, or add noise before the representation."
            )
        if not any(self.passes.is_random):
            raise ValueError(
                f"None of the model's outputs depends on the noise ({self.noise.described}), so all teachers would be "
                "identical. Choose other layers by `stochastic_layers`."
            )


def check_replaceable(model: keras.Model, teacher: keras.Model | None, settings: Settings) -> None:
    """Refuse layers that compute with their own parameters, if other weights have to replace these.

    A `TorchModuleWrapper` reads its module's parameters, not the values that a `keras.StatelessScope` holds.
    """
    if not settings.averages and (settings.kind == "self" or not settings.distills):
        return
    for argument, network in (("model", model), ("teacher", teacher)):
        parts = [] if network is None else parts_of(network)
        wrapped = [part.name for part in parts if isinstance(part, keras.layers.TorchModuleWrapper)]
        if wrapped:
            raise ValueError(
                f"`{argument}` has layers that wrap a torch.nn.Module: {wrapped}. Their parameters cannot be replaced "
                "for a pass, so neither a frozen or averaged teacher nor a moving average of the weights is possible. "
                'Pass teacher="self" with ema_momentum=0, or build these parts from Keras layers.'
            )


def _find_representations(student: Graph, teacher: Graph, settings: Settings) -> list[Any]:
    """Return the symbolic representations of student and teacher, after a check that they match."""
    name = settings.representation
    of_student = find_representation(student, name)
    if teacher is student:
        of_teacher = of_student
    else:
        of_teacher = find_representation(teacher, name if name in layer_names(teacher) else None)
    check_representations(of_student, of_teacher, settings)
    for graph in (student, teacher):
        if name not in layer_names(graph):
            check_single_head(graph)
    return [of_student, of_teacher]


def _check_inputs(student: Graph, teacher: Graph) -> None:
    if student.is_opaque or teacher.is_opaque:
        return
    shapes = [[tuple(x.shape[1:]) for x in keras.tree.flatten(graph.inputs)] for graph in (student, teacher)]
    fits = len(shapes[0]) == len(shapes[1]) and all(
        len(own) == len(other) and all(a == b or None in (a, b) for a, b in zip(own, other, strict=True))
        for own, other in zip(*shapes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`teacher` takes inputs of shape {shapes[1]}, the student of shape {shapes[0]} (without the batch). Both "
            "see the same batch: pass a teacher that takes inputs of the student's shape."
        )


def _check_outputs(student: Graph, teacher: Graph) -> None:
    if student.is_opaque or teacher.is_opaque:
        return
    shapes = [[tuple(x.shape[1:]) for x in graph.outputs] for graph in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`teacher` returns outputs of shape {shapes[1]}, the student of shape {shapes[0]} (without the batch). "
            'They must agree unless distill="representation" with a similarity of representations.'
        )
