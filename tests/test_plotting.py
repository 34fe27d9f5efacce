"""The plots show the right values."""

import importlib.util
import sys

import keras
import ml_dtypes
import numpy as np
import pytest

import keras_ssd
from keras_ssd import plotting
from keras_ssd.uncertainty import StochasticPrediction

matplotlib = pytest.importorskip("matplotlib")

X = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")


@pytest.fixture(scope="module")
def ssd():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(6), keras.layers.Dropout(0.5), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    return keras_ssd.wrap(model, teacher="snapshot", num_teachers=5, percentile=60, seed=1)


@pytest.fixture(autouse=True)
def close_figures():
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")


def test_the_image_holds_the_weights_before_and_after_the_percentile(ssd):
    ax = plotting.plot_teacher_weights(ssd, X)
    (image,) = ax.get_images()
    drawn = np.ma.filled(image.get_array(), np.nan)
    assert drawn.shape == (7, 11)
    np.testing.assert_array_equal(drawn[:, :5], ssd.guidance_weights(X, percentile=0))
    assert np.isnan(drawn[:, 5]).all()
    np.testing.assert_array_equal(drawn[:, 6:], ssd.guidance_weights(X))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["before the percentile\n(5 teachers)", "after (60)"]


def test_representation_plot_is_a_rotation_of_the_compared_features(ssd):
    student, teachers, target = ssd.teacher_representations(X)
    np.testing.assert_allclose(np.einsum("bi,bid->bd", ssd.guidance_weights(X), teachers), target, rtol=1e-5, atol=1e-6)
    ax = plotting.plot_representations(ssd, X, samples=[2, 4])
    places = [collection.get_offsets() for collection in ax.collections]
    assert [len(place) for place in places] == [5, 1, 1, 5, 1, 1]
    points = np.vstack([np.vstack([teachers[s], target[s], student[s]]) for s in (2, 4)])
    centered = points - points.mean(axis=0)
    _, vectors = np.linalg.eigh(centered.T @ centered)
    expected = centered @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(np.vstack(places)), np.abs(expected), rtol=1e-4, atol=1e-5)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["teachers of sample 2", "target", "student", "teachers of sample 4"]


