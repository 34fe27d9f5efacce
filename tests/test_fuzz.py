"""Random tests: the equations on all kinds of numbers."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keras import ops

from keras_ssd.guidance import SIMILARITIES, guidance_weights, guided_target, similarity_scores

NAN, INF = float("nan"), float("inf")
# How many examples, the profile says (conftest.py).


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
