"""The term on a part of each batch: the drawn rows, the unbiased estimate, the cost."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd import _backend, distillation
from keras_ssd.cost import multiplications
from keras_ssd.graph import Graph
from keras_ssd.rows import draw_rows, spaced_rows, take, take_rows
from same_weights import arrays
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
    ],
)
def test_rows_are_evenly_spaced_from_the_start(batch, count, start, expected):
    x = np.arange(batch, dtype="float32").reshape(batch, 1) * np.ones((1, 2), "float32")
    rows = spaced_rows(start_at(start), batch, count / batch)
    assert ops.convert_to_numpy(rows).ravel().tolist() == expected
    taken = ops.convert_to_numpy(take_rows(ops.convert_to_tensor(x), rows))
    assert taken[:, 0].tolist() == expected
    assert taken.shape == (count, 2)


@pytest.mark.parametrize("batch, count, devices", [(8, 2, 1), (7, 3, 1), (10, 6, 2), (12, 8, 4)])
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


@pytest.mark.parametrize("batch, fraction, devices, count", [(8, 0.125, 4, 4), (8, 0.75, 2, 6), (9, 0.5, 2, 4)])
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
@pytest.mark.parametrize("batch, fraction, start", [(7, 0.43, 5), (5, 0.01, 3), (100_000, 0.5, 17)])
def test_rows_of_a_dynamic_batch_are_those_of_a_static_one(batch, fraction, start):
    static = ops.convert_to_numpy(spaced_rows(start_at(start), batch, fraction)).ravel()
    dynamic = ops.convert_to_numpy(dynamic_rows(batch, fraction, start)).ravel()
    # Where every k-th row is drawn, the rows of a static batch begin in the first group.
    np.testing.assert_array_equal(np.sort(dynamic), np.sort(static))


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


def network(heads, inputs=(4,), embedding=None):
    """Noise that doubles comes after normalization, but before it where tokens are embedded."""
    x = inputs = keras.Input(inputs, dtype="int32" if embedding else "float32")
    stack = [layers.Dense(6, activation="relu"), layers.BatchNormalization(), Doubling()]
    for layer in stack if embedding is None else [embedding, Doubling(), layers.BatchNormalization()]:
        x = layer(x)
    return keras.Model(inputs, heads(x))


def classifier():
    return network(layers.Dense(3, activation="softmax"))


def several():
    return network(lambda x: {"a": layers.Dense(3, activation="softmax")(x), "b": layers.Dense(2)(x)})


def masked():
    return network(layers.Dense(3, activation="softmax"), (5,), layers.Embedding(7, 4, mask_zero=True))


X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 3
WEIGHT = np.float32([1, 2, 0, 4, 1, 3])
TOKENS = np.sort(np.random.default_rng(1).integers(0, 7, (6, 5)))[:, ::-1].astype("int32").copy()
SPARSE = "sparse_categorical_crossentropy"
CASES = {
    "sample weights": (classifier, X, Y, WEIGHT, SPARSE, {"kd_sample_weight": True}),
    "representation": (classifier, X, Y, WEIGHT, SPARSE, {"distill": "both"}),
    "several outputs": (several, X, {"a": Y, "b": X[:, :2]}, None, {"a": SPARSE, "b": "mse"}, {}),
    "masks": (masked, TOKENS, np.tile(Y[:, None], (1, 5)), None, SPARSE, {}),
}
CHOICES = [(name, "self", 0.5) for name in CASES if name != "representation"]
CHOICES += [("representation", "model", 0.5), pytest.param("masks", "self", 0.7, marks=pytest.mark.slow)]


def terms(case, teacher, fraction, starts, monkeypatch):
    """The distillation term of a step from the same weights on a batch of six, of the rows drawn from each start."""
    make, x, y, weight, loss, options = CASES[case]
    keras.utils.set_random_seed(1)
    model = make()
    teacher = make() if teacher == "model" else teacher
    ssd = keras_ssd.wrap(model, teacher, num_teachers=2, kd_fraction=fraction, **options)
    # Eagerly: of each start a program would have to be compiled.
    ssd.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    found, begin = [], arrays(ssd.weights)
    for start in starts:
        if fraction < 1:
            rows = spaced_rows(start_at(start), len(x), fraction)
            monkeypatch.setattr(distillation, "draw_rows", lambda *_, rows=rows: rows)
        ssd.set_weights(begin)
        ssd.reset_metrics()
        found.append(float(ssd.train_on_batch(x, y, sample_weight=weight, return_dict=True)["kd_loss"]))
    return found


@pytest.mark.parametrize("case, teacher, fraction", CHOICES)
def test_the_mean_over_all_choices_is_the_whole_term(case, teacher, fraction, monkeypatch):
    (whole,) = terms(case, teacher, 1.0, [None], monkeypatch)
    starts = 2 if fraction == 0.5 else 6  # every second row is drawn from the first or the second one
    parts = terms(case, teacher, fraction, range(starts), monkeypatch)
    assert np.mean(parts) == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert np.ptp(parts) > 0 or whole == pytest.approx(0, abs=1e-6)


def test_a_scalar_sample_weight_weighs_the_drawn_rows():
    losses = []
    for weight in (np.float32(0.5), np.full(6, 0.5, "float32")):
        keras.utils.set_random_seed(1)
        ssd = keras_ssd.wrap(classifier(), num_teachers=2, kd_fraction=0.5, kd_weight=1, distill="both", seed=1)
        ssd.compile("sgd", SPARSE)
        with keras.StatelessScope([(v, v.value) for v in ssd.variables], collect_losses=True):
            losses.append(float(ops.convert_to_numpy(ssd.training_loss(X, Y, sample_weight=weight))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="Keras on JAX trains no model made in such a scope")
def test_rows_are_taken_under_rematerialization():
    if not hasattr(keras, "RematScope"):
        pytest.skip("the scope came with a later version of Keras")
    with keras.RematScope(mode="full"):
        ssd = keras_ssd.wrap(classifier(), "ema", num_teachers=2, kd_fraction=0.5)
    # Keras on TensorFlow traces no layer made in such a scope.
    ssd.compile("sgd", SPARSE, run_eagerly=True)
    assert np.isfinite(ssd.fit(X, Y, verbose=0).history["kd_loss"]).all()


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (layers.Conv1D(8, 5, padding="same"), (10, 3), 10 * 5 * 3 * 8 + 80),
        (layers.LSTM(4, return_sequences=True), (10, 8), 10 * (8 * 16 + 4 * 16) + 40),
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
    stack = [layers.Conv1D(64, 5), layers.GlobalAveragePooling1D(), layers.Dropout(0.5), layers.Dense(3)]
    cost = keras_ssd.wrap(keras.Sequential([keras.Input((32, 3)), *stack])).teacher_cost
    assert cost.fraction == 1.0
    # 28 positions x 5 x 3 x 64 and what is put out (28 x 64, 64), then dropout 64, Dense 64 x 3 + 3, eight times.
    forward = 28 * 960 + 28 * 64 + 64 + 64 + 195
    assert cost.relative == pytest.approx(8 * (64 + 195) / (3 * forward))


def test_kd_fraction_falls_until_teachers_cost_a_quarter():
    stack = [layer for _ in range(3) for layer in (layers.Dense(32), layers.Dropout(0.3))]
    model = keras.Sequential([keras.Input((32,)), *stack, layers.Dense(32)])
    cost, whole = (keras_ssd.wrap(model, kd_fraction=fraction).teacher_cost for fraction in (None, 1.0))
    assert cost.fraction == 1 / 16  # 8 teachers x 3 of 4 layers / 3 passes = 2 steps; an eighth is not below a quarter
    assert cost.relative < 0.25
    assert whole.relative == pytest.approx(16 * cost.relative)


@pytest.mark.parametrize("teacher, fraction", [("snapshot", 1.0), ("self", 1 / 16)])
def test_the_papers_setting_keeps_all_samples(teacher, fraction):
    stack = [layers.Dropout(0.3), layers.Dense(32), layers.Dropout(0.3), layers.Dense(32)]
    model = keras.Sequential([keras.Input((32,)), *stack])
    ssd = keras_ssd.wrap(model, teacher)
    assert ssd.settings.kd_fraction == ssd.teacher_cost.fraction == fraction
    assert keras_ssd.wrap(model, teacher, kd_fraction=0.5).teacher_cost.fraction == 0.5
    assert keras_ssd.wrap(model, teacher, kd_weight=0).teacher_cost == (0.0, 0.0)
