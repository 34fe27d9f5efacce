"""A process in which many models are wrapped, trained and dropped grows no more than with plain ones."""

import gc
import os
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from models import compiled

STATUS = pathlib.Path("/proc/self/statm")
X = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
MODELS, UNCOUNTED = 100, 20
# TensorFlow keeps what it traced, and a wrapped step is larger.
FACTOR = {"tensorflow": 1.5}.get(keras.backend.backend(), 1.0)
# Bytes per model that a measurement may be wrong by: the allocator hands memory back in pages.
NOISE = 100e3


def resident_bytes():
    gc.collect()
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(wrap):
    """Bytes by which the process grows with each model, when it has warmed up."""
    for number in range(MODELS):
        if number == UNCOUNTED:
            before = resident_bytes()
        stack = [layers.Dense(64, activation="relu"), layers.Dropout(0.3), layers.Dense(2, activation="softmax")]
        model = compiled(keras.Sequential([keras.Input((32,)), *stack]), metrics=())
        wrap(model).fit(X, Y, batch_size=32, verbose=0)
    after = resident_bytes()
    print(f"from {before / 1e6:.1f} to {after / 1e6:.1f} MB")
    return (after - before) / (MODELS - UNCOUNTED)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.skipif(not STATUS.exists(), reason="memory is read as Linux tells it")
def test_wrapped_models_leave_no_more_behind_than_plain_ones():
    plain, wrapped = growth(lambda model: model), growth(keras_ssd.wrap)
    print(f"plain {plain / 1e6:.2f} MB a model, wrapped {wrapped / 1e6:.2f} MB")
    assert wrapped <= FACTOR * max(plain, 0) + NOISE
