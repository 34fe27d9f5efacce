"""Reads recordings of the wristband Empatica E4: Stress-Predict, and folders of your own (WESAD's, say).

Each signal is a file of its own: the first line is when it starts (Unix time, UTC), the second its rate in Hz, then the
values follow, without a header. A folder holds `EDA.csv`, `TEMP.csv`, `HR.csv` and others of one recording.

Iqbal et al.: Stress Monitoring Using Wearable Sensors: A Pilot Study and Stress-Predict Dataset, Sensors 2022, 22(21),
8135, https://doi.org/10.3390/s22218135 (MIT licence).

Example:
    people = empatica.load_stress_predict("Stress-Predict-Dataset")
    people = empatica.load_folders("recordings")  # recordings/<subject>/**/EDA.csv and recordings/labels.csv
"""

import itertools
import pathlib
import warnings
from typing import NamedTuple

import numpy as np

from _support.csv_columns import read_columns, read_text, to_numbers
from _support.people import People, scale_by_subject

SIGNALS = ("EDA", "TEMP", "HR")
# Conductance and temperature of the skin drift for an hour, and would tell the time of the recording by their level.
DRIFTING = ("EDA", "TEMP")
RATE = 4  # Hz, that of EDA and TEMP
SECONDS, STRIDE = 60, 30  # of a window
YEAR = 365 * 24 * 3600  # seconds; no recording is as long
TOLERANCE = 0.01  # seconds; times with fractions are rounded
STRESS_LABELS = "Processed_data/Improved_All_Combined_hr_rsp_binary.csv"


class Span(NamedTuple):
    """Seconds of a recording with one label, and the line of the file of labels that says so."""

    start: float
    end: float
    label: int
    line: int


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
    unknown = ~table.Label.isin([0, 1])
    if unknown.any():
        line = unknown.idxmax() + 2
        raise ValueError(f"{path}, line {line}: Label should be 0 or 1. Received: {table.Label[line - 2]:g}")
    recordings = {}
    for number, rows in table.groupby("Participant"):
        name = f"S{int(number):02d}"
        steps = rows["Time(sec)"].diff()
        early = steps < 1 - TOLERANCE
        if early.any():
            line = early.idxmax() + 2
            raise ValueError(
                f"{path}, line {line}: each line of a participant should be a second after the one before, or later. "
                f"Received: {steps[line - 2]:g} seconds"
            )
        begins = (steps.isna() | (steps > 1 + TOLERANCE) | (rows.Label.diff() != 0)).cumsum()
        spans = [
            Span(of_one["Time(sec)"].iloc[0], of_one["Time(sec)"].iloc[-1] + 1, int(of_one.Label.iloc[0]), line + 2)
            for _, of_one in rows.groupby(begins)
            for line in of_one.index[:1]
        ]
        recordings[name] = (folder / "Raw_data" / name, 0.0, spans)
    return to_windows("stress_predict", path, recordings, ["rest", "stress"])


