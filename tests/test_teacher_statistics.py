"""Statistics of the teachers: computed by hand, against NumPy, and for teachers that are not finite."""

import math

import numpy as np
import pytest

from keras_ssd.callbacks.statistics import TeacherStatistics, teacher_statistics
from keras_ssd.outputs import Output


def test_statistics_by_hand():
    teachers = [[[1.0, 0.0], [1.0, 2.0], [1.0, 0.0], [1.0, 2.0]]]
    statistics = teacher_statistics([[0.5, 0.5, 0.0, 0.0]], [[3.0, 4.0]], teachers)
    expected = {
        "teacher_spread": math.sqrt(1 / 3),  # variance 0 + 1, squared norms 1, 5, 1, 5
        "effective_teachers": 2.0,
        "teachers_kept": 0.5,
        "target_similarity": 7 / (5 * math.sqrt(2)),  # the target is (1, 1)
        "representation_norm": 5.0,
    }
    assert {name: float(value) for name, value in statistics.items()} == pytest.approx(expected)


def test_statistics_against_numpy():
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.ones(5), size=7).astype("float32")
    student, teachers = rng.normal(size=(7, 4)).astype("float32"), rng.normal(size=(7, 5, 4)).astype("float32")
    outputs = rng.normal(size=(7, 5, 3)).astype("float32")
    statistics = teacher_statistics(weights, student, teachers, [(Output("categorical", True, 1.0), outputs, None)])
    target = np.einsum("bi,bid->bd", weights, teachers)
    norms = np.linalg.norm(student, axis=1), np.linalg.norm(target, axis=1)
    power = np.square(np.linalg.norm(teachers, axis=2)).mean(axis=1)
    votes = [np.bincount(row, minlength=3).max() / 5 for row in outputs.argmax(axis=2)]
    expected = {
        "teacher_spread": np.sqrt(teachers.var(axis=1).sum(axis=1) / power),
        "effective_teachers": np.exp(-(weights * np.log(weights)).sum(axis=1)),
        "teachers_kept": np.ones(7),
        "target_similarity": (student * target).sum(axis=1) / norms[0] / norms[1],
        "representation_norm": norms[0],
        "teacher_disagreement": 1 - np.array(votes),
    }
    assert list(statistics) == list(TeacherStatistics.names)
    for name, value in expected.items():
        assert float(statistics[name]) == pytest.approx(value.mean(), rel=1e-5), name


@pytest.mark.parametrize(
    "from_logits, outputs",
    [(False, [[[0.9, 0.9], [0.9, 0.1], [0.2, 0.1]]]), (True, [[[2.0, 2.0], [2.0, -2.0], [-1.0, -2.0]]])],
    ids=["probabilities", "logits"],
)
def test_disagreement_of_binary_units(from_logits, outputs):
    # In each of the two units one of three teachers is outside the majority.
    votes = [(Output("binary", from_logits, 1.0), np.array(outputs), None)]
    statistics = teacher_statistics([[1.0, 0.0, 0.0]], [[1.0]], [[[1.0], [1.0], [1.0]]], votes)
    assert float(statistics["teacher_disagreement"]) == pytest.approx(1 / 3)
    assert float(statistics["teacher_spread"]) == 0.0


def test_an_empty_batch_does_not_count_and_an_epoch_without_a_batch_has_no_statistics():
    metric, batch = TeacherStatistics(has_votes=False), ([[0.5, 0.5]], [[2.0]], [[[1.0], [3.0]]])
    metric.update_state(*map(np.float32, batch))  # not activated
    result = metric.result()
    assert list(result) == list(metric.names)
    assert all(math.isnan(float(value)) for value in result.values())
    metric.activate()
    for n_samples in (1, 0):
        metric.update_state(*(np.float32(part)[:n_samples] for part in batch))
    statistics = {name: float(value) for name, value in metric.result().items()}
    assert statistics["representation_norm"] == pytest.approx(2)
    assert statistics["teacher_spread"] == pytest.approx(1 / math.sqrt(5))


def test_a_teacher_that_is_not_finite_makes_the_spread_nan():
    statistics = teacher_statistics([[1.0, 0.0]], [[1.0]], [[[1.0], [math.nan]]])
    assert math.isnan(float(statistics["teacher_spread"]))
    assert float(statistics["effective_teachers"]) == pytest.approx(1.0)
