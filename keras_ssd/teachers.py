"""Where the teachers' weights come from, and what the passes of student and teachers return."""

import math
import os
import zipfile

import keras
from keras import ops

from keras_ssd.graph import Graph
from keras_ssd.settings import KINDS
from keras_ssd.stochastic import StochasticPasses, select_layers


def resolve_kind(teacher):
    """Split the argument `teacher` into its kind and, for `"model"`, the network.

    Returns:
        `("self" | "snapshot" | "ema", None)` or `("model", keras.Model)`.
    """
    if isinstance(teacher, keras.Model):
        return "model", teacher
    if isinstance(teacher, (str, os.PathLike)):
        if teacher in KINDS:
            return teacher, None
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


def _load(path):
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises nearly every kind, depending on what is wrong with the file
        if zipfile.is_zipfile(path):
            remedy = (
                "If it needs classes of yours, register them with @keras.saving.register_keras_serializable() and "
                "import them first. Otherwise load it with keras.models.load_model(path, custom_objects=..., and "
                "safe_mode=False if you trust it to run code), and pass the model."
            )
        else:
            remedy = "It is not a .keras archive, or only a part of one: save it again with `model.save(path)`."
        raise ValueError(
            f"`teacher` names a file that cannot be loaded: {path!r}. {remedy} Keras says: "
            f"{type(error).__name__}: {error}"
        ) from error


class Roles:
    """What the student's own pass and the teachers' passes return, and where the teachers branch off.

    Args:
        model: the student.
        teacher_model: another network, or `None` where teachers share the student's.
        settings: `Settings`.
        representation: name of a layer, or `None` for what feeds the last Dense layer.
        stochastic_layers: see `keras_ssd.wrap`.

    Attributes:
        passes: `StochasticPasses` of the teacher.
        output_keys: the sorted keys of outputs that are a dictionary, else `None`; a subclassed model's are known
            after its first training pass.
        teacher_network: the model that the teachers run.
        has_representation: whether both return a representation.
        n_outputs: number of outputs that the teachers return.
        stochastic_layers: the names of the layers that are random.
    """

    def __init__(self, model, teacher_model, settings, representation, stochastic_layers):
        student_graph = Graph(model)
        teacher_graph = student_graph if teacher_model is None else Graph(teacher_model)
        self.teacher_network = teacher_graph.model
        layers = select_layers(teacher_graph, stochastic_layers)
        if not layers and settings.n_teachers > 1:
            raise ValueError(
                "An empty `stochastic_layers` makes a deterministic teacher, so all teachers would be identical. Pass "
                f'n_teachers=1 and similarity="uniform" with it. Received: n_teachers={settings.n_teachers}'
            )
        self.stochastic_layers = [layer.name for layer in layers]
        self.has_representation = settings.needs_representation
        student_representation = find_representation(student_graph, representation)
        teacher_representation = student_representation
        if teacher_model is not None and self.has_representation:
            named = representation if representation in _layer_names(teacher_graph) else None
            teacher_representation = find_representation(teacher_graph, named)
        if self.has_representation:
            _check_representation(student_representation, teacher_representation, settings)
            for graph in (student_graph, teacher_graph):
                if representation not in _layer_names(graph):
                    _check_single_head(graph)
        if settings.needs_outputs and teacher_model is not None:
            _check_outputs(student_graph, teacher_graph)
        self.n_outputs = len(teacher_graph.outputs) if settings.needs_outputs else 0
        wanted = teacher_graph.outputs[: self.n_outputs]
        # One that is named but not needed is evaluated all the same: the error for a bad name must not depend on that.
        if self.has_representation or (representation is not None and teacher_model is None):
            wanted.append(teacher_representation)
        self.passes = StochasticPasses(
            teacher_graph,
            layers,
            wanted,
            shares_prefix=settings.kind == "self",
            augmented=settings.augmented_teachers,
            dropout_rate=settings.dropout_rate,
        )
        if layers and len(wanted) > self.n_outputs and not self.passes.is_random[-1]:
            raise ValueError(
                "`representation` lies before the first active noise layer, so it is the same for all teachers. "
                f"Received: representation={representation!r}; the noise layers are {self.stochastic_layers}. Name a "
                "layer behind one of them, or add noise before it."
            )
        if layers and not any(self.passes.is_random):
            raise ValueError(
                f"None of the model's outputs depends on the noise layers {self.stochastic_layers}, so all teachers "
                "would be identical. Choose others by `stochastic_layers`."
            )
        read = list(student_graph.outputs)
        if self.has_representation:
            read.append(student_representation)
        own = self.passes.given if teacher_model is None else []
        self._read = student_graph.reader(read + own)
        self._n_read = len(read)
        self._read_teacher_inputs = None if teacher_model is None else teacher_graph.reader(self.passes.given)
        self.activations = [last_activation(student_graph, x) for x in student_graph.outputs]
        self._structure = None if student_graph.is_opaque else output_structure(model)
        self.output_keys = sorted(self._structure) if isinstance(self._structure, dict) else None

    def teacher_pass(self, given, settings, seed_generator, weights):
        """Run the teachers.

        Args:
            given: from `student_pass`.
            settings: `Settings`.
            seed_generator: what the teachers' noise is drawn from.
            weights: `(variable, value)` pairs that replace the network's weights.

        Returns:
            `(outputs, representation)`: a flat list of `(batch, teachers, ...)`, empty if the settings need none, and
            `(batch, teachers, features)` or `None`.
        """
        results = self.passes.run(given, settings.n_teachers, seed_generator, weights, settings.teacher_chunk)
        representation = flatten_features(results[self.n_outputs], 2) if self.has_representation else None
        return keras.tree.flatten(results[: self.n_outputs]), representation

    def student_pass(self, x):
        """Run the student once, training.

        Returns:
            `(outputs, representation, given)`: outputs structured as the model's, the representation
            `(batch, features)` or `None`, and what the teachers branch off from.
        """
        results = self._read(x, training=True)
        read, given = results[: self._n_read], results[self._n_read :]
        representation = flatten_features(read.pop(), 1) if self.has_representation else None
        outputs = read[0] if self._structure is None else keras.tree.pack_sequence_as(self._structure, read)
        if isinstance(outputs, dict):
            self.output_keys = sorted(outputs)
        if self._read_teacher_inputs is not None:
            given = self._read_teacher_inputs(x, training=False)
        return outputs, representation, given


