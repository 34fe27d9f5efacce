"""`compare`: plain, averaged and distilled training from the same weights on the same batches."""

import contextlib
import copy
import json
import pathlib
import re
import time
import types
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_ssd import keras_names
from keras_ssd.files import written_beside
from keras_ssd.model import SSDModel
from keras_ssd.paired_scores import Comparison
from keras_ssd.settings import AVERAGING, is_integer
from keras_ssd.wrapping import wrap


def compare(
    build: Callable[[], keras.Model],
    training_data: Any,
    validation_data: Any = None,
    test_data: Any = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 3,
    folds: Iterable[tuple[Any, Any]] | None = None,
    score: Callable[[keras.Model, Any], Mapping[str, float]] | None = None,
    out: Any = None,
    verbose: int = 1,
    **fit: Any,
) -> Comparison:
    """Train a model plainly, with averaged weights alone, and distilled, and compare the scores.

    For each seed all arms start from the same weights and see the same batches in the same order: an arm is what
    `keras.utils.set_random_seed(seed)`, `build()`, `set_random_seed(seed)` and `fit` give.

    | arm | what it is |
    |---|---|
    | plain | `model.fit` |
    | averaged | `wrap(model, **keras_ssd.AVERAGING).fit`: no teachers; also with the momentum of each setting |
    | each of `settings` | `wrap(model, **options).fit`; its control is averaged, or plain if it does not average |
    | continued | the control of `teacher="snapshot"`, as in `keras_ssd.PAPER`: plain, then plain once more |

    With `teacher="snapshot"` the plain arm is the first stage: student and control are built again, get its final
    weights and train with the same arguments of `fit`, so they take twice the steps of plain.

    Args:
        build: a function that returns a new compiled model; its loss and metrics are the scores.
        training_data: `(x, y)` or `(x, y, sample_weight)`, or what else `fit` takes as `x`; or a function that returns
            it, called for each arm after seeding, as data need that shuffle by themselves or can be read only once.
        validation_data: as in `fit`, or a function that returns it.
        test_data: the data that are scored, likewise. Defaults to `None`: `validation_data`.
        settings: dict from the name of an arm to options of `wrap`. Defaults to `None`: `{"wrap": {}}`.
        seeds: how many, counted from 0, or a list. Defaults to `3`.
        folds: instead of `test_data`, pairs of training and test rows, as splitters of scikit-learn give them:
            `LeaveOneGroupOut().split(x, y, people)`. Folds, not seeds, are then the unit of all intervals.
        score: a function of a trained model and the scored data (`(x, y)` of the rows left out, with `folds`) that
            returns a dict of further scores, which stand first.
        out: a JSON-lines file of the rows. Rows that it holds are not repeated: a call that was killed continues, and
            seeds or settings can be added.
        verbose: 1 shows progress, 0 nothing. Defaults to `1`.
        **fit: arguments of `fit`. `callbacks` is a list, copied for each arm, or a function of the arm's name that
            returns it; callbacks that need teachers go to arms with teachers only.

    Returns:
        A `Comparison`: print it, `plot()` it, read its `rows`.

    Raises:
        ValueError: if an argument is wrong, or `out` holds rows of another configuration.

    Example:
        >>> result = keras_ssd.compare(build, (x, y), (x_val, y_val), epochs=20, verbose=0)
        >>> gain, half_of_interval = result.difference("wrap", "averaged", "accuracy")
    """
    import scipy.stats  # noqa: F401  # before the training, not after it

    numbers = list(range(seeds)) if isinstance(seeds, (int, np.integer)) else list(seeds)
    if not numbers or not all(map(is_integer, numbers)):
        raise ValueError(f"`seeds` should be a number above 0 or a list of integers. Received: seeds={seeds!r}")
    if any(hasattr(data, "__next__") for data in (training_data, validation_data, test_data)):
        raise ValueError("A generator can be read only once: pass a function that returns it.")
    parts = [(None, training_data, test_data)] if folds is None else _folds(training_data, test_data, folds)
    if validation_data is None and parts[0][2] is None:
        raise ValueError("There are no data to score: pass `validation_data`, `test_data` or `folds`.")
    where = "the rows left out" if folds is not None else "validation_data" if test_data is None else "test_data"
    arms, recorded = _arms(build, settings, int(numbers[0])), _read_rows(out)
    rows: list[dict[str, Any]] = []
    bar = keras.utils.Progbar(len(parts) * len(numbers) * len(arms), verbose=verbose, unit_name="run")
    for (fold, training, test), seed in ((part, int(number)) for part in parts for number in numbers):
        test, model = validation_data if test is None else test, _built(build, seed)
        of_model = [keras.backend.backend(), model, keras_names.compile_arguments(model)]
        data = _digest([training, validation_data, test])  # once for all arms
        known = {"model": _digest(of_model), "data": data, "score": _digest(score)}
        weights = {False: model.get_weights()}  # before and after the plain arm
        for arm in arms:
            own = {"fit": {**fit, "callbacks": _callbacks(fit, arm)}, "options": arm.options}
            configuration = known | {name: _digest(value) for name, value in own.items()}
            run = {"arm": arm.name, "control": arm.control, "seed": seed, "fold": fold, "scored_on": where}
            key = arm.name, seed, fold
            row = recorded.get(key, {})
            if row and row["configuration"] != configuration:
                other = [name for name in configuration if row["configuration"].get(name) != configuration[name]]
                raise ValueError(
                    f"`out` holds the run {key} of other {', '.join(other)}. Pass another file. Received: out={out}"
                )
            if not row:
                for one in [arms[0]] * (arm.goes_on and True not in weights) + [arm]:  # a row does not hold weights
                    model = _built(build, seed)
                    model.set_weights(weights[one.goes_on])
                    costs = _train(model, one, seed, training, validation_data, fit)
                    if one is arms[0]:
                        weights[True] = model.get_weights()
                scores = {} if score is None else {n: float(v) for n, v in score(model, _read(test)).items()}
                steps = fit.get("validation_steps") if where == "validation_data" else None
                scores |= _named_alike(_evaluated(model, test, fit, steps), rows)
                if not np.isfinite([*scores.values()]).all():
                    costs["status"] = "diverged"
                row = {"configuration": configuration, **run, **scores, **costs}
                recorded |= {**_read_rows(out), key: row}  # another process may have written meanwhile
                _write_rows(out, recorded.values())
            rows.append({name: value for name, value in row.items() if name != "configuration"})
            bar.update(len(rows))
    return Comparison(rows)


