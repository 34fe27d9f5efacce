"""The equations as pure functions: numbers by hand, NumPy references with their gradients, values that are extreme."""

import contextlib
import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_ssd
import reference
from gradients import assert_close, value_and_gradient
from keras_ssd.guidance import SIMILARITIES, guidance_weights, guided_target, similarity_scores
from keras_ssd.outputs import finite_or
from keras_ssd.term import representation_loss

NAN, INF = math.nan, math.inf
LN2, LN3 = math.log(2), math.log(3)
# JAX has no float64 unless it is configured so, and Keras' matrix product makes it float32 on PyTorch.
DTYPES = ["float16", "float32"] + ["float64"] * (keras.backend.backend() == "tensorflow")


def normal(*shape, seed=1, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype("float32")


def array(tensor):
    return ops.convert_to_numpy(tensor)


# similarity_scores


@pytest.mark.parametrize(
    "similarity, expected",
    [
        ("dot", [2 * LN3, LN3]),
        ("cosine", [1.0, math.sqrt(0.5)]),
        ("euclidean", [-(LN3**2), -(LN3**2)]),
        ("kl", [-(0.9 * math.log(0.9 / 0.75) + 0.1 * math.log(0.1 / 0.25)), -0.5 * math.log(4 / 3)]),
        ("uniform", [0.0, 0.0]),
        (lambda student, teachers: teachers[:, :, 0] - student[:, :1], [LN3, 0.0]),
    ],
    ids=[*SIMILARITIES, "callable"],
)
def test_scores_by_hand(similarity, expected):
    """Logits (ln 3, 0) are the probabilities (3/4, 1/4), (2 ln 3, 0) are (.9, .1), (ln 3, ln 3) are (.5, .5)."""
    teachers = [[[2 * LN3, 0.0], [LN3, LN3]]]
    student = [[LN3, 0.0]]
    if similarity == "dot":
        student = [[1.0, 0.0]]
    assert_close(similarity_scores(student, teachers, similarity), [expected])


@pytest.mark.parametrize(
    "similarity, message",
    [
        (lambda s, t: s, r"shape \(batch, teachers\), here \(2, 3\).*Received: scores of shape \(2, 4\)"),
        (lambda s, t: ops.zeros((s.shape[0], 1)), r"here \(2, 3\).*Received: scores of shape \(2, 1\)"),
        ("dots", "be one of .*'uniform'.* Received: 'dots'"),
        (lambda s, t: ops.argmax(t, axis=-1), "floats. Received: scores of dtype int"),
        (lambda s, t: t[:, :, 0] / 0 * 0, "finite scores. Received: a sample with a finite student"),
        (lambda s: s, r"It failed for a student of shape \(2, 4\) and teachers of shape \(2, 3, 4\): TypeError"),
    ],
    ids="student broadcast name integers nan arguments".split(),
)
def test_a_similarity_is_checked(similarity, message):
    with pytest.raises(ValueError, match=f"(?s)`similarity` should .*{message}"):
        similarity_scores(normal(2, 4), normal(2, 3, 4), similarity)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "similarity, message",
    [
        (lambda student, teachers: student, "scores of shape"),
        (lambda student, teachers: ops.sum(teachers, axis=-1) * NAN, "finite scores"),
        (lambda student, teachers: ops.sum(ops.log(teachers), axis=-1), None),
    ],
    ids=["shape", "NaN", "of positive features"],
)
def test_a_similarity_is_checked_in_a_training_step(similarity, message):
    stack = [keras.layers.Dense(6, "sigmoid"), keras.layers.Dropout(1e-6), keras.layers.Dense(2)]
    ssd = keras_ssd.wrap(keras.Sequential([keras.Input((4,)), *stack]), similarity=similarity)
    ssd.compile("sgd", "mse")
    refused = pytest.raises(ValueError, match=f"`similarity` should return {message}")
    with refused if message else contextlib.nullcontext():
        ssd.fit(normal(8, 4), normal(8, 2), verbose=0)


def test_a_similarity_may_leave_teachers_out():
    scores = similarity_scores([[1.0]], [[[1.0], [2.0]]], lambda s, t: ops.log(t[:, :, 0] - 1.0))
    assert_close(guidance_weights(scores, 1.0, 0.0), [[0.0, 1.0]])


@pytest.mark.parametrize("size, factor", [(1e-10, 1), (1e18, 1), (1e20, 0)], ids=["tiny", "huge", "overflow"])
def test_cosine_of_tiny_and_huge(size, factor):
    student, teachers = np.float32([[size, 0]]), np.float32([[[size, size], [-1, 0]]])
    assert_close(similarity_scores(student, teachers, "cosine"), [[factor * math.sqrt(0.5), -factor]])


