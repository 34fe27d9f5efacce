"""Random tests: the equations on all kinds of numbers, and all kinds of small models against plain Keras."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from keras import layers, ops

import keras_ssd
from keras_ssd.guidance import SIMILARITIES, guidance_weights, guided_target, similarity_scores
from models import precision
from same_weights import arrays, assert_same

NAN, INF = float("nan"), float("inf")
# How many examples, the profile says (conftest.py).


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
@example(NAN, 90.0)
@example(0, 90.0)
@example(5.0, NAN)
@example(5.0, 100.5)
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


@pytest.mark.parametrize("sign", [1, -1], ids=["alike", "opposite"])
def test_float16_scores_of_4096_features_of_60(sign):
    """The dot product is 14,745,600 and the squared distance of opposites four times that: float16 ends at 65,504."""
    student, teachers = np.full((1, 4096), 60, "float16"), np.full((1, 2, 4096), 60, "float16")
    teachers[0, 0] *= sign
    squared_distance = 0 if sign == 1 else 58_982_400
    expected = dict(dot=sign * 14_745_600, euclidean=-squared_distance, cosine=sign, kl=0, uniform=0)
    for similarity in SIMILARITIES:
        scores = ops.convert_to_numpy(similarity_scores(student, teachers, similarity))
        np.testing.assert_allclose(scores[0, 0], expected[similarity], rtol=1e-5, atol=1e-5, err_msg=similarity)
        weights = ops.convert_to_numpy(guidance_weights(scores, 5.0, 90.0))
        ties = sign == 1 or similarity in ("kl", "uniform")
        np.testing.assert_allclose(weights, [[0.5, 0.5] if ties else [0, 1]], atol=1e-6, err_msg=similarity)


# Models.

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
Y = np.array([0, 1, 1, 0])
LAYERS = {
    "dense": lambda: layers.Dense(4, activation="relu"),
    "normalization": layers.BatchNormalization,
    "layer normalization": layers.LayerNormalization,
    # In float32, as Keras on TensorFlow cannot add losses of two types.
    "regularised": lambda: layers.Dense(3, kernel_regularizer="l2", activity_regularizer="l1", dtype="float32"),
    "dropout": lambda: layers.Dropout(0.4),
    "seeded dropout": lambda: layers.Dropout(0.3, seed=3),
    "gaussian noise": lambda: layers.GaussianNoise(0.5),
    "alpha dropout": lambda: layers.AlphaDropout(0.2),
}
NAMES = st.lists(st.sampled_from(list(LAYERS)), max_size=3)
DTYPES = st.sampled_from(["float32", "float32", "mixed_bfloat16", "mixed_float16"])


def build(names, skip, dtype):
    """Hidden layers, a skip or none."""
    with precision(dtype):
        inputs = keras.Input((3,))
        x = layers.Dense(4)(inputs)
        for name in names:
            x = LAYERS[name]()(x)
        if skip:
            x = layers.Concatenate()([x, inputs])
        model = keras.Model(inputs, layers.Dense(2, activation="softmax", dtype="float32")(x))
    # TensorFlow would spend minutes on compiling what runs three steps; JAX without it compiles every operation.
    jit = keras.backend.backend() == "jax"
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=jit)
    return model


# Models are slow: TensorFlow and JAX trace or compile each.
@pytest.mark.slow
@settings(max_examples=10 if keras.backend.backend() == "torch" else 4, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.tuples(NAMES, st.sampled_from([name for name in LAYERS if "drop" in name or "noise" in name]), NAMES),
    st.booleans(),
    DTYPES,
    st.sampled_from([1, 3, 4]),  # one sample; a short last batch; all
    st.sampled_from(["self", "snapshot", "ema"]),
    st.integers(0, 1000),
)
def test_weight_0_is_the_plain_model(names, skip, dtype, batch_size, teacher, seed):
    """Whatever surrounds one noise layer at least."""
    histories, models = [], []
    for wrap in (False, True):
        keras.utils.set_random_seed(seed)
        model = build([*names[0], names[1], *names[2]], skip, dtype)
        trained = keras_ssd.wrap(model, teacher=teacher, kd_weight=0, ema_momentum=0) if wrap else model
        histories.append(trained.fit(X, Y, batch_size=batch_size, verbose=0).history)
        models.append(model)
    # NaN, as of float16 that overflows, is the same as NaN.
    np.testing.assert_equal(histories[1], histories[0])
    assert_same(*(arrays(model.variables) for model in models))
