"""The evaluations of one distilled step: which layers, how often, and on how many rows."""

import math

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from keras_ssd.augmentation import Jitter
from keras_ssd.passes import chunk_size

BATCH, N = 4, 6
OUTPUTS = dict(distill="outputs", similarity="kl")


class Counting(layers.Layer):
    """Passes its input on and records how many rows each call saw, and whether it was training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rows = []
        self.training = []

    def call(self, x, training=None):
        self.rows.append(x.shape[0])
        self.training.append(bool(training))
        return x

    def reset(self):
        self.rows, self.training = [], []


def counted_model():
    """`(model, counter before the first dropout, counter after it)`."""
    before, after = Counting(name="before"), Counting(name="after")
    dropout = layers.Dropout(0.5, seed=1)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), before, dropout, after, layers.Dense(3)])
    return model, before, after


def augmenting():
    return [layers.Reshape((8, 1)), Jitter(), layers.Reshape((8,))]


def one_step(model, teacher, *counters, **options):
    """Count the calls of one step."""
    ssd = keras_ssd.wrap(model, teacher, **{"num_teachers": N, "kd_fraction": 1, **options})
    ssd.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    x, y = np.random.default_rng(0).standard_normal((BATCH, 8), "float32"), np.arange(BATCH) % 3
    ssd.train_on_batch(x, y)  # on JAX the first call also builds metrics, symbolically
    for counter in counters:
        counter.reset()
    ssd.train_on_batch(x, y)


SHARED, ALONE, ALL = [BATCH], [BATCH, BATCH], [BATCH, N * BATCH]
ROWS = dict(kd_fraction=2 / BATCH, **OUTPUTS)
NO_NOISE = dict(distill="outputs", similarity="uniform", stochastic_layers=(), num_teachers=1)
# The rows of each call before and after the dropout, the student's first.
STEPS = {
    "own weights add no pass before the dropout": ("self", {}, SHARED, ALL),
    "nor where noise is added": ("self", dict(stochastic_layers="before", dropout_rate=0.5), SHARED, ALL),
    "frozen weights add one": ("snapshot", OUTPUTS, ALONE, ALL),
    "averaged weights add one": ("ema", OUTPUTS, ALONE, ALL),
    "one, too, for outputs and representations": ("snapshot", dict(distill="both"), ALONE, ALL),
    "own weights, drawn rows": ("self", ROWS, SHARED, [BATCH, N * 2]),
    "averaged weights, drawn rows": ("ema", ROWS, [BATCH, 2], [BATCH, N * 2]),
    "without noise a single pass": ("snapshot", NO_NOISE, ALONE, ALONE),
    "weight 0: no teacher": ("self", dict(kd_weight=0), SHARED, SHARED),
}


@pytest.mark.parametrize("teacher, options, before_rows, after_rows", STEPS.values(), ids=STEPS)
def test_passes_of_a_step(teacher, options, before_rows, after_rows):
    model, before, after = counted_model()
    one_step(model, teacher, before, after, **options)
    assert (before.rows, after.rows) == (before_rows, after_rows)
    for counter in (before, after):
        assert counter.training == [True, False][: len(counter.rows)]


def test_the_members_of_another_model_run_once_before_their_dropout():
    """Of an ensemble whose layers have equal names."""
    model, *student = counted_model()
    members, *counters = zip(counted_model(), counted_model(), strict=True)
    names = [[layer.name for layer in member.layers] for member in members]
    inputs = keras.Input((8,))
    teacher = keras.Model(inputs, layers.average([member(inputs) for member in members]))
    before, after = counters
    one_step(model, teacher, *student, *before, *after)
    assert [counter.rows for counter in student] == [[BATCH], [BATCH]]
    assert [counter.rows for counter in before] == [[BATCH]] * 2
    assert [counter.rows for counter in after] == [[N * BATCH]] * 2
    assert [[layer.name for layer in member.layers] for member in members] == names


@pytest.mark.parametrize("teacher, has_augmentation", [("self", True), ("self", False), ("snapshot", True)])
def test_clean_samples_for_teachers_cost_one_pass_before_the_dropout(teacher, has_augmentation):
    before, augmented, after = Counting(), Counting(), Counting()
    stack = [before, *(augmenting() if has_augmentation else []), augmented, layers.Dropout(0.5, seed=1), after]
    model = keras.Sequential([keras.Input((8,)), *stack, layers.Dense(3)])
    one_step(model, teacher, before, augmented, after, augmented_teachers=False, **OUTPUTS)
    shares = teacher == "self" and not has_augmentation
    assert before.rows == augmented.rows == ([BATCH] if shares else [BATCH, BATCH])
    assert before.training == augmented.training == ([True] if shares else [True, False])
    assert after.rows == [BATCH, N * BATCH]


@pytest.mark.parametrize("teacher, rows, noise", [("self", [BATCH], ()), ("snapshot", [BATCH] * 2, None)])
def test_views_of_each_teacher_share_the_layers_before_the_augmentation(teacher, rows, noise):
    before, augmented = Counting(), Counting()
    stack = [before, *augmenting(), augmented, layers.Dropout(0.5, seed=1), layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *stack])
    one_step(model, teacher, before, augmented, stochastic_layers=noise, augmented_teachers="each", **OUTPUTS)
    assert before.rows == rows
    assert augmented.rows == [BATCH, N * BATCH]
    assert augmented.training == [True, False]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_bound_the_rows_of_a_teacher_pass(chunk):
    model, before, after = counted_model()
    one_step(model, "self", before, after, teacher_chunk=chunk)
    assert before.rows == [BATCH]
    student, *teachers = after.rows
    assert student == BATCH
    assert max(teachers) == min(chunk, N) * BATCH
    # `ops.map` traces its body once or twice where it is compiled, and runs it each time where it is not (PyTorch).
    if keras.backend.backend() == "torch":
        assert len(teachers) == math.ceil(N / chunk)
        assert sum(teachers) == N * BATCH


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras does not compile steps on PyTorch")
@pytest.mark.compiled
def test_a_compiled_step_traces_each_part_once():
    model, before, after = counted_model()
    ssd = keras_ssd.wrap(model, num_teachers=N, kd_fraction=1)
    ssd.compile("sgd", "mse")
    x, y = np.zeros((BATCH, 8), "float32"), np.zeros((BATCH, 3), "float32")
    ssd.train_on_batch(x, y)
    before.reset()
    after.reset()
    ssd.make_train_function(force=True)
    ssd.train_on_batch(x, y)
    traces = len(before.rows)
    assert traces >= 1
    assert len(after.rows) == 2 * traces


@pytest.mark.parametrize(
    "num_passes, limit, expected", [(8, 100, 8), (8, 3, 2), (30, 14, 10), (31, 30, 16), (7, 0, 1), (1, 5, 1)]
)
def test_passes_are_split_evenly_also_if_their_number_is_prime(num_passes, limit, expected):
    assert chunk_size(num_passes, limit) == expected
