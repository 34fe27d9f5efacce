"""The hyper-parameters of the distillation, their ranges and conditions."""

import functools
from typing import Any

import keras_tuner

from keras_ssd.guidance import SIMILARITIES
from keras_ssd.settings import DEFAULTS, GUIDANCE_TEMPERATURES, Settings

# Searched in this order: a condition comes before the hyper-parameters that depend on it.
PARAMETERS = (
    "similarity",
    "num_teachers",
    "kd_weight",
    "temperature",
    "dropout_rate",
    "guidance_temperature",
    "percentile",
)
_LOGARITHMIC = ("num_teachers", "kd_weight", "temperature", "guidance_temperature")
_GUIDANCE = ("guidance_temperature", "percentile")


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
    options = dict(options)
    if not functional:
        options.setdefault("distill", "outputs")
    defaults = dict(DEFAULTS["model" if kind == "snapshot" and not functional else kind])
    defaults.update(temperature=3.0, dropout_rate=0.3)
    ranges = {**_ranges(defaults, functional), **space}
    if kind == "self" and options.get("distill", "outputs") != "outputs" and "similarity" not in space:
        # `wrap` warns of this combination: the norms run away.
        ranges["similarity"] = [name for name in ranges["similarity"] if name != "dot"]
    similarities = _listed(ranges["similarity"], defaults["similarity"])
    guided = [similarity for similarity in similarities if similarity != "uniform"]
    if "guidance_temperature" not in space:
        scales = [GUIDANCE_TEMPERATURES.get(similarity, 1.0) for similarity in guided] or [1.0]
        ranges["guidance_temperature"] = (0.1 * min(scales), 10 * max(scales))
    defaults["guidance_temperature"] = GUIDANCE_TEMPERATURES.get(similarities[0], 1.0)
    if defaults["similarity"] in similarities:
        defaults["guidance_temperature"] = GUIDANCE_TEMPERATURES[defaults["similarity"]]
    active = {name: similarities for name in PARAMETERS}
    active.update(dict.fromkeys(_GUIDANCE, guided))
    if options.get("distill", defaults["distill"]) == "representation":
        active["temperature"] = [similarity for similarity in similarities if similarity == "kl"]
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


def checked_space(kind: str, space: dict[str, Any] | None) -> dict[str, Any]:
    """Check the user's `space` for a kind of teacher.

    Args:
        kind: kind of teacher.
        space: as given to `SSDHyperModel`.

    Returns:
        A copy of `space`.

    Raises:
        ValueError: if a name is unknown, or its value is not a range, list or value that `wrap` takes.
    """
    space = dict(space or {})
    unknown = sorted(set(space) - set(PARAMETERS))
    if unknown:
        raise ValueError(f"`space` should have keys among {sorted(PARAMETERS)}. Received: {unknown}")
    only_uniform = _listed(space.get("similarity"), None) == ["uniform"]
    for name, domain in space.items():
        if domain is None:
            continue
        if isinstance(domain, tuple) and (name == "similarity" or len(domain) != 2 or not domain[0] < domain[1]):
            raise ValueError(
                f"A tuple in `space` should be (min, max) of numbers, with min below max; pass a list for choices. "
                f"Received: {name}={domain!r}"
            )
        if isinstance(domain, tuple) and name in _LOGARITHMIC and domain[0] <= 0:
            raise ValueError(
                f"`{name}` is searched on a logarithmic scale, so min should be above 0 (the plain trial is part of "
                f"every search). Received: {name}={domain!r}"
            )
        if isinstance(domain, list) and not domain:
            raise ValueError(f"A list in `space` should hold at least one choice. Received: {name}={domain!r}")
        values = domain if isinstance(domain, (tuple, list)) else [domain]
        if name == "similarity" and isinstance(domain, list) and not all(choice in SIMILARITIES for choice in domain):
            raise ValueError(f"`similarity` should list some of {SIMILARITIES}. Received: similarity={domain!r}")
        similarity = "uniform" if only_uniform else None
        for value in values:
            # With the defaults of a frozen network, which suit every value; "ema" needs an average.
            Settings(kind, None if kind == "ema" else "model", **{"similarity": similarity, name: value})
        if name == "kd_weight" and 0 in values:
            raise ValueError(f"A plain trial is part of every search: leave 0 out. Received: kd_weight={domain!r}")
    return space


def _ranges(defaults: dict[str, Any], functional: bool) -> dict[str, Any]:
    similarities = list(SIMILARITIES) if functional else ["kl", "uniform"]
    return {
        "similarity": similarities,
        "num_teachers": (2, 32),
        "kd_weight": (0.1 * defaults["kd_weight"], 10 * defaults["kd_weight"]),
        "temperature": (1.0, 10.0),
        "dropout_rate": (0.05, 0.6),
        "percentile": (0.0, 95.0),
    }


def _listed(domain: Any, default: Any) -> list[Any]:
    """Return the similarities that a trial can have."""
    if isinstance(domain, list):
        return domain
    return [default if domain is None else domain]


def _register(hp: keras_tuner.HyperParameters, name: str, domain: Any, default: Any) -> Any:
    """Register a hyper-parameter and return its value in this trial; `None` if it is not active."""
    full = f"ssd_{name}"
    if isinstance(domain, tuple):
        sampling = "log" if name in _LOGARITHMIC else "linear"
        default = min(max(default, domain[0]), domain[1])
        add = hp.Int if name == "num_teachers" else hp.Float
        return add(full, *domain, sampling=sampling, default=default)
    if isinstance(domain, list):
        kind = str if name == "similarity" else int if name == "num_teachers" else float
        values = [kind(choice) for choice in domain]
        return hp.Choice(full, values, default=default if default in values else values[0])
    # A callable cannot be stored; it is used in every distilled trial.
    return domain if callable(domain) else hp.Fixed(full, domain)
