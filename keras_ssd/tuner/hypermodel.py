"""A search space over distillations of the model that the user's build function returns."""

import copy
import hashlib
import inspect
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import keras
import keras_tuner
import numpy as np

from keras_ssd.compiled import compile_arguments, copied
from keras_ssd.graph import is_functional
from keras_ssd.model import SSDModel
from keras_ssd.teachers import resolve_kind
from keras_ssd.tuner.space import PARAMETERS, checked_space, sample
from keras_ssd.wrapping import wrap


class SSDHyperModel(keras_tuner.HyperModel):
    """A search space: the user's own model, with and without distillation.

    The hyper-parameters of the user's model are joined by those of the distillation, which have the prefix `ssd_`:

    | name | searched by default | exists |
    |---|---|---|
    | `ssd_distill` | no, yes | always; "no" is the plain model, bit for bit |
    | `ssd_similarity` | all, or `"kl"` and `"uniform"` for a subclassed model | if distilled |
    | `ssd_num_teachers` | 2 to 32, logarithmic | if distilled |
    | `ssd_kd_weight` | a tenth to ten times the default of the teacher, logarithmic | if distilled |
    | `ssd_temperature` | 1 to 10, logarithmic | if distilled, and outputs are distilled or compared |
    | `ssd_dropout_rate` | 0.05 to 0.6 | if distilled |
    | `ssd_guidance_temperature` | a tenth to ten times that of the similarities, logarithmic | if guided |
    | `ssd_percentile` | 0 to 95 | if guided, i.e. the similarity is not `"uniform"` |

    The defaults are those of `keras_ssd.wrap`; `ssd_distill` defaults to no. A hyper-parameter with a fixed value is
    listed, too.

    With `teacher="snapshot"` the plain stage is trained once per search, not once per trial. The first trial trains the
    user's model with early stopping and keeps the weights in the project's directory. All trials, including undistilled
    trials, continue from these weights with a fresh optimizer. The undistilled trial is therefore a fair control: it is
    trained for the same number of epochs. If the user's build function has its own hyper-parameters, each combination
    of them has its own plain stage. Workers that start at the same time may each train it, but all use the same
    weights.

    `get_best_models` of a tuner returns `SSDModel`s; deploy their `student`.

    Args:
        hypermodel: a function `build(hp)`, or a `keras_tuner.HyperModel`, that returns a compiled, plain model. If the
            model has no noise layer, `dropout_rate` must be part of the space, as it is by default. If the HyperModel
            has a `fit`, it is used.
        teacher: as for `keras_ssd.wrap`. Defaults to `"self"`.
        space: dict from a name (without the prefix) to its range: a tuple `(min, max)`, a list of choices, a single
            value to fix, or `None` for the default of `keras_ssd.wrap`. Defaults to `None`, the table above.
        snapshot_epochs: maximum number of epochs of the plain stage. `keras_tuner.Hyperband` needs it, because its
            first trials are short. Defaults to `None`: the number of epochs of a trial.
        **options: further arguments of `keras_ssd.wrap`, the same for all distilled trials.

    Raises:
        ValueError: if an argument is wrong. When a tuner is made: if the model is not compiled, is wrapped already, or
            cannot be distilled.

    Example:
        >>> hypermodel = keras_ssd.tuner.SSDHyperModel(build, space={"num_teachers": [4, 8], "percentile": None})
        >>> tuner = keras_tuner.RandomSearch(hypermodel, "val_accuracy", max_trials=20)
        >>> keras_ssd.tuner.search(tuner, x, y, validation_data=(x_val, y_val), epochs=50)
        >>> student = tuner.get_best_models()[0].student
    """

    def __init__(
        self,
        hypermodel: "keras_tuner.HyperModel | Callable[[keras_tuner.HyperParameters], keras.Model]",
        teacher: Any = "self",
        space: dict[str, Any] | None = None,
        snapshot_epochs: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(hypermodel, SSDHyperModel):
            raise ValueError("`hypermodel` is an SSDHyperModel already. Pass the build function of the plain model.")
        if not isinstance(hypermodel, keras_tuner.HyperModel) and not callable(hypermodel):
            raise ValueError(
                "`hypermodel` should be a function `build(hp)` that returns a compiled model, or a "
                f"keras_tuner.HyperModel. Received: {hypermodel!r} of type {type(hypermodel).__name__}"
            )
        self.hypermodel = hypermodel
        self.teacher = teacher
        self.kind, _ = resolve_kind(teacher)
        self.space = checked_space(self.kind, space)
        self.snapshot_epochs = snapshot_epochs
        self.options = _checked_options(options)
        self._build_plain = hypermodel.build if isinstance(hypermodel, keras_tuner.HyperModel) else hypermodel
        self.start_search()

    def start_search(self, objectives: Iterable[str] = (), directory: str | os.PathLike[str] | None = None) -> None:
        """Forget the state of an earlier search. `search` calls it.

        Args:
            objectives: names of values that every trial has to report.
            directory: folder in which plain stages are kept. Defaults to `None`: in the memory of this process only.
        """
        self._objectives = tuple(objectives)
        self._directory = None if directory is None else pathlib.Path(directory)
        self._plain_weights: dict[str, list[np.ndarray]] = {}

    @property
    def fits(self) -> bool:
        """Return whether the user's HyperModel has a `fit` of its own."""
        return isinstance(self.hypermodel, keras_tuner.HyperModel) and (
            type(self.hypermodel).fit is not keras_tuner.HyperModel.fit
        )

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        if isinstance(self.hypermodel, keras_tuner.HyperModel):
            self.hypermodel.declare_hyperparameters(hp)

    def build(self, hp: keras_tuner.HyperParameters) -> SSDModel:
        """Build the user's model and wrap it.

        Args:
            hp: a `keras_tuner.HyperParameters`.

        Returns:
            A compiled `SSDModel`.
        """
        model = self._build_plain(hp)
        _check_built(model)
        distill = hp.Boolean("ssd_distill", default=False)
        with hp.conditional_scope("ssd_distill", [True]):
            options = sample(hp, self.kind, self.space, self.options, is_functional(model))
        try:
            # Plain is plain for every teacher: no moving average, no frozen copy.
            ssd = wrap(model, teacher=self.teacher, **options) if distill else wrap(model, kd_weight=0)
        except ValueError as error:
            # Fatal, because the same error would come again in other trials; their tracebacks are only printed.
            raise keras_tuner.errors.FatalValueError(
                f"{error} (The trial has {options}; use `space` to fix or drop options that do not fit, for example "
                'space={"similarity": "kl"}.)'
            ) from error
        # Weights are loaded into this model, and both are saved: without the optimizers' variables Keras warns.
        for network in (ssd, ssd.student):
            network.optimizer.build(network.trainable_variables)
        return ssd

    def fit(self, hp: keras_tuner.HyperParameters, model: SSDModel, *args: Any, **kwargs: Any) -> Any:
        """Train a trial, with the user's `HyperModel.fit` if there is one.

        Args:
            hp: a `keras_tuner.HyperParameters`.
            model: the `SSDModel` that was built for it.
            *args: arguments of `search`.
            **kwargs: arguments of `search`, and the callbacks of Keras Tuner.

        Returns:
            The result of the user's `fit`, by default a `History`.
        """
        # Hyperband continues an earlier trial, whose weights were loaded.
        goes_on = "tuner/trial_id" in hp.values
        if self.kind == "snapshot" and not goes_on:
            model.student.set_weights(self._plain_stage(hp, model, args, kwargs))
            if model._distills:
                model.take_snapshot()
        if not model._distills:
            kwargs["callbacks"] = _without_teachers(kwargs.get("callbacks"))
        results = self._fit(hp, model, *args, **kwargs)
        self._check_reported(results)
        return results

    def _fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        return self.hypermodel.fit(hp, model, *args, **kwargs) if self.fits else model.fit(*args, **kwargs)

    def _plain_stage(
        self, hp: keras_tuner.HyperParameters, model: SSDModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[np.ndarray]:
        """Return the weights of the plain stage for the hyper-parameters of the user's model; train it if needed."""
        own = keras_tuner.HyperParameters()
        own.values = dict(hp.values)
        plain = self._build_plain(own)
        values = {entry.name: own.values[entry.name] for entry in own.space if own.is_active(entry)}
        key = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
        if key in self._plain_weights:
            return self._plain_weights[key]
        path = None if self._directory is None else self._directory / f"ssd_plain_{key}.npz"
        if path is None or not path.exists():
            # The tuner's overrides (optimizer, loss, metrics) apply here, too.
            plain.compile(**copied(compile_arguments(model)))
            self._fit(hp, plain, *args, **self._plain_arguments(kwargs))
            weights = plain.get_weights()
            if path is not None:
                write_once(path, weights)
        if path is not None:
            with np.load(path) as stored:
                weights = [stored[f"arr_{i}"] for i in range(len(stored.files))]
        self._plain_weights[key] = weights
        return weights

    def _plain_arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs = {name: value for name, value in kwargs.items() if name != "initial_epoch"}
        if self.snapshot_epochs is not None:
            kwargs["epochs"] = self.snapshot_epochs
        validated = "validation_data" in kwargs or "validation_split" in kwargs
        early = keras.callbacks.EarlyStopping(
            monitor="val_loss" if validated else "loss",
            patience=max(1, min(20, kwargs.get("epochs", 1) // 4)),
            restore_best_weights=True,
        )
        users = [
            copy.deepcopy(callback)
            for callback in _without_teachers(kwargs.get("callbacks"))
            if type(callback).__module__.partition(".")[0] not in ("keras_tuner", "tensorboard")
        ]
        return {**kwargs, "callbacks": [*users, early]}

    def _check_reported(self, results: Any) -> None:
        if isinstance(results, keras.callbacks.History):
            results = results.history
        if isinstance(results, dict):
            check_objectives(self._objectives, list(results))


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    allowed = set(inspect.signature(wrap).parameters) - {"model", "teacher", *PARAMETERS}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ValueError(
            f"`options` should be among {sorted(allowed)}; each hyper-parameter of the search belongs in `space`. "
            f"Received: {unknown}"
        )
    return options


def _check_built(model: object) -> None:
    if isinstance(model, SSDModel):
        raise keras_tuner.errors.FatalValueError(
            "The build function returned a model that is wrapped already (an SSDModel). Return the plain, compiled "
            "model: SSDHyperModel wraps it."
        )
    if not isinstance(model, keras.Model):
        raise keras_tuner.errors.FatalValueError(
            f"The build function should return a compiled keras.Model. Received: {model!r} of type "
            f"{type(model).__name__}"
        )
    if not model.compiled:
        raise keras_tuner.errors.FatalValueError(
            f"The build function should return a compiled model. Received: {model.name!r}, which is not compiled. Call "
            "`model.compile(...)` before you return it; `optimizer`, `loss` and `metrics` of the tuner override it."
        )


def check_objectives(names: Iterable[str], reported: Collection[str]) -> None:
    """Raise unless a trial reports every objective.

    Args:
        names: names of the objectives.
        reported: names of the values that a trial reports.

    Raises:
        keras_tuner.errors.FatalValueError: if a name is not reported.
    """
    missing = [name for name in names if name not in reported]
    if missing:
        raise keras_tuner.errors.FatalValueError(
            f"`objective` should be a value that every trial reports. Received: objective={missing[0]!r}; the trials "
            f"report {sorted(reported)}. Name one of them, add it to the metrics of `compile`, or pass validation data."
        )


def _without_teachers(callbacks: Iterable[keras.callbacks.Callback] | None) -> list[keras.callbacks.Callback]:
    """Return the callbacks that a plain model can have."""
    return [callback for callback in callbacks or [] if not getattr(callback, "needs_teachers", False)]


def write_once(path: pathlib.Path, weights: Sequence[np.ndarray]) -> None:
    """Write weights to a file that other processes see completely or not at all; an existing file stays.

    Args:
        path: a `pathlib.Path`, ending in `.npz`.
        weights: list of arrays.
    """
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, *weights)
    if path.exists():
        temporary.unlink()
    else:
        os.replace(temporary, path)
