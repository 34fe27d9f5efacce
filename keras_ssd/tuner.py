"""Keras Tuner searches over the options of the distillation. The only module that imports keras-tuner.

`SSDHyperModel` makes what the user's build function returns a search over distillations of it, for every tuner of Keras
Tuner; `search` runs it. Chief and workers are Keras Tuner's own: the same script, with KERASTUNER_TUNER_ID,
KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT set.
"""

import copy
import functools
import hashlib
import inspect
import json
import math
import os
import pathlib
import tempfile
import uuid

import keras
import keras_tuner
import numpy as np

from keras_ssd import _backend, callbacks
from keras_ssd.graph import is_functional
from keras_ssd.guidance import SIMILARITIES
from keras_ssd.model import SSDModel
from keras_ssd.settings import DEFAULTS, GUIDANCE_TEMPERATURES, Settings
from keras_ssd.teachers import resolve_kind
from keras_ssd.wrapping import wrap

# Searched in this order: a condition has to stand before what depends on it.
PARAMETERS = (
    "similarity",
    "n_teachers",
    "kd_weight",
    "temperature",
    "dropout_rate",
    "guidance_temperature",
    "percentile",
)
_LOGARITHMIC = ("n_teachers", "kd_weight", "temperature", "guidance_temperature")
_GUIDANCE = ("guidance_temperature", "percentile")
_RECORD = "ssd_space.json"


