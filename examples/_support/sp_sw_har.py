"""Reads the smartwatch part of sp-sw-har: 23 subjects who sit down, stand up, walk and turn.

Matey-Sanz, Casteleyn, Granell: Dataset of inertial measurements of smartphones and smartwatches for human activity
recognition, Data in Brief 2023, https://doi.org/10.1016/j.dib.2023.109809 (CC BY 4.0).

Example:
    people = sp_sw_har.load("sp-sw-har-dataset")  # or its folder DATA
"""

import pathlib
import re
import warnings

import numpy as np

from _support.csv_columns import read_columns
from _support.people import People, cut, scale_by_subject, starts_of_windows

CHANNELS = ["x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro"]
RATE = 104  # Hz; samples come in bursts, so that their row says when they were taken and their timestamp does not
STEPS, STRIDE = RATE, RATE // 2
FILES = "sXX/sXX_YY_sw.csv"


def load(data_dir):
    """Windows of one second, every half second, of the activity that most of their samples have.

    Executions are short, and so are some activities: of windows of one activity only, too few would be left. An
    execution that is shorter than a window is left out, with a warning.
    """
    folder = pathlib.Path(data_dir)
    folder = folder / "DATA" if (folder / "DATA").is_dir() else folder
    paths = sorted(folder.glob("s*/s*_sw.csv"))
    for path in paths:
        if not re.fullmatch(r"s\d+_\d+_sw\.csv", path.name):
            raise ValueError(f"{path} should be named like {FILES}")
    if not paths:
        found = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"`data_dir` should hold {FILES}, or a folder DATA that does. Received: {folder}, {found}"
        )
    tables = [read_columns(path, CHANNELS, words=["label"]) for path in paths]
    class_names = sorted({name for table in tables for name in table.label.unique()})
    short = [path.name for path, table in zip(paths, tables, strict=True) if len(table) < STEPS]
    if short:
        warnings.warn(
            f"{folder}: {len(short)} of {len(paths)} executions are shorter than {STEPS} samples and are left out: "
            f"{short[:8]}{' and others' if len(short) > 8 else ''}",
            stacklevel=2,
        )
    x, y, subjects, minutes = [], [], [], []
    for path, table in zip(paths, tables, strict=True):
        labels = np.searchsorted(class_names, table.label.to_numpy(dtype=object).astype(str))
        starts, of_windows = starts_of_windows(labels, STEPS, STRIDE)
        x.append(cut(table[CHANNELS].to_numpy(), starts, STEPS))
        y.append(of_windows)
        subjects += [path.parent.name] * len(starts)
        minutes.append((starts + STEPS / 2) / RATE / 60)
    x, y, subjects = np.concatenate(x), np.concatenate(y), np.array(subjects)
    for path, table in zip(paths, tables, strict=True):
        without = ~table.label.isin([class_names[number] for number in np.unique(y)])
        if without.any():
            raise ValueError(
                f"{path}, line {without.idxmax() + 2}: a class should be that of most samples of a window. Received: "
                f"no window of {table.label[without.idxmax()]!r}"
            )
    return People("sp_sw_har", scale_by_subject(x, subjects), y, subjects, np.concatenate(minutes), class_names)
