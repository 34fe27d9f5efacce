"""Statistics of the teachers: computed by hand, and for teachers that are not finite."""

import math

import numpy as np
import pytest

from keras_ssd.callbacks.statistics import TeacherStatistics, teacher_statistics
from keras_ssd.outputs import Output


def test_statistics_by_hand():
    """Means of two samples; the teachers of the second are equal."""
    teachers = [[[1.0, 0.0], [1.0, 2.0], [1.0, 0.0], [1.0, 2.0]], [[3.0, 4.0]] * 4]
    weights, student = [[0.5, 0.5, 0.0, 0.0], [0.25] * 4], [[3.0, 4.0], [0.0, 2.0]]
    outputs = np.eye(3, dtype="float32")[[[0, 1, 0, 2], [2, 2, 2, 2]]]
    statistics = teacher_statistics(weights, student, teachers, [(Output("categorical", False, 1.0), outputs, None)])
    expected = {
        "teacher_spread": [math.sqrt(1 / 3), 0],  # variance 0 + 1, squared norms 1, 5, 1, 5
        "effective_teachers": [2, 4],
        "teachers_kept": [0.5, 1],
        "target_similarity": [7 / (5 * math.sqrt(2)), 0.8],  # the first target is (1, 1)
        "representation_norm": [5, 2],
        "teacher_disagreement": [0.5, 0],
    }
    assert list(statistics) == list(TeacherStatistics.names)
    means = {name: sum(values) / 2 for name, values in expected.items()}
    assert {name: float(value) for name, value in statistics.items()} == pytest.approx(means)


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
