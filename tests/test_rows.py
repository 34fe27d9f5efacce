"""The term on a part of each batch: the drawn rows, the unbiased estimate, the cost."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd import _backend, distillation
from keras_ssd.cost import multiplications, teacher_cost
from keras_ssd.graph import Graph
from keras_ssd.noise import choose_noise
from keras_ssd.passes import StochasticPasses
from keras_ssd.rows import draw_rows, spaced_rows, take, take_rows
from same_weights import arrays, assert_same
from structures import Doubling


def start_at(start):
    return ops.convert_to_tensor(start, "int32")


@pytest.mark.parametrize(
    "batch, count, start, expected",
    [
        (8, 2, 1, [1, 5]),
        (8, 2, 6, [2, 6]),  # the same rows as from 2: every fourth one
        (7, 3, 5, [5, 0, 2]),  # steps of floor(7 j / 3): 0, 2, 4
        (5, 5, 3, [0, 1, 2, 3, 4]),
        (3, 1, 2, [2]),
    ],
)
def test_rows_are_evenly_spaced_from_the_start(batch, count, start, expected):
    x = np.arange(batch, dtype="float32").reshape(batch, 1) * np.ones((1, 2), "float32")
    rows = spaced_rows(start_at(start), batch, count / batch)
    assert ops.convert_to_numpy(rows).ravel().tolist() == expected
    taken = ops.convert_to_numpy(take_rows(ops.convert_to_tensor(x), rows))
    assert taken[:, 0].tolist() == expected
    assert taken.shape == (count, 2)


@pytest.mark.parametrize(
    "batch, count, devices", [(8, 2, 1), (7, 3, 1), (6, 4, 1), (5, 1, 1), (16, 3, 1), (8, 4, 2), (10, 6, 2), (12, 8, 4)]
)
def test_every_row_is_drawn_with_the_same_probability(batch, count, devices, monkeypatch):
    monkeypatch.setattr(_backend, "devices_of_a_batch", lambda: devices)
    x = ops.arange(batch, dtype="float32")
    rows = [spaced_rows(start_at(start), batch, count / batch) for start in range(batch)]
    drawn = np.array([ops.convert_to_numpy(take_rows(x, one)) for one in rows])
    assert (drawn == [ops.convert_to_numpy(one).ravel() for one in rows]).all()
    assert np.bincount(drawn.ravel().astype(int)).tolist() == [count] * batch
    # Each device holds consecutive rows, and returns rows of its own.
    owner = np.floor_divide(drawn, batch / devices)
    assert (owner == np.repeat(np.arange(devices), count // devices)).all()


@pytest.mark.parametrize(
    "batch, fraction, devices, count",
    [(8, 0.5, 4, 4), (8, 0.125, 4, 4), (8, 0.75, 2, 6), (12, 0.4, 2, 4), (9, 0.5, 2, 4)],
)
def test_each_device_draws_at_least_one_row(batch, fraction, devices, count, monkeypatch):
    monkeypatch.setattr(_backend, "devices_of_a_batch", lambda: devices)
    rows = draw_rows(batch, fraction, keras.random.SeedGenerator(3))
    assert np.prod(rows.shape) == count
    assert rows.shape[0] % (1 if batch % devices else devices) == 0


def test_starts_are_redrawn_over_the_whole_batch():
    generator = keras.random.SeedGenerator(3)
    starts = [int(ops.convert_to_numpy(draw_rows(5, 0.4, generator))[0, 0]) for _ in range(60)]
    assert set(starts) == set(range(5))
    assert draw_rows(5, 0.4, generator).shape == (1, 2)
    assert draw_rows(5, 0.01, generator).shape == (1, 1)


not_jax = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has no dynamic batch, nor integers of 64 bits"
)


def dynamic_rows(batch, fraction, start=0):
    """The rows of a batch whose size is a tensor, as it is in compiled functions of TensorFlow."""
    return spaced_rows(start_at(start), ops.convert_to_tensor(batch, "int32"), fraction)


@not_jax
@pytest.mark.parametrize("batch, fraction, start", [(8, 0.25, 6), (7, 0.43, 5), (5, 0.01, 3), (70_000, 0.3, 69_999)])
def test_rows_of_a_dynamic_batch_are_those_of_a_static_one(batch, fraction, start):
    static = ops.convert_to_numpy(spaced_rows(start_at(start), batch, fraction)).ravel()
    dynamic = ops.convert_to_numpy(dynamic_rows(batch, fraction, start)).ravel()
    # Where every k-th row is drawn, the rows of a static batch begin in the first group.
    np.testing.assert_array_equal(np.sort(dynamic), np.sort(static))


@not_jax
@pytest.mark.parametrize("batch, fraction", [(100_000, 0.5), (100_000, 0.6), (200_000, 0.999)])
def test_rows_of_a_large_batch_are_distinct(batch, fraction):
    rows = ops.convert_to_numpy(dynamic_rows(batch, fraction, start=17)).ravel()
    assert len(set(rows.tolist())) == len(rows) == int(fraction * batch)
    assert rows.min() >= 0 and rows.max() < batch


@pytest.mark.parametrize("is_dynamic", [False, pytest.param(True, marks=not_jax)])
def test_an_empty_batch_has_no_rows(is_dynamic):
    rows = dynamic_rows(0, 0.5) if is_dynamic else spaced_rows(start_at(0), 0, 0.5)
    assert rows.shape == (1, 0)
    assert take_rows(ops.zeros((0, 3)), rows).shape == (0, 3)


def test_scalars_and_broadcast_weights_are_not_taken():
    rows = spaced_rows(start_at(0), 6, 0.5)
    scalar, broadcast = np.float32(0.5), np.ones((1, 3), "float32")
    taken = take({"a": scalar, "b": broadcast, "c": None, "d": 0.5, "e": ops.arange(6)}, rows)
    assert taken["a"] is scalar and taken["b"] is broadcast and taken["c"] is None and taken["d"] == 0.5
    assert ops.convert_to_numpy(taken["e"]).tolist() == [0, 2, 4]


def classifier():
    inputs = keras.Input((4,))
    x = Doubling()(layers.BatchNormalization()(layers.Dense(6, activation="relu")(inputs)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def several():
    inputs = keras.Input((4,))
    x = Doubling()(layers.BatchNormalization()(layers.Dense(6)(inputs)))
    return keras.Model(inputs, {"a": layers.Dense(3, activation="softmax")(x), "b": layers.Dense(2)(x)})


def masked():
    inputs = keras.Input((5,), dtype="int32")
    x = Doubling()(layers.Embedding(7, 4, mask_zero=True)(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.BatchNormalization()(x)))


X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 3
WEIGHT = np.float32([1, 2, 0, 4, 1, 3])
TOKENS = np.sort(np.random.default_rng(1).integers(0, 7, (6, 5)))[:, ::-1].astype("int32").copy()
CASES = {
    "outputs": (classifier, X, Y, None, "sparse_categorical_crossentropy", {}),
    "sample weights": (classifier, X, Y, WEIGHT, "sparse_categorical_crossentropy", {"kd_sample_weight": True}),
    "representation": (classifier, X, Y, WEIGHT, "sparse_categorical_crossentropy", {"distill": "both"}),
    "several outputs": (
        several,
        X,
        {"a": Y, "b": X[:, :2]},
        None,
        {"a": "sparse_categorical_crossentropy", "b": "mse"},
        {},
    ),
    "masks": (masked, TOKENS, np.tile(Y[:, None], (1, 5)), None, "sparse_categorical_crossentropy", {}),
}


def term(case, fraction, teacher, start=None, monkeypatch=None):
    """The distillation term of one step on a batch of six, the rows drawn from `start`."""
    make, x, y, weight, loss, options = case
    keras.utils.set_random_seed(1)
    model = make()
    if teacher == "model":
        teacher = make()
    ssd = keras_ssd.wrap(model, teacher, num_teachers=2, kd_fraction=fraction, **options)
    # Eagerly: of each start a program would have to be compiled.
    ssd.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    if start is not None:
        monkeypatch.setattr(distillation, "draw_rows", lambda batch, *_: spaced_rows(start_at(start), batch, fraction))
    return float(ssd.train_on_batch(x, y, sample_weight=weight, return_dict=True)["kd_loss"])


@pytest.mark.parametrize(
    "teacher, fraction",
    [("self", 0.5), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("self", 0.7), ("model", 0.5)))],
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_mean_over_all_choices_is_the_whole_term(case, teacher, fraction, monkeypatch):
    whole = term(case, 1.0, teacher)
    parts = [term(case, fraction, teacher, start, monkeypatch) for start in range(6)]
    assert np.mean(parts) == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert np.ptp(parts) > 0 or whole == pytest.approx(0, abs=1e-6)


def test_the_students_own_pass_is_untouched():
    states = []
    for fraction in (1.0, 0.25):
        keras.utils.set_random_seed(2)
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(6),
                layers.Dropout(0.5, seed=1),
                layers.BatchNormalization(),
                layers.Dense(3),
            ]
        )
        ssd = keras_ssd.wrap(model, kd_fraction=fraction, seed=1)
        ssd.compile(keras.optimizers.SGD(0.0), "mse")
        for _ in range(3):
            ssd.train_on_batch(X, np.zeros((6, 3)))
        states.append(arrays(model.variables))
    assert_same(*states)


@pytest.mark.parametrize("distill", ["outputs", "both"])
def test_a_scalar_sample_weight_weighs_the_drawn_rows(distill):
    losses = []
    for weight in (np.float32(0.5), np.full(6, 0.5, "float32")):
        keras.utils.set_random_seed(1)
        ssd = keras_ssd.wrap(classifier(), num_teachers=2, kd_fraction=0.5, kd_weight=1, distill=distill, seed=1)
        ssd.compile("sgd", "sparse_categorical_crossentropy")
        with keras.StatelessScope([(v, v.value) for v in ssd.variables], collect_losses=True):
            losses.append(float(ops.convert_to_numpy(ssd.training_loss(X, Y, sample_weight=weight))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="Keras on JAX trains no model made in such a scope")
@pytest.mark.parametrize("teacher", ["self", "ema"])
def test_rows_are_taken_under_rematerialization(teacher):
    if not hasattr(keras, "RematScope"):
        pytest.skip("the scope came with a later version of Keras")
    with keras.RematScope(mode="full"):
        ssd = keras_ssd.wrap(classifier(), teacher, num_teachers=2, kd_fraction=0.5)
    # Keras on TensorFlow traces no layer made in such a scope.
    ssd.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    assert np.isfinite(ssd.fit(X, Y, verbose=0).history["kd_loss"]).all()


@pytest.mark.compiled
@pytest.mark.parametrize("teacher", ["self", "ema", "snapshot"])
def test_short_last_batches_train(teacher):
    ssd = keras_ssd.wrap(classifier(), teacher, num_teachers=2, kd_fraction=0.25)
    ssd.compile("sgd", "sparse_categorical_crossentropy")
    data = np.tile(X, (3, 1)), np.tile(Y, 3)
    history = ssd.fit(*data, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["kd_loss"]).all() and min(history["kd_loss"]) > -1e-6  # equal teachers but for rounding


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="replicas of TensorFlow")
def test_a_replica_without_samples_trains():
    """A last batch of one sample leaves the second of two replicas empty."""
    run = subprocess.run([sys.executable, "-c", ON_TWO_REPLICAS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split()[-3:] == ["finite"] * 3


ON_TWO_REPLICAS = """
import tensorflow as tf

