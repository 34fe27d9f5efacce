"""Random tests: the equations on all kinds of numbers, and all kinds of small models against plain Keras."""

import pathlib
import tempfile

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers, ops

import keras_ssd
from keras_ssd.callbacks import SeedEachEpoch
from keras_ssd.guidance import SIMILARITIES, guidance_weights, guided_target, similarity_scores
from same_weights import arrays, assert_same
from structures import Doubling

NAN, INF = float("nan"), float("inf")
# How many of the equations, the profile says (conftest.py). Models are slow: TensorFlow and JAX trace or compile each.
MODELS = settings(
    max_examples=12 if keras.backend.backend() == "torch" else 5, suppress_health_check=[HealthCheck.too_slow]
)


# The equations.


@st.composite
def representations(draw):
    """Student and teachers of any magnitude and precision, with ties, zeros, NaN and infinities here and there.

    Few shapes, because JAX compiles each operation again for each of them.
    """
    batch, num_teachers, features = draw(st.sampled_from([(1, 1, 1), (2, 1, 3), (2, 8, 1), (2, 5, 3)]))
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(["float16", "float32"]))
    scale = draw(st.sampled_from([0.0, 1e-30, 1e-5, 1.0, 60.0, 1e4, 1e18, 1e30]))
    student, teachers = (
        generator.normal(size=shape) * scale for shape in ((batch, features), (batch, num_teachers, features))
    )
    if draw(st.booleans()):
        teachers[:, num_teachers // 2 :] = teachers[:, :1]
    for _ in range(draw(st.integers(0, 3))):
        place = tuple(generator.integers(0, size) for size in teachers.shape)
        teachers[place] = draw(st.sampled_from([NAN, INF, -INF, 0.0, 3e38]))
    if draw(st.integers(0, 4)) == 0:
        student[0, 0] = draw(st.sampled_from([NAN, INF, 3e38]))
    with np.errstate(over="ignore"):
        return student.astype(dtype), teachers.astype(dtype)


@given(
    representations(),
    st.sampled_from(SIMILARITIES),
    st.sampled_from([1e-6, 0.01, 1.0, 5.0, 1e6]),
    st.sampled_from([0.0, 37.5, 50.0, 90.0, 99.99999999, 100.0]),
)
def test_weights_are_a_distribution_and_the_target_a_mean(drawn, similarity, temperature, percentile):
    student, teachers = drawn
    scores = similarity_scores(student, teachers, similarity)
    weights = ops.convert_to_numpy(guidance_weights(scores, temperature, percentile))
    assert weights.shape == teachers.shape[:2]
    assert np.isfinite(weights).all() and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    scores = ops.convert_to_numpy(scores)
    valid = np.isfinite(scores)
    for row, scored, weighed in zip(valid, scores, weights, strict=True):
        if not row.any():
            np.testing.assert_allclose(weighed, 1 / len(row), rtol=1e-6)
            continue
        assert not weighed[~row].any()
        # Nobody who is scored higher weighs less, and who scores alike weighs alike.
        order = np.argsort(scored[row], kind="stable")
        assert (np.diff(weighed[row][order]) >= 0).all()
        best = scored[row] == scored[row].max()
        assert np.ptp(weighed[row][best]) == 0 and weighed[row][best].min() > 0
    spoiled = ((weights[..., None] > 0) & ~np.isfinite(teachers)).any(axis=1)
    target = ops.convert_to_numpy(guided_target(weights, teachers))
    np.testing.assert_array_equal(np.isnan(target), spoiled)
    used = np.where((weights[..., None] > 0) & np.isfinite(teachers), teachers.astype("float64"), NAN)
    for (row, feature), value in np.ndenumerate(target):
        if not spoiled[row, feature]:
            among = used[row, :, feature][~np.isnan(used[row, :, feature])]
            slack = 1e-5 * np.abs(among).max()
            assert among.min() - slack <= value <= among.max() + slack


NUMBERS = st.one_of(st.floats(), st.sampled_from([0, 100, 90, -1, True, 1e308, 5e-324]))


@given(NUMBERS, NUMBERS)
def test_options_are_refused_by_name_or_give_a_distribution(temperature, percentile):
    scores = np.float32([[1, 3, 3, -2]])
    refused = "temperature" if not temperature > 0 else "percentile" if not 0 <= percentile <= 100 else None
    if refused:
        with pytest.raises(ValueError, match=f"`{refused}` should .* Received: {refused}="):
            guidance_weights(scores, temperature, percentile)
        return
    weights = ops.convert_to_numpy(guidance_weights(scores, temperature, percentile))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("sign", [1, -1], ids=["alike", "opposite"])
def test_float16_scores_of_4096_features_of_60(similarity, sign):
    """The dot product is 14,745,600 and the squared distance of opposites four times that: float16 ends at 65,504."""
    student, teachers = np.full((1, 4096), 60, "float16"), np.full((1, 2, 4096), 60, "float16")
    teachers[0, 0] *= sign
    scores = ops.convert_to_numpy(similarity_scores(student, teachers, similarity))
    expected = {
        "dot": sign * 14_745_600,
        "euclidean": 0 if sign == 1 else -58_982_400,
        "cosine": sign,
        "kl": 0,
        "uniform": 0,
    }[similarity]
    np.testing.assert_allclose(scores[0, 0], expected, rtol=1e-5, atol=1e-5)
    weights = ops.convert_to_numpy(guidance_weights(scores, 5.0, 90.0))
    ties = sign == 1 or similarity in ("kl", "uniform")
    np.testing.assert_allclose(weights, [[0.5, 0.5] if ties else [0, 1]], atol=1e-6)


# Models.

JIT = keras.backend.backend() == "jax"  # without it JAX compiles every operation by itself
X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
Y = np.array([0, 1, 1, 0])
LAYERS = {
    "dense": lambda: layers.Dense(4, activation="relu"),
    "normalization": lambda: layers.BatchNormalization(),
    "layer normalization": lambda: layers.LayerNormalization(),
    # In float32, as Keras on TensorFlow cannot add losses of two types.
    "regularised": lambda: layers.Dense(3, kernel_regularizer="l2", activity_regularizer="l1", dtype="float32"),
    "dropout": lambda: layers.Dropout(0.4),
    "seeded dropout": lambda: layers.Dropout(0.3, seed=3),
    "gaussian noise": lambda: layers.GaussianNoise(0.5),
    "alpha dropout": lambda: layers.AlphaDropout(0.2),
}
NOISE = [name for name in LAYERS if "drop" in name or "noise" in name]
DRAWN = list(LAYERS)
# Noise that is no noise: all teachers are equal, and differ from the student's evaluation.
LAYERS["doubling"] = Doubling


@st.composite
def makes(draw):
    """Hidden layers with at least one noise layer, a skip or none, dtype, batch size (one sample; a short last one)."""
    names = draw(st.lists(st.sampled_from(DRAWN), min_size=1, max_size=4))
    names.insert(draw(st.integers(0, len(names))), draw(st.sampled_from(NOISE)))
    return dict(
        names=names,
        skip=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "float32", "mixed_bfloat16", "mixed_float16"])),
        batch_size=draw(st.sampled_from([1, 3, 4])),
        teacher=draw(st.sampled_from(["self", "snapshot", "ema"])),
        seed=draw(st.integers(0, 1000)),
    )


