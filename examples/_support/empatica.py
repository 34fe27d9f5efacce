"""Reads recordings of the wristband Empatica E4: Stress-Predict, and folders of your own (WESAD's, say).

Each signal is a file of its own: the first line is when it starts (Unix time, UTC), the second its rate in Hz, then the
values follow, without a header. A folder holds `EDA.csv`, `TEMP.csv`, `HR.csv` and others of one recording.

Iqbal et al.: Stress Monitoring Using Wearable Sensors: A Pilot Study and Stress-Predict Dataset, Sensors 2022, 22(21),
8135, https://doi.org/10.3390/s22218135 (MIT licence).

Example:
    people = empatica.load_stress_predict("Stress-Predict-Dataset")
    people = empatica.load_folders("recordings")  # recordings/<subject>/**/EDA.csv and recordings/labels.csv
"""

import pathlib
from typing import NamedTuple

import numpy as np

from _support.csv_columns import read_columns, read_text, to_numbers
from _support.people import People, cut, scale_by_subject, starts_of_windows

SIGNALS = ("EDA", "TEMP", "HR")
# Conductance and temperature of the skin drift for an hour, and would tell the time of the recording by their level.
DRIFTING = ("EDA", "TEMP")
RATE = 4  # Hz, that of EDA and TEMP
SECONDS, STRIDE = 60, 30  # of a window
STRESS_LABELS = "Processed_data/Improved_All_Combined_hr_rsp_binary.csv"


class Signal(NamedTuple):
    """One file of a recording: its start in Unix time, its rate in Hz, its values (samples, channels)."""

    start: float
    rate: float
    values: np.ndarray

    @property
    def end(self):
        return self.start + (len(self.values) - 1) / self.rate

    def at(self, times):
        """The values (times, channels), between two samples by linear interpolation."""
        known = self.start + np.arange(len(self.values)) / self.rate
        return np.stack([np.interp(times, known, channel) for channel in self.values.T], axis=1)


def read_signal(path):
    """Reads one file; it may hold several channels, as ACC.csv does."""
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*.csv"))
        raise FileNotFoundError(f"There is no file {path}. Found beside it: {there}")
    table = read_text(path)
    if len(table) < 3:
        raise ValueError(f"{path} should hold a start, a rate and values. Received: {len(table)} lines")
    values = np.stack([to_numbers(path, table[column], first_line=1) for column in table], axis=1)
    start, rate = values[:2, 0]
    if not rate > 0:
        raise ValueError(f"{path}, line 2: the rate in Hz should be positive. Received: {rate:g}")
    return Signal(start, rate, values[2:])


def load_stress_predict(data_dir):
    """Rest (0) and stress (1) of the 34 subjects that have labels, one for each second.

    All did the same tasks in the same order, so that the time alone says much: see `minutes`.
    """
    folder = pathlib.Path(data_dir)
    path = folder / STRESS_LABELS
    if not path.is_file():
        found = sorted(file.name for file in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"`data_dir` should hold {STRESS_LABELS} and Raw_data. Received: {folder}, {found}")
    table = read_columns(path, ["Participant", "Time(sec)", "Label"])
    recordings = {}
    for number, rows in table.groupby("Participant"):
        name = f"S{int(number):02d}"
        seconds, labels = rows["Time(sec)"].to_numpy(), rows.Label.to_numpy().astype(int)
        recordings[name] = (folder / "Raw_data" / name, seconds, labels)
    return to_windows("stress_predict", recordings, ["rest", "stress"])


def load_folders(data_dir):
    """Recordings `<subject>/**/EDA.csv` and their labels in `labels.csv`.

    That file has the columns subject, start, end and label; start and end are seconds since the recording's own start,
    the line 1 of its EDA.csv. What has no label is left out.
    """
    folder = pathlib.Path(data_dir)
    path = folder / "labels.csv"
    if not path.is_file():
        raise FileNotFoundError(f"`data_dir` should hold labels.csv with the columns subject,start,end,label: {path}")
    table = read_columns(path, ["start", "end"], words=["subject", "label"])
    class_names = sorted(table.label.unique())
    recordings = {}
    for subject, rows in table.groupby("subject"):
        found = sorted((folder / subject).rglob("EDA.csv"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{folder / subject} should hold EDA.csv once. Received: {[str(file) for file in found]}"
            )
        start = read_signal(found[0]).start
        seconds = np.concatenate([np.arange(row.start, row.end) for row in rows.itertuples()])
        labels = np.concatenate([np.full(len(np.arange(row.start, row.end)), row.label) for row in rows.itertuples()])
        order = np.argsort(seconds, kind="stable")
        if (np.diff(seconds[order]) < 1).any():
            raise ValueError(f"{path}: the spans of a subject should not overlap. Received: two that do, of {subject}")
        labels = np.searchsorted(class_names, labels[order].astype(str))
        recordings[subject] = (found[0].parent, start + seconds[order], labels)
    return to_windows(folder.resolve().name, recordings, class_names)


def to_windows(name, recordings, class_names):
    """Windows of a minute, every half minute, that hold one label only.

    Args:
        name: of the data set.
        recordings: by subject: its folder, the seconds (Unix time) that have a label, and these labels.
        class_names: list of strings.
    """
    parts = []
    for subject, (folder, seconds, labels) in recordings.items():
        signals = [read_signal(folder / f"{signal}.csv") for signal in SIGNALS]
        covered = (seconds >= max(signal.start for signal in signals)) & (
            seconds + 1 <= min(signal.end + 1 / signal.rate for signal in signals)
        )
        if not covered.any():
            raise ValueError(f"{folder}: signals should cover seconds that have a label. Received: none of {subject}")
        first = seconds[0]
        seconds, labels = seconds[covered], labels[covered]
        for rows in np.split(np.arange(len(seconds)), np.flatnonzero(np.diff(seconds) != 1) + 1):
            starts, of_windows = starts_of_windows(labels[rows], SECONDS, STRIDE, pure=True)
            if not len(starts):
                continue
            times = seconds[rows[0]] + np.arange(len(rows) * RATE) / RATE
            values = np.concatenate([signal.at(times)[:, :1] for signal in signals], axis=1)
            x = cut(values, starts * RATE, SECONDS * RATE)
            minutes = (seconds[rows[0]] - first + starts + SECONDS / 2) / 60
            parts.append((x, of_windows, np.full(len(starts), subject), minutes))
    if not parts:
        raise ValueError(f"A recording should hold {SECONDS} seconds of one label. Received: none in {len(recordings)}")
    x, y, subjects, minutes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return People(name, scale_by_subject(without_drift(x), subjects), y, subjects, minutes, class_names)


def without_drift(x):
    """Takes the mean of each window from the signals that drift: what is left is how they change within a minute."""
    channels = [SIGNALS.index(signal) for signal in DRIFTING]
    x = x.copy()
    x[..., channels] -= x[..., channels].mean(axis=1, keepdims=True)
    return x
