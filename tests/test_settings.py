import dataclasses
import inspect
import math
import re
from typing import get_args

import numpy as np
import pytest

import keras_ssd
from keras_ssd import settings
from keras_ssd._typing import Distill, Kind, Similarity
from keras_ssd.settings import DISTILL, KINDS, OPTIONS, SIMILARITIES, resolve
from models import classifier

COLUMNS = "num_teachers distill kd_weight similarity guidance_temperature percentile ema_momentum".split()
# As in the table of `keras_ssd.wrap`.
DEFAULTS = {
    "self": (8, "outputs", 0.1, "kl", 1.0, 0.0, 0.99),
    "ema": (8, "outputs", 0.1, "kl", 1.0, 0.0, 0.99),
    "model": (8, "outputs", 1.0, "kl", 1.0, 0.0, 0.0),
    "snapshot": (30, "representation", 1.0, "dot", 5.0, 90.0, 0.0),
}


@pytest.mark.parametrize("kind, values", DEFAULTS.items(), ids=DEFAULTS)
def test_defaults(kind, values):
    settings, of_another = resolve(kind), resolve("snapshot", kind)
    assert tuple(getattr(settings, name) for name in COLUMNS) == values
    assert tuple(getattr(of_another, name) for name in COLUMNS) == values and of_another.kind == "snapshot"
    assert (settings.kd_sample_weight, settings.temperature) == (True, 3.0)
    assert (settings.dropout_rate, settings.teacher_chunk) == (None, None)


@pytest.mark.parametrize("name, given", [*zip(COLUMNS, (5, "both", 0.0, "cosine", 0.7, 50.0, 0.5), strict=True)])
def test_an_option_replaces_its_own_default_alone(name, given):
    expected = dict(zip(COLUMNS, DEFAULTS["snapshot"], strict=True)) | {name: given}
    if name == "similarity":
        expected["guidance_temperature"] = 0.1  # follows it
    settings = resolve("snapshot", **{name: given})
    assert {column: getattr(settings, column) for column in COLUMNS} == expected


def test_guidance_temperature_follows_the_similarity():
    usual = {"dot": 5.0, "euclidean": 5.0, "cosine": 0.1, "kl": 1.0, "uniform": 1.0, (lambda s, t: t[:, :, 0]): 1.0}
    for similarity, temperature in usual.items():
        for kind in ("ema", "snapshot"):
            assert resolve(kind, similarity=similarity).guidance_temperature == temperature, similarity
        assert resolve("ema", similarity=similarity, guidance_temperature=2).guidance_temperature == 2