def build(make):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(make["dtype"])
    try:
        inputs = keras.Input((3,))
        x = layers.Dense(4)(inputs)
        for name in make["names"]:
            x = LAYERS[name]()(x)
        if make["skip"]:
            x = layers.Concatenate()([x, inputs])
        model = keras.Model(inputs, layers.Dense(2, activation="softmax", dtype="float32")(x))
        # TensorFlow and JAX would spend minutes on compiling what runs three steps.
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=JIT)
        return model
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.slow
@MODELS
@given(makes())
def test_weight_0_is_the_plain_model(make):
    histories, models = [], []
    for wrap in (False, True):
        keras.utils.set_random_seed(make["seed"])
        model = build(make)
        trained = keras_ssd.wrap(model, teacher=make["teacher"], kd_weight=0, ema_momentum=0) if wrap else model
        history = trained.fit(X, Y, batch_size=make["batch_size"], epochs=1, verbose=0).history
        histories.append(history)
        models.append(model)
    # NaN, as of float16 that overflows, is the same as NaN.
    np.testing.assert_equal(histories[1], histories[0])
    assert_same(*(arrays(model.variables) for model in models))
    before = arrays(models[1].variables)
    evaluated = [trained.evaluate(X, Y, verbose=0) for _ in range(2)]
    np.testing.assert_equal(evaluated[0], evaluated[1])
    assert_same(before, arrays(models[1].variables))


