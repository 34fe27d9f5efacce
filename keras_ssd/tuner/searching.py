"""`search`: runs a tuner of Keras Tuner, fails loudly, and resumes only a project with the same space."""

import functools
import inspect
import json
import math
import os
import pathlib
import tempfile
from typing import Any

import keras
import keras_tuner

from keras_ssd.compiled import compile_arguments, copied
from keras_ssd.tuner.hypermodel import SSDHyperModel, check_objectives

_RECORD = "ssd_space.json"


def search(tuner: keras_tuner.Tuner, *args: Any, **kwargs: Any) -> list[Any] | None:
    """Run a search, and fail loudly where Keras Tuner is quiet.

    It calls `tuner.search(*args, **kwargs)` and adds:

    - The first trial (of each bracket of Hyperband) is the plain, undistilled model.
    - An objective that no trial reports is an error before the first trial. The error comes after the first trial if
      the user's HyperModel has a `fit` of its own, the data is an iterator, or the default hyper-parameters cannot be
      trained.
    - A project is resumed only if the space is the same; a changed space is an error.
    - `keras_tuner.GridSearch` can be resumed.
    - If no trial ended with a finite score, the error of the first trial is raised.

    Args:
        tuner: a tuner of Keras Tuner, made with an `SSDHyperModel`.
        *args: arguments of `fit`.
        **kwargs: arguments of `fit`.

    Returns:
        The trials that have a finite score, best first. `None` in a worker of a distributed search, which may end
        before the search does.

    Raises:
        ValueError: if the objective or the project does not fit.
        RuntimeError: if no trial ended with a finite score.

    Example:
        >>> tuner = keras_tuner.RandomSearch(keras_ssd.tuner.SSDHyperModel(build), "val_accuracy", max_trials=20)
        >>> trials = keras_ssd.tuner.search(tuner, x, y, validation_data=(x_val, y_val), epochs=50)
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


def _finished(oracle: keras_tuner.Oracle) -> list[Any]:
    """Return the trials with a finite score, best first."""
    trials = [trial for trial in oracle.trials.values() if trial.status == "COMPLETED" and math.isfinite(trial.score)]
    return sorted(trials, key=lambda trial: trial.score, reverse=oracle.objective.direction == "max")


def _all_failed(oracle: keras_tuner.Oracle) -> RuntimeError:
    trials = [oracle.trials[name] for name in oracle.start_order]
    if not trials:
        return RuntimeError("The search ran no trial: `max_trials` is 0 or the space is exhausted.")
    reason = trials[0].message or f"Its {oracle.objective.name} was {trials[0].score}, which is not a finite number."
    return RuntimeError(
        f"None of the {len(trials)} trials ended with a finite score. The first, trial {trials[0].trial_id}:\n{reason}"
    )


def _try_objectives(tuner: keras_tuner.Tuner, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise if a plain model, trained and validated on one batch each, does not report the objective.

    A model that cannot be trained says nothing about the objective. It is left to Keras Tuner, where its own trial
    fails and other trials may succeed.
    """
    if tuner.hypermodel.fits:
        return
    bound = inspect.signature(keras.Model.fit).bind_partial(None, *args, **kwargs).arguments
    x = bound.get("x")
    if x is None or hasattr(x, "__next__"):
        return
    bound.pop("self", None)
    for name in ("callbacks", "initial_epoch", "validation_freq"):
        bound.pop(name, None)
    bound.update(epochs=1, verbose=0, steps_per_epoch=1)
    if bound.get("validation_data") is not None or bound.get("validation_split"):
        bound["validation_steps"] = 1
    try:
        model = tuner.hypermodel.build(keras_tuner.HyperParameters())
        overrides = {name: getattr(tuner, name, None) for name in ("loss", "metrics")}
        arguments = copied(compile_arguments(model))
        model.compile(**{**arguments, **{name: value for name, value in overrides.items() if value}})
        history = model.fit(**bound).history
    except Exception:
        return
    check_objectives(names, list(history))


def _check_project(tuner: keras_tuner.Tuner) -> None:
    """Raise if the project was searched with another space."""
    hypermodel, oracle = tuner.hypermodel, tuner.oracle
    path = pathlib.Path(tuner.project_dir, _RECORD)
    with tempfile.TemporaryDirectory() as directory:
        # A fresh oracle: the oracle of a reloaded tuner holds the space of the project.
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
        "space": sorted(json.dumps({"type": type(hp).__name__, **hp.get_config()}, default=str) for hp in space),
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
            earlier, now = set(before["space"]), set(record["space"])
            details["space"] = sorted(earlier - now), sorted(now - earlier)
        raise ValueError(f"The project was searched with another space: (before, now) = {details}. {remedy}")


def _named(value: Any) -> Any:
    return getattr(value, "__name__", value)


def _insert_plain(oracle: keras_tuner.Oracle) -> None:
    """Make the first trial, of each bracket in Hyperband, the plain model."""
    if getattr(oracle.populate_space, "inserts_plain", False):
        return
    populate_space = oracle.populate_space

    def with_plain(trial_id: str) -> dict[str, Any]:
        response = populate_space(trial_id)
        values = response.get("values")
        if response["status"] != "RUNNING" or values.get("tuner/round", 0) != 0 or "ssd_distill" not in values:
            return response
        bracket = values.get("tuner/bracket")
        earlier = [trial.hyperparameters.values for trial in oracle.trials.values()]
        if any(trial.get("tuner/bracket") == bracket and trial.get("ssd_distill") is False for trial in earlier):
            return response
        space = oracle.get_space()
        space.values = {**values, "ssd_distill": False}
        # Twice, because a hyper-parameter that depends on an inactive hyper-parameter is inactive, too.
        for _ in range(2):
            known = {hp.name for hp in space.space}
            space.values = {k: v for k, v in space.values.items() if k not in known or space.is_active(k)}
        return {**response, "values": space.values}

    with_plain.inserts_plain = True  # type: ignore[attr-defined]
    oracle.populate_space = with_plain


def _resume_grid(oracle: keras_tuner.Oracle) -> None:
    """Let a reloaded GridSearch continue.

    It does not store its position (keras-tuner 1.4.8), so that a reloaded search stops at once, or raises KeyError.
    """
    if not isinstance(oracle, keras_tuner.oracles.GridSearchOracle) or not oracle.trials or oracle._populate_next:
        return
    compare = functools.cmp_to_key(oracle._compare)
    ordered = sorted(oracle.start_order, key=lambda name: compare(oracle.trials[name].hyperparameters.values))
    for trial_id in ordered:
        oracle._ordered_ids.insert(trial_id)
    oracle._populate_next.extend(ordered)