class _Arm(NamedTuple):
    name: str
    options: Mapping[str, Any] | None
    control: str = ""
    goes_on: bool = False  # from the plain arm's weights
    teaches: bool = False


def _built(build: Callable[[], keras.Model], seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    model = build()
    if not isinstance(model, keras.Model) or isinstance(model, SSDModel) or not model.compiled:
        raise ValueError(f"`build` should return a new, compiled keras.Model that is not wrapped. Received: {model!r}")
    return model


def _arms(build: Callable[[], keras.Model], settings: Any, seed: int) -> list[_Arm]:
    """Return all arms, controls before what they control. Each setting is tried on a model."""
    names = ("plain", "averaged", "continued", "continued, averaged")
    arms = {"plain": _Arm("plain", None), "averaged": _Arm("averaged", AVERAGING)}
    for name, options in ({"wrap": {}} if settings is None else dict(settings)).items():
        if name in names or re.fullmatch(r"(continued, )?averaged [\d.]+", name):
            raise ValueError(f"`settings` should not name an arm {name!r}, as the controls are named.")
        model = _built(build, seed)
        try:
            resolved = wrap(model, **options).settings
        except (TypeError, ValueError) as error:
            raise ValueError(f"settings[{name!r}] should be options of `wrap`: {error}") from error
        goes_on, averages = resolved.kind == "snapshot", resolved.averages
        averaging = {**AVERAGING, "ema_momentum": resolved.ema_momentum} if averages else None
        control = names[2 * goes_on + averages] + f" {resolved.ema_momentum:g}" * (averaging not in (None, AVERAGING))
        arms.setdefault(control, _Arm(control, averaging, "", goes_on))
        arms[name] = _Arm(name, options, control, goes_on, resolved.distills)
    return list(arms.values())


def _folds(training_data: Any, test_data: Any, folds: Iterable[Any]) -> list[tuple[Any, Any, Any]]:
    """Return number, training data and test data of each fold."""
    if test_data is not None or not isinstance(training_data, tuple):
        raise ValueError("With `folds`, `training_data` should be a tuple of arrays, and `test_data` None.")
    rows = np.arange(len(keras.tree.flatten(training_data)[0]))
    try:
        pairs = [(rows[training], rows[test]) for training, test in folds]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"`folds` should be pairs of arrays of rows: {error}.") from error
    if not pairs or any(not len(a) or not len(b) or np.isin(b, a).any() for a, b in pairs):
        raise ValueError("`folds` should hold at least one pair of training and test rows without a common row.")
    take = lambda rows: keras.tree.map_structure(lambda part: np.asarray(part)[rows], training_data)  # noqa: E731
    return [(number, take(training), take(test)) for number, (training, test) in enumerate(pairs)]