class SSDHyperModel(keras_tuner.HyperModel):
    """A search space: the user's own model, distilled or not, and how.

    The hyper-parameters are those of the user's model and, before them the prefix `ssd_`:

    | name | searched by default | exists |
    |---|---|---|
    | `ssd_distill` | no, yes | always; no is the plain model, bit for bit |
    | `ssd_similarity` | all, or `"kl"` and `"uniform"` for a subclassed model | if distilled |
    | `ssd_n_teachers` | 2 to 32, logarithmic | if distilled |
    | `ssd_kd_weight` | a tenth to ten times the default of the teacher, logarithmic | if distilled |
    | `ssd_temperature` | 1 to 10, logarithmic | if distilled, and outputs are distilled or compared |
    | `ssd_dropout_rate` | 0.05 to 0.6 | if distilled |
    | `ssd_guidance_temperature` | a tenth to ten times that of the similarities, logarithmic | if guided |
    | `ssd_percentile` | 0 to 95 | if guided, i.e. the similarity is not `"uniform"` |

    The default of each is that of `keras_ssd.wrap`, and of `ssd_distill` no. A fixed one appears, too.

    With `teacher="snapshot"` the plain stage is trained once per search, not once per trial: the first trial trains the
    user's model, stopped early, and keeps the weights in the project's directory; all trials, the undistilled ones as
    well, go on from them with a fresh optimizer. So the undistilled trial is the fair control, trained for as many
    epochs. Where the user's build function has hyper-parameters of its own, there is one plain stage for each of their
    combinations. Workers that start at the same time may each train it; they then use the same one.

    `get_best_models` of a tuner returns `SSDModel`s; what to deploy is their `student`.

    Args:
        hypermodel: a function `build(hp)`, or a `keras_tuner.HyperModel`, that returns a compiled, plain model with
            dropout. A `fit` of the HyperModel is used.
        teacher: as for `keras_ssd.wrap`. Defaults to `"self"`.
        space: dict from a name (without the prefix) to what is searched: a tuple `(min, max)`, a list of choices, a
            single value to fix, or `None` to leave it to the default of `keras_ssd.wrap`. Defaults to `None`, the
            table above.
        snapshot_epochs: epochs of the plain stage at most. Needed for `keras_tuner.Hyperband`, which trains its first
            trials for a few epochs only. Defaults to `None`: as many as a trial has.
        **options: further arguments of `keras_ssd.wrap`, the same for all distilled trials.

    Raises:
        ValueError: if an argument is wrong; when the tuner is made, if the model is not compiled, wrapped already, or
            cannot be distilled.

    Example:
        >>> hypermodel = keras_ssd.tuner.SSDHyperModel(build, space={"n_teachers": [4, 8], "percentile": None})
        >>> tuner = keras_tuner.RandomSearch(hypermodel, "val_accuracy", max_trials=20)
        >>> keras_ssd.tuner.search(tuner, x, y, validation_data=(x_val, y_val), epochs=50)
        >>> student = tuner.get_best_models()[0].student
    """

    def __init__(self, hypermodel, teacher="self", space=None, snapshot_epochs=None, **options):
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
        self.space = _checked_space(self.kind, space)
        self.snapshot_epochs = snapshot_epochs
        self.options = _checked_options(options)
        self._build_plain = hypermodel.build if isinstance(hypermodel, keras_tuner.HyperModel) else hypermodel
        self.start_search()

    def start_search(self, objectives=(), directory=None):
        """Forget what an earlier search left here. `search` calls it.

        Args:
            objectives: names that every trial has to report.
            directory: where plain stages are kept, or `None` for the memory of this process only.
        """
        self._objectives = tuple(objectives)
        self._directory = None if directory is None else pathlib.Path(directory)
        self._plain_weights = {}
        self._loaded_weights = None

    @property
    def fits(self):
        """Whether the user's HyperModel has a `fit` of its own."""
        return isinstance(self.hypermodel, keras_tuner.HyperModel) and (
            type(self.hypermodel).fit is not keras_tuner.HyperModel.fit
        )

    def declare_hyperparameters(self, hp):
        if isinstance(self.hypermodel, keras_tuner.HyperModel):
            self.hypermodel.declare_hyperparameters(hp)

    def build(self, hp):
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
            options = self._sample(hp, is_functional(model))
        try:
            # Plain is plain for every teacher: no moving average, no frozen copy.
            ssd = wrap(model, teacher=self.teacher, **options) if distill else wrap(model, kd_weight=0)
        except ValueError as error:
            # Fatal, because the same error would come again in other trials; their tracebacks are only printed.
            raise keras_tuner.errors.FatalValueError(
                f"{error} (The trial has {options}; fix or drop what does not fit by `space`, for example "
                'space={"similarity": "kl"}.)'
            ) from error
        if ssd.averages:
            # The score was measured with the averaged weights, so these are what a student has that is loaded.
            ssd.load_weights = functools.partial(self._load_averaged, ssd)
        # Weights are loaded into this model, and files of both are saved: without their variables Keras warns.
        for one in (ssd, ssd.student):
            one.optimizer.build(one.trainable_variables)
        return ssd

    def fit(self, hp, model, *args, **kwargs):
        """Train one trial, with the user's `HyperModel.fit` if there is one.

        Args:
            hp: a `keras_tuner.HyperParameters`.
            model: the `SSDModel` that was built for it.
            *args: of `search`.
            **kwargs: of `search`, and the callbacks of Keras Tuner.

        Returns:
            What the user's `fit` returns, by default a `History`.
        """
        # Hyperband goes on with an earlier trial, whose weights are loaded.
        goes_on = "tuner/trial_id" in hp.values
        if goes_on and model.averages:
            model.student.set_weights(self._loaded_weights)
        if self.kind == "snapshot" and not goes_on:
            model.student.set_weights(self._plain_stage(hp, model, args, kwargs))
            if model.distills:
                model.take_snapshot()
        if not model.distills:
            kwargs["callbacks"] = [one for one in kwargs.get("callbacks") or [] if not _needs_teachers(one)]
        results = self._fit(hp, model, *args, **kwargs)
        self._check_reported(results)
        return results

    def _fit(self, hp, model, *args, **kwargs):
        return self.hypermodel.fit(hp, model, *args, **kwargs) if self.fits else model.fit(*args, **kwargs)

    def _sample(self, hp, functional):
        """The options of `wrap` in one trial; those that are not active are left out."""
        options = dict(self.options)
        if not functional:
            options.setdefault("distill", "outputs")
        defaults = dict(DEFAULTS["model" if self.kind == "snapshot" and not functional else self.kind])
        defaults.update(temperature=3.0, dropout_rate=0.3)
        ranges = {**_ranges(defaults, functional), **self.space}
        if self.kind == "self" and options.get("distill", "outputs") != "outputs" and "similarity" not in self.space:
            # `wrap` warns of this pair: the norms run away.
            ranges["similarity"] = [one for one in ranges["similarity"] if one != "dot"]
        similarities = _listed(ranges["similarity"], defaults["similarity"])
        guided = [one for one in similarities if one != "uniform"]
        if "guidance_temperature" not in self.space:
            scales = [GUIDANCE_TEMPERATURES.get(one, 1.0) for one in guided] or [1.0]
            ranges["guidance_temperature"] = (0.1 * min(scales), 10 * max(scales))
        defaults["guidance_temperature"] = GUIDANCE_TEMPERATURES.get(similarities[0], 1.0)
        if defaults["similarity"] in similarities:
            defaults["guidance_temperature"] = GUIDANCE_TEMPERATURES[defaults["similarity"]]
        active = {name: similarities for name in PARAMETERS}
        active.update(dict.fromkeys(_GUIDANCE, guided))
        if options.get("distill", defaults["distill"]) == "representation":
            active["temperature"] = [one for one in similarities if one == "kl"]
        for name in PARAMETERS:
            if ranges[name] is None or not active[name]:
                continue
            register = functools.partial(_register, hp, name, ranges[name], defaults[name])
            if name == "similarity" or len(active[name]) == len(similarities):
                value = register()
            else:
                with hp.conditional_scope("ssd_similarity", active[name]):
                    value = register()
            if value is not None:
                options[name] = value
        return options

    def _plain_stage(self, hp, model, args, kwargs):
        """The weights of the plain stage for the hyper-parameters of the user's model, trained if nobody has yet."""
        own = keras_tuner.HyperParameters()
        own.values = dict(hp.values)
        plain = self._build_plain(own)
        values = {one.name: own.values[one.name] for one in own.space if own.is_active(one)}
        key = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
        if key in self._plain_weights:
            return self._plain_weights[key]
        path = None if self._directory is None else self._directory / f"ssd_plain_{key}.npz"
        if path is None or not path.exists():
            # What the tuner overrides (optimizer, loss, metrics) holds here, too.
            plain.compile(**_backend.copied(_backend.compile_arguments(model)))
            self._fit(hp, plain, *args, **self._plain_arguments(kwargs))
            weights = plain.get_weights()
            if path is not None:
                _write_once(path, weights)
        if path is not None:
            with np.load(path) as stored:
                weights = [stored[f"arr_{i}"] for i in range(len(stored.files))]
        self._plain_weights[key] = weights
        return weights

    def _plain_arguments(self, kwargs):
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
            copy.deepcopy(one)
            for one in kwargs.get("callbacks") or []
            if type(one).__module__.partition(".")[0] not in ("keras_tuner", "tensorboard") and not _needs_teachers(one)
        ]
        return {**kwargs, "callbacks": [*users, early]}

    def _load_averaged(self, ssd, *args, **kwargs):
        SSDModel.load_weights(ssd, *args, **kwargs)
        self._loaded_weights = ssd.student.get_weights()
        ssd.write_average()

    def _check_reported(self, results):
        if isinstance(results, keras.callbacks.History):
            results = results.history
        if isinstance(results, dict):
            _check_objectives(self._objectives, list(results))