def test_a_single_feature_leaves_the_second_component_at_0():
    layers = [keras.layers.Dense(1), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    ssd = keras_ssd.wrap(keras.Sequential([keras.Input((4,)), *layers]), num_teachers=2)
    ax = plotting.plot_representations(ssd, X)
    assert len(ax.collections) == 9
    assert not np.concatenate([points.get_offsets()[:, 1] for points in ax.collections]).any()


def test_history_plot_shows_the_logged_values():
    history = {"loss": [3.0, 2.0], "kd_loss": [0.0, 1.0], "accuracy": [0.1, 0.2], "teacher_spread": [np.nan, 0.5]}
    ax = plotting.plot_history(history)
    assert [line.get_label() for line in ax.lines] == ["loss", "kd_loss"]
    for line in ax.lines:
        np.testing.assert_array_equal(line.get_xydata(), np.transpose([[1, 2], history[line.get_label()]]))
    (other,) = [axes for axes in ax.figure.axes if axes is not ax]
    np.testing.assert_array_equal(other.lines[0].get_ydata(), [np.nan, 0.5])
    assert ax.get_ylabel() == "loss"
    only = plotting.plot_history(history, names=["accuracy"])
    assert [line.get_label() for line in only.lines] == ["accuracy"]
    assert only.get_ylabel() == "value"
    (teachers,) = plotting.plot_history(history, names=["teacher_spread"]).figure.axes
    assert teachers.get_ylabel() == "teachers"
    keras_history = keras.callbacks.History()
    keras_history.history = history
    assert len(plotting.plot_history(keras_history).lines) == 2


@pytest.mark.parametrize("name", ["weights", "representations", "history", "reliability", "rejection"])
def test_a_legend_on_given_axes_is_whole_and_beside_the_data(ssd, name):
    _, given = matplotlib.pyplot.subplots()
    draw = {
        "weights": lambda ax: plotting.plot_teacher_weights(ssd, X, ax=ax),
        "representations": lambda ax: plotting.plot_representations(ssd, X, ax=ax),
        "history": lambda ax: plotting.plot_history({"loss": [1.0], "teacher_spread": [1.0]}, ax=ax),
        "reliability": lambda ax: plotting.plot_reliability(FOUR, [0, 1, 0, 1], ax=ax, label="plain"),
        "rejection": lambda ax: plotting.plot_rejection(FOUR, [0, 1, 0, 1], ax=ax, label="plain"),
    }[name]
    assert draw(given) is given
    assert draw(None) is not given
    given.figure.draw_without_rendering()
    legends = [axes.get_legend() for axes in given.figure.axes if axes.get_legend()]
    assert len(legends) == (name != "weights")
    for legend in legends:
        (left, bottom), (right, top) = legend.get_window_extent().get_points()
        # Above the axes stands a title, if the user sets one.
        assert 0 <= left < right <= given.figure.bbox.x1
        assert 0 <= bottom < top <= given.xaxis.label.get_window_extent().y0


def test_a_user_may_arrange_the_figure_and_a_given_layout_is_kept(ssd):
    _, (left, right) = matplotlib.pyplot.subplots(1, 2)
    plotting.plot_representations(ssd, X, ax=left)
    plotting.plot_teacher_weights(ssd, X, ax=right)
    matplotlib.pyplot.tight_layout()
    matplotlib.pyplot.subplots_adjust(top=0.6)
    left.figure.draw_without_rendering()
    figure, given = matplotlib.pyplot.subplots(layout="compressed")
    engine = figure.get_layout_engine()
    plotting.plot_history({"loss": [1.0]}, ax=given)
    placed = matplotlib.pyplot.figure().add_axes([0.1, 0.1, 0.5, 0.5])
    plotting.plot_history({"loss": [1.0]}, ax=placed)
    assert figure.get_layout_engine() is engine
    assert placed.figure.get_layout_engine() is None


@pytest.mark.parametrize("num_epochs", [1, 30])
def test_ticks_of_epochs_are_whole_numbers(num_epochs):
    ax = plotting.plot_history({"loss": np.ones(num_epochs)})
    low, high = ax.get_xlim()
    ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) for tick in ticks)


def test_a_method_has_one_color_whatever_stands_beside_it():
    color = {name: style["color"] for name, style in plotting.method_styles(["plain", "averaged", "wrap"]).items()}
    assert len(set(color.values())) == 3
    for others in (
        ["wrap(model)", "plain, averaged", "plain"],
        ["distilled", "averaged, no teachers", "plain, 30 passes"],
    ):
        styles = list(plotting.method_styles(["percentile=0", *others, "kd_weight=1"]).values())
        assert [style["color"] for style in styles[1:4]] == [color["wrap"], color["averaged"], color["plain"]]
        assert len({style["color"] for style in styles}) == 5
        assert [style.get("linestyle") for style in styles] == [None, None, "--", None, None]
    several = plotting.method_styles(["distilled, labelled", "distilled, all windows", "plain"])
    assert [style["color"] for style in several.values()].count(color["wrap"]) == 1
    assert len(plotting.method_styles(map(str, range(20)))) == 20


# Four samples: the most probable classes are 0, 1, 0, 0, with probabilities 0.6, 0.7, 0.9 and 1.
FOUR = StochasticPrediction(
    np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [1.0, 0.0]], "float32"), None, np.array([0.3, 0.9, 0.1, 0.2])
)


@pytest.mark.parametrize("y", [[0, 1, 0, 1], [[0], [1], [0], [1]], np.eye(2)[[0, 1, 0, 1]]])
def test_reliability_is_the_fraction_that_is_right_in_each_bin(y):
    """Right are the first three; of two bins the first holds the first two samples, the second the others."""
    points = plotting.plot_reliability(FOUR, y, num_bins=2, label="plain").lines[-1].get_xydata()
    np.testing.assert_allclose(points, [[0.65, 1.0], [0.95, 0.5]], rtol=1e-6)
    # A sum of rounded probabilities above 1 is drawn as 1.
    above = StochasticPrediction(np.array([[np.nextafter(np.float32(1), np.float32(2)), 0]]), None, np.zeros(1))
    np.testing.assert_array_equal(plotting.plot_reliability(above, [0]).lines[-1].get_xydata(), [[1, 1]])