NOT_NUMBERS = (math.nan, math.inf, "3", [1.0], True)
REFUSED = {
    "num_teachers": (0, 1, -3, 2.5, True, "8", math.nan),
    "teacher_chunk": (0, -1, 1.5, True, "2"),
    "kd_weight": (-0.1, *NOT_NUMBERS),
    "temperature": (0, -1.0, None, *NOT_NUMBERS),
    "target_temperature": (0, -1.0, None, *NOT_NUMBERS),
    "target_threshold": (1, -0.1, None, *NOT_NUMBERS),
    "guidance_temperature": (0, -1.0, *NOT_NUMBERS),
    "percentile": (-1, 100.5, *NOT_NUMBERS),
    "dropout_rate": (0, 1, 1.0, -0.1, 1.5, *NOT_NUMBERS),
    "kd_fraction": (0, -0.5, 1.5, *NOT_NUMBERS),
    "ema_momentum": (1, -0.1, 1.5, *NOT_NUMBERS),
    "seed": (0.5, True, "7"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_number_out_of_range_raises(name):
    for value in REFUSED[name]:
        received = re.escape(f"Received: {name}={value!r}")
        with pytest.raises(ValueError, match=f"(?s)^`{name}` should .*{received}"):
            resolve("ema", **{name: value})


@pytest.mark.parametrize(
    "name, value",
    [("distill", "output"), ("distill", 1), ("similarity", "l2"), ("similarity", 3), ("augmented_teachers", "own")],
)
def test_unknown_name_raises(name, value):
    with pytest.raises(ValueError, match=f"`{name}` should be one of .* Received: {name}={value!r}"):
        resolve("ema", **{name: value})


ACCEPTED = {
    "num_teachers": (2, np.int64(3)),
    "teacher_chunk": (1, np.int32(4), 100),
    "kd_weight": (0, 0.0, np.float32(2)),
    "temperature": (1e-3, 1, np.float64(2)),
    "percentile": (0, 100, 33.3),
    "dropout_rate": (1e-6, 0.999),
    "ema_momentum": (0.1, 0.9999),
}


def test_valid_options_are_accepted():
    for name, values in ACCEPTED.items():
        for value in values:
            assert getattr(resolve("ema", **{name: value}), name) == value, name


def test_one_teacher_needs_no_guidance():
    assert resolve("self", similarity="uniform", num_teachers=1).num_teachers == 1
    with pytest.raises(ValueError, match='at least 2 .*similarity="uniform".* Received: num_teachers=1'):
        resolve("self", num_teachers=1)
    with pytest.raises(ValueError, match="at least 1. Received: num_teachers=0"):
        resolve("self", similarity="uniform", num_teachers=0)


def test_a_percentile_below_1_warns():
    with pytest.warns(UserWarning, match="`percentile` lies between 0 and 100, and 0.01 is below 1: pass 1 "):
        assert resolve("ema", percentile=0.01).percentile == 0.01


def test_dot_products_of_moving_teachers_warn():
    for distill in ("representation", "both"):
        with pytest.warns(UserWarning, match='similarity="dot".*diverge'):
            resolve("self", distill=distill, similarity="dot")
        # Warnings are errors: these are silent.
        resolve("ema", distill=distill, similarity="dot")
        resolve("self", distill=distill, similarity="cosine")
    resolve("self", similarity="dot")


NEEDS = {
    ("outputs", "kl"): (False, True),
    ("outputs", "uniform"): (False, True),
    ("outputs", "cosine"): (True, True),
    ("representation", "dot"): (True, False),
    ("representation", "kl"): (True, True),
    ("representation", "uniform"): (True, False),
    ("both", "uniform"): (True, True),
}


def test_representation_and_outputs_are_computed_only_if_needed():
    for (distill, similarity), expected in NEEDS.items():
        settings = resolve("ema", distill=distill, similarity=similarity)
        assert (settings.needs_representation, settings.needs_outputs) == expected, (distill, similarity)


def test_without_teachers_only_ema_averages_by_default():
    for kind, expected in {"self": 0, "snapshot": 0, "model": 0, "ema": 0.99}.items():
        assert resolve(kind, kd_weight=0).ema_momentum == expected
        assert resolve(kind, kd_weight=0, ema_momentum=0.9).ema_momentum == 0.9


def test_teachers_that_are_an_average_need_a_momentum():
    with pytest.raises(ValueError, match='`ema_momentum` should be above 0 with teacher="ema".*ema_momentum=0'):
        resolve("ema", ema_momentum=0)
    assert resolve("self", ema_momentum=0).averages is False


def test_wrap_takes_the_options_of_the_settings():
    parameters = inspect.signature(keras_ssd.wrap).parameters
    assert list(parameters) == ["model", "teacher", *OPTIONS]
    given = {name: parameters[name].default for name in OPTIONS}
    assert resolve("self", **given) == resolve("self")
    for name in OPTIONS:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"        {name}: " in keras_ssd.wrap.__doc__
    assert len(OPTIONS) <= 18


def test_options_by_name_are_options_and_those_of_the_paper_the_defaults_of_a_snapshot():
    for options in (keras_ssd.PAPER, keras_ssd.SEMI_SUPERVISED):
        assert set(options) <= {"teacher", *OPTIONS}
    given = {name: value for name, value in keras_ssd.PAPER.items() if name != "teacher"}
    assert given == settings.DEFAULTS["snapshot"]


def test_settings_cannot_be_changed():
    ssd = keras_ssd.wrap(classifier())
    with pytest.raises(dataclasses.FrozenInstanceError, match="`kd_weight` cannot be changed.*wrap the model again"):
        ssd.settings.kd_weight = 0.9
    for name in ("num_teachers", "percentile", "settings"):
        with pytest.raises(
            AttributeError, match=f"`{name}` of a wrapped model cannot be changed.*Wrap the model again"
        ):
            setattr(ssd, name, 3)


def test_types_name_the_values_that_are_taken():
    assert get_args(Kind) == KINDS and get_args(Distill) == DISTILL
    assert get_args(get_args(Similarity)[0]) == SIMILARITIES