def search(tuner, *args, **kwargs):
    """Run a search, and fail loudly where Keras Tuner is quiet.

    It is `tuner.search(*args, **kwargs)`, and

    - the first trial (of each bracket of Hyperband) is the plain, undistilled model;
    - an objective that no trial reports is an error before the first trial; where the user's HyperModel has a `fit` of
      its own, or the data is an iterator, after it;
    - a project of an earlier search goes on only if the space is the same; else it is an error;
    - `keras_tuner.GridSearch` can be resumed;
    - if no trial ended with a finite score, the error of the first one is raised.

    Args:
        tuner: a tuner of Keras Tuner, made with an `SSDHyperModel`.
        *args: what `fit` takes.
        **kwargs: what `fit` takes.

    Returns:
        The trials that have a finite score, best first; `None` in a worker of a distributed search, where the search is
        not over when the worker is.

    Raises:
        ValueError: if the objective or the project does not fit, before the first trial.
        RuntimeError: if no trial ended with a finite score.
    """
    hypermodel = getattr(tuner, "hypermodel", None)
    if not isinstance(hypermodel, SSDHyperModel):
        raise ValueError(
            "`tuner` should be a Keras Tuner tuner that was made with an SSDHyperModel. Received: "
            f"{tuner!r} with hypermodel={hypermodel!r}"
        )
    if hypermodel.kind == "snapshot" and isinstance(tuner, keras_tuner.Hyperband) and not hypermodel.snapshot_epochs:
        raise ValueError(
            "Hyperband trains its first trials for a few epochs only, too few for the plain stage of "
            'teacher="snapshot". Pass `snapshot_epochs` to SSDHyperModel. Received: snapshot_epochs=None'
        )
    is_distributed = "KERASTUNER_ORACLE_IP" in os.environ
    is_worker = is_distributed and "chief" not in os.environ.get("KERASTUNER_TUNER_ID", "")
    objective = tuner.oracle.objective
    names = list(getattr(objective, "name_to_direction", [objective.name]))
    hypermodel.start_search(names, tuner.project_dir)
    _try_objectives(tuner, names, args, kwargs)
    if is_worker:
        tuner.search(*args, **kwargs)
        return None
    _check_project(tuner)
    _resume_grid(tuner.oracle)
    _insert_plain(tuner.oracle)
    if is_distributed:
        # The oracle would raise in a thread of the server, and the chief would wait for ever.
        tuner.oracle.max_consecutive_failed_trials = math.inf
    try:
        tuner.search(*args, **kwargs)
    except RuntimeError as error:
        if isinstance(error, keras_tuner.errors.FatalError) or _finished(tuner.oracle):
            raise
        raise _all_failed(tuner.oracle) from error
    trials = _finished(tuner.oracle)
    if not trials:
        raise _all_failed(tuner.oracle)
    return trials


