"""The evaluations of one distilled step: which layers, how often, on how many rows, and on which device."""

import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from compiled_programs import summed_shapes
from keras_ssd.augmentation import Jitter
from keras_ssd.passes import chunk_size

BATCH, N = 4, 6


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


def one_step(ssd, *counters, run_eagerly=True):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ssd.compile("sgd", loss, run_eagerly=run_eagerly)
    x = np.random.default_rng(0).standard_normal((BATCH, 8), "float32")
    y = np.arange(BATCH) % 3
    ssd.train_on_batch(x, y)  # on JAX the first call also builds metrics, symbolically
    for counter in counters:
        counter.reset()
    ssd.train_on_batch(x, y)


def test_own_weights_add_no_pass_before_the_dropout():
    model, before, after = counted_model()
    one_step(keras_ssd.wrap(model, num_teachers=N, kd_fraction=1), before, after)
    assert before.rows == [BATCH]
    assert after.rows == [BATCH, N * BATCH]
    assert after.training == [True, False]


@pytest.mark.parametrize("teacher, before_rows", [("self", [BATCH]), ("snapshot", [BATCH, 2]), ("ema", [BATCH, 2])])
def test_teachers_see_only_the_drawn_fraction_of_the_batch(teacher, before_rows):
    model, before, after = counted_model()
    options = dict(distill="outputs", similarity="kl", num_teachers=N, kd_fraction=2 / BATCH)
    one_step(keras_ssd.wrap(model, teacher, **options), before, after)
    assert before.rows == before_rows
    assert after.rows == [BATCH, N * 2]


@pytest.mark.parametrize("teacher", ["snapshot", "ema"])
def test_other_weights_add_one_pass_before_the_dropout(teacher):
    model, before, after = counted_model()
    one_step(
        keras_ssd.wrap(model, teacher, num_teachers=N, kd_fraction=1, distill="outputs", similarity="kl"), before, after
    )
    assert before.rows == [BATCH, BATCH]
    assert before.training == [True, False]
    assert after.rows == [BATCH, N * BATCH]


def test_another_model_runs_once_before_its_dropout():
    model, *student = counted_model()
    teacher, before, after = counted_model()
    one_step(keras_ssd.wrap(model, teacher, num_teachers=N, kd_fraction=1), before, after, *student)
    assert [counter.rows for counter in student] == [[BATCH], [BATCH]]
    assert before.rows == [BATCH]
    assert after.rows == [N * BATCH]


def test_ensemble_members_of_equal_names_run_once_before_their_dropout():
    student, *_ = counted_model()
    members, *counters = zip(counted_model(), counted_model(), strict=True)
    names = [[layer.name for layer in member.layers] for member in members]
    inputs = keras.Input((8,))
    teacher = keras.Model(inputs, layers.average([member(inputs) for member in members]))
    before, after = counters
    one_step(keras_ssd.wrap(student, teacher, num_teachers=N, kd_fraction=1), *before, *after)
    assert [counter.rows for counter in before] == [[BATCH]] * 2
    assert [counter.rows for counter in after] == [[N * BATCH]] * 2
    assert [[layer.name for layer in member.layers] for member in members] == names


@pytest.mark.parametrize("teacher", ["self", "snapshot", "ema"])
@pytest.mark.parametrize("has_augmentation", [True, False])
def test_clean_samples_for_teachers_cost_one_pass_before_the_dropout(teacher, has_augmentation):
    before, augmented, after = Counting(), Counting(), Counting()
    augmenting = [layers.Reshape((8, 1)), Jitter(), layers.Reshape((8,))] if has_augmentation else []
    dropout = layers.Dropout(0.5, seed=1)
    model = keras.Sequential([keras.Input((8,)), before, *augmenting, augmented, dropout, after, layers.Dense(3)])
    options = dict(num_teachers=N, kd_fraction=1, distill="outputs", similarity="kl", augmented_teachers=False)
    one_step(keras_ssd.wrap(model, teacher, **options), before, augmented, after)
    shares = teacher == "self" and not has_augmentation
    assert before.rows == augmented.rows == ([BATCH] if shares else [BATCH, BATCH])
    assert before.training == augmented.training == ([True] if shares else [True, False])
    assert after.rows == [BATCH, N * BATCH]


@pytest.mark.parametrize("teacher, rows", [("self", [BATCH]), ("snapshot", [BATCH, BATCH]), ("ema", [BATCH, BATCH])])
@pytest.mark.parametrize("noise", [None, ()], ids=["dropout", "no dropout"])
def test_views_of_each_teacher_share_the_layers_before_the_augmentation(teacher, rows, noise):
    before, augmented = Counting(), Counting()
    augmenting = [layers.Reshape((8, 1)), Jitter(), layers.Reshape((8,))]
    model = keras.Sequential(
        [keras.Input((8,)), before, *augmenting, augmented, layers.Dropout(0.5, seed=1), layers.Dense(3)]
    )
    options = dict(num_teachers=N, kd_fraction=1, distill="outputs", similarity="kl", augmented_teachers="each")
    one_step(keras_ssd.wrap(model, teacher, stochastic_layers=noise, **options), before, augmented)
    assert before.rows == rows
    assert augmented.rows == [BATCH, N * BATCH]
    assert augmented.training == [True, False]