configuration = tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [configuration] * 2)
import keras, numpy as np, keras_ssd

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x, y = np.random.default_rng(0).normal(size=(9, 5, 3)).astype("float32"), np.zeros((9, 5))
x[:, 3:] = 0
layers = keras.layers
for options in ({}, {"teacher": "snapshot", "kd_fraction": 0.5}, {"similarity": "cosine", "distill": "both"}):
    with strategy.scope():
        stack = [layers.Masking(), layers.Dense(6), layers.Dropout(0.5), layers.Dense(3, activation="softmax")]
        ssd = keras_ssd.wrap(keras.Sequential([keras.Input((5, 3)), *stack]), num_teachers=4, **options)
        ssd.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    history = ssd.fit(x, y, batch_size=8, verbose=0, callbacks=[keras_ssd.callbacks.TeacherMonitor()]).history
    values = [*history.values(), *(w.ravel() for w in ssd.get_weights())]
    print("finite" if all(np.isfinite(value).all() for value in values) else history)
"""


def graph_and_passes(model):
    graph = Graph(model)
    return graph, StochasticPasses(graph, choose_noise(graph), graph.outputs, shares_prefix=True)


def test_multiplications_are_counted_by_hand():
    inputs = keras.Input((10, 3))
    x = layers.Conv1D(8, 5, padding="same")(inputs)
    x = layers.LSTM(4, return_sequences=True)(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    counts = {step.layer.name.rstrip("_0123456789"): multiplications(step) for step in Graph(model).steps}
    assert counts["conv1d"] == 10 * 5 * 3 * 8 + 80
    assert counts["lstm"] == 10 * (8 * 16 + 4 * 16) + 40
    assert counts["dense"] == 10 * 4 * 2 + 20


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (layers.SeparableConv2D(5, 3, padding="same"), (8, 8, 4), 64 * (9 * 4 + 4 * 5) + 64 * 5),
        (layers.SeparableConv1D(5, 3, strides=2), (9, 4), 4 * (3 * 4 + 4 * 5) + 4 * 5),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4), 36 * 9 * 8 + 36 * 8),
        (layers.Conv2D(6, 3, groups=2), (8, 8, 4), 36 * 9 * 2 * 6 + 36 * 6),
        (layers.Conv1DTranspose(5, 3, strides=2), (6, 4), 6 * 3 * 4 * 5 + 13 * 5),
        (layers.TimeDistributed(layers.Dense(5)), (6, 4), 6 * 4 * 5 + 6 * 5),
        (layers.Embedding(50, 4), (6,), 6 * 4),
        (layers.Bidirectional(layers.SimpleRNN(3)), (6, 4), 6 * 2 * (4 * 3 + 3 * 3) + 6),
    ],
    ids=lambda value: value.name if isinstance(value, keras.Layer) else None,
)
def test_multiplications_of_a_layer(layer, shape, expected):
    inputs = keras.Input(shape)
    assert multiplications(Graph(keras.Model(inputs, layer(inputs))).steps[-1]) == expected


def test_teachers_of_a_head_see_whole_batches():
    model = keras.Sequential(
        [
            keras.Input((32, 3)),
            layers.Conv1D(64, 5),
            layers.GlobalAveragePooling1D(),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )
    cost = keras_ssd.wrap(model).teacher_cost
    assert cost.fraction == 1.0
    # 28 positions x 5 x 3 x 64 and what is put out (28 x 64, 64), then dropout 64, Dense 64 x 3 + 3, eight times.
    forward = 28 * 960 + 28 * 64 + 64 + 64 + 195
    assert cost.relative == pytest.approx(8 * (64 + 195) / (3 * forward))


def test_kd_fraction_falls_until_teachers_cost_a_quarter():
    stack = [layer for _ in range(3) for layer in (layers.Dense(32), layers.Dropout(0.3))]
    model = keras.Sequential([keras.Input((32,)), *stack, layers.Dense(32)])
    cost = keras_ssd.wrap(model).teacher_cost
    assert cost.fraction == 1 / 16  # 8 teachers x 3 of 4 layers / 3 passes = 2 steps; an eighth is not below a quarter
    assert cost.relative < 0.25
    graph, passes = graph_and_passes(model)
    assert teacher_cost(graph, passes, 8, fraction=1.0).relative == pytest.approx(16 * cost.relative)


@pytest.mark.parametrize("teacher, fraction", [("snapshot", 1.0), ("self", 1 / 16), ("ema", 1 / 16)])
def test_the_papers_setting_keeps_all_samples(teacher, fraction):
    stack = [layers.Dropout(0.3), layers.Dense(32), layers.Dropout(0.3), layers.Dense(32)]
    model = keras.Sequential([keras.Input((32,)), *stack])
    ssd = keras_ssd.wrap(model, teacher)
    assert ssd.settings.kd_fraction == ssd.teacher_cost.fraction == fraction
    assert keras_ssd.wrap(model, teacher, kd_fraction=0.5).teacher_cost.fraction == 0.5
    assert keras_ssd.wrap(model, teacher, kd_weight=0).teacher_cost == (0.0, 0.0)