def output_structure(model):
    """The symbolic outputs of a model, structured as it returns them."""
    structure = model.outputs if isinstance(model, keras.Sequential) else model.output
    return structure[0] if isinstance(structure, (list, tuple)) and len(structure) == 1 else structure


def flatten_features(x, start):
    """Merge all axes from `start` on into one."""
    shape = ops.shape(x)
    tail = x.shape[start:]
    size = -1 if None in tail else math.prod(tail)
    return ops.reshape(x, (*shape[:start], size))


def find_representation(graph, name):
    """The symbolic tensor of the representation: a layer's output by name, or what feeds the last Dense layer.

    Returns:
        A symbolic tensor; `None` for a subclassed model if no name is given.

    Raises:
        ValueError: if there is no such layer, or several have the name.
    """
    if graph.is_opaque:
        if name is None:
            return None
        raise ValueError(
            f"`representation` cannot be looked up in {graph.model.name!r}: a subclassed model has no graph of layers. "
            f"Received: representation={name!r}. Build the model with the functional API, or distil the outputs."
        )
    if name is None:
        dense = _dense_steps(graph)
        if not dense or _has_weights_behind(dense[-1], graph):
            raise ValueError(
                f"`representation` is None, which means what feeds the last Dense layer, but the model "
                f"{graph.model.name!r} has no Dense layer as its head. Pass the name of one of its layers: "
                f"{_layer_names(graph)}"
            )
        return dense[-1].inputs[0]
    called = [(step.layer, step.outputs) for step in graph.steps] + graph.nested
    called = [(layer, outputs) for layer, outputs in called if layer.name == name]
    if not called:
        raise ValueError(
            f"`representation` should name a layer of the model {graph.model.name!r}. Received: "
            f"representation={name!r}. Its layers are {_layer_names(graph)}"
        )
    if len({id(layer) for layer, _ in called}) > 1:
        raise ValueError(
            f"`representation` names several layers of the model {graph.model.name!r}, in models nested in it. "
            f"Received: representation={name!r}. Give the layer that you mean a name of its own."
        )
    return called[-1][1][0]


def _check_single_head(graph):
    """Refuse heads that are merged: what feeds the last of them stands for one member of an ensemble alone."""
    dense = _dense_steps(graph)
    leads_to_last = graph.needed(dense[-1].inputs)
    for later, others in _steps_behind(dense[-1], graph):
        if any(step in dense and step not in leads_to_last for step in graph.needed(others)):
            raise ValueError(
                f"`representation` is not a layer of the model {graph.model.name!r}, so it means what feeds the last "
                f"Dense layer there, but {later.layer.name!r} merges the outputs of several. Name a layer, or distil "
                'the outputs alone: distill="outputs" with similarity="kl" or "uniform".'
            )


def _dense_steps(graph):
    """The calls of Dense layers that lead to the outputs, in order."""
    return [step for step in graph.needed(graph.outputs) if isinstance(step.layer, keras.layers.Dense)]