@pytest.mark.parametrize("distill", ["outputs", "representation", "both"])
@pytest.mark.parametrize("similarity", ["dot", "kl", "uniform"])
def test_no_second_pass_for_any_representation_or_similarity(distill, similarity):
    model, before, after = counted_model()
    ssd = keras_ssd.wrap(model, "snapshot", num_teachers=N, kd_fraction=1, distill=distill, similarity=similarity)
    one_step(ssd, before, after)
    assert before.rows == [BATCH, BATCH]
    assert after.rows == [BATCH, N * BATCH]


def test_without_dropout_in_the_teacher_one_deterministic_pass():
    model, before, after = counted_model()
    options = dict(stochastic_layers=(), num_teachers=1, similarity="uniform", distill="outputs")
    one_step(keras_ssd.wrap(model, "snapshot", **options), before, after)
    assert before.rows == [BATCH, BATCH]
    assert after.rows == [BATCH, BATCH]


def test_weight_0_evaluates_no_teacher():
    model, before, after = counted_model()
    one_step(keras_ssd.wrap(model, num_teachers=N, kd_fraction=1, kd_weight=0), before, after)
    assert before.rows == after.rows == [BATCH]


@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 100])
def test_chunks_bound_the_rows_of_a_teacher_pass(chunk):
    model, before, after = counted_model()
    one_step(keras_ssd.wrap(model, num_teachers=N, kd_fraction=1, teacher_chunk=chunk), before, after)
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
    x = np.zeros((BATCH, 8), "float32")
    ssd.train_on_batch(x, np.zeros((BATCH, 3), "float32"))
    before.reset()
    after.reset()
    ssd.make_train_function(force=True)
    ssd.train_on_batch(x, np.zeros((BATCH, 3), "float32"))
    traces = len(before.rows)
    assert traces >= 1
    assert len(after.rows) == 2 * traces


def test_normalization_after_the_dropout_is_updated_once_per_step():
    def trained(teachers):
        keras.utils.set_random_seed(0)
        norm = layers.BatchNormalization(momentum=0.9)
        model = keras.Sequential([keras.Input((8,)), layers.Dropout(0.5, seed=1), norm, layers.Dense(3)])
        one_step(keras_ssd.wrap(model, num_teachers=N, kd_fraction=1, kd_weight=teachers))
        return keras.ops.convert_to_numpy(norm.moving_mean)

    np.testing.assert_allclose(trained(0.1), trained(0), rtol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="looks at what JAX compiles")
def test_two_devices_exchange_no_activations():
    """Teachers of a sample, and the rows that are drawn, stay on its device: only gradients and sums are exchanged."""
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=2", KERAS_BACKEND="jax")
    run = subprocess.run([sys.executable, "-c", ON_TWO_DEVICES], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    programs = run.stdout.split("=== ")[1:]
    assert len(programs) == 6
    for compiled in programs:
        assert "num_partitions=2" in compiled
        assert "all-reduce" in compiled
        for operation in ("all-gather", "all-to-all", "collective-permute"):
            assert operation not in compiled, f"{operation} in {compiled.splitlines()[0]}"
        # Rows that are drawn from both devices would be summed, as (rows, 14, 8).
        assert set(summed_shapes(compiled)) <= {"", "3,3,8", "3,8,8", "8", "5", "5,8", "8,5"}, compiled.splitlines()[0]


ON_TWO_DEVICES = """
import jax, keras, numpy as np, keras_ssd
from keras import layers

assert jax.device_count() == 2
keras.distribution.set_distribution(keras.distribution.DataParallel())
layout = keras.distribution.distribution().get_data_layout
x, y = np.zeros((8, 16, 3), "float32"), np.zeros((8,), "int32")
batch = tuple(keras.distribution.distribute_tensor(jax.numpy.asarray(a), layout(a.shape)) for a in (x, y))
whole = [("self", None, 1), ("snapshot", None, 1), ("self", 2, 1)]
# The automatic one is an eighth, less than a row of each device; of three quarters no device has every k-th row.
for teacher, chunk, fraction in [*whole, ("self", None, None), ("self", None, 0.25), ("self", None, 0.75)]:
    model = keras.Sequential([
        keras.Input((16, 3)), layers.Conv1D(8, 3), layers.Dropout(0.3), layers.Conv1D(8, 3),
        layers.GlobalAveragePooling1D(), layers.Dropout(0.3), layers.Dense(5, activation="softmax"),
    ])
    ssd = keras_ssd.wrap(model, teacher, num_teachers=6, kd_fraction=fraction, teacher_chunk=chunk)
    ssd.compile("sgd", "sparse_categorical_crossentropy")
    ssd.optimizer.build(ssd.trainable_variables)
    owners = (ssd.trainable_variables, ssd.non_trainable_variables, ssd.optimizer.variables, ssd.metrics_variables)
    state = tuple([v.value for v in variables] for variables in owners)
    print("===", teacher, chunk, ssd.teacher_cost)
    print(jax.jit(ssd.train_step).lower(state, batch).compile().as_text())
"""


@pytest.mark.parametrize(
    "num_passes, limit, expected", [(8, 100, 8), (8, 3, 2), (30, 14, 10), (31, 30, 16), (7, 4, 4), (7, 0, 1), (1, 5, 1)]
)
def test_passes_are_split_evenly_also_if_their_number_is_prime(num_passes, limit, expected):
    assert chunk_size(num_passes, limit) == expected
