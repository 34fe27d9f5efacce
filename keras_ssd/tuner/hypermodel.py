"""A search space over distillations of the model that the user's build function returns."""

import copy
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import keras_tuner
import numpy as np

from keras_ssd.files import written_beside
from keras_ssd.graph import is_functional
from keras_ssd.keras_names import compile_arguments
from keras_ssd.model import SSDModel
from keras_ssd.settings import OPTIONS, resolve
from keras_ssd.teachers import resolve_kind
from keras_ssd.tuner.space import PARAMETERS, checked_space, sample
from keras_ssd.wrapping import wrap


class SSDHyperModel(keras_tuner.HyperModel):
    """A search space: the user's own model, with and without distillation and averaging.

    The hyper-parameters of the user's model are joined by those of the distillation, which have the prefix `ssd_`:

    | name | searched by default | exists |
    |---|---|---|
    | `ssd_distill` | no, yes | always |
    | `ssd_average` | no, yes | if not distilled and the teacher's default, or `ema_momentum`, averages the weights |
    | `ssd_similarity` | all, or `"kl"` and `"uniform"` for a subclassed model | if distilled |
    | `ssd_num_teachers` | 2 to 32, logarithmic | if distilled |
    | `ssd_kd_weight` | a tenth to ten times the default of the teacher, logarithmic | if distilled |
    | `ssd_temperature` | 1 to 10, logarithmic | if distilled, and outputs are distilled or compared |
    | `ssd_dropout_rate` | 0.05 to 0.6 | if distilled |
    | `ssd_guidance_temperature` | a tenth to ten times that of the similarities, logarithmic | if guided |
    | `ssd_percentile` | 0 to 95 | if guided, i.e. the similarity is not `"uniform"` |

    A trial without both is the plain model, bit for bit; with `ssd_average` it is averaging alone, the control of
    distilled trials that average. The defaults are those of `keras_ssd.wrap`; `ssd_distill` and `ssd_average` default
    to no. A fixed value is listed, too.

    With `teacher="snapshot"` the plain stage is trained with early stopping, once for each combination of the user's
    own hyper-parameters. All trials, including undistilled ones, which are the control, continue from its weights with
    a fresh optimizer. `get_best_models` of a tuner returns `SSDModel`s; deploy their `student`.

    Args:
        hypermodel: a function `build(hp)`, or a `keras_tuner.HyperModel` (with its own `fit`, if it has one), that
            returns a compiled, plain model. A model without noise layers needs `dropout_rate` in the space.
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
        own: Any = hypermodel
        if isinstance(own, SSDHyperModel) or not (isinstance(own, keras_tuner.HyperModel) or callable(own)):
            raise ValueError(
                "`hypermodel` should be a function `build(hp)` that returns a compiled, plain model, or a "
                f"keras_tuner.HyperModel. Received: {hypermodel!r} of type {type(hypermodel).__name__}"
            )
        if unknown := set(options) - (set(OPTIONS) - set(PARAMETERS)):
            raise ValueError(
                "`options` should be arguments of keras_ssd.wrap; each hyper-parameter of the search belongs in "
                f"`space`. Received: {sorted(unknown)}"
            )
        if not isinstance(own, keras_tuner.HyperModel):
            own = keras_tuner.HyperModel()
            own.build = hypermodel
        self.hypermodel, self.teacher, self.snapshot_epochs, self.options = own, teacher, snapshot_epochs, options
        self.kind, _ = resolve_kind(teacher)
        self.space = checked_space(self.kind, space)
        self._momentum = resolve(self.kind, ema_momentum=options.get("ema_momentum")).ema_momentum
        self.start_search(None)

    def start_search(self, tuner: keras_tuner.Tuner | None) -> None:
        """Forget the state of an earlier search. `search` calls it."""
        self._tuner: Any = tuner
        self._plain_weights: dict[str, list[np.ndarray]] = {}

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        self.hypermodel.declare_hyperparameters(hp)

    def build(self, hp: keras_tuner.HyperParameters) -> SSDModel:
        """Return the user's model, wrapped and compiled."""
        model = self.hypermodel.build(hp)
        if not isinstance(model, keras.Model) or isinstance(model, SSDModel) or not model.compiled:
            what = "is not compiled" if isinstance(model, keras.Model) else f"is of type {type(model).__name__}"
            raise keras_tuner.errors.FatalValueError(
                "The build function should return a plain, compiled keras.Model; SSDHyperModel wraps it. Received: "
                f"{model!r}, which {'is wrapped already' if isinstance(model, SSDModel) else what}"
            )
        distill = hp.Boolean("ssd_distill", default=False)
        with hp.conditional_scope("ssd_distill", [True]):
            options = sample(hp, self.kind, self.space, self.options, is_functional(model))
        with hp.conditional_scope("ssd_distill", [False]):
            averages = self._momentum and hp.Boolean("ssd_average", default=False)  # `None` in a distilled trial
        undistilled: dict[str, Any] = {"kd_weight": 0, "ema_momentum": self._momentum if averages else 0}
        try:
            ssd = wrap(model, teacher=self.teacher, **options) if distill else wrap(model, **undistilled)
        except ValueError as error:
            # Fatal, because the same error would come again in other trials; their tracebacks are only printed.
            raise keras_tuner.errors.FatalValueError(
                f"{error} (The trial has {options}; use `space` to fix or drop options that do not fit, for example "
                'space={"similarity": "kl"}.)'
            ) from error
        if not ssd.optimizer.built:  # a trial's file holds the optimizer's variables
            ssd.optimizer.build(ssd.trainable_variables)
        return ssd

    def fit(self, hp: keras_tuner.HyperParameters, model: SSDModel, *args: Any, **kwargs: Any) -> Any:
        """Train a trial, with the user's `HyperModel.fit` if there is one, and return the result."""
        distills = bool(hp.values.get("ssd_distill"))
        # Hyperband continues an earlier trial, whose weights were loaded.
        if self.kind == "snapshot" and "tuner/trial_id" not in hp.values:
            model.student.set_weights(self._plain_stage(hp, args, kwargs))
            if distills:
                model.take_snapshot()
        if not distills:
            kwargs["callbacks"] = _without_teachers(kwargs.get("callbacks"))
        return self._fit(hp, model, *args, **kwargs)

    def _fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        """Train with the user's `fit` if there is one, and check the reported values in the first epoch."""
        check = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: self._check_objective(logs))
        kwargs["callbacks"] = [check, *(kwargs.get("callbacks") or [])]
        results = self.hypermodel.fit(hp, model, *args, **kwargs)
        self._check_objective(results)
        return results

    def _check_objective(self, reported: Any) -> None:
        objective = self._tuner and self._tuner.oracle.objective
        if objective and isinstance(reported, dict) and not objective.has_value(reported):
            # A fatal error would end a worker, and the chief would wait for it.
            is_distributed = "KERASTUNER_ORACLE_IP" in os.environ
            raise (ValueError if is_distributed else keras_tuner.errors.FatalValueError)(
                f"`objective` should be a value that every trial reports. Received: {objective}; the trials report "
                f"{sorted(reported)}. Name one of them, add it to the metrics of `compile`, or pass validation data."
            )

    def _plain_stage(self, hp: keras_tuner.HyperParameters, args: Any, kwargs: dict[str, Any]) -> list[np.ndarray]:
        """Return the weights of the plain stage for the hyper-parameters of the user's model; train it if needed."""
        own = keras_tuner.HyperParameters()
        own.values = dict(hp.values)
        plain = self.hypermodel.build(own)
        names = ("optimizer", "loss", "metrics")
        if overrides := {name: one for name in names if (one := getattr(self._tuner, name, None))}:
            if isinstance(optimizer := overrides.get("optimizer"), keras.optimizers.Optimizer):
                overrides["optimizer"] = copy.deepcopy(optimizer)  # each model needs its own
            plain.compile(**{**compile_arguments(plain), **overrides})
        values = {entry.name: own.values[entry.name] for entry in own.space if own.is_active(entry)}
        key = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
        path = self._tuner and pathlib.Path(self._tuner.project_dir, f"ssd_plain_{key}.npz")
        if key not in self._plain_weights and not (path and path.exists()):
            self._fit(hp, plain, *args, **self._plain_arguments(**kwargs))
            self._plain_weights[key] = plain.get_weights()
            if path and not path.exists():
                with written_beside(path) as written:
                    np.savez(written, *self._plain_weights[key])
        if path:  # another worker may have been quicker
            with np.load(path) as stored:
                self._plain_weights[key] = list(stored.values())
        return self._plain_weights[key]

    def _plain_arguments(self, initial_epoch: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of `fit` of the plain stage, with early stopping and without callbacks of tools."""
        if self.snapshot_epochs is not None:
            kwargs["epochs"] = self.snapshot_epochs
        monitor = "val_loss" if {"validation_data", "validation_split"} & set(kwargs) else "loss"
        patience = max(1, min(20, kwargs.get("epochs", 1) // 4))
        early = keras.callbacks.EarlyStopping(monitor, patience=patience, restore_best_weights=True)
        tools = ("keras_tuner.", "tensorboard.")
        users = [
            one for one in _without_teachers(kwargs.get("callbacks")) if not type(one).__module__.startswith(tools)
        ]
        return {**kwargs, "callbacks": [*copy.deepcopy(users), early]}


def _without_teachers(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Return the callbacks that a plain model can have."""
    return [callback for callback in callbacks or [] if not getattr(callback, "needs_teachers", False)]
