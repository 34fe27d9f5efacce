"""Windows of recordings of several people: whose each is, scaled person by person.

What a network is fed never says at what time of the recording a window lies; `minutes` is for the control that knows
nothing else.
"""

from typing import NamedTuple

import numpy as np


class People(NamedTuple):
    """Windows (rows, steps, channels) in float32, labels 0..n_classes-1, whose each is, minutes since the start."""

    name: str
    x: np.ndarray
    y: np.ndarray
    subjects: np.ndarray
    minutes: np.ndarray
    class_names: list

    @property
    def n_classes(self):
        return len(self.class_names)


def starts_of_windows(labels, steps, stride):
    """Where the windows of one recording begin, and the label that most of their samples have.

    Args:
        labels: integers from 0, one of each sample.
        steps: samples of a window.
        stride: samples between the beginnings of two windows.

    Returns:
        Two arrays of integers, beginnings and labels; of labels that are equally frequent the lower one.
    """
    starts = np.arange(0, len(labels) - steps + 1, stride)
    inside = np.asarray(labels)[starts[:, None] + np.arange(steps)]
    counts = (inside[..., None] == np.arange(np.max(labels, initial=0) + 1)).sum(axis=1)
    return starts, counts.argmax(axis=1)


def cut(signals, starts, steps):
    """The windows (rows, steps, channels) of signals (samples, channels)."""
    return signals[starts[:, None] + np.arange(steps)].astype("float32")


def scale_by_subject(x, subjects):
    """Mean 0 and deviation 1 of every channel over all windows of each subject; a constant channel becomes 0.

    Needs no labels, so a new person's windows can be scaled as well.
    """
    scaled = np.empty_like(x)
    for subject in np.unique(subjects):
        rows = subjects == subject
        deviation = x[rows].std(axis=(0, 1), dtype="float64")
        centred = x[rows] - x[rows].mean(axis=(0, 1), dtype="float64")
        scaled[rows] = centred / np.where(deviation > 1e-8, deviation, 1.0)
    return scaled