def test_rejection_leaves_the_samples_of_lowest_entropy():
    """By entropy the samples 2, 3, 0 and 1; wrong are 3 and 0."""
    line = plotting.plot_rejection(FOUR, [1, 1, 0, 1], color="red").lines[-1]
    np.testing.assert_allclose(line.get_xydata(), [[0, 1 / 2], [1 / 4, 1 / 3], [1 / 2, 1 / 2], [3 / 4, 1]])
    assert line.get_color() == "red"


@pytest.mark.parametrize(
    ("probabilities", "dtype"),
    [(FOUR.mean, "float64"), (FOUR.mean[:, 1], "float64"), (FOUR.mean, "float16"), (FOUR.mean[:, 1:], "bfloat16")],
)
def test_probabilities_of_predict_are_drawn(probabilities, dtype):
    """Of exclusive classes or of a binary unit. By entropy the samples 3, 2, 1 and 0; wrong are 3 and 0."""
    probabilities = probabilities.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    points = plotting.plot_reliability(probabilities, [1, 1, 0, 1], num_bins=2).lines[-1].get_xydata()
    np.testing.assert_allclose(points, [[0.65, 0.5], [0.95, 0.5]], rtol=1e-6 if dtype == "float64" else 5e-3)
    line = plotting.plot_rejection(probabilities, [1, 1, 0, 1]).lines[-1]
    np.testing.assert_allclose(line.get_xydata(), [[0, 1 / 2], [1 / 4, 2 / 3], [1 / 2, 1 / 2], [3 / 4, 0]])


@pytest.mark.parametrize("plot", [plotting.plot_reliability, plotting.plot_rejection])
def test_predictions_that_cannot_be_judged_are_refused(plot):
    of_regression = StochasticPrediction(np.ones(3), np.ones(3))
    for prediction, received in (
        (of_regression, "without a predictive_entropy"),
        ([1, 2], "<class 'list'>"),
        ([FOUR, FOUR], "<class 'list'>"),
    ):
        with pytest.raises(ValueError, match=f"`prediction` should be an array of probabilities, or .*{received}"):
            plot(prediction, [0, 1, 1])
    for values in ([[3.0, -2.0]], [[0.9, 0.8]], [[np.nan, 0.5]]):  # logits, two units, no number
        with pytest.raises(ValueError, match=r"should hold probabilities, .*Received: values from .* shape \(1, 2\)"):
            plot(np.array(values), [0])
    with pytest.raises(ValueError, match=r"`y` should hold a class for each of 4 predictions. Received: shape \(3,\)"):
        plot(FOUR, [0, 1, 0])


def test_plots_reject_bad_arguments(ssd):
    with pytest.raises(ValueError, match="`ssd` should be a model from keras_ssd.wrap"):
        plotting.plot_teacher_weights(ssd.student, X)
    for samples in ([7], [-1], [0.5], []):
        with pytest.raises(ValueError, match="numbers of samples in the batch, from 0 to 6"):
            plotting.plot_representations(ssd, X, samples=samples)
    with pytest.raises(ValueError, match="`names` should be taken from .'loss'.. Received: .'val_loss'."):
        plotting.plot_history({"loss": [1.0]}, names=["val_loss"])


def test_the_library_works_without_matplotlib_and_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.calibration", None)
    with pytest.raises(ModuleNotFoundError, match="This plot needs scikit-learn"):
        plotting.plot_reliability(FOUR, [0, 1, 0, 1])
    # Taken away, not looked for: Keras itself imports matplotlib where it finds it.
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("callbacks", "plotting"):
        source = importlib.util.find_spec(f"keras_ssd.{name}")
        module = importlib.util.module_from_spec(source)
        source.loader.exec_module(module)
    with pytest.raises(ModuleNotFoundError, match="This plot needs matplotlib"):
        module.plot_history({"loss": [1.0]})