def test_cosine_of_zeros():
    teachers = np.float32([[[3, 4], [0, 0]]])
    value, gradient = value_and_gradient(
        lambda s: ops.sum(similarity_scores(s, teachers, "cosine")), np.zeros((1, 2), "float32")
    )
    assert value == 0
    assert np.abs(gradient).max() <= 2


@pytest.mark.parametrize("similarity, bad", list(zip(SIMILARITIES, [NAN, INF, -INF, NAN, INF], strict=True)))
def test_non_finite_teacher_scores_nan_without_gradient(similarity, bad):
    student, teachers = normal(2, 4), normal(2, 30, 4, seed=2)
    teachers[0, 0] = student[0]
    intact = teachers.copy()
    teachers[0, 0, 1] = bad
    scores = array(similarity_scores(student, teachers, similarity))
    assert np.isnan(scores[0, 0]) and np.isfinite(scores).sum() == 59

    used = np.isfinite(scores)

    def kept(teachers):
        return lambda s: ops.sum(ops.where(used, similarity_scores(s, teachers, similarity), 0.0))

    assert_close(value_and_gradient(kept(teachers), student)[1], value_and_gradient(kept(intact), student)[1])


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="a tool of JAX")
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(teacher="snapshot", kd_fraction=0.5, similarity="euclidean", percentile=90.0),
        dict(teacher="ema", similarity="cosine", distill="both", percentile=50.0),
    ],
)
def test_healthy_training_computes_no_nan(options):
    """JAX then stops at every NaN, also in epochs that are not measured and samples that are masked entirely."""
    import jax

    stack = [keras.layers.Masking(), keras.layers.Dense(6), keras.layers.Dropout(0.5), keras.layers.Dense(2, "softmax")]
    ssd = keras_ssd.wrap(keras.Sequential([keras.Input((5, 3)), *stack]), num_teachers=2, **options)
    ssd.compile("sgd", "sparse_categorical_crossentropy")
    x, y = normal(4, 5, 3), np.zeros((4, 5))
    x[0] = x[1, 2:] = 0
    jax.config.update("jax_debug_nans", True)
    try:
        monitor = keras_ssd.callbacks.TeacherMonitor(every=2)
        history = ssd.fit(x, y, epochs=2, verbose=0, validation_data=(x, y), callbacks=[monitor]).history
    finally:
        jax.config.update("jax_debug_nans", False)
    assert [math.isnan(value) for value in history["teacher_spread"]] == [False, True]


# guidance_weights


@pytest.mark.parametrize(
    "scores, temperature, percentile, expected",
    [
        ([0, 5 * LN2, 5 * LN3], 5, 0, [1 / 6, 1 / 3, 1 / 2]),
        ([0, 5 * LN2, 5 * LN3], 5, 40, [0, 2 / 5, 3 / 5]),
        ([0, 5 * LN2, 5 * LN3], 5, 50, [0, 2 / 5, 3 / 5]),
        ([0, 5 * LN2, 5 * LN3], 5, 51, [0, 0, 1]),
        ([0, 5 * LN2, 5 * LN3], 5, 100, [0, 0, 1]),
        ([0, 5 * LN2, 5 * LN3], 5, 99.9999999, [0, 0, 1]),
        ([LN2, LN2, 0, LN2], 1, 90, [1 / 3, 1 / 3, 0, 1 / 3]),
        ([0, 0, 9], 1, 90, [0, 0, 1]),
        ([7, 7, 7, 7], 1, 100, [1 / 4] * 4),
        ([-3], 5, 90, [1]),
        ([-3e38, 3e38], 0.01, 90, [0, 1]),
        ([1e-30, 2e-30], 5, 0, [1 / 2, 1 / 2]),
        ([0, NAN, LN3, INF, -INF], 1, 0, [1 / 4, 0, 3 / 4, 0, 0]),
        ([NAN, INF], 5, 90, [1 / 2, 1 / 2]),
    ],
)
def test_weights_by_hand(scores, temperature, percentile, expected):
    assert_close(guidance_weights(np.float32([scores]), temperature, percentile), [expected])


@pytest.mark.parametrize(
    "num_teachers, percentile, kept",
    [(30, 90, 3), (8, 90, 1), (11, 90, 2), (30, 0, 30), (8, 50, 4), (30, 100 * 5 / 29, 25)],
)
def test_percentile_keeps_the_expected_number(num_teachers, percentile, kept):
    weights = array(guidance_weights(normal(2, num_teachers), percentile=percentile))
    assert ((weights > 0).sum(axis=1) == kept).all()


