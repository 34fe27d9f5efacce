"""The text files of UCI HAR: windows, activities and subjects of a split."""

from typing import Any

import numpy as np

from keras_ssd.datasets import tables
from keras_ssd.datasets.uci_har.finding import child

SIGNALS = tuple(f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
STEPS = 128
ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")  # 1 to 6


def read_split(root: Any, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read one split.

    Args:
        root: path of the data set's folder.
        split: string, `"train"` or `"test"`.

    Returns:
        Signals `(rows, 128, 9)`, labels 0 to 5 and subjects `(rows,)`, -1 where unknown.

    Raises:
        ValueError: if a file is missing or damaged; the error names file, line and cause.
    """
    folder = child(root, split)
    path = child(folder, f"y_{split}.txt")
    labels = read(path, np.int64)
    rows = len(labels)
    check(path, labels.shape == (rows, 1), "a label in each line", f"{labels.shape[1]} numbers")
    for row in np.flatnonzero((labels < 1) | (labels > len(ACTIVITIES)))[:1]:
        check(path, False, f"labels between 1 and {len(ACTIVITIES)}", f"{labels[row, 0]} as label {row + 1}")
    signals = np.empty((rows, STEPS, len(SIGNALS)), dtype=np.float32)
    for channel, name in enumerate(SIGNALS):
        path = child(child(folder, "Inertial Signals"), f"{name}_{split}.txt")
        values = read(path, np.float32)
        check(path, values.shape == (rows, STEPS), f"{STEPS} numbers for each of {rows} labels", values.shape)
        for row in np.flatnonzero(np.isnan(values).any(axis=1))[:1]:
            check(path, False, "no missing values", f"some in window {row + 1}")
        signals[..., channel] = values
    path = child(folder, f"subject_{split}.txt")
    subjects = read(path, np.int32) if path.exists() else np.full((rows, 1), -1, dtype=np.int32)
    check(path, subjects.shape == (rows, 1), f"a number for each of the {rows} labels", subjects.shape)
    return signals, labels[:, 0] - 1, subjects[:, 0]


def check(path: Any, is_right: bool, what: str, received: object) -> None:
    """Raise an error that describes the expected content of a file."""
    if not is_right:
        raise ValueError(f"{path}: it should hold {what}. Received: {received}")


def read(path: Any, dtype: Any) -> np.ndarray:
    """Return the numbers of a text file, `(rows, columns)`."""
    try:
        return tables.to_numbers(tables.read_lines(path), dtype)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: it is missing") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
