"""Validation by whole subjects: windows of one person are too alike to be on both sides of a split."""

from typing import Any

import numpy as np


def hold_out_subjects(subjects: Any, fraction: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into a training and a validation part, so that no subject is in both.

    Args:
        subjects: integers of shape `(rows,)`, the subject of each row.
        fraction: float between 0 and 1, the share of the subjects to hold out, rounded up. Defaults to `0.2`.
        seed: integer that chooses the subjects. Defaults to `0`.

    Returns:
        Two arrays of row numbers: training and validation.

    Raises:
        ValueError: if a subject is unknown (-1), there is only one, or `fraction` would leave none to train on.
    """
    from sklearn.model_selection import GroupShuffleSplit  # takes longer to import than all of this module's package

    subjects = np.asarray(subjects)
    if subjects.ndim != 1:
        raise ValueError(f"`subjects` should be of shape (rows,). Received: an array of shape {subjects.shape}")
    if np.any(subjects < 0):
        raise ValueError(
            f"`subjects` should hold the subject of each row. Received: {np.sum(subjects < 0)} of {len(subjects)} rows "
            "with subject -1 (unknown). Prepare the data set with its subject files, or split the rows by class."
        )
    count = len(np.unique(subjects))
    if count < 2:
        raise ValueError(f"`subjects` should hold at least two subjects. Received: {count}")
    if not 0 < fraction < 1 or np.ceil(fraction * count) == count:
        what = "lie between 0 and 1 and leave a subject to train on"
        raise ValueError(f"`fraction` should {what}. Received: {fraction} of {count} subjects")
    split = GroupShuffleSplit(n_splits=1, test_size=float(fraction), random_state=seed)
    return next(split.split(subjects, groups=subjects))