def _read(data: Any) -> Any:
    return data() if callable(data) else data


def _arguments(data: Any) -> dict[str, Any]:
    """Return data as arguments of `fit` and `evaluate`."""
    data = _read(data)
    return dict(zip(("x", "y", "sample_weight"), data, strict=False)) if isinstance(data, tuple) else {"x": data}


def _callbacks(fit: Mapping[str, Any], arm: _Arm) -> list[Any]:
    given = fit.get("callbacks") or []
    given = given(arm.name) if callable(given) else copy.deepcopy(given)
    return [one for one in keras.tree.flatten(given) if arm.teaches or not getattr(one, "needs_teachers", False)]


def _train(model: Any, arm: _Arm, seed: int, training: Any, validation: Any, fit: Mapping[str, Any]) -> dict[str, Any]:
    """Train a model and return what it took."""
    trained = model if arm.options is None else wrap(model, **arm.options)
    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, logs=None: ends.append(time.perf_counter()))
    fit = {**fit, "callbacks": [clock, *_callbacks(fit, arm)], "verbose": 0}
    keras.utils.set_random_seed(seed)
    before = int(keras.ops.convert_to_numpy(model.optimizer.iterations))  # of a model that was trained already
    data = _arguments(training) | {"validation_data": _read(validation)}
    began = time.perf_counter()
    losses = trained.fit(**data, **fit).history.get("loss")
    if losses is None:
        raise ValueError("`fit` trained no epoch: a callback restored a backup of another arm, or `epochs` is 0.")
    seconds = time.perf_counter() - began
    steps = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) - before
    of_step = float(np.median(np.diff([began, *ends])[-max(len(ends) - 1, 1) :])) * len(ends) / max(steps, 1)
    costs = {"epochs": len(losses), "steps": steps, "seconds_per_step": of_step, "seconds": seconds}
    return costs | {"status": "finished" if np.isfinite(losses).all() else "diverged"}


def _evaluated(model: Any, data: Any, fit: Mapping[str, Any], steps: int | None) -> dict[str, float]:
    """Return the scores of `evaluate`, losses last."""
    options = {"batch_size": fit.get("batch_size"), "steps": steps, "return_dict": True, "verbose": 0}
    scores = model.evaluate(**_arguments(data), **options)
    return {name: float(scores[name]) for name in sorted(scores, key=lambda n: (n.endswith("loss"), n == "loss"))}


def _named_alike(scores: dict[str, float], rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return scores by the names of the first row: Keras counts up the names of metrics and of outputs."""
    first = list(next(iter(rows), scores))
    names = first[: first.index("epochs")][-len(scores) :] if "epochs" in first else first
    return dict(zip(names, scores.values(), strict=True))


def _read_rows(path: Any) -> dict[Any, dict[str, Any]]:
    rows, lines = {}, pathlib.Path(path).read_text().splitlines() if path and pathlib.Path(path).exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["configuration"]
            rows[row["arm"], row["seed"], row["fold"]] = row
        except (ValueError, LookupError, TypeError) as error:
            if number < len(lines) or not line.startswith('{"configuration"'):  # else its writer was killed
                raise ValueError(f"`out` should be a file of `compare`. Received: {path}, line {number}") from error
    return rows


def _write_rows(path: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    if path:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as written:
            pathlib.Path(written).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _digest(value: Any) -> str:
    text = re.sub(r'_\d+"', '"', json.dumps(_described(value)))  # Keras counts names up
    return f"{zlib.crc32(text.encode()):08x}"


def _described(value: Any) -> Any:
    """Return as JSON what tells a value from others in every process: contents of arrays, configurations, names."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _described(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(one) for one in value]
    is_model = isinstance(value, keras.Model)
    if hasattr(value, "get_config"):  # models, layers, losses, metrics, optimizers, schedules, regularizers
        with contextlib.suppress(Exception):  # not every class of a user's has a configuration
            config = value.get_config()
            return _described([config, value.get_weights()] if is_model else [type(value).__qualname__, config])
    if is_model:
        return _described([value.layers, value.get_weights()])
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        content = array.tobytes() if array.dtype != object else repr(array.tolist()).encode()
        return f"{array.dtype} {array.shape} {zlib.crc32(content)}"
    own = vars(value).items() if isinstance(value, (keras.Layer, keras.callbacks.Callback)) else ()
    simple = {n: v for n, v in own if isinstance(v, (int, float, str, types.FunctionType)) and n[0] != "_"}
    return [getattr(value, "__qualname__", type(value).__qualname__), _described(simple)]
