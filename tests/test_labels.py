"""Targets that are missing: which ones are, and the weights that leave them out."""

import numpy as np
import pytest
from keras import ops

from keras_ssd.labels import has_target, loss_weight, metric_weight, missing_in, without_missing

NAN = float("nan")


@pytest.mark.parametrize(
    "y, output_shape, kind, expected",
    [
        (np.array([0, -1, 2]), (3, 3), "categorical", [True, False, True]),
        (np.array([0.0, -1.0, 2.0], "float32"), (3, 3), "categorical", [True, False, True]),
        (np.array([0.0, NAN, 2.0], "float32"), (3, 3), "categorical", [True, False, True]),
        (np.array([[0], [-1], [2]]), (3, 3), "categorical", [True, False, True]),
        (np.array([[0, -1], [-1, -1]]), (2, 2, 3), "categorical", [[True, False], [False, False]]),
        (np.array([[1.0, 0.0], [NAN, NAN]], "float32"), (2, 2), "categorical", [True, False]),
        (np.array([[-1.0, 0.0], [1.0, 1.0]], "float32"), (2, 2), "categorical", [True, True]),
        (np.array([[1], [-1]]), (2, 1), "binary", [True, False]),
        (np.array([1, -1]), (2, 1), "binary", [True, False]),
        (np.array([[1, 0], [1, -1]]), (2, 2), "binary", [True, False]),
        (np.array([[0.5, -1.0], [NAN, 1.0]], "float32"), (2, 2), "regression", [True, False]),
        (np.array([-1, 3]), (2, 1), "regression", [True, True]),
        (np.array([[0.0, NAN], [1.0, 2.0]], "float32"), (2, 2, 1), "regression", [[True, False], [True, True]]),
        (np.array([3, 255], "uint8"), (2, 4), "categorical", [True, True]),
        (np.array([[True], [False]]), (2, 1), "binary", [True, True]),
    ],
)
def test_which_targets_are_missing(y, output_shape, kind, expected):
    found = has_target(ops.convert_to_tensor(y), ops.zeros(output_shape), kind)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)


def test_weights_of_a_loss_make_it_the_mean_over_what_is_labelled():
    found = ops.convert_to_tensor([True, False, False, True])
    given = ops.convert_to_tensor(np.array([1.0, 5.0, 5.0, 3.0], "float32"))
    values = np.array([2.0, 100.0, 100.0, 6.0])
    assert np.mean(values * ops.convert_to_numpy(loss_weight(found, None, "sum_over_batch_size"))) == 4.0
    assert np.mean(values * ops.convert_to_numpy(loss_weight(found, given, "sum_over_batch_size"))) == 10.0
    np.testing.assert_array_equal(ops.convert_to_numpy(loss_weight(found, given, "sum")), [1, 0, 0, 3])
    np.testing.assert_array_equal(ops.convert_to_numpy(metric_weight(found, given)), [1, 0, 0, 3])


def test_a_batch_without_any_label_has_weights_of_0():
    weights = loss_weight(ops.convert_to_tensor([False, False]), None, "sum_over_batch_size")
    np.testing.assert_array_equal(ops.convert_to_numpy(weights), [0, 0])


def test_weights_of_samples_and_of_positions_are_combined():
    positions = ops.convert_to_tensor([[True, False], [True, True]])
    samples = ops.convert_to_tensor(np.array([2.0, 3.0], "float32"))
    np.testing.assert_array_equal(ops.convert_to_numpy(metric_weight(positions, samples)), [[2, 0], [3, 3]])
    rows = ops.convert_to_tensor([True, False])
    steps = ops.convert_to_tensor(np.array([[1.0, 2.0], [3.0, 4.0]], "float32"))
    np.testing.assert_array_equal(ops.convert_to_numpy(metric_weight(rows, steps)), [[1, 2], [0, 0]])


def test_what_is_missing_becomes_0():
    y = ops.convert_to_tensor(np.array([[1.0, 2.0], [NAN, 4.0]], "float32"))
    clean = without_missing(y, ops.convert_to_tensor([True, False]))
    np.testing.assert_array_equal(ops.convert_to_numpy(clean), [[1, 2], [0, 0]])


def test_arrays_are_looked_at():
    assert missing_in(np.array([0, -1]), ["categorical"])
    assert not missing_in(np.array([0, 1]), ["categorical"])
    assert not missing_in(np.array([0, -1]), ["regression"])
    assert missing_in([np.array([0, 1]), np.array([1.0, NAN])], ["categorical", "regression"])
    # By name, whatever its place: "b" is the categorical one.
    kinds, names = ["categorical", "regression"], ["b", "a"]
    assert missing_in({"a": np.array([1, 1]), "b": np.array([0, -1])}, kinds, names)
    assert not missing_in({"a": np.array([1, -1]), "b": np.array([0, 1])}, kinds, names)
    assert not missing_in({"a": np.array([1, 1]), "b": np.array([0, -1])}, kinds, names, exempt=[0])
