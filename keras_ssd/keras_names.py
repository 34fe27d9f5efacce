"""Names that Keras does not export, and differences between its versions, each with a test of its own."""

import contextlib
import functools
import itertools
from typing import Any

import keras


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Return the objects that `model.compile` was called with, as keyword arguments.

    The exported `get_compile_config` serialises them, which loses functions and classes that are not registered.
    """
    return dict(model._compile_config.config)


def compile_record(model: keras.Model) -> Any:
    """Return the record of a model's last `compile`, a new object each time; `None` if it was never compiled."""
    return getattr(model, "_compile_config", None) if model.compiled else None


def loss_argument(loss: Any, name: str) -> Any:
    """Return an argument that a loss was made with, `None` if it has none of this name.

    From Keras 3.16 on some losses hold it in their configuration only, before as an attribute.
    """
    if not hasattr(loss, name) and isinstance(loss, keras.losses.Loss):
        with contextlib.suppress(Exception):  # not every loss of a user's has a configuration
            return loss.get_config().get(name)
    return getattr(loss, name, None)


def note_input_shape(model: Any, shape: Any) -> None:
    """Note the shape of a single input, which TensorFlow's converters read, as `build` does, but for its lock.

    After `build` a subclass could add no variables.
    """
    if isinstance(shape, tuple):
        vars(model)["_build_shapes_dict"] = {"input_shape": shape}


def share_compiled(source: keras.Model, target: keras.Model, metrics: bool = True) -> None:
    """Let a compiled model use the loss, its mean and (if wanted) the metrics of another one that was compiled alike.

    `compile` wraps what it is given in new objects, which know the metrics that were given by name.
    """
    names = ["_compile_loss", "_loss_tracker", *(["_compile_metrics"] if metrics else [])]
    vars(target).update({name: getattr(source, name) for name in names})  # untracked, as in `compile`


def learning_rate_schedule(optimizer: Any) -> Any:
    """Return the schedule (or callable) that gives an optimizer's learning rate; `None` if there is none."""
    rate = _learning_rate(optimizer)
    return rate if callable(rate) and not isinstance(rate, keras.Variable) else None


def constant_learning_rate(optimizer: Any) -> float | None:
    """Return the learning rate of an optimizer; `None` if a schedule, a callable or several optimizers give it."""
    rate = _learning_rate(optimizer)
    return float(keras.ops.convert_to_numpy(rate)) if isinstance(rate, keras.Variable) else None


def _learning_rate(optimizer: Any) -> Any:
    if isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):  # newer than the oldest version
        return None
    return getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None)