def load_folders(data_dir):
    """Recordings `<subject>/**/EDA.csv` and their labels in `labels.csv`.

    That file has the columns subject, start, end and label; start and end are seconds since the recording's own start,
    the line 1 of its EDA.csv, and may have fractions. What has no label is left out.
    """
    folder = pathlib.Path(data_dir)
    path = folder / "labels.csv"
    if not path.is_file():
        raise FileNotFoundError(f"`data_dir` should hold labels.csv with the columns subject,start,end,label: {path}")
    table = read_columns(path, ["start", "end"], words=["subject", "label"])
    unix = table[["start", "end"]].max(axis=1) > YEAR
    if unix.any():
        raise ValueError(
            f"{path}, line {unix.idxmax() + 2}: `start` and `end` should be seconds since the recording's start, not "
            f"Unix times. Received: {table[['start', 'end']].loc[unix.idxmax()].tolist()}"
        )
    backwards = table.end - table.start <= TOLERANCE
    if backwards.any():
        row = table.loc[backwards.idxmax()]
        raise ValueError(
            f"{path}, line {row.name + 2}: `end` should come after `start`; both are seconds since the recording's "
            f"start, and `end` is no duration. Received: start={row.start:g}, end={row.end:g}"
        )
    class_names = sorted(table.label.unique())
    recordings = {}
    for subject, rows in table.groupby("subject"):
        found = sorted((folder / subject).rglob("EDA.csv"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{path}, line {rows.index[0] + 2}: {folder / subject} should hold EDA.csv once. "
                f"Received: {[str(file) for file in found]}"
            )
        spans = [Span(row.start, row.end, class_names.index(row.label), row.Index + 2) for row in rows.itertuples()]
        recordings[subject] = (found[0].parent, read_signal(found[0]).start, spans)
    others = {file.relative_to(folder).parts[0] for file in folder.rglob("EDA.csv")} - set(recordings)
    if others:
        warnings.warn(f"{path} has no labels for {len(others)} recordings: {sorted(others)[:8]}", stacklevel=2)
    return to_windows(folder.resolve().name, path, recordings, class_names)


def to_windows(name, path, recordings, class_names):
    """Windows of a minute, every half minute, that hold one label only.

    Args:
        name: of the data set.
        path: file of the labels, for errors and warnings.
        recordings: by subject: its folder, the Unix time of its second 0, and its spans.
        class_names: list of strings.
    """
    parts, used, left_out = [], set(), 0.0
    for subject, (folder, origin, spans) in recordings.items():
        spans = sorted(spans)
        for before, after in itertools.pairwise(spans):
            if after.start < before.end - TOLERANCE:
                raise ValueError(
                    f"{path}, lines {before.line} and {after.line}: the spans of a subject should not overlap. "
                    f"Received: {before.start:g} to {before.end:g} and {after.start:g} to {after.end:g} of {subject}"
                )
        signals = [read_signal(folder / f"{signal}.csv") for signal in SIGNALS]
        covered = [within(span, signals, origin, f"{path}, line {span.line}", subject) for span in spans]
        left_out += sum(span.end - span.start for span in spans) - sum(span.end - span.start for span in covered)
        meets = [after.start - before.end <= TOLERANCE for before, after in itertools.pairwise(covered)]
        for run in np.split(np.arange(len(spans)), np.flatnonzero(~np.array(meets, bool)) + 1):
            run = [covered[number] for number in run]
            starts, of_windows, lines = windows_of(run)
            times = origin + run[0].start + starts[:, None] + np.arange(SECONDS * RATE) / RATE
            values = [signal.at(times.ravel())[:, 0].reshape(times.shape) for signal in signals]
            minutes = (run[0].start - spans[0].start + starts + SECONDS / 2) / 60
            parts.append((np.stack(values, axis=-1), of_windows, np.full(len(starts), subject), minutes))
            used |= lines
    x, y, subjects, minutes = (np.concatenate(column) for column in zip(*parts, strict=True))
    unused = [span for _, _, spans in recordings.values() for span in spans if span.line not in used]
    for span in unused:
        if span.label not in y:
            raise ValueError(
                f"{path}, line {span.line}: a class should have {SECONDS} seconds without a gap that the signals "
                f"cover. Received: none of {class_names[span.label]!r}"
            )
    if left_out >= 1:
        warnings.warn(f"{path}: the signals do not cover {left_out:.0f} seconds with a label; left out", stacklevel=3)
    if unused:
        lines = sorted(span.line for span in unused)
        without = sorted(set(recordings) - set(subjects))
        warnings.warn(
            f"{path}: {len(lines)} spans hold no window of {SECONDS} seconds and are left out. They begin in lines "
            f"{lines[:8]}{' and others' if len(lines) > 8 else ''}; subjects without a window: {without}",
            stacklevel=3,
        )
    x = scale_by_subject(without_drift(x.astype("float32")), subjects)
    return People(name, x, y, subjects, minutes, class_names)


def within(span, signals, origin, place, subject):
    """The part of a span that all signals cover; what is missing at its start is left out in whole seconds."""
    first = max(signal.start for signal in signals) - origin
    last = min(signal.end + 1 / signal.rate for signal in signals) - origin
    start = span.start + max(0, np.ceil(first - span.start - TOLERANCE))
    end = min(span.end, last)
    if end - start <= TOLERANCE:
        raise ValueError(
            f"{place}: the signals of {subject} should cover a span that has a label. Received: {span.start:.14g} to "
            f"{span.end:.14g}; the signals cover {first:.14g} to {last:.14g}"
        )
    return span._replace(start=start, end=end)


def windows_of(run):
    """Windows of spans that meet: seconds since the first of them, labels, and the lines of the spans they lie in."""
    labels = np.array([span.label for span in run])
    begins = np.array([span.start for span in run]) - run[0].start
    starts = STRIDE * np.arange(max(0, int((run[-1].end - run[0].start - SECONDS + TOLERANCE) // STRIDE) + 1))
    first = np.searchsorted(begins, starts + TOLERANCE, side="right") - 1
    last = np.searchsorted(begins, starts + SECONDS - TOLERANCE) - 1
    changes = np.cumsum(np.diff(labels, prepend=labels[0]) != 0)
    pure = changes[first] == changes[last]
    lines = {span.line for a, b in zip(first[pure], last[pure], strict=True) for span in run[a : b + 1]}
    return starts[pure], labels[first[pure]], lines


def without_drift(x):
    """Takes the mean of each window from the signals that drift: what is left is how they change within a minute."""
    channels = [SIGNALS.index(signal) for signal in DRIFTING]
    x = x.copy()
    x[..., channels] -= x[..., channels].mean(axis=1, keepdims=True)
    return x