class SaveAfterFirstEpoch(keras.callbacks.Callback):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.model.save(self.path)


@pytest.mark.slow
@pytest.mark.once
@MODELS
@given(makes())
def test_a_run_goes_on_from_a_file(make):
    """From a file of the middle of a run, with seeds, training ends as the run itself did."""
    if make["dtype"] == "mixed_float16":
        # Keras skips the state of an optimizer with loss scaling as it loads a model, plain or not.
        make = dict(make, dtype="mixed_bfloat16")
    keras.utils.set_random_seed(make["seed"])
    ssd = keras_ssd.wrap(build(make), teacher=make["teacher"], num_teachers=2, distill="outputs", similarity="kl")
    options = dict(x=X, y=Y, batch_size=make["batch_size"], epochs=2, shuffle=False, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "ssd.keras")
        expected = ssd.fit(**options, callbacks=[SeedEachEpoch(1), SaveAfterFirstEpoch(path)]).history
        loaded = keras_ssd.load_model(path)
    history = loaded.fit(**options, initial_epoch=1, callbacks=[SeedEachEpoch(1)]).history
    np.testing.assert_equal(history, {name: values[1:] for name, values in expected.items()})
    assert_same(arrays(ssd.weights), arrays(loaded.weights))
    assert_same(arrays(ssd.optimizer.variables), arrays(loaded.optimizer.variables))


def distilled(make, teacher_chunk, **options):
    """A model whose steps change the weights by the negative gradient of the distillation term."""
    keras.utils.set_random_seed(make["seed"])
    options = dict(options, num_teachers=4, distill="outputs", kd_weight=1.0, kd_sample_weight=False, seed=1)
    ssd = keras_ssd.wrap(build(make), teacher=make["teacher"], teacher_chunk=teacher_chunk, **options)
    ssd.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", jit_compile=JIT)
    return ssd


def draws(ssd, n):
    """The term and its gradient in three random directions, of `n` steps from the same weights: `(n, 4)`."""
    begin = [np.array(w) for w in ssd.get_weights()]
    directions = np.random.default_rng(0).normal(size=(3, sum(w.size for w in begin)))
    rows = []
    for _ in range(n):
        ssd.set_weights(begin)
        ssd.reset_metrics()
        kd_loss = ssd.train_on_batch(X, Y, sample_weight=np.zeros(len(Y)), return_dict=True)["kd_loss"]
        change = np.concatenate([(a - b).ravel() for a, b in zip(ssd.get_weights(), begin, strict=True)])
        rows.append([float(kd_loss), *(directions @ change)])
    return np.array(rows)


@pytest.mark.slow
@pytest.mark.once
@settings(MODELS, max_examples=3)
@given(makes())
def test_chunks_of_teachers_are_distributed_as_all_at_once(make):
    """Teachers one or three at a time: equal means, within five standard errors."""
    make, n = dict(make, dtype="float32"), 200
    all_at_once = draws(distilled(make, None, similarity="uniform"), n)
    for chunk in (1, 3):
        in_chunks = draws(distilled(make, chunk, similarity="uniform"), n)
        error = np.sqrt((all_at_once.var(axis=0) + in_chunks.var(axis=0)) / n)
        assert (np.abs(all_at_once.mean(axis=0) - in_chunks.mean(axis=0)) <= 5 * error + 1e-6).all()


@pytest.mark.slow
@settings(MODELS, max_examples=2)
@given(makes(), st.sampled_from(["kl", "uniform", "euclidean"]))
def test_chunks_of_equal_teachers_give_what_all_at_once_give(make, similarity):
    names = ["doubling" if name in NOISE else name for name in make["names"]]
    make = dict(make, dtype="float32", names=names)
    results = [draws(distilled(make, chunk, similarity=similarity), 1) for chunk in (None, 1, 3)]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-4, atol=1e-5)
