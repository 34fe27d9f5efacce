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

import keras_ssd
from models import sequential_network

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
MODELS = 6


def counts_of_living_objects():
    gc.collect()
    objects = gc.get_objects()
    counts = collections.Counter(type(x).__name__ for x in objects)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        counts["graph nodes"] = sum(len(x.get_operations()) for x in objects if isinstance(x, tf.Graph))
    return counts


def kept(wrap):
    """Objects by kind that remain for each model, after those that are kept only once."""
    counts = []
    for n_models in (2, MODELS):
        for _ in range(n_models):
            wrap(sequential_network()).fit(X, Y, batch_size=8, verbose=0)
        counts.append(counts_of_living_objects())
    return {kind: round((counts[1][kind] - counts[0][kind]) / MODELS) for kind in counts[1]}


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
