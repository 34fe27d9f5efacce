"""`search`: runs a tuner of Keras Tuner, fails loudly, and resumes only a project with the same space."""

import json
import math
import os
import pathlib
import tempfile
from typing import Any

import keras
import keras_tuner

from keras_ssd.files import written_beside
from keras_ssd.paired_scores import aligned
from keras_ssd.tuner.hypermodel import SSDHyperModel


class Trials(list[Any]):
    """Trials, best first. It prints itself as a table of scores and options; so does a slice of it."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Trials(found) if isinstance(index, slice) else found

    def __repr__(self) -> str:
        values = [trial.hyperparameters.values for trial in self]
        names = list(dict.fromkeys(name for one in values for name in one if not name.startswith("tuner/")))
        rows = [["trial", "score", *(name.removeprefix("ssd_") for name in names)]]
        for trial, one in zip(self, values, strict=True):
            cells = [trial.score, *(one.get(name, "") for name in names)]
            rows.append([trial.trial_id, *(f"{x:.4g}" if isinstance(x, float) else str(x) for x in cells)])
        return aligned(rows)


def search(tuner: keras_tuner.Tuner, *args: Any, **kwargs: Any) -> Trials | None:
    """Run a search, and fail loudly where Keras Tuner is quiet.

    It calls `tuner.search(*args, **kwargs)`, and:

    - The first trial (of each bracket of Hyperband) is the plain, undistilled model.
    - An objective that a trial does not report is an error after the first epoch.
    - A project is resumed only if the space is the same; a changed space is an error, and so is an unfinished
      `GridSearch`, which does not store its position.
    - If no trial ended with a finite score, the error of the first trial is raised.

    Args:
        tuner: a tuner of Keras Tuner, made with an `SSDHyperModel`.
        *args: arguments of `fit`.
        **kwargs: arguments of `fit`.

    Returns:
        A list of the trials with a finite score, best first, which prints itself as a table. `None` in a worker of a
        distributed search, which may end before the search does.

    Raises:
        ValueError: if the objective or the project does not fit.
        RuntimeError: if no trial ended with a finite score.

    Example:
        >>> tuner = keras_tuner.RandomSearch(keras_ssd.tuner.SSDHyperModel(build), "val_accuracy", max_trials=20)
        >>> trials = keras_ssd.tuner.search(tuner, x, y, validation_data=(x_val, y_val), epochs=50)
    """
    hypermodel, oracle = getattr(tuner, "hypermodel", None), tuner.oracle
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
    hypermodel.start_search(tuner)
    is_distributed = "KERASTUNER_ORACLE_IP" in os.environ
    if is_distributed and "chief" not in os.environ.get("KERASTUNER_TUNER_ID", ""):
        tuner.search(*args, **kwargs)
        return None
    _check_project(tuner)
    if not isinstance(oracle, _PlainFirst):
        oracle.__class__ = type(type(oracle).__name__, (_PlainFirst, type(oracle)), {})
    if is_distributed:
        # The oracle would raise in a thread of the server, and the chief would wait for ever.
        oracle.max_consecutive_failed_trials = math.inf
    try:
        tuner.search(*args, **kwargs)
    except RuntimeError as error:
        if isinstance(error, keras_tuner.errors.FatalError) or _ranked(oracle):
            raise
        raise _all_failed(oracle) from error
    if not (ranked := _ranked(oracle)):
        raise _all_failed(oracle)
    return ranked


class _PlainFirst(keras_tuner.Oracle):
    """An oracle whose first trial, of each bracket in Hyperband, is the plain model."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        response = super().populate_space(trial_id)
        values = response.get("values")
        if response["status"] != "RUNNING" or values.get("tuner/round", 0) != 0 or "ssd_distill" not in values:
            return response
        earlier = [trial.hyperparameters.values for trial in self.trials.values()]
        plain = [one.get("tuner/bracket") for one in earlier if one.get("ssd_distill") is False]
        if values.get("tuner/bracket") in plain:
            return response
        own = {name: value for name, value in values.items() if not name.startswith("ssd_")}
        # Values that are missing would be drawn.
        switches = {"ssd_distill", "ssd_average"} & {one.name for one in self.get_space().space}
        return {**response, "values": {**own, **dict.fromkeys(sorted(switches, reverse=True), False)}}


def _ranked(oracle: keras_tuner.Oracle) -> Trials:
    """Return the trials with a finite score, best first."""
    best = oracle.get_best_trials(len(oracle.trials))
    return Trials(one for one in best if one.status == "COMPLETED" and math.isfinite(one.score))


def _all_failed(oracle: keras_tuner.Oracle) -> RuntimeError:
    if not oracle.start_order:
        return RuntimeError("The search ran no trial: `max_trials` is 0 or the space is exhausted.")
    trials = [oracle.trials[name] for name in oracle.start_order]
    reason = trials[0].message or f"Its {oracle.objective.name} was {trials[0].score}, which is not a finite number."
    first = f"The first, trial {trials[0].trial_id}:\n{reason}"
    return RuntimeError(f"None of the {len(trials)} trials ended with a finite score. {first}")


def _check_project(tuner: keras_tuner.Tuner) -> None:
    """Raise if the project cannot be resumed, or was searched with another space; a new one notes its space."""
    hypermodel, oracle = tuner.hypermodel, tuner.oracle
    path = pathlib.Path(tuner.project_dir, "ssd_space.json")
    with tempfile.TemporaryDirectory() as directory:
        # A fresh oracle: the oracle of a reloaded tuner holds the space of the project.
        fresh = keras_tuner.RandomSearch(hypermodel, keras_tuner.Objective("loss", "min"), directory=directory)
        space = fresh.oracle.get_space().space
    options = {
        **{name: one for name, one in hypermodel.space.items() if callable(one)},
        **hypermodel.options,
        "teacher": hypermodel.kind if isinstance(hypermodel.teacher, keras.Model) else hypermodel.teacher,
        "snapshot_epochs": hypermodel.snapshot_epochs,
        "objective": oracle.objective,
    }
    now = {f"{name}={getattr(one, '__name__', one)}" for name, one in options.items()}
    now |= {f"{type(hp).__name__}: {json.dumps(hp.get_config(), default=str)}" for hp in space}
    n_trials = len(oracle.trials)
    if not n_trials:
        with written_beside(path) as written:
            pathlib.Path(written).write_text(json.dumps(sorted(now), indent=1))
        return
    before = set(json.loads(path.read_text())) if path.exists() else set()
    is_resumed = not isinstance(oracle, _PlainFirst)  # a second search of the same tuner knows its position
    if not before:
        problem = "The project holds trials that were not run by keras_ssd.tuner.search."
    elif before != now:
        changes = f"before {sorted(before - now)}, now {sorted(now - before)}"
        problem = f"The project was searched with another space: {changes}."
    elif is_resumed and isinstance(tuner, keras_tuner.GridSearch) and n_trials < (oracle.max_trials or math.inf):
        problem = (
            f"Keras Tuner's GridSearch does not store its position, so that a search of {n_trials} trials cannot be "
            "continued. Use RandomSearch, which can, or read the results from the tuner."
        )
    else:
        return
    raise ValueError(
        f"{problem} Make the tuner with another `project_name`, or with overwrite=True to start again. Received: "
        f"directory={str(tuner.directory)!r}, project_name={tuner.project_name!r}"
    )