def _has_weights_behind(step, graph):
    """Whether layers with weights lie between a step and the outputs: then it is not the head."""
    return any(isinstance(later.layer, keras.Layer) and later.layer.weights for later, _ in _steps_behind(step, graph))


def _steps_behind(step, graph):
    """Yield what depends on a step on the way to the outputs, each with those of its inputs that do not."""
    reached = {id(x) for x in step.outputs}
    steps = graph.needed(graph.outputs)
    for later in steps[steps.index(step) + 1 :]:
        others = [x for x in later.inputs if id(x) not in reached]
        if len(others) < len(later.inputs):
            yield later, others
            reached.update(map(id, later.outputs))


def _layer_names(graph):
    return [step.layer.name for step in graph.steps] + [model.name for model, _ in graph.nested]


def _check_representation(student, teacher, settings):
    if student is None or teacher is None:
        raise ValueError(
            "A subclassed model has no graph of layers in which a representation could be found. Pass "
            'distill="outputs" with similarity="kl" or "uniform", or build the model with the functional API. '
            f"Received: distill={settings.distill!r}, similarity={settings.similarity!r}"
        )
    widths = [None if None in x.shape[1:] else math.prod(x.shape[1:]) for x in (student, teacher)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"`teacher` has a representation of {widths[1]} features, the student one of {widths[0]}. Name layers of "
            'one width by `representation`, or pass distill="outputs" with similarity="kl" or "uniform".'
        )


def _check_outputs(student, teacher):
    if student.is_opaque or teacher.is_opaque:
        return
    shapes = [[tuple(x.shape[1:]) for x in graph.outputs] for graph in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`teacher` puts out tensors of shape {shapes[1]}, the student of shape {shapes[0]} (without the batch). "
            'They must agree unless distill="representation" with a similarity of representations.'
        )


def last_activation(graph, tensor):
    """`"softmax"`, `"sigmoid"` or `None`: what was applied last on the way to an output."""
    step = None if graph.is_opaque else graph.producer(tensor)
    if step is None:
        return None
    activation = getattr(step.layer, "activation", None)
    name = getattr(activation, "__name__", type(step.layer).__name__).lower()
    return name if name in ("softmax", "sigmoid") else None


class HeldWeights(keras.layers.Layer):
    """A copy of a model's weights that only the teachers use: a snapshot, a moving average, or another network's.

    Args:
        weights: the variables to copy; later calls take them in the same order.

    Attributes:
        steps: how often the weights were averaged, or a snapshot was taken since the model was wrapped.
    """

    def __init__(self, weights, **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.steps = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False, name="steps")
        self.held = [
            # Exact values: mixed precision must not round them when they are read inside a layer.
            self.add_weight(
                shape=v.shape,
                initializer="zeros",
                dtype=v.dtype,
                trainable=False,
                autocast=False,
                # A layout map of `keras.distribution.ModelParallel` finds the copy by what it says of the original.
                name=v.path.replace("/", "_"),
                **_aggregation(v),
            )
            for v in weights
        ]
        self.built = True
        self.copy(weights)

    def copy(self, weights):
        """Take the current values of `weights`. Through NumPy: on JAX two variables must not share a buffer."""
        for held, variable in zip(self.held, weights, strict=True):
            held.assign(ops.convert_to_numpy(variable.value))

    def write(self, weights):
        """Assign the held values to `weights`."""
        for held, variable in zip(self.held, weights, strict=True):
            variable.assign(ops.convert_to_numpy(held.value))

    def values(self, weights):
        """`(variable, held value)` pairs for `keras.StatelessScope`."""
        return [(variable, held.value) for held, variable in zip(self.held, weights, strict=True)]

    def average(self, weights, momentum):
        """Move towards `weights`: `held = m * held + (1 - m) * weights` with `m = min(momentum, t / (t + 9))`.

        `t` counts the calls, so that the first one copies and the start of training is soon forgotten.
        """
        t = ops.cast(self.steps.value, "float32")
        m = ops.minimum(momentum, t / (t + 9.0))
        for held, variable in zip(self.held, weights, strict=True):
            value = ops.stop_gradient(variable.value)
            if keras.backend.is_float_dtype(held.dtype):
                keep = ops.cast(m, held.dtype)
                value = keep * held.value + (1 - keep) * value
            held.assign(value)
        self.steps.assign(self.steps.value + 1)


def _aggregation(variable):
    """How the replicas of `tf.distribute` agree on the average of a variable.

    What is trained is the same on all of them, so Keras' default does, which is not called the same in all versions.
    Statistics (BatchNormalization) are each replica's own in Keras; the teacher should be one network, so it holds
    their mean.

    Returns:
        Arguments of `add_weight`.
    """
    if variable.trainable:
        return {}
    return {"aggregation": "mean" if keras.backend.is_float_dtype(variable.dtype) else "only_first_replica"}
