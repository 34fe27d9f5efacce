"""A process that wraps, trains and drops many models keeps no more objects of them than of plain models.

The tests count objects, because the memory of a process also depends on its allocator. They run in a separate process,
because the garbage of other tests would be counted, too.
"""

import collections
import gc
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from models import compiled

X = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
MODELS = 6


def train_one(wrap):
    stack = [layers.Dense(64, activation="relu"), layers.Dropout(0.3), layers.Dense(2, activation="softmax")]
    model = compiled(keras.Sequential([keras.Input((32,)), *stack]), "adam", metrics=())
    wrap(model).fit(X, Y, batch_size=32, verbose=0)


def living_objects():
    gc.collect()
    objects = gc.get_objects()
    counts = collections.Counter(type(x).__name__ for x in objects)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        counts["graph nodes"] = sum(len(x.get_operations()) for x in objects if isinstance(x, tf.Graph))
    return counts


def kept(wrap):
    """Objects by kind that remain for each model, after those that are kept only once."""
    for _ in range(2):
        train_one(wrap)
    before = living_objects()
    for _ in range(MODELS):
        train_one(wrap)
    after = living_objects()
    return {kind: round((after[kind] - before[kind]) / MODELS) for kind in after}


@pytest.mark.slow
@pytest.mark.compiled
def test_wrapped_models_leave_no_more_behind_than_plain_ones():
    counted = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert counted.returncode == 0, counted.stderr
    plain, wrapped = json.loads(counted.stdout.splitlines()[-1])
    of_the_wrapper = ("SSDModel", "Distillation", "WeightAverage")
    for kind in (*of_the_wrapper, "Sequential", "Functional", "Dense", "Dropout", "Variable", "Parameter"):
        assert wrapped.get(kind, 0) == 0, kind
    if keras.backend.backend() == "tensorflow":
        # It keeps every step that it traced, of plain models, too. Those of wrapped ones have more nodes, but only one
        # of them is traced, because the optimizer has its variables before.
        assert wrapped["FunctionCaptures"] <= plain["FunctionCaptures"]
        assert wrapped["graph nodes"] <= 1.5 * plain["graph nodes"]
    else:
        assert sum(wrapped.values()) <= max(sum(plain.values()), 0) + 10


if __name__ == "__main__":
    print(json.dumps([kept(lambda model: model), kept(keras_ssd.wrap)]))
