"""The argument `teacher`, and the graphs of student and teacher, cut where the passes of the teachers start."""

import itertools
import os
import zipfile
from typing import Any

import keras

from keras_ssd.copies import copied_variables
from keras_ssd.cost import teacher_cost
from keras_ssd.graph import Graph, output_structure
from keras_ssd.masks import flatten_features
from keras_ssd.noise import check_views, choose_noise, parts_of
from keras_ssd.passes import StochasticPasses
from keras_ssd.representation import find_representation, find_representations
from keras_ssd.settings import KINDS, Settings
from keras_ssd.step import StudentPass


def resolve_kind(teacher: Any) -> tuple[str, keras.Model | None]:
    """Return the kind of a `teacher`, as passed to `wrap`, and its network for the kind `"model"`, else `None`.

    Raises:
        ValueError: if `teacher` is no kind, model or path, or a file that cannot be loaded.
    """
    if isinstance(teacher, keras.Model):
        return "model", teacher
    path = os.fspath(teacher) if isinstance(teacher, (str, os.PathLike)) else ""
    if path in KINDS:
        return path, None
    if not path.endswith(".keras"):
        raise ValueError(
            f"`teacher` should be one of {KINDS}, a keras.Model or the path of a .keras file. Received: "
            f"teacher={teacher!r} of type {type(teacher).__name__}"
        )
    if not os.path.isfile(path):
        raise ValueError(f"`teacher` names a .keras file that does not exist: {path!r}")
    try:
        return "model", keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises nearly any kind of error, depending on the fault of the file
        remedy = "It is not a complete .keras archive: save it again with `model.save(path)`."
        if zipfile.is_zipfile(path):
            remedy = (
                "If it needs custom classes, register them with @keras.saving.register_keras_serializable() and "
                "import them first. Otherwise load it with keras.models.load_model(path, custom_objects=..., and "
                "safe_mode=False if you trust it to run code), and pass the model."
            )
        raise ValueError(
            f"`teacher` names a file that cannot be loaded: {path!r}. {remedy} Keras says: "
            f"{type(error).__name__}: {error}"
        ) from error


class StudentTeacherGraph:
    """The graphs of student and teacher, cut where the passes of the teachers start.

    The graph of the teacher is `None` if the teachers share the student's network.

    Attributes:
        student: the student.
        passes: `StochasticPasses` of the teacher, up to its outputs and its representation, as far as they are needed.
        noise: the `Noise` of the teachers.
        frozen_variables: the weights of the teacher network that a frozen teacher copies.
        cost: the `TeacherCost`, with the fraction of each batch on which the term is computed.
    """

    def __init__(self, student: Graph, teacher: Graph | None, settings: Settings) -> None:
        is_shared = teacher is None
        teacher = teacher or student
        self.student, self._settings = student.model, settings
        is_frozen = settings.kind in ("snapshot", "model")
        self.frozen_variables = copied_variables(teacher.model) if is_frozen else []
        views = settings.augmented_teachers == "each"
        self.noise = choose_noise(teacher, settings.stochastic_layers, settings.dropout_rate, views=views)
        if views:
            check_views(teacher, self.noise.layers)
        _check_shapes(student, teacher, settings)
        representations: list[Any] = []
        if settings.needs_representation:
            representations = find_representations(student, teacher, settings)
        elif settings.representation is not None:
            find_representation(student, settings.representation)  # a wrong name is an error, even if not needed
        outputs = (teacher.outputs if settings.needs_outputs else []) + representations[1:]
        shares_prefix, augmented = settings.kind == "self", bool(settings.augmented_teachers)
        self.passes = StochasticPasses(teacher, self.noise, outputs, shares_prefix, augmented, settings.dropout_rate)
        self._check_noise()
        if not self.passes.takes_rows and settings.kd_fraction is not None and settings.kd_fraction < 1:
            raise ValueError(
                "`kd_fraction` should be 1 or None for a model whose layers combine or move the samples of a batch: a "
                f"part of the batch would change its outputs. Received: kd_fraction={settings.kd_fraction}"
            )
        self.passes.warn_of_whole_batches()
        self.cost = teacher_cost(student, self.passes, settings.num_teachers, settings.kd_fraction)
        self._student_reads = list(student.outputs) + representations[:1]
        self._read_student = student.reader(self._student_reads + (self.passes.cut if is_shared else []))
        self._read_cut = None if is_shared else teacher.reader(self.passes.cut)
        self._structure = None if student.is_opaque else output_structure(student.model)

    def student_pass(self, x: Any) -> StudentPass:
        """Run the student once, in training mode, on a batch of inputs, structured as the model takes them."""
        results = self._read_student(x, training=True)
        results, cut_values = results[: len(self._student_reads)], results[len(self._student_reads) :]
        representation = flatten_features(results.pop()) if self._settings.needs_representation else None
        outputs = results[0]
        if self._structure is not None:
            outputs = keras.tree.pack_sequence_as(self._structure, results)
        if self._read_cut is not None:
            cut_values = self._read_cut(x, training=False)
        return StudentPass(outputs, representation, cut_values)

    def _check_noise(self) -> None:
        settings, is_random = self._settings, self.passes.is_random
        if not (self.noise.layers or self.noise.tensors):
            if settings.num_teachers > 1:
                raise ValueError(
                    "An empty `stochastic_layers` makes a deterministic teacher, so all teachers would be identical. "
                    f'Pass num_teachers=1 and similarity="uniform" with it. Received: '
                    f"num_teachers={settings.num_teachers}"
                )
        elif settings.needs_representation and not is_random[-1]:
            raise ValueError(
                "`representation` lies before the first active noise, so it is the same for all teachers. Received: "
                f"representation={settings.representation!r}; the noise is {self.noise.described}. Name a layer after "
                "the noise, or add noise before the representation."
            )
        elif not any(is_random):
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


def _check_shapes(student: Graph, teacher: Graph, settings: Settings) -> None:
    """Refuse a teacher whose inputs, or outputs that are needed, have other shapes than the student's."""
    if teacher is student or student.is_opaque or teacher.is_opaque:
        return
    own, other = ([tuple(x.shape[1:]) for x in keras.tree.flatten(graph.inputs)] for graph in (student, teacher))
    sizes = zip(itertools.chain(*own), itertools.chain(*other), strict=False)
    if [*map(len, own)] != [*map(len, other)] or any(a != b and None not in (a, b) for a, b in sizes):
        raise ValueError(
            f"`teacher` takes inputs of shape {other}, the student of shape {own} (without the batch). Both see the "
            "same batch: pass a teacher that takes inputs of the student's shape."
        )
    own, other = ([tuple(x.shape[1:]) for x in graph.outputs] for graph in (student, teacher))
    if settings.needs_outputs and own != other:
        raise ValueError(
            f"`teacher` returns outputs of shape {other}, the student of shape {own} (without the batch). They must "
            'agree unless distill="representation" with a similarity of representations.'
        )
