"""Validation by whole subjects: windows of one person are too alike to be on both sides of a split."""

import numpy as np


def hold_out_subjects(subjects, fraction=0.2, seed=0):
    """Split rows into those to train on and those to validate on, so that no subject is on both sides.

    Args:
        subjects: Integers of shape `(rows,)`, whose each row is.
        fraction: Float between 0 and 1, the share of the subjects to hold out, rounded up. Defaults to `0.2`.
        seed: Integer, chooses which subjects. Defaults to `0`.

    Returns:
        Two arrays of row numbers: training and validation.

    Raises:
        ValueError: If a subject is unknown (-1), there is only one, or `fraction` would leave none to train on.
    """
    from sklearn.model_selection import GroupShuffleSplit  # takes longer to import than all of this module's package

    subjects = np.asarray(subjects)
    if subjects.ndim != 1:
        raise ValueError(f"`subjects` should be of shape (rows,). Received: an array of shape {subjects.shape}")
    if np.any(subjects < 0):
        raise ValueError(
            f"`subjects` should say whose each row is. Received: {np.sum(subjects < 0)} of {len(subjects)} rows with "
            "subject -1, unknown. Prepare the data set with its subject files, or split the rows by class instead."
        )
    n_subjects = len(np.unique(subjects))
    if n_subjects < 2:
        raise ValueError(f"`subjects` should hold two subjects at least. Received: {n_subjects}")
    if not 0 < fraction < 1 or np.ceil(fraction * n_subjects) == n_subjects:
        raise ValueError(
            f"`fraction` should lie between 0 and 1 and leave a subject to train on. Received: {fraction} of "
            f"{n_subjects} subjects"
        )
    split = GroupShuffleSplit(n_splits=1, test_size=float(fraction), random_state=seed)
    return next(split.split(subjects, groups=subjects))
