"""What is searched: the hyper-parameters of the distillation, their ranges and conditions."""

import functools

from keras_ssd.guidance import SIMILARITIES
from keras_ssd.settings import DEFAULTS, GUIDANCE_TEMPERATURES, Settings

# Searched in this order: a condition has to stand before what depends on it.
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


def sample(hp, kind, space, options, functional):
    """The options of `wrap` in one trial; those that are not active are left out."""
    options = dict(options)
    if not functional:
        options.setdefault("distill", "outputs")
    defaults = dict(DEFAULTS["model" if kind == "snapshot" and not functional else kind])
    defaults.update(temperature=3.0, dropout_rate=0.3)
    ranges = {**_ranges(defaults, functional), **space}
    if kind == "self" and options.get("distill", "outputs") != "outputs" and "similarity" not in space:
        # `wrap` warns of this pair: the norms run away.
        ranges["similarity"] = [one for one in ranges["similarity"] if one != "dot"]
    similarities = _listed(ranges["similarity"], defaults["similarity"])
    guided = [one for one in similarities if one != "uniform"]
    if "guidance_temperature" not in space:
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


def checked_space(kind, space):
    """A copy of the user's `space` for a kind of teacher.

    Raises:
        ValueError: if a name is unknown, or what is searched is no range, list or value that `wrap` takes.
    """
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


def _ranges(defaults, functional):
    similarities = list(SIMILARITIES) if functional else ["kl", "uniform"]
    return {
        "similarity": similarities,
        "num_teachers": (2, 32),
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
        add = hp.Int if name == "num_teachers" else hp.Float
        return add(full, *given, sampling=sampling, default=default)
    if isinstance(given, list):
        kind = str if name == "similarity" else int if name == "num_teachers" else float
        values = [kind(one) for one in given]
        return hp.Choice(full, values, default=default if default in values else values[0])
    # A callable cannot be stored; whether it is used depends on nothing but `ssd_distill`.
    return given if callable(given) else hp.Fixed(full, given)
