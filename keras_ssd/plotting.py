"""Plots of a distillation. matplotlib is imported when a figure is made."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_ssd.callbacks.statistics import TeacherStatistics
from keras_ssd.model import SSDModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_teacher_weights(ssd: SSDModel, x: Any, ax: "Axes | None" = None) -> "Axes":
    """Draw the guidance weights of one batch, samples x teachers, before and after the percentile filter.

    Args:
        ssd: a model from `keras_ssd.wrap`.
        x: one batch of inputs.
        ax: the `matplotlib.axes.Axes` to draw on. Defaults to `None`: a new figure.

    Returns:
        The Axes. Its image holds N columns of weights before the filter, an empty column, and N columns of weights
        after the filter.

    Example:
        >>> keras_ssd.plotting.plot_teacher_weights(ssd, x[:32]).figure.savefig("weights.png")
    """
    _check_wrapped(ssd)
    ax = _axes(ax)
    before, after = ssd.guidance_weights(x, percentile=0), ssd.guidance_weights(x)
    num_teachers = before.shape[1]
    gap = np.full((len(before), 1), np.nan)
    image = ax.imshow(np.hstack([before, gap, after]), aspect="auto", interpolation="nearest", vmin=0.0)
    labels = [f"before the percentile\n({num_teachers} teachers)", f"after ({ssd.settings.percentile:g})"]
    ax.set_xticks([(num_teachers - 1) / 2, (3 * num_teachers + 1) / 2], labels)
    ax.set(ylabel="sample", title="weights of the teachers")
    ax.figure.colorbar(image, ax=ax)
    return ax


def plot_representations(
    ssd: SSDModel, x: Any, samples: Iterable[int] | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw the teachers' representations as a cloud, with their target and the student, in two principal components.

    The components are computed from all points that are drawn. If outputs are both compared and distilled, the first
    output takes the place of the representation.

    Args:
        ssd: a model from `keras_ssd.wrap`.
        x: one batch of inputs.
        samples: numbers of the samples to draw, each in a different colour. Defaults to `None`: the first three.
        ax: the `matplotlib.axes.Axes` to draw on. Defaults to `None`: a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: if a sample is not in the batch.

    Example:
        >>> keras_ssd.plotting.plot_representations(ssd, x[:8], samples=[0, 5])
    """
    _check_wrapped(ssd)
    student, teachers, target = ssd.teacher_representations(x)
    samples = list(range(min(3, len(student)))) if samples is None else list(samples)
    if not samples or not all(isinstance(s, (int, np.integer)) and 0 <= s < len(student) for s in samples):
        raise ValueError(
            f"`samples` should hold numbers of samples in the batch, from 0 to {len(student) - 1}. Received: "
            f"samples={samples!r}"
        )
    ax = _axes(ax)
    points = np.concatenate([[*teachers[s], target[s], student[s]] for s in samples])
    points = points - points.mean(axis=0)
    _, singular, axes = np.linalg.svd(points, full_matrices=False)
    # With fewer than two features or points there are fewer than two principal axes.
    axes = np.vstack([axes, np.zeros((2, points.shape[1]))])[:2]
    shares = np.append(np.square(singular), [0.0, 0.0])[:2] / max(np.square(singular).sum(), 1e-30)
    for number, (sample, places) in enumerate(zip(samples, np.split(points @ axes.T, len(samples)), strict=True)):
        color = f"C{number % 10}"
        ax.scatter(places[:-2, 0], places[:-2, 1], s=14, alpha=0.5, color=color, label=f"teachers of sample {sample}")
        marks: dict[str, Any] = dict(s=110, color=color, edgecolors="black", zorder=3)
        ax.scatter(*places[-2], marker="*", label=f"target of sample {sample}", **marks)
        ax.scatter(*places[-1], marker="X", label=f"student, sample {sample}", **marks)
    ax.set(xlabel=f"first principal component ({shares[0]:.0%} of the variance)", ylabel=f"second ({shares[1]:.0%})")
    ax.legend(fontsize="small")
    return ax


def plot_history(
    history: "keras.callbacks.History | dict[str, Any]", names: Iterable[str] | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw the curves of a training run: losses, and on a second axis the statistics of `TeacherMonitor`, if any.

    Args:
        history: the result of `fit`, or its `history` dict.
        names: names of the values to draw. Defaults to `None`: every loss, and the statistics of `TeacherMonitor`.
        ax: the `matplotlib.axes.Axes` to draw on. Defaults to `None`: a new figure.

    Returns:
        The Axes of the losses (and of all other names). The second axis, if any, is the last of the figure.

    Raises:
        ValueError: if a name is not in the history.

    Example:
        >>> history = ssd.fit(x, y, epochs=20, callbacks=[keras_ssd.callbacks.TeacherMonitor()])
        >>> keras_ssd.plotting.plot_history(history)
    """
    history = history.history if isinstance(history, keras.callbacks.History) else history
    if names is None:
        names = [name for name in history if name.endswith("loss") or name in TeacherStatistics.names]
    unknown = [name for name in names if name not in history]
    if unknown or not names:
        raise ValueError(f"`names` should be taken from {sorted(history)}. Received: {unknown or names}")
    ax = _axes(ax)
    second = ax.twinx() if any(name in TeacherStatistics.names for name in names) else None
    handles = []
    for number, name in enumerate(names):
        axis, style = (second, "--") if second is not None and name in TeacherStatistics.names else (ax, "-")
        epochs = np.arange(1, len(history[name]) + 1)
        handles += axis.plot(epochs, history[name], style, marker=".", color=f"C{number % 10}", label=name)
    are_losses = all(name.endswith("loss") or name in TeacherStatistics.names for name in names)
    ax.set(xlabel="epoch", ylabel="loss" if are_losses else "value")
    if second is not None:
        second.set_ylabel("teachers")
    # A single legend for both axes, above them, where there are no curves.
    places: dict[str, Any] = dict(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2 if len(handles) < 6 else 3)
    (ax if second is None else second).legend(handles=handles, fontsize="small", **places)
    return ax


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        message = "Plots need matplotlib, which is not installed: pip install matplotlib."
        raise ModuleNotFoundError(message, name="matplotlib") from error
    return pyplot.subplots(layout="constrained")[1]


def _check_wrapped(ssd: object) -> None:
    if not isinstance(ssd, SSDModel):
        raise ValueError(f"`ssd` should be a model from keras_ssd.wrap. Received: {ssd!r} of type {type(ssd).__name__}")
