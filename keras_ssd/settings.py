"""The options of a distillation: the defaults of each kind of teacher, and every check of a value."""

import dataclasses
import math
import warnings

import numpy as np

from keras_ssd.guidance import SIMILARITIES

KINDS = ("self", "snapshot", "ema")
DISTILL = ("outputs", "representation", "both")

# The paper's released code; "snapshot" is the paper's pipeline.
PAPER = dict(
    n_teachers=30,
    distill="representation",
    kd_weight=1.0,
    task_weight=1.0,
    similarity="dot",  # with a guidance temperature of 5, see below
    percentile=90.0,
)
# Teachers that move with the student must not pull hard: on outputs, with little weight and soft guidance they do no
# harm; representation with dot products makes the norms of both run away.
_MOVING = dict(n_teachers=8, distill="outputs", kd_weight=0.1, similarity="kl", percentile=0.0)
_FROZEN = dict(_MOVING, kd_weight=1.0)
DEFAULTS = {"self": _MOVING, "ema": _MOVING, "snapshot": PAPER, "model": _FROZEN}
# Where most samples have no label: the paper's frozen teacher, but on outputs.
SEMI_SUPERVISED = _FROZEN
# The temperature of the guidance belongs to the scale of the scores.
GUIDANCE_TEMPERATURES = {"dot": 5.0, "euclidean": 5.0, "cosine": 0.1, "kl": 1.0, "uniform": 1.0}


@dataclasses.dataclass
class Settings:
    """The checked options of a distillation; `None` becomes the default of the kind of teacher.

    See `keras_ssd.wrap` for their meaning. `defaults` names the kind whose defaults apply, the teacher's own if `None`.
    """

    kind: str
    defaults: str | None = None
    n_teachers: int | None = None
    distill: str | None = None
    kd_weight: float | None = None
    task_weight: float = 1.0
    similarity: object = None
    guidance_temperature: float | None = None
    percentile: float | None = None
    temperature: float = 3.0
    dropout_rate: float | None = None
    teacher_chunk: int | None = None
    momentum: float = 0.99
    augmented_teachers: bool = True
    confidence_weighted: bool = False

    def __post_init__(self):
        for name, default in DEFAULTS[self.defaults or self.kind].items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        self._check_names()
        if self.guidance_temperature is None:
            self.guidance_temperature = GUIDANCE_TEMPERATURES.get(self.similarity, 1.0)
        self._check_numbers()
        if self.kind == "self" and self.similarity == "dot" and self.distill != "outputs":
            warnings.warn(
                'teacher="self" with similarity="dot" and distill="representation" makes the norm of the '
                'representation run away and accuracy fall. Use distill="outputs", or teacher="snapshot".',
                stacklevel=4,
            )

    def _check_names(self):
        if self.distill not in DISTILL:
            raise ValueError(f"`distill` should be one of {DISTILL}. Received: distill={self.distill!r}")
        if self.confidence_weighted and self.distill == "representation":
            raise ValueError(
                "`confidence_weighted` weighs the distillation of outputs, and none are distilled. Received: "
                f'confidence_weighted=True, distill={self.distill!r}. Pass distill="outputs" or "both".'
            )
        if not callable(self.similarity) and self.similarity not in SIMILARITIES:
            raise ValueError(
                f"`similarity` should be one of {SIMILARITIES} or a callable. Received: similarity={self.similarity!r}"
            )

    def _check_numbers(self):
        least = 1 if self.similarity == "uniform" else 2
        if not is_integer(self.n_teachers) or self.n_teachers < least:
            remedy = ' (a single teacher needs no guidance: pass similarity="uniform")' if least == 2 else ""
            raise ValueError(
                f"`n_teachers` should be an integer of at least {least}{remedy}. Received: n_teachers={self.n_teachers}"
            )
        if self.teacher_chunk is not None and (not is_integer(self.teacher_chunk) or self.teacher_chunk < 1):
            raise ValueError(
                "`teacher_chunk` should be a positive integer, or None for all teachers at once. Received: "
                f"teacher_chunk={self.teacher_chunk}"
            )
        for name in ("kd_weight", "task_weight"):
            check_weight(name, getattr(self, name))
        for name in ("temperature", "guidance_temperature"):
            value = getattr(self, name)
            if not is_number(value) or value <= 0:
                raise ValueError(f"`{name}` should be a positive float. Received: {name}={value}")
        if not is_number(self.percentile) or not 0 <= self.percentile <= 100:
            raise ValueError(
                f"`percentile` should lie between 0 (all are kept) and 100. Received: percentile={self.percentile}"
            )
        if self.dropout_rate is not None and (not is_number(self.dropout_rate) or not 0 < self.dropout_rate < 1):
            raise ValueError(
                "`dropout_rate` should lie between 0 and 1, both excluded, or be None to keep the model's own rates. "
                f"Received: dropout_rate={self.dropout_rate}"
            )
        if not is_number(self.momentum) or not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` should lie in [0, 1). Received: momentum={self.momentum}")

    @property
    def needs_representation(self):
        return self.distill != "outputs" or self.similarity not in ("kl", "uniform")

    @property
    def needs_outputs(self):
        return self.distill != "representation" or self.similarity == "kl"


def check_weight(name, value):
    """Raise unless `value` is a finite number that is not negative."""
    if not is_number(value) or value < 0:
        raise ValueError(f"`{name}` should be a finite float that is not negative. Received: {name}={value}")


def check_integer(name, value, least):
    """Raise unless `value` is an integer of at least `least`."""
    if not is_integer(value) or value < least:
        raise ValueError(f"`{name}` should be an integer of at least {least}. Received: {name}={value!r}")


def is_integer(value):
    """Whether a value is an integer; `True` is none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value):
    """Whether a value is a finite number; `True` is none."""
    is_real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)
