"""Turns recorded series, with gaps and of unequal length, into an array for training."""

from typing import Any

import numpy as np


def prepare(series: Any, length: int | None = None) -> np.ndarray:
    """Fill gaps, give every series the same length, and normalise it to mean 0 and deviation 1.

    The steps, in this order: values missing between two others are interpolated linearly; the tail is cropped to
    `length`; each series is normalised by the mean and the deviation of its own values; values missing at either end,
    and the tail up to `length`, become 0, the mean of the series. A constant series becomes 0.

    Args:
        series: floats of shape `(rows, steps)` or `(rows, steps, 1)`; NaN stands for missing values.
        length: integer, number of steps of the result. Defaults to the number of steps of `series`.

    Returns:
        Array of shape `(rows, length, 1)`, float32.

    Raises:
        ValueError: if `series` has another shape, or a series holds no value in its first `length` steps.

    Example:
        >>> prepare([[1.0, float("nan"), 3.0, float("nan")]])[0, :, 0]  # [-1.2247, 0.0, 1.2247, 0.0]
    """
    series = np.asarray(series, dtype="float64")
    if series.ndim == 3 and series.shape[-1] == 1:
        series = series[..., 0]
    if series.ndim != 2:
        raise ValueError(
            f"`series` should be of shape (rows, steps) or (rows, steps, 1). Received: an array of shape {series.shape}"
        )
    length = series.shape[1] if length is None else length
    if length < 1:
        raise ValueError(f"`length` should be at least 1. Received: {length}")
    filled = series.copy()
    for values in filled:
        known = np.flatnonzero(~np.isnan(values))
        if len(known):
            values[:] = np.interp(np.arange(len(values)), known, values[known], left=np.nan, right=np.nan)
    filled = filled[:, :length]
    empty = np.isnan(filled).all(axis=1)
    if empty.any():
        raise ValueError(
            f"Each series should hold a value in its first {length} steps. Received: only missing values in rows "
            f"{np.flatnonzero(empty).tolist()}. Leave these rows out."
        )
    centred = filled - np.nanmean(filled, axis=1, keepdims=True)
    deviation = np.nanstd(filled, axis=1, keepdims=True)
    normalised = np.nan_to_num(centred / np.where(deviation > 1e-8, deviation, 1.0))
    return np.pad(normalised, [(0, 0), (0, length - filled.shape[1])])[..., None].astype("float32")
