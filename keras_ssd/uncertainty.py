"""`predict_stochastic`: the uncertainty of a model, from the spread of its own stochastic passes."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops, tree

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.copies import WeightCopies, copied_variables
from keras_ssd.graph import Graph, output_structure
from keras_ssd.keras_names import compile_arguments
from keras_ssd.masks import merge_axes
from keras_ssd.noise import choose_noise
from keras_ssd.output_records import describe_outputs, output_form
from keras_ssd.passes import StochasticPasses
from keras_ssd.settings import check_integer


class StochasticPrediction(NamedTuple):
    """Mean and uncertainty of one output of a model over its stochastic passes, as NumPy arrays.

    Attributes:
        mean: mean over the passes, in the output's shape. For a classification it is the mean of probabilities, also if
            the model returns logits.
        variance: variance over the passes (divided by their number), in the same shape.
        predictive_entropy: entropy of the mean in nats, the total uncertainty. For exclusive classes it has the
            output's shape without the last axis; for binary units the output's shape, with one value for each unit.
            `None` for regression.
        mutual_information: the part of the entropy that comes from disagreement between the passes (BALD), `entropy of
            the mean - mean of the entropies`, in the same shape, between 0 and the entropy. `None` for regression.
    """

    mean: Any
    variance: Any
    predictive_entropy: Any = None
    mutual_information: Any = None


def predict_stochastic(
    model: keras.Model,
    x: Any,
    num_passes: int = 30,
    batch_size: int | None = None,
    seed: int | None = None,
    stochastic_layers: str | Sequence[str] | Callable | None = None,
    dropout_rate: float | None = None,
    loss: Any = None,
    pass_chunk: int | None = None,
    steps: int | None = None,
    verbose: str | int = "auto",
) -> Any:
    """Predict with noise on, many times, and return mean and uncertainty (Monte-Carlo dropout).

    Everything before the first noise layer is evaluated once, the rest once for each pass; everything except the noise
    is in inference mode, BatchNormalization included. The model is not changed: no statistics, no generator, no
    compiled state.

    The compiled loss, or the last activation if there is no loss, defines whether an output holds exclusive classes,
    binary units or a regression, and whether it holds logits. Every call compiles its passes once, so pass all samples
    in one call, not each sample in its own call.

    Args:
        model: a built `keras.Model`, the plain student after loading for example, or an `SSDModel`, which deploys the
            averaged weights if it holds them. A subclassed model is run as a whole for every pass.
        x: inputs, as for `model.predict`: arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset`, a `DataLoader`.
        num_passes: number of passes, at least 2. Defaults to `30`.
        batch_size: samples per batch of arrays. Defaults to `None`: 32, as in `model.predict`.
        seed: integer; the same seed gives the same result for the same batches, independent of earlier calls. Defaults
            to `None`: every call draws other noise, which follows `keras.utils.set_random_seed`.
        stochastic_layers: names of the layers that are random, or a predicate on layers. Defaults to `None`: every
            noise layer except augmentation, which is off. The output of any other layer goes through dropout.
        dropout_rate: rate of this dropout, and of the dropout layers. If it is given, a network without noise layers
            gets dropout before its head (Monte-Carlo dropout). Defaults to `None`: the layers' own rates.
        loss: defines the outputs in place of `compile(loss=...)`: for a model that is not compiled and returns logits,
            `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. Defaults to `None`.
        pass_chunk: number of passes evaluated in one batch; fewer need less memory, with the same result in
            distribution. Defaults to `None`: all, or on a CPU as many as its cache holds.
        steps: number of batches, if `x` never ends. Defaults to `None`.
        verbose: as for `model.predict`. Defaults to `"auto"`.

    Returns:
        A `StochasticPrediction` of NumPy arrays; for several outputs one for each output, in their structure.

    Raises:
        ValueError: if an argument is out of range, the model is not built, or no output depends on a noise layer.

    Example:
        >>> student = keras.models.load_model("student.keras")
        >>> prediction = keras_ssd.predict_stochastic(student, x, num_passes=30, seed=0)
        >>> prediction.mean.argmax(axis=-1)[prediction.predictive_entropy < 0.5]  # a person decides about the others
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` should be a keras.Model. Received: {model!r} of type {type(model).__name__}")
    network = getattr(model, "student", model) if hasattr(model, "_deployed") else model
    compiled_loss = compile_arguments(network).get("loss") if network.compiled else None
    _check(network, num_passes, seed, pass_chunk)
    passes = UncertaintyPasses(
        network, num_passes, stochastic_layers, dropout_rate, compiled_loss if loss is None else loss, pass_chunk
    )
    seed = _backend.derived_seed("predict_stochastic") if seed is None else int(seed)
    with _backend.variable_scope(network), _backend.teacher_scope(seed):
        with model._deployed() if network is not model else contextlib.nullcontext():
            predictor = Predictor(network, passes, seed)
        summaries = predictor.predict(x, batch_size=batch_size, steps=steps, verbose=verbose)
    return tree.pack_sequence_as(passes.structure, [StochasticPrediction(**fields) for fields in summaries])


def _check(model: keras.Model, num_passes: Any, seed: Any, pass_chunk: Any) -> None:
    if not model.built:
        raise ValueError(
            f"`model` is not built: {model.name!r} has no weights yet. Start it with keras.Input(shape), or call it on "
            "a batch or `model.build(input_shape)` first."
        )
    check_integer("num_passes", num_passes, 2, ": a single pass has no spread")
    if seed is not None:
        check_integer("seed", seed, None, " or None")
    if pass_chunk is not None:
        check_integer("pass_chunk", pass_chunk, 1, ", or None for all passes at once")


class UncertaintyPasses:
    """The passes of a network, and the kinds of its outputs.

    A plain object: Keras should not track the network's layers.

    Attributes:
        structure: the structure of the outputs; a subclassed model's is known after its first pass.
    """

    def __init__(
        self,
        model: keras.Model,
        num_passes: int,
        stochastic_layers: Any,
        dropout_rate: float | None,
        loss: Any,
        chunk: int | None,
    ) -> None:
        graph = Graph(model)
        noise = choose_noise(graph, stochastic_layers, dropout_rate, passes="passes")
        self._passes = StochasticPasses(
            graph, noise, graph.outputs, shares_prefix=False, dropout_rate=dropout_rate, passes="passes"
        )
        if not any(self._passes.is_random):
            raise ValueError(
                f"None of the outputs of the model {model.name!r} depends on the noise ({noise.described}), so all "
                "passes would be identical. Choose other layers by `stochastic_layers`."
            )
        self._read_cut = graph.reader(self._passes.cut)
        self._forms: list[str | None] = [] if graph.is_opaque else [output_form(graph, x) for x in graph.outputs]
        self._names = getattr(model, "output_names", None)
        self._num_passes = num_passes
        self._loss = loss
        self._chunk = chunk
        self.structure = None if graph.is_opaque else output_structure(model)

    def run(self, inputs: Any, seed_generator: keras.random.SeedGenerator, weights: Sequence[Any]) -> list[Any]:
        """Return summaries of the passes of one batch, one dict for each output, as a flat list."""
        cut_values = self._read_cut(inputs, training=False)
        results = self._passes.run(cut_values, self._num_passes, seed_generator, weights, self._chunk)
        if self.structure is None:
            # A subclassed model returns one structure of tensors, which is unknown before.
            self.structure = tree.map_structure(lambda _: 0, results[0])
            self._forms = [None] * len(tree.flatten(results[0]))
        structure = tree.map_structure(lambda _: 0, self.structure)
        outputs = describe_outputs(self._forms, structure, self._names, temperature=1.0, loss=self._loss)
        pairs = zip(tree.flatten(results), outputs, strict=True)
        return [summary(values, output.kind, output.from_logits) for values, output in pairs]


class Predictor(keras.Model):
    """The passes as a separate model, so that Keras' own `predict` makes batches, compiles and collects results.

    The network's weights are copied. On JAX, `predict` removes the values of a model while it runs, and an error would
    leave the user's model without values.
    """

    def __init__(self, model: keras.Model, passes: UncertaintyPasses, seed: int) -> None:
        super().__init__(name=f"stochastic_{model.name}", dtype=model.dtype_policy, autocast=False)
        variables = copied_variables(model)
        self.weight_copies = WeightCopies(variables, name="weight_copies")
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.jit_compile = model.jit_compile
        self.run_eagerly = model.run_eagerly
        self._run = lambda x: passes.run(x, self.seed_generator, self.weight_copies.values(variables))
        self.built = True

    def call(self, inputs: Any) -> Any:
        return self._run(inputs)


def summary(values: Tensor, kind: str, from_logits: bool = False) -> dict[str, Tensor]:
    """Return mean and uncertainty of one output, as a dict of the fields of `StochasticPrediction`.

    Args:
        values: outputs of the passes, `(batch, passes, ...)`.
        kind: `"categorical"` (over the last axis), `"binary"` or `"regression"`.
        from_logits: whether a classification's values are logits, not probabilities.
    """
    values = _backend.wide(values)
    if from_logits:
        # TensorFlow's softmax takes at most five axes.
        flat = merge_axes(values, 0, len(values.shape) - 1)
        values = ops.sigmoid(values) if kind == "binary" else ops.reshape(ops.softmax(flat, axis=-1), ops.shape(values))
    mean = ops.mean(values, axis=1)
    fields = {"mean": mean, "variance": ops.mean(ops.square(values - ops.expand_dims(mean, 1)), axis=1)}
    if kind == "regression":
        return fields
    entropy = _entropy(mean, kind)
    within = ops.mean(_entropy(values, kind), axis=1)
    return {**fields, "predictive_entropy": entropy, "mutual_information": ops.maximum(entropy - within, 0.0)}


def _entropy(probabilities: Tensor, kind: str) -> Tensor:
    if kind == "binary":
        return -_x_log_x(probabilities) - _x_log_x(1.0 - probabilities)
    return -ops.sum(_x_log_x(probabilities), axis=-1)


def _x_log_x(x: Tensor) -> Tensor:
    """Return `x log x`, which is 0 at 0."""
    return x * ops.log(ops.maximum(x, 1e-30))