def trained_state(model: keras.Model, result: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """Split the result of `train_step` on JAX, which holds the new state; the model does not have it yet.

    Returns `(variable, new value)` pairs of all variables of the model, and a function that returns the result with
    other values of the non-trainable variables.
    """
    logs, (trainable, non_trainable, *others) = result
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    pairs = list(zip(variables, [*trainable, *non_trainable], strict=True))
    return pairs, lambda values: (logs, (trainable, values, *others))


def check_mode() -> None:
    """Raise `RuntimeError` in Keras' NNX mode, in which a layer must not refer to the variables of another."""
    if getattr(keras.config, "is_nnx_enabled", lambda: False)():  # newer than the oldest version
        raise RuntimeError(
            "keras_ssd does not work in Keras' NNX mode. Unset KERAS_NNX_ENABLED (or call "
            "keras.config.disable_nnx()) before importing Keras, and use the JAX backend as usual."
        )


def no_rematerialization() -> Any:
    """Return the context in which new layers do not recompute their calls, also within a `keras.RematScope`."""
    return keras.RematScope(mode=None) if hasattr(keras, "RematScope") else contextlib.nullcontext()  # not in 3.8


@functools.cache
def graph_fixes_training() -> bool:
    """Return whether `training`, given to a layer in a functional graph, wins over the `training` of the model's call.

    It does from Keras 3.16 on: `base(x, training=False)` keeps a backbone in inference mode while `fit` trains the
    rest. In earlier versions the value of `fit` wins.
    """
    called_with = []

    class Probe(keras.layers.Layer):
        def call(self, x: Any, training: bool | None = None) -> Any:
            called_with.append(training)
            return x

    inputs = keras.Input((1,), name="keras_ssd_input")
    outputs = Probe(name="keras_ssd_probe")(inputs, training=False)
    model = keras.Model(inputs, outputs, name="keras_ssd_model")
    model(keras.ops.zeros((1, 1)), training=True)
    return called_with[-1] is False


def is_of_keras(item: Any) -> bool:
    """Return whether a class or function is Keras' own."""
    return package_of(item) == "keras"


def package_of(item: Any) -> str:
    """Return the top-level package that defines a class or function."""
    return str(getattr(item, "__module__", "")).partition(".")[0]


@functools.cache
def functional_class() -> Any:
    """Return the class of functional models, which Keras exports as `keras.Model` only."""
    inputs = keras.Input((1,), name="keras_ssd_input")
    return type(keras.Model(inputs, inputs, name="keras_ssd_model"))


@functools.cache
def model_classes() -> frozenset:
    """Return the classes whose methods every plain model has: `keras.Model`, its two graph models, their bases."""
    return frozenset(c for kind in (keras.Model, keras.Sequential, functional_class()) for c in kind.__mro__)


def _is_kind(item: Any, package: str, *names: str) -> bool:
    """Return whether an object is of a class of a package, or of a subclass, by the name of the class."""
    return any(package_of(c) == package and c.__name__ in names for c in type(item).__mro__)


def is_hub_task(model: Any) -> bool:
    """Return whether a model is a task of KerasHub, whose `fit` and `predict` run a preprocessor."""
    return _is_kind(model, "keras_hub", "Task", "PipelineModel")


def is_conv_lstm_cell(layer: Any) -> bool:
    """Return whether a layer is the cell of `keras.layers.ConvLSTM1D`, `ConvLSTM2D` or `ConvLSTM3D`."""
    return _is_kind(layer, "keras", "ConvLSTMCell")


def automatic_mask(x: Any) -> Any:
    """Return the mask that Keras passes on with a tensor; `None` if it has none."""
    return getattr(x, "_keras_mask", None)


def is_graph_node(item: Any) -> bool:
    """Return whether an object is a node of a functional model's graph, which refers to a layer by `operation`."""
    return _is_kind(item, "keras", "Node")


# Operations that compute every value from the values at the same place.
_ELEMENTWISE = frozenset(
    "Absolute Add Clip Cos Divide Exp Expm1 Floor Gelu LeakyRelu Log Log1p Maximum Minimum Multiply Negative Power "
    "Relu Round Sigmoid Sign Silu Sin Softplus Sqrt Square Subtract Tanh TrueDivide".split()
)


def is_elementwise(operation: Any) -> bool:
    """Return whether an operation of `keras.ops` in a graph computes every value from those at the same place."""
    return is_of_keras(type(operation)) and type(operation).__name__ in _ELEMENTWISE


def slices_within_rows(operation: Any, args: tuple[Any, ...]) -> bool:
    """Return whether an operation is `x[:, ...]`, which takes parts of every row; `args` are those of the call."""
    is_slice = _is_kind(operation, "keras", "GetItem") and isinstance(args[-1], tuple)
    return is_slice and args[-1][:1] == (slice(None),)


class _NumberedSeed(int):
    """The seed of `keras.utils.set_random_seed`, with the number of that call."""

    number: int


_numbers = itertools.count()


def seeding_number() -> int | None:
    """Return a number that changes with each call of `keras.utils.set_random_seed` in this thread.

    A seed that was set again has the same value, and so has the state of every generator. So the seed that Keras stores
    is replaced by an equal one with a number, which the next call overwrites. The number is -1 before the first call,
    and `None` in versions of Keras that store no seed, such as 3.8.
    """
    if "set_global_attribute" not in keras.utils.set_random_seed.__code__.co_names:
        return None
    try:
        from keras.src.backend.common import global_state
    except ImportError:
        return None
    seed = global_state.get_global_attribute("global_random_seed")
    if seed is None:
        return -1
    if not isinstance(seed, _NumberedSeed):
        seed = _NumberedSeed(seed)
        seed.number = next(_numbers)
        global_state.set_global_attribute("global_random_seed", seed)
    return seed.number
