"""The hyper-parameters of the distillation, their ranges and conditions."""

import contextlib
from typing import Any

import keras_tuner

from keras_ssd.guidance import SIMILARITIES
from keras_ssd.settings import DEFAULTS, GUIDANCE_TEMPERATURES, resolve

_LOGARITHMIC = ("num_teachers", "kd_weight", "temperature", "guidance_temperature")
_GUIDANCE = ("guidance_temperature", "percentile")
# Searched in this order: a condition comes before the hyper-parameters that depend on it.
PARAMETERS = ("similarity", "num_teachers", "kd_weight", "temperature", "dropout_rate", *_GUIDANCE)


def sample(
    hp: keras_tuner.HyperParameters, kind: str, space: dict[str, Any], options: dict[str, Any], functional: bool
) -> dict[str, Any]:
    """Return the options of `wrap` in a trial, without inactive options.

    Args:
        hp: a `keras_tuner.HyperParameters`.
        kind: kind of teacher.
        space: as `checked_space` returns it.
        options: further options of `wrap`, the same in all trials.
        functional: whether the model is a graph of layers.
    """
    options = {"distill": "outputs", **options} if not functional else dict(options)
    defaults = {**DEFAULTS["model" if kind == "snapshot" and not functional else kind], "temperature": 3.0}
    similarities = list(SIMILARITIES) if functional else ["kl", "uniform"]
    if kind == "self" and options.get("distill", "outputs") != "outputs":
        similarities.remove("dot")  # `wrap` warns of this combination
    weight = defaults["kd_weight"]
    ranges: dict[str, Any] = {
        "similarity": similarities,
        "num_teachers": (2, 32),
        "kd_weight": (0.1 * weight, 10 * weight),
        "temperature": (1.0, 10.0),
        "dropout_rate": (0.05, 0.6),
        "percentile": (0.0, 95.0),
        **space,
    }
    given = ranges["similarity"]
    similarities = given if isinstance(given, list) else [defaults["similarity"] if given is None else given]
    guided = [similarity for similarity in similarities if similarity != "uniform"]
    scales = [GUIDANCE_TEMPERATURES.get(similarity, 1.0) for similarity in guided] or [1.0]
    ranges.setdefault("guidance_temperature", (0.1 * min(scales), 10 * max(scales)))
    usual = defaults["similarity"] if defaults["similarity"] in similarities else similarities[0]
    defaults.update(dropout_rate=0.3, guidance_temperature=GUIDANCE_TEMPERATURES.get(usual, 1.0))
    active = {**dict.fromkeys(PARAMETERS, similarities), **dict.fromkeys(_GUIDANCE, guided)}
    if options.get("distill", defaults["distill"]) == "representation":
        active["temperature"] = [similarity for similarity in similarities if similarity == "kl"]
    for name in PARAMETERS:
        if ranges[name] is not None and active[name]:
            is_always = len(active[name]) == len(similarities)
            scope = contextlib.nullcontext() if is_always else hp.conditional_scope("ssd_similarity", active[name])
            with scope:
                value = _register(hp, name, ranges[name], defaults[name])
            if value is not None:
                # A percentile below 1 is most likely a share, of which `wrap` warns.
                is_percentile = name == "percentile" and isinstance(ranges[name], tuple)
                options[name] = round(value) if is_percentile else value
    return options


def checked_space(kind: str, space: dict[str, Any] | None) -> dict[str, Any]:
    """Return a copy of the `space` of `SSDHyperModel`.

    Raises:
        ValueError: if a name is unknown, or its value is not a range, list or value that `wrap` takes.
    """
    space = dict(space or {})
    unknown = sorted(set(space) - set(PARAMETERS))
    if unknown:
        raise ValueError(f"`space` should have keys among {sorted(PARAMETERS)}. Received: {unknown}")
    for name, domain in space.items():
        values = list(domain) if isinstance(domain, (tuple, list)) else [domain]
        is_range = isinstance(domain, tuple)
        if is_range and (name == "similarity" or len(values) != 2):
            raise ValueError(
                f"A tuple in `space` should be (min, max); a list holds choices. Received: {name}={domain!r}"
            )
        if isinstance(domain, list) and any(map(callable, domain)):
            raise ValueError(f"`similarity` should list some of {SIMILARITIES}. Received: similarity={domain!r}")
        if name == "kd_weight" and 0 in values and not is_range:
            raise ValueError(f"A plain trial is part of every search: leave 0 out. Received: kd_weight={domain!r}")
        similarity = "uniform" if space.get("similarity") in ("uniform", ["uniform"]) else None
        if domain is not None:
            _register(keras_tuner.HyperParameters(), name, domain, (values or [None])[0])  # Keras Tuner checks ranges
            for value in values:
                # With the defaults of a frozen network, which suit every value; "ema" needs an average.
                resolve(kind, None if kind == "ema" else "model", **{"similarity": similarity, name: value})
    return space


def _register(hp: keras_tuner.HyperParameters, name: str, domain: Any, default: Any) -> Any:
    """Register a hyper-parameter and return its value in this trial; `None` if it is not active."""
    full = f"ssd_{name}"
    if isinstance(domain, tuple):
        add = hp.Int if name == "num_teachers" else hp.Float
        sampling = "log" if name in _LOGARITHMIC else "linear"
        return add(full, *domain, sampling=sampling, default=min(max(default, domain[0]), domain[1]))
    if isinstance(domain, list):
        kind = str if name == "similarity" else int if name == "num_teachers" else float
        values = [kind(choice) for choice in domain]
        return hp.Choice(full, values, default=default if default in values else None)
    # A callable cannot be stored; it is used in every distilled trial.
    return domain if callable(domain) else hp.Fixed(full, domain)
