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
    """Return the active options of `wrap` in a trial: those of the search, and the given `options` of all trials."""
    options = dict(options) if functional else {"distill": "outputs", **options}
    defaults = dict(DEFAULTS["model" if kind == "snapshot" and not functional else kind])
    searched = list(SIMILARITIES) if functional else ["kl", "uniform"]
    if kind == "self" and options.get("distill", "outputs") != "outputs":
        searched.remove("dot")  # `wrap` warns of this combination
    given = space.get("similarity", searched)
    similarities = given if isinstance(given, list) else [defaults["similarity"] if given is None else given]
    guided = [similarity for similarity in similarities if similarity != "uniform"]
    scales = [GUIDANCE_TEMPERATURES.get(similarity, 1.0) for similarity in guided] or [1.0]
    usual = defaults["similarity"] if defaults["similarity"] in similarities else similarities[0]
    scale, weight = GUIDANCE_TEMPERATURES.get(usual, 1.0), defaults["kd_weight"]
    defaults.update(temperature=3.0, dropout_rate=0.3, guidance_temperature=scale)
    domains: dict[str, Any] = {
        "similarity": searched,
        "num_teachers": (2, 32),
        "kd_weight": (0.1 * weight, 10 * weight),
        "temperature": (1.0, 10.0),
        "dropout_rate": (0.05, 0.6),
        "guidance_temperature": (0.1 * min(scales), 10 * max(scales)),
        "percentile": (0.0, 95.0),
        **space,
    }
    needed_by = dict.fromkeys(_GUIDANCE, guided)
    if options.get("distill", defaults["distill"]) == "representation":
        needed_by["temperature"] = [similarity for similarity in similarities if similarity == "kl"]
    for name in PARAMETERS:
        needed = needed_by.get(name, similarities)
        if domains[name] is not None and needed:
            is_always = len(needed) == len(similarities)
            with contextlib.nullcontext() if is_always else hp.conditional_scope("ssd_similarity", needed):
                value = _register(hp, name, domains[name], defaults[name])
            if value is not None:
                # A percentile below 1 is most likely a share, of which `wrap` warns.
                options[name] = round(value) if name == "percentile" and isinstance(domains[name], tuple) else value
    return options


def checked_space(kind: str, space: dict[str, Any] | None) -> dict[str, Any]:
    """Return a copy of the `space` of `SSDHyperModel`; raise if `wrap` or Keras Tuner would refuse it."""
    space = dict(space or {})
    if unknown := sorted(set(space) - set(PARAMETERS)):
        raise ValueError(f"`space` should have keys among {sorted(PARAMETERS)}. Received: {unknown}")
    for name, domain in space.items():
        values, is_range = list(domain) if isinstance(domain, (tuple, list)) else [domain], isinstance(domain, tuple)
        problem = None
        if is_range and (name == "similarity" or len(values) != 2):
            problem = "A tuple in `space` should be (min, max); a list holds choices."
        elif isinstance(domain, list) and any(map(callable, domain)):
            problem = f"`similarity` should list some of {SIMILARITIES}."
        elif name == "kd_weight" and 0 in values and not is_range:
            problem = "A plain trial is part of every search: leave 0 out."
        if problem:
            raise ValueError(f"{problem} Received: {name}={domain!r}")
        if domain is not None:
            _register(keras_tuner.HyperParameters(), name, domain, (values or [None])[0])  # Keras Tuner checks ranges
            similarity = "uniform" if space.get("similarity") in ("uniform", ["uniform"]) else None
            for value in values:
                # With the defaults of a frozen network, which suit every value; "ema" needs an average.
                resolve(kind, None if kind == "ema" else "model", **{"similarity": similarity, name: value})
    return space


def _register(hp: keras_tuner.HyperParameters, name: str, domain: Any, default: Any) -> Any:
    """Register a hyper-parameter and return its value in this trial; `None` if it is not active."""
    full, kind = f"ssd_{name}", str if name == "similarity" else int if name == "num_teachers" else float
    if isinstance(domain, tuple):
        sampling = "log" if name in _LOGARITHMIC else "linear"
        default = min(max(default, domain[0]), domain[1])
        return (hp.Int if kind is int else hp.Float)(full, *domain, sampling=sampling, default=default)
    if isinstance(domain, list):
        values = [kind(choice) for choice in domain]
        return hp.Choice(full, values, default=default if default in values else None)
    return domain if callable(domain) else hp.Fixed(full, domain)  # a callable cannot be stored
