"""What a model is compiled with, and copies of it for a second model: the same settings, a state of their own.

Attributes that Keras does not export are read here: `_compile_config`, `_learning_rate`, `_fn`, `_fn_kwargs`, and those
of `exclude_from_weight_decay`.
"""

import inspect
from typing import Any

import keras
from keras import ops

# Optimizers keep these outside of their configuration, if `exclude_from_weight_decay` was called.
_NOT_DECAYED = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
_COPIED = (keras.optimizers.Optimizer, keras.metrics.Metric)


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Return the objects that `model.compile` was called with, as keyword arguments (`_compile_config`: not exported).

    The exported `get_compile_config` serialises them, which loses functions and classes that are not registered.
    """
    return dict(model._compile_config.config)


def compile_record(model: keras.Model) -> Any:
    """Return the record of a model's last `compile`, a new object each time; `None` if it was never compiled."""
    return getattr(model, "_compile_config", None) if model.compiled else None


def restore_compiled(model: keras.Model) -> None:
    """Compile a model again: in Keras 3.6, compiling a model around it removes its loss tracker and metrics."""
    if model.compiled and getattr(model, "_loss_tracker", True) is None:
        settings = compile_arguments(model)
        settings.pop("optimizer", None)
        model.compile(optimizer=model.optimizer, **copied(settings))


def copied(settings: Any) -> Any:
    """Return compile arguments for a second model: optimizers and metrics are made anew, all else is shared.

    What their configuration lacks is taken from the object: schedules, functions, excluded weights, and arguments of a
    user's class that its `get_config` does not return but that it keeps in attributes of the same name.

    Raises:
        ValueError: if an optimizer or metric cannot be made anew, or only with other settings.
    """
    if isinstance(settings, dict):
        return {name: copied(value) for name, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [copied(value) for value in settings]
    if not isinstance(settings, _COPIED):
        return settings
    try:
        return _copied_metric(settings) if isinstance(settings, keras.metrics.Metric) else _copied_optimizer(settings)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"`model` is compiled with an object that cannot be copied: {settings!r} has no usable `get_config` "
            f"({error}). Define `get_config` (it returns every argument of `__init__`), or make the wrapper with "
            "keras_ssd.SSDModel(model, ...), which copies nothing, and compile the wrapper."
        ) from error


def constant_learning_rate(optimizer: keras.optimizers.Optimizer) -> float | None:
    """Return the learning rate of an optimizer, `None` if a schedule, a callable or several optimizers give it."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):  # of newer Keras
        return None
    rate = vars(optimizer).get("_learning_rate")
    return None if rate is None or _computes(rate) else float(ops.convert_to_numpy(rate))


def _computes(learning_rate: Any) -> bool:
    """Return whether a learning rate is a schedule or a callable."""
    return callable(learning_rate) and not isinstance(learning_rate, keras.Variable)


def _copied_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    inner = getattr(optimizer, "inner_optimizer", None)
    rate = vars(optimizer).get("_learning_rate")
    replaced = {"_learning_rate": ops.convert_to_tensor(0.0)} if _computes(rate) else {}
    if inner is not None:
        replaced["inner_optimizer"] = keras.optimizers.SGD()
    config, fixed = _config(optimizer, replaced)
    if inner is None:
        copy = type(optimizer).from_config(config)
    else:
        config.pop("inner_optimizer")
        copy = type(optimizer)(_copied_optimizer(inner), **config)
    fixed.pop("name", None)  # numbered by Keras, and shown nowhere
    if _computes(rate):
        copy.learning_rate = rate
        fixed.pop("learning_rate", None)
    _check_fixed(copy, fixed)
    for name in _NOT_DECAYED:
        if name in vars(optimizer):
            setattr(copy, name, getattr(optimizer, name))
    return copy


def _copied_metric(metric: keras.metrics.Metric) -> keras.metrics.Metric:
    is_function = isinstance(metric, keras.metrics.MeanMetricWrapper)
    config, fixed = _config(metric, {"_fn": keras.losses.mean_squared_error} if is_function else {})
    if is_function and "fn" in config:
        own = {"fn": metric._fn, **metric._fn_kwargs}  # the function itself, which may be a lambda
        names = _arguments(type(metric))
        if "fn" not in names:  # a user's class that gives `MeanMetricWrapper` its function
            config, own = {name: config[name] for name in config if name in names or name not in own}, {}
        return type(metric)(**config | own)
    copy = type(metric).from_config(config)
    _check_fixed(copy, fixed)
    return copy


def _config(original: Any, replaced: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration of an object, with the arguments of `__init__` that its `get_config` does not return.

    These are taken from attributes of the same name.

    Args:
        original: an optimizer or metric.
        replaced: attributes to be ignored, with values in their place: what may not be serialised.

    Returns:
        The configuration that `__init__` takes, and that which a user's `__init__` does not take, but fixes.

    Raises:
        ValueError: if an argument of a user's class is in no attribute.
    """
    attributes = vars(original)
    stand_in = object.__new__(type(original))
    vars(stand_in).update(attributes | replaced)
    config = dict(stand_in.get_config())
    for cls in type(original).__mro__:
        if is_of_keras(cls):
            # In Keras' own classes this concerns arguments of a metric's function (the axis of `CosineSimilarity`).
            kept = attributes.get("_fn_kwargs", {})
            return config | {name: kept[name] for name in _arguments(cls) if name in kept and name not in config}, {}
        if "__init__" not in vars(cls):
            continue
        for name in _arguments(cls):
            if name in config:
                continue
            attribute = next((key for key in (name, f"_{name}") if key in attributes), None)
            if attribute is None or isinstance(attributes[attribute], keras.Variable):
                raise ValueError(f"it does not return the argument {name!r}, and no attribute holds it")
            value = attributes[attribute]
            config[name] = copied(value) if isinstance(value, _COPIED) else value
        if not _takes_more(cls):
            taken = _arguments(cls) if is_of_keras(type(original).get_config) else list(config)
            return {n: config[n] for n in config if n in taken}, {n: config[n] for n in config if n not in taken}
    return config, {}


def _check_fixed(copy: Any, fixed: dict[str, Any]) -> None:
    """Raise if what `__init__` fixes is another value in the copy."""
    config = copy.get_config() if fixed else {}
    for name, value in fixed.items():
        if config.get(name) != value:
            raise ValueError(f"its `__init__` does not take {name!r}, which is {value!r} here")


def is_of_keras(item: Any) -> bool:
    """Return whether a class or function is Keras' own."""
    return item.__module__.partition(".")[0] == "keras"


def _arguments(cls: type) -> list[str]:
    """Return the names of the arguments of a class, without `*args` and `**kwargs`."""
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"]


def _takes_more(cls: type) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls.__init__).parameters.values())  # type: ignore[misc]
