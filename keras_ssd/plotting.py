"""Plots of a distillation and of predictions. matplotlib is imported when a figure is made."""

import importlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_ssd.callbacks.statistics import TeacherStatistics
from keras_ssd.model import SSDModel
from keras_ssd.uncertainty import StochasticPrediction, entropies

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The colours of Okabe and Ito, which colour-blind readers can tell apart.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#595959")
_AVERAGED, _WRAP, _PAPER = 1, 2, 3
_METHODS = {"plain": 0, "averaged": _AVERAGED, "plain, averaged": _AVERAGED, "wrap": _WRAP, "distilled": _WRAP}
_METHODS |= {"self": _WRAP, "paper": _PAPER, "snapshot": _PAPER, "continued": 4}


def method_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return arguments of `ax.plot` for the curve of each method, so that it has the same colour in all pictures.

    The names `"plain"`, `"averaged"`, `"wrap"`, `"paper"` and `"continued"` have a colour of their own, also as the
    first word of a name. All others take what is left. The curve of averaged weights is dashed and on top, because the
    one of `"wrap"` is often the same.

    Args:
        methods: names of the methods in a picture.

    Returns:
        A dict of arguments for each method.

    Example:
        >>> keras_ssd.plotting.method_styles(["plain", "my own", "wrap"])["wrap"]
        {'color': '#009e73'}
    """
    methods = list(dict.fromkeys(methods))
    known = [_METHODS.get(method, _METHODS.get(re.split(r"\W", method)[0])) for method in methods]
    free, styles = [number for number in range(len(COLORS)) if number not in known], {}
    for place, (method, number) in enumerate(zip(methods, known, strict=True)):
        if number is None or number in known[:place]:
            number = free.pop(0) if free else place % len(COLORS)
        above: dict[str, Any] = {"linestyle": "--", "zorder": 3} if number == _AVERAGED else {}
        styles[method] = {"color": COLORS[number], **above}
    return styles


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
    ax.set(ylabel="sample", title="guidance weights of the teachers")
    ax.locator_params(axis="y", integer=True, min_n_ticks=1)
    ax.figure.colorbar(image, ax=ax, label="weight (the sum of a row is 1)")
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
        # The names of the marks stand once in the legend, which else would be wider than the axes.
        ax.scatter(*places[-2], marker="*", label="" if number else "target", **marks)
        ax.scatter(*places[-1], marker="X", label="" if number else "student", **marks)
    ax.set(xlabel=f"first principal component ({shares[0]:.0%} of the variance)", ylabel=f"second ({shares[1]:.0%})")
    return _with_legend(ax)


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
    usual = [name for name in history if name.endswith("loss") or name in TeacherStatistics.names]
    names = usual if names is None else list(names)
    unknown = [name for name in names if name not in history]
    if unknown or not names:
        raise ValueError(f"`names` should be taken from {sorted(history)}. Received: {unknown or names}")
    ax = _axes(ax)
    of_teachers = [name in TeacherStatistics.names for name in names]
    second = ax.twinx() if any(of_teachers) and not all(of_teachers) else ax
    handles = []
    for number, name in enumerate(names):
        axis, style = (second, "--") if of_teachers[number] else (ax, "-")
        epochs = np.arange(1, len(history[name]) + 1)
        handles += axis.plot(epochs, history[name], style, marker=".", color=f"C{number % 10}", label=name)
    ax.set(xlabel="epoch", ylabel="loss" if set(names) <= set(usual) else "value")
    if any(of_teachers):
        second.set_ylabel("teachers")
    ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    _with_legend(second, handles)
    return ax


def plot_reliability(prediction: Any, y: Any, num_bins: int = 10, ax: "Axes | None" = None, **options: Any) -> "Axes":
    """Draw how often a classifier is right against how probable it says this is (reliability diagram).

    Args:
        prediction: of a classifier, one output's result of `keras_ssd.predict_stochastic`, or an array of probabilities
            as `model.predict` returns them: `(samples, classes)`, or `(samples, 1)` of a binary unit.
        y: the true classes, as numbers or one-hot.
        num_bins: number of bins, of equally many samples. Defaults to `10`.
        ax: the `matplotlib.axes.Axes` to draw on. Defaults to `None`: a new figure.
        **options: of `ax.plot`, such as `label`.

    Returns:
        The Axes, whose last line has a point for each bin. Above the diagonal the model is more often right than sure.

    Example:
        >>> keras_ssd.plotting.plot_reliability(ssd.predict_stochastic(x), y, label="30 passes")
    """
    calibration = _imported("sklearn.calibration", "scikit-learn")
    (correct, confidence, _), ax = _judged(prediction, y), _axes(ax)
    fractions, means = calibration.calibration_curve(correct, confidence, n_bins=num_bins, strategy="quantile")
    ax.axline((1, 1), slope=1, color="0.7", linewidth=0.8, zorder=1)
    ax.plot(means, fractions, **{"marker": "o", **options})
    ax.set(xlabel="probability of the most probable class", ylabel="fraction that is right")
    return _with_legend(ax)


def plot_rejection(prediction: Any, y: Any, ax: "Axes | None" = None, **options: Any) -> "Axes":
    """Draw the accuracy of a classifier against the fraction of samples that are rejected, the most uncertain first.

    Args:
        prediction: of a classifier, one output's result of `keras_ssd.predict_stochastic`, or an array of probabilities
            as `model.predict` returns them: `(samples, classes)`, or `(samples, 1)` of a binary unit.
        y: the true classes, as numbers or one-hot.
        ax: the `matplotlib.axes.Axes` to draw on. Defaults to `None`: a new figure.
        **options: of `ax.plot`, such as `label`.

    Returns:
        The Axes, whose last line has a point for each number of rejected samples, from 0.

    Example:
        >>> keras_ssd.plotting.plot_rejection(ssd.predict_stochastic(x), y, label="30 passes")
    """
    (correct, _, entropy), ax = _judged(prediction, y), _axes(ax)
    kept = np.arange(len(correct), 0, -1)
    ax.plot(1 - kept / len(correct), np.cumsum(correct[np.argsort(entropy, kind="stable")])[::-1] / kept, **options)
    ax.set(xlabel="fraction rejected, largest predictive entropy first", ylabel="accuracy on the others")
    return _with_legend(ax)


def _judged(prediction: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each sample if its most probable class is right, the probability of this class, and the entropy."""
    is_array = "float" in str(getattr(prediction, "dtype", ""))
    if not is_array and getattr(prediction, "predictive_entropy", None) is None:
        is_stochastic = isinstance(prediction, StochasticPrediction)
        received = "that of a regression, without a predictive_entropy" if is_stochastic else repr(type(prediction))
        raise ValueError(
            "`prediction` should be an array of probabilities, or the result of keras_ssd.predict_stochastic for one "
            "output that classifies. If the model classifies but is not compiled, tell predict_stochastic its `loss`. "
            f"Received: {received}"
        )
    mean = np.asarray(prediction if is_array else prediction.mean)
    if mean.dtype.itemsize < 4:
        mean = mean.astype("float32")  # in float16, 1e-30 is 0
    is_unit = mean.ndim == 1 or mean.shape[-1] == 1
    of_classes = 1.0 if is_unit or not is_array else mean.sum(axis=-1)
    if not (np.all(mean > -1e-2) and np.all(mean < 1 + 1e-2) and np.all(np.abs(of_classes - 1) < 0.05)):
        raise ValueError(
            "`prediction` should hold probabilities, `(samples, classes)` that sum to 1, or `(samples, 1)`. Received: "
            f"values from {mean.min():.4g} to {mean.max():.4g} of shape {mean.shape}. Of logits take the softmax, or "
            "the sigmoid of a binary unit; draw several units one by one."
        )
    kind = "binary" if is_unit else "categorical"
    entropy = entropies(keras.ops.convert_to_tensor(mean), kind) if is_array else prediction.predictive_entropy
    entropy = keras.ops.convert_to_numpy(entropy)
    y = np.asarray(y)
    if entropy.shape == mean.shape:
        mean = np.stack([1 - mean, mean], axis=-1)  # units that are 0 or 1
    elif y.shape == mean.shape:
        y = y.argmax(axis=-1)
    if y.size != entropy.size:
        raise ValueError(f"`y` should hold a class for each of {entropy.size} predictions. Received: shape {y.shape}")
    # A sum of probabilities in float32 may exceed 1.
    return mean.argmax(axis=-1).ravel() == y.ravel(), np.minimum(mean.max(axis=-1), 1.0).ravel(), entropy.ravel()


