"""What every test starts from: the same seed, no display, the examples importable."""

import os
import pathlib
import sys

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # before matplotlib is imported
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import keras  # noqa: E402


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)
