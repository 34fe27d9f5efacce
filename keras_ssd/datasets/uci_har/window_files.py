"""The text files of UCI HAR: windows, activities and subjects of a split."""

import numpy as np

from keras_ssd.datasets import tables
from keras_ssd.datasets.uci_har.finding import child

SIGNALS = tuple(f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
STEPS = 128
ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")  # 1 to 6


def read_split(root, split):
    """Read one split.

    Args:
        root: Path of the data set's folder.
        split: String, `"train"` or `"test"`.

    Returns:
        Signals `(rows, 128, 9)`, labels 0 to 5 and subjects `(rows,)`, -1 where unknown.

    Raises:
        ValueError: If a file is missing or damaged; the error names file, line and cause.
    """
    folder = child(root, split)
    path = child(folder, f"y_{split}.txt")
    labels = read(path, np.int64)
    rows = len(labels)
    if labels.shape != (rows, 1):
        raise fault(path, f"it should hold a label in each line. Received: {labels.shape[1]} numbers")
    unknown = ~np.isin(labels[:, 0], range(1, len(ACTIVITIES) + 1))
    if unknown.any():
        row = unknown.argmax()
        raise fault(path, f"label {row + 1} should lie between 1 and {len(ACTIVITIES)}. Received: {labels[row, 0]}")
    signals = np.empty((rows, STEPS, len(SIGNALS)), dtype=np.float32)
    for channel, name in enumerate(SIGNALS):
        path = child(child(folder, "Inertial Signals"), f"{name}_{split}.txt")
        values = read(path, np.float32)
        if values.shape != (rows, STEPS):
            raise fault(path, f"it should hold {STEPS} numbers for each of {rows} labels. Received: {values.shape}")
        missing = np.isnan(values).any(axis=1)
        if missing.any():
            raise fault(path, f"window {missing.argmax() + 1} has missing values")
        signals[..., channel] = values
    path = child(folder, f"subject_{split}.txt")
    subjects = read(path, np.int32) if path.exists() else np.full((rows, 1), -1, dtype=np.int32)
    if subjects.shape != (rows, 1):
        raise fault(path, f"it should hold a number for each of the {rows} labels. Received: {subjects.shape}")
    return signals, labels[:, 0] - 1, subjects[:, 0]


def read(path, dtype):
    """Return the numbers of a text file, `(rows, columns)`."""
    try:
        return tables.to_numbers(tables.read_lines(path), dtype)
    except FileNotFoundError as error:
        raise fault(path, "it is missing") from error
    except ValueError as error:
        raise fault(path, error) from error


def fault(path, reason):
    """Return the error that says what is wrong with a file."""
    return ValueError(f"{path}: {reason}")