def _finished(oracle):
    """The trials with a finite score, best first."""
    trials = [one for one in oracle.trials.values() if one.status == "COMPLETED" and math.isfinite(one.score)]
    return sorted(trials, key=lambda trial: trial.score, reverse=oracle.objective.direction == "max")


def _all_failed(oracle):
    trials = [oracle.trials[name] for name in oracle.start_order]
    if not trials:
        return RuntimeError("The search ran no trial: `max_trials` is 0 or the space is exhausted.")
    reason = trials[0].message or f"Its {oracle.objective.name} was {trials[0].score}, which is no finite number."
    return RuntimeError(
        f"None of the {len(trials)} trials ended with a finite score. The first, trial {trials[0].trial_id}:\n{reason}"
    )


def _try_objectives(tuner, names, args, kwargs):
    """One training and one validation batch with the plain model: does it report the objective?"""
    if tuner.hypermodel.fits:
        return
    bound = inspect.signature(keras.Model.fit).bind_partial(None, *args, **kwargs).arguments
    x = bound.get("x")
    if x is None or hasattr(x, "__next__"):
        return
    model = tuner.hypermodel.build(keras_tuner.HyperParameters())
    overrides = {name: getattr(tuner, name, None) for name in ("loss", "metrics")}
    arguments = _backend.copied(_backend.compile_arguments(model))
    model.compile(**{**arguments, **{name: value for name, value in overrides.items() if value}})
    bound.pop("self", None)
    for name in ("callbacks", "initial_epoch", "validation_freq"):
        bound.pop(name, None)
    bound.update(epochs=1, verbose=0, steps_per_epoch=1)
    if bound.get("validation_data") is not None or bound.get("validation_split"):
        bound["validation_steps"] = 1
    _check_objectives(names, list(model.fit(**bound).history))


