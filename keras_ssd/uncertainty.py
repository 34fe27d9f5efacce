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
from keras_ssd.keras_names import check_mode, compile_arguments
from keras_ssd.masks import merge_axes
from keras_ssd.noise import choose_noise
from keras_ssd.output_records import OutputRecords
from keras_ssd.passes import StochasticPasses
from keras_ssd.settings import check_integer
from keras_ssd.untracked import Untracked


class StochasticPrediction(NamedTuple):
    """Mean and uncertainty of one output of a model over its stochastic passes, as NumPy arrays.

    Attributes:
        mean: mean over the passes, in the output's shape; of the probabilities if a classifier returns logits.
        variance: variance over the passes (divided by their number), in the same shape.
        predictive_entropy: entropy of the mean in nats, the total uncertainty, in the output's shape; for exclusive
            classes without the last axis. `None` for regression.
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

    The layers before the first noise layer are evaluated once, the rest once for each pass; everything except the noise
    is in inference mode, BatchNormalization included. The model is not changed.

    The compiled loss, or the last activation if there is no loss, defines whether an output holds exclusive classes,
    binary units or a regression, and whether it holds logits. Every call compiles its passes once, so pass all samples
    in one call.

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
        ValueError: if an argument is out of range, the model is not built, no output depends on a noise layer, or an
            output that classifies has negative values.

    Example:
        >>> student = keras.models.load_model("student.keras")
        >>> prediction = keras_ssd.predict_stochastic(student, x, num_passes=30, seed=0)
        >>> prediction.mean.argmax(axis=-1)[prediction.predictive_entropy < 0.5]  # a person decides about the others
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` should be a keras.Model. Received: {model!r} of type {type(model).__name__}")
    check_mode()
    network = getattr(model, "student", model) if hasattr(model, "_deployed") else model
    if not network.built:
        raise ValueError(
            f"`model` is not built: {network.name!r} has no weights yet. Start it with keras.Input(shape), or call it "
            "on a batch or `model.build(input_shape)` first."
        )
    check_integer("num_passes", num_passes, 2, ": a single pass has no spread")
    check_integer("seed", seed, None, " or None", optional=True)
    check_integer("pass_chunk", pass_chunk, 1, ", or None for all passes at once", optional=True)
    if loss is None and network.compiled:
        loss = compile_arguments(network).get("loss")
    seed = _backend.derived_seed("predict_stochastic") if seed is None else int(seed)
    with _backend.variable_scope(network), _backend.teacher_scope(seed):
        with model._deployed() if network is not model else contextlib.nullcontext():
            predictor = Predictor(network, num_passes, seed, stochastic_layers, dropout_rate, loss, pass_chunk)
        summaries = predictor.predict(x, batch_size=batch_size, steps=steps, verbose=verbose)
    for number, fields in enumerate(summaries):
        if "predictive_entropy" in fields and (fields["mean"] < -1e-3).any():
            raise ValueError(
                f"Output {number} of {network.name!r} is a classification by its loss or activation, so it should hold "
                f"probabilities. Received: values down to {fields['mean'].min():.4g}. If these are logits, compile "
                "with a loss that has from_logits=True, or pass such a `loss`; for mean and variance only pass "
                'loss="mse".'
            )
    structure = predictor.structure.content
    return tree.pack_sequence_as(structure, [StochasticPrediction(**fields) for fields in summaries])


class Predictor(keras.Model):
    """The passes as a separate model, so that Keras' own `predict` makes batches, compiles and collects results.

    The network's weights are copied: on JAX, `predict` removes the values of a model while it runs, and an error would
    leave the user's model without values. The arguments are those of `predict_stochastic`.
    """

    def __init__(
        self,
        model: keras.Model,
        num_passes: int,
        seed: int,
        stochastic_layers: Any = None,
        dropout_rate: float | None = None,
        loss: Any = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__(name=f"stochastic_{model.name}", dtype=model.dtype_policy, autocast=False)
        graph = Graph(model)
        noise = choose_noise(graph, stochastic_layers, dropout_rate, passes="passes")
        passes = StochasticPasses(
            graph, noise, graph.outputs, shares_prefix=False, dropout_rate=dropout_rate, passes="passes"
        )
        if not any(passes.is_random):
            raise ValueError(
                f"None of the outputs of the model {model.name!r} depends on the noise ({noise.described}), so all "
                "passes would be identical. Choose other layers by `stochastic_layers`."
            )
        records, read_cut = OutputRecords(model, graph, temperature=1.0), graph.reader(passes.cut)
        records.note_compile(loss)
        self.structure = Untracked(None if graph.is_opaque else output_structure(model))
        variables = copied_variables(model)
        self.weight_copies = WeightCopies(variables, name="weight_copies")
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.jit_compile, self.run_eagerly = model.jit_compile, model.run_eagerly

        def run(x: Any) -> list[Any]:
            weights, cut_values = self.weight_copies.values(variables), read_cut(x, training=False)
            results = passes.run(cut_values, num_passes, self.seed_generator, weights, chunk)
            if not records.are_known:
                # A subclassed model returns one structure of tensors, which is unknown before.
                records.describe(tree.map_structure(lambda x: x[:, 0], results[0]))
                self.structure.content = tree.map_structure(lambda _: 0, results[0])
            pairs = zip(tree.flatten(results), records.describe(), strict=True)
            return [summary(values, output.kind, output.from_logits) for values, output in pairs]

        # In a closure, because Keras would track the network's layers.
        self._run = run
        self.built = True

    def call(self, inputs: Any) -> Any:
        return self._run(inputs)


def summary(values: Tensor, kind: str, from_logits: bool = False) -> dict[str, Tensor]:
    """Return the fields of `StochasticPrediction` for the outputs of the passes, `(batch, passes, ...)`.

    The `kind`, and `from_logits` for a classification, are those of `keras_ssd.outputs.Output`.
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
    entropy, within = entropies(mean, kind), ops.mean(entropies(values, kind), axis=1)
    return {**fields, "predictive_entropy": entropy, "mutual_information": ops.maximum(entropy - within, 0.0)}


def entropies(probabilities: Tensor, kind: str) -> Tensor:
    """Return the entropy of each distribution in nats: over the last axis, or of each unit if the kind is binary."""
    if kind == "binary":
        probabilities = ops.stack([probabilities, 1.0 - probabilities], axis=-1)
    return -ops.sum(probabilities * ops.log(ops.maximum(probabilities, 1e-30)), axis=-1)
