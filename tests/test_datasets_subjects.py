"""`hold_out_subjects`: whole subjects by a seed, and the subjects that cannot be held out."""

import numpy as np
import pytest

import keras_ssd.datasets

SUBJECTS = np.array([1, 1, 2, 3, 3, 3, 4, 5, 5])


@pytest.mark.parametrize(("fraction", "n_held_out"), [(0.2, 1), (0.21, 2), (0.8, 4)])
def test_whole_subjects_are_held_out(fraction, n_held_out):
    training, validation = keras_ssd.datasets.hold_out_subjects(SUBJECTS, fraction=fraction, seed=3)
    assert len(np.unique(SUBJECTS[validation])) == n_held_out
    assert not set(SUBJECTS[training]) & set(SUBJECTS[validation])
    np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), np.arange(9))


def test_the_seed_chooses_the_subjects():
    held_out = [tuple(keras_ssd.datasets.hold_out_subjects(SUBJECTS, seed=seed)[1]) for seed in [*range(20), 0]]
    assert held_out[0] == held_out[-1]
    assert set(held_out) == {(0, 1), (2,), (3, 4, 5), (6,), (7, 8)}


@pytest.mark.parametrize(
    ("subjects", "fraction", "message"),
    [
        ([1, 2, -1], 0.2, "1 of 3 rows with subject -1"),
        ([7, 7, 7], 0.2, "at least two subjects. Received: 1"),
        ([[1], [2]], 0.2, r"shape \(rows,\). Received: an array of shape \(2, 1\)"),
        ([1, 2], 0.0, "`fraction` should lie between 0 and 1"),
        ([1, 2], 0.6, "leave a subject to train on. Received: 0.6 of 2 subjects"),
    ],
)
def test_hold_out_subjects_rejects_bad_arguments(subjects, fraction, message):
    with pytest.raises(ValueError, match=message):
        keras_ssd.datasets.hold_out_subjects(subjects, fraction=fraction)