def _check_objectives(names, reported):
    missing = [name for name in names if name not in reported]
    if missing:
        raise keras_tuner.errors.FatalValueError(
            f"`objective` should be something that every trial reports. Received: objective={missing[0]!r}; the trials "
            f"report {sorted(reported)}. Name one of them, add it to the metrics of `compile`, or pass validation data."
        )


def _check_project(tuner):
    """Refuse to go on with a project whose space was another one."""
    hypermodel, oracle = tuner.hypermodel, tuner.oracle
    path = pathlib.Path(tuner.project_dir, _RECORD)
    with tempfile.TemporaryDirectory() as directory:
        # A fresh oracle: that of a reloaded tuner holds the space of the project.
        fresh = keras_tuner.Tuner(
            keras_tuner.oracles.RandomSearchOracle(keras_tuner.Objective("loss", "min")),
            hypermodel,
            directory=directory,
        )
        space = fresh.oracle.get_space().space
    record = {
        "teacher": hypermodel.kind if isinstance(hypermodel.teacher, keras.Model) else str(hypermodel.teacher),
        "options": {name: _named(value) for name, value in hypermodel.options.items()},
        "fixed": {name: _named(value) for name, value in hypermodel.space.items() if callable(value)},
        "snapshot_epochs": hypermodel.snapshot_epochs,
        "objective": str(oracle.objective),
        "space": sorted(json.dumps({"type": type(one).__name__, **one.get_config()}, default=str) for one in space),
    }
    record = json.loads(json.dumps(record, default=str))
    if not oracle.trials:
        path.write_text(json.dumps(record, indent=1))
        return
    remedy = (
        "Make the tuner with another `project_name`, or with overwrite=True to start again. Received: "
        f"directory={str(tuner.directory)!r}, project_name={tuner.project_name!r}"
    )
    if not path.exists():
        raise ValueError(f"The project holds trials that were not run by keras_ssd.tuner.search. {remedy}")
    before = json.loads(path.read_text())
    if before != record:
        changed = [name for name in record if record[name] != before.get(name)]
        details = {name: (before.get(name), record[name]) for name in changed if name != "space"}
        if "space" in changed:
            details["space"] = tuple(sorted(set(a) - set(b)) for a, b in _both_ways(before["space"], record["space"]))
        raise ValueError(f"The project was searched with another space: (before, now) = {details}. {remedy}")


def _both_ways(a, b):
    return (a, b), (b, a)


def _named(value):
    return getattr(value, "__name__", value)


def _insert_plain(oracle):
    """Let the first trial, of each bracket in Hyperband, be the plain model."""
    if getattr(oracle.populate_space, "inserts_plain", False):
        return
    populate_space = oracle.populate_space

    def with_plain(trial_id):
        response = populate_space(trial_id)
        values = response.get("values")
        if response["status"] != "RUNNING" or values.get("tuner/round", 0) != 0 or "ssd_distill" not in values:
            return response
        bracket = values.get("tuner/bracket")
        others = [trial.hyperparameters.values for trial in oracle.trials.values()]
        if any(one.get("tuner/bracket") == bracket and one.get("ssd_distill") is False for one in others):
            return response
        space = oracle.get_space()
        space.values = {**values, "ssd_distill": False}
        # Twice, because what depends on an inactive one is inactive, too.
        for _ in range(2):
            known = {one.name for one in space.space}
            space.values = {k: v for k, v in space.values.items() if k not in known or space.is_active(k)}
        return {**response, "values": space.values}

    with_plain.inserts_plain = True
    oracle.populate_space = with_plain


