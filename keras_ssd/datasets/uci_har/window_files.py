"""The text files of UCI HAR: windows, activities and subjects of a split."""

from typing import Any

import numpy as np

from keras_ssd.datasets import tables
from keras_ssd.datasets.uci_har.finding import child

SIGNALS = tuple(f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
STEPS = 128
ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")  # 1 to 6


def read_split(root: Any, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return signals `(rows, 128, 9)`, labels 0 to 5 and subjects, -1 where unknown, of `"train"` or `"test"`.

    A missing or damaged file is a `ValueError`, which names file, line and cause.
    """
    folder = child(root, split)
    path = child(folder, f"y_{split}.txt")
    labels = read(path, np.int64, 1)[:, 0]
    for row in np.flatnonzero((labels < 1) | (labels > len(ACTIVITIES)))[:1]:
        what = f"labels between 1 and {len(ACTIVITIES)}"
        raise ValueError(f"{path}: it should hold {what}. Received: {labels[row]} as label {row + 1}")
    rows = len(labels)
    names = [f"{name}_{split}.txt" for name in SIGNALS]
    of_signals = child(folder, "Inertial Signals")
    signals = np.stack([read(child(of_signals, name), np.float32, STEPS, rows) for name in names], axis=-1)
    path = child(folder, f"subject_{split}.txt")
    subjects = read(path, np.int32, 1, rows)[:, 0] if path.exists() else np.full(rows, -1, np.int32)
    return signals, labels - 1, subjects


def read(path: Any, dtype: Any, columns: int, rows: int | None = None) -> np.ndarray:
    """Return the numbers of a text file, `(rows, columns)`; `rows` of `None` stands for any number."""
    try:
        table = tables.to_table(tables.read_lines(path), dtype)
        rows = len(table) if rows is None else rows
        if table.shape != (rows, columns):
            raise ValueError(f"it should hold {rows} lines of {columns} numbers. Received: {table.shape}")
        for row in np.flatnonzero(np.isnan(table).any(axis=1))[:1]:
            raise ValueError(f"it should hold no missing values. Received: some in row {row + 1}")
    except (FileNotFoundError, ValueError) as error:
        cause = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise ValueError(f"{path}: {cause}") from error
    return table