def _axes(ax: "Axes | None") -> "Axes":
    if ax is None:
        return _imported("matplotlib.pyplot", "matplotlib").subplots(layout="constrained")[1]
    figure = ax.figure.figure  # of a subfigure the whole
    if figure.get_layout_engine() is None and all(one.get_subplotspec() for one in figure.axes):
        # Makes room for a legend. After "constrained", `tight_layout()` would be an error where there is a colorbar.
        figure.set_layout_engine("tight")
    return ax


def _with_legend(ax: "Axes", handles: list[Any] | None = None) -> "Axes":
    """Put the legend below the axes and their label, where neither data nor a title are."""
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    if handles:
        place: dict[str, Any] = {"loc": "best"}  # axes at a fixed place
        if ax.figure.figure.get_layout_engine() is not None:
            points = 12 + 2.4 * float(ax.xaxis.label.get_fontsize())  # numbers and label of the axis
            transforms = _imported("matplotlib.transforms", "matplotlib")
            below = transforms.ScaledTranslation(0, -points / 72, ax.figure.dpi_scale_trans)
            place = dict(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=ax.transAxes + below)
        ax.legend(handles=handles, ncols=2, fontsize="small", **place)
    return ax


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"This plot needs {package}, which is not installed: pip install {package}."
        raise ModuleNotFoundError(message, name=package) from error


def _check_wrapped(ssd: object) -> None:
    if not isinstance(ssd, SSDModel):
        raise ValueError(f"`ssd` should be a model from keras_ssd.wrap. Received: {ssd!r} of type {type(ssd).__name__}")