def _resume_grid(oracle):
    """GridSearch (keras-tuner 1.4.8) does not store where it is: a reloaded one stops at once, or raises KeyError."""
    if not isinstance(oracle, keras_tuner.oracles.GridSearchOracle) or not oracle.trials or oracle._populate_next:
        return
    compare = functools.cmp_to_key(oracle._compare)
    ordered = sorted(oracle.start_order, key=lambda name: compare(oracle.trials[name].hyperparameters.values))
    for trial_id in ordered:
        oracle._ordered_ids.insert(trial_id)
    oracle._populate_next.extend(ordered)


def _checked_space(kind, space):
    space = dict(space or {})
    unknown = sorted(set(space) - set(PARAMETERS))
    if unknown:
        raise ValueError(f"`space` should have keys among {sorted(PARAMETERS)}. Received: {unknown}")
    only_uniform = _listed(space.get("similarity"), None) == ["uniform"]
    for name, given in space.items():
        if given is None:
            continue
        if isinstance(given, tuple) and (name == "similarity" or len(given) != 2 or not given[0] < given[1]):
            raise ValueError(
                f"A tuple in `space` should be (min, max) of numbers, with min below max; pass a list for choices. "
                f"Received: {name}={given!r}"
            )
        if isinstance(given, tuple) and name in _LOGARITHMIC and given[0] <= 0:
            raise ValueError(
                f"`{name}` is searched on a logarithmic scale, so min should be above 0 (the plain trial is part of "
                f"every search). Received: {name}={given!r}"
            )
        if isinstance(given, list) and not given:
            raise ValueError(f"A list in `space` should hold at least one choice. Received: {name}={given!r}")
        values = given if isinstance(given, (tuple, list)) else [given]
        if name == "similarity" and isinstance(given, list) and not all(one in SIMILARITIES for one in given):
            raise ValueError(f"`similarity` should list some of {SIMILARITIES}. Received: similarity={given!r}")
        similarity = "uniform" if only_uniform else None
        for value in values:
            Settings(kind, "model", **{"similarity": similarity, name: value})
        if name == "kd_weight" and 0 in values:
            raise ValueError(f"A plain trial is part of every search: leave 0 out. Received: kd_weight={given!r}")
    return space


def _checked_options(options):
    allowed = set(inspect.signature(wrap).parameters) - {"model", "teacher", *PARAMETERS}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ValueError(
            f"`options` should be among {sorted(allowed)}; what is searched or fixed belongs into `space`. Received: "
            f"{unknown}"
        )
    return options


def _check_built(model):
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


def _ranges(defaults, functional):
    similarities = list(SIMILARITIES) if functional else ["kl", "uniform"]
    return {
        "similarity": similarities,
        "n_teachers": (2, 32),
        "kd_weight": (0.1 * defaults["kd_weight"], 10 * defaults["kd_weight"]),
        "temperature": (1.0, 10.0),
        "dropout_rate": (0.05, 0.6),
        "percentile": (0.0, 95.0),
    }


def _listed(given, default):
    """The similarities that a trial can have."""
    if isinstance(given, list):
        return given
    return [default if given is None else given]


def _register(hp, name, given, default):
    """One hyper-parameter, and its value in this trial; `None` if it is not active."""
    full = f"ssd_{name}"
    if isinstance(given, tuple):
        sampling = "log" if name in _LOGARITHMIC else "linear"
        default = min(max(default, given[0]), given[1])
        add = hp.Int if name == "n_teachers" else hp.Float
        return add(full, *given, sampling=sampling, default=default)
    if isinstance(given, list):
        kind = str if name == "similarity" else int if name == "n_teachers" else float
        values = [kind(one) for one in given]
        return hp.Choice(full, values, default=default if default in values else values[0])
    # A callable cannot be stored; whether it is used depends on nothing but `ssd_distill`.
    return given if callable(given) else hp.Fixed(full, given)


def _needs_teachers(callback):
    return type(callback).__module__ == callbacks.__name__


def _write_once(path, weights):
    """Written beside and renamed: another process sees all of it or nothing. The first that is there stays."""
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, *weights)
    if path.exists():
        temporary.unlink()
    else:
        os.replace(temporary, path)