# guided_target


@pytest.mark.parametrize(
    "weights, teachers, expected",
    [
        ([0.25, 0.75], [[4, 0], [8, 1]], [7, 0.75]),
        ([0, 1], [[NAN, INF], [8, 1]], [8, 1]),
        ([0.5, 0.5], [[NAN, 2], [8, 4]], [NAN, 3]),
        ([0.5, 0.5], [[3e38, -3e38], [3e38, 3e38]], [3e38, 0]),
    ],
)
def test_target_by_hand(weights, teachers, expected):
    target = guided_target(np.float32([weights]), np.float32([teachers]))
    np.testing.assert_allclose(array(target), np.float32([expected]), rtol=1e-6)


# All of them: as in the paper the dot product, h = 5, epsilon = 90, mean squared error; and for each similarity.


def paper_loss(student, teachers, similarity="dot", temperature=5.0, percentile=90.0):
    student = ops.convert_to_tensor(student)
    weights = guidance_weights(similarity_scores(student, teachers, similarity), temperature, percentile)
    return representation_loss(finite_or(guided_target(weights, teachers), ops.stop_gradient(student)), student, None)


@pytest.mark.parametrize(
    "similarity, temperature, percentile",
    [("dot", 5, 90), ("dot", 1, 0), ("cosine", 5, 55), ("euclidean", 1, 0), ("kl", 0.3, 50), ("uniform", 5, 90)],
)
def test_paper_loss(similarity, temperature, percentile):
    """The gradient reaches the student through scores, weights and filter; 50 and 90 are order statistics of 11."""
    student, teachers = normal(2, 4), normal(2, 11, 4, seed=2)
    keep = reference.keep(reference.scores(student, teachers, similarity), temperature, percentile)

    def expected(s):
        return reference.paper_loss(s, teachers, similarity, temperature, percentile, keep)

    value, gradient = value_and_gradient(
        lambda s: paper_loss(s, teachers, similarity, temperature, percentile), student
    )
    assert_close(value, expected(student))
    assert_close(gradient, reference.gradient(expected, student))


def test_paper_loss_ignores_non_finite_teachers():
    """A bad teacher is left out; where all are bad, the sample has no term and no gradient."""
    student, teachers = normal(2, 4), normal(2, 30, 4, seed=2)
    teachers[0, 7] = -student[0]  # the least similar: below the percentile anyway
    expected = reference.paper_loss(student[:1], teachers[:1]) / 2
    _, gradient_before = value_and_gradient(lambda s: paper_loss(s, teachers), student)
    teachers[0, 7, 2], teachers[1] = INF, NAN
    value, gradient = value_and_gradient(lambda s: paper_loss(s, teachers), student)
    assert_close(value, expected)
    assert not gradient[1].any()
    assert_close(gradient[0], gradient_before[0])


@pytest.mark.parametrize("size", [1e-30, 1e37])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradient_of_extreme_magnitudes_is_finite(similarity, size):
    student, teachers = np.float32([[size, -size]]), np.float32([[[size, 1], [-size, size]]])

    def loss(s):
        weights = guidance_weights(similarity_scores(s, teachers, similarity), 5.0, 0.0)
        return ops.sum(weights[:, 0] + 2 * weights[:, 1])

    assert np.isfinite(value_and_gradient(loss, student)[1]).all()


# dtypes


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    student = ops.convert_to_tensor(normal(2, 4), dtype)
    teachers = ops.convert_to_tensor(normal(2, 30, 4, seed=2), dtype)
    computed, tolerance = ("float64", 1e-14) if dtype == "float64" else ("float32", 1e-6)
    for similarity in SIMILARITIES:
        scores = similarity_scores(student, teachers, similarity)
        weights = guidance_weights(scores, 0.3, 40.0)
        target = guided_target(weights, teachers)
        assert {keras.backend.standardize_dtype(x.dtype) for x in (scores, weights, target)} == {computed}
        expected = reference.weights(reference.scores(array(student), array(teachers), similarity), 0.3, 40.0)
        assert_close(target, reference.target(expected, array(teachers)), tolerance)
    large = ops.full((1, 4096), 60.0, dtype)  # 4096 * 3600 is beyond the range of float16
    np.testing.assert_allclose(array(similarity_scores(large, large[:, None], "dot")), [[14_745_600.0]], rtol=1e-3)
