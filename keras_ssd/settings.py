"""The options of a distillation: names, defaults for each kind of teacher, and checks."""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_ssd.guidance import SIMILARITIES

KINDS = ("self", "snapshot", "ema")
DISTILL = ("outputs", "representation", "both")

# The paper's released code; "snapshot" is the paper's pipeline. The guidance temperature is the one for "dot" below.
_PAPER: dict[str, Any] = dict(
    num_teachers=30, distill="representation", kd_weight=1.0, kd_fraction=1.0, similarity="dot", percentile=90.0
)
_PAPER["ema_momentum"] = 0.0
# Teachers that move with the student must have little influence: on outputs, with a small weight and soft guidance they
# do no harm; representations with dot products make the norms of both diverge.
_MOVING: dict[str, Any] = dict(
    num_teachers=8, distill="outputs", kd_weight=0.1, similarity="kl", percentile=0.0, ema_momentum=0.99
)
_FROZEN: dict[str, Any] = dict(_MOVING, kd_weight=1.0, ema_momentum=0.0)
DEFAULTS = {"self": _MOVING, "ema": _MOVING, "snapshot": _PAPER, "model": _FROZEN}
# The paper's setting by name, for a model that was trained with early stopping: `wrap(model, **PAPER)`.
PAPER: dict[str, Any] = dict(_PAPER, teacher="snapshot")
# The control of every teacher: the weights are averaged, nothing is distilled.
AVERAGING: dict[str, Any] = dict(kd_weight=0, ema_momentum=0.99)
# For data in which most samples have no label: teachers with views of their own, whose mean is a label if it is sure.
SEMI_SUPERVISED: dict[str, Any] = dict(
    _MOVING, teacher="ema", num_teachers=4, kd_weight=3.0, kd_sample_weight=False, similarity="uniform"
)
SEMI_SUPERVISED.update(augmented_teachers="each", temperature=1.0, target_temperature=0.01, target_threshold=0.9)
# The temperature of the guidance must match the scale of the scores.
GUIDANCE_TEMPERATURES = {"dot": 5.0, "euclidean": 5.0, "cosine": 0.1, "kl": 1.0, "uniform": 1.0}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The checked options of a distillation. `resolve` makes them; `keras_ssd.wrap` documents them.

    Attributes:
        kind: `"self"`, `"snapshot"`, `"ema"` or `"model"`. Every other field is an option of `wrap`.
    """

    kind: str
    num_teachers: int
    teacher_chunk: int | None
    seed: int | None
    distill: str
    kd_weight: float
    kd_sample_weight: bool
    kd_fraction: Any  # a float; `None` until the cost of the teachers is known
    temperature: float
    target_temperature: float
    target_threshold: float
    representation: str | None
    similarity: str | Callable
    guidance_temperature: float
    percentile: float
    stochastic_layers: str | Sequence[str] | Callable | None
    dropout_rate: float | None
    augmented_teachers: bool | str
    ema_momentum: float

    def __post_init__(self) -> None:
        named = ("distill", DISTILL, ""), ("similarity", SIMILARITIES, " or a callable")
        for name, known, remedy in (*named, ("augmented_teachers", (True, False, "each"), "")):
            value = getattr(self, name)
            if value not in known and not (remedy and callable(value)):
                raise ValueError(f"`{name}` should be one of {known}{remedy}. Received: {name}={value!r}")
        least = 1 if self.similarity == "uniform" else 2
        guided = ' (a single teacher needs no guidance: pass similarity="uniform")' if least == 2 else ""
        check_integer("num_teachers", self.num_teachers, least, guided)
        check_integer("teacher_chunk", self.teacher_chunk, 1, ", or None for all teachers at once", optional=True)
        check_integer("seed", self.seed, None, " or None", optional=True)
        check_number("kd_weight", self.kd_weight, "[0, inf)")
        for name in ("temperature", "target_temperature", "guidance_temperature"):
            check_number(name, getattr(self, name), "(0, inf)")
        check_number("target_threshold", self.target_threshold, "[0, 1)", " (0 lets all targets count)")
        check_number("percentile", self.percentile, "[0, 100]", " (0 keeps all)")
        own = ", or None to keep the model's own rates"
        check_number("dropout_rate", self.dropout_rate, "(0, 1)", own, optional=True)
        cheap = ", or None for the largest part of a batch that keeps teachers cheap"
        check_number("kd_fraction", self.kd_fraction, "(0, 1]", cheap, optional=True)
        check_number("ema_momentum", self.ema_momentum, "[0, 1)", ", or None for the default; 0 switches averaging off")
        if self.distill == "representation" and (self.target_temperature != 1 or self.target_threshold > 0):
            raise ValueError(
                '`target_temperature` and `target_threshold` need outputs to distil: distill="representation" has none.'
                f" Received: target_temperature={self.target_temperature}, target_threshold={self.target_threshold}"
            )
        if self.kind == "ema" and self.ema_momentum == 0 and self.distills:
            raise ValueError(
                '`ema_momentum` should be above 0 with teacher="ema": with 0 the average is the student itself, which '
                f'is teacher="self". Received: ema_momentum={self.ema_momentum}'
            )

    @property
    def distills(self) -> bool:
        """Return whether there is a distillation term; without it no teachers are built or checked."""
        return self.kd_weight > 0

    @property
    def averages(self) -> bool:
        """Return whether a moving average of the student's weights is held, evaluated and deployed."""
        return self.ema_momentum > 0

    @property
    def needs_representation(self) -> bool:
        """Return whether representations are distilled or compared."""
        return self.distill != "outputs" or self.similarity not in ("kl", "uniform")

    @property
    def needs_outputs(self) -> bool:
        """Return whether outputs are distilled or compared."""
        return self.distill != "representation" or self.similarity == "kl"

    def options(self) -> dict[str, Any]:
        """Return the options as keyword arguments of `SSDModel`, defaults filled in."""
        return {name: getattr(self, name) for name in OPTIONS}


def _refuse_assignment(settings: Settings, name: str, value: Any) -> None:
    raise dataclasses.FrozenInstanceError(
        f"`{name}` cannot be changed: teachers are built for their settings. Assign `ssd.kd_weight` for another weight "
        "of the term, or wrap the model again, keras_ssd.wrap(ssd.student, ...)."
    )


setattr(Settings, "__setattr__", _refuse_assignment)  # noqa: B010, a frozen dataclass may not define it

# The names of all options of `wrap` after `teacher`.
OPTIONS = tuple(field.name for field in dataclasses.fields(Settings) if field.name != "kind")
# Options with the same default for every kind of teacher.
_COMMON: dict[str, Any] = dict(temperature=3.0, target_temperature=1.0, target_threshold=0.0)
_COMMON.update(kd_sample_weight=True, augmented_teachers=True)


def resolve(kind: str, defaults: str | None = None, **given: Any) -> Settings:
    """Return the `Settings` for a kind of teacher and the options that the user gave (`None`: the kind's default).

    `defaults` names another kind whose defaults apply.

    Raises:
        ValueError: if an option is out of range.
        TypeError: if an option is unknown.
    """
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise TypeError(f"Unknown options: {unknown}. The options are {list(OPTIONS)}.")
    options = {**_COMMON, **DEFAULTS[defaults or kind]}
    if given.get("kd_weight") == 0 and kind != "ema":
        # Without teachers everything is as in plain Keras, unless the user asked for averaging.
        options["ema_momentum"] = 0.0
    options.update({name: value for name, value in given.items() if value is not None or name in _COMMON})
    similarity = options["similarity"]
    usual = GUIDANCE_TEMPERATURES.get(similarity, 1.0) if isinstance(similarity, str) else 1.0
    options = {**dict.fromkeys(OPTIONS), "guidance_temperature": usual, **options}
    options["kd_sample_weight"] = bool(options["kd_sample_weight"])
    if not isinstance(options["augmented_teachers"], str):
        options["augmented_teachers"] = bool(options["augmented_teachers"])
    settings = Settings(kind, **options)
    if kind == "self" and similarity == "dot" and settings.distill != "outputs":
        warnings.warn(
            f'teacher="self" with similarity="dot" and distill={settings.distill!r} makes the norm of the '
            'representation diverge and accuracy fall. Use distill="outputs", or teacher="snapshot".',
            stacklevel=level_of_user(),
        )
    warn_of_a_share(settings.percentile)
    return settings


def warn_of_a_share(percentile: float) -> None:
    """Warn of a percentile that is probably meant as a share."""
    if 0 < percentile < 1:
        warnings.warn(
            f"`percentile` lies between 0 and 100, and {percentile} is below 1: pass {100 * percentile:g} for a share "
            f"of {percentile:g}.",
            stacklevel=level_of_user(),
        )


def check_number(name: str, value: Any, interval: str, remedy: str = "", optional: bool = False) -> None:
    """Raise `ValueError` unless the option `name` is a number (no bool) in an interval.

    In the interval, `"[0, 1)"` for example, a square bracket allows the bound itself. `remedy` is the part of the
    message that says what else is allowed. `optional` allows `None`.
    """
    low, high = map(float, interval[1:-1].split(", "))
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    excluded = ([low] if interval[0] == "(" else []) + ([high] if interval[-1] == ")" else [])
    if not (is_number and low <= value <= high and value not in excluded) and not (optional and value is None):
        raise ValueError(f"`{name}` should be a float in {interval}{remedy}. Received: {name}={value!r}")


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, also one of NumPy's, but no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_integer(name: str, value: Any, least: int | None, remedy: str = "", optional: bool = False) -> None:
    """Raise `ValueError` unless an option is an integer (no bool), of at least `least`; see `check_number`."""
    if not (is_integer(value) and (least is None or value >= least)) and not (optional and value is None):
        lower = "" if least is None else f" of at least {least}"
        raise ValueError(f"`{name}` should be an integer{lower}{remedy}. Received: {name}={value!r}")


def level_of_user() -> int:
    """Return the `stacklevel` of the first caller outside this package, for a warning of the calling function."""
    level = 1
    while sys._getframe(level).f_globals.get("__name__", "").startswith(("keras_ssd.", "keras.")):
        level += 1
    return level
