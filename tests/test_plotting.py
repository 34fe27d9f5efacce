"""The plots show the right values."""

import importlib.util
import sys

import keras
import numpy as np
import pytest

import keras_ssd
from keras_ssd import plotting

matplotlib = pytest.importorskip("matplotlib")

X = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")


@pytest.fixture(scope="module")
def ssd():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(6)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
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
    assert ax.get_legend_handles_labels()[1][:3] == ["teachers of sample 2", "target of sample 2", "student, sample 2"]


def test_a_single_feature_leaves_the_second_component_at_0():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.5)(keras.layers.Dense(1)(inputs))))
    ax = plotting.plot_representations(keras_ssd.wrap(model, num_teachers=2), X)
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
    keras_history = keras.callbacks.History()
    keras_history.history = history
    assert len(plotting.plot_history(keras_history).lines) == 2


@pytest.mark.parametrize("name", ["weights", "representations", "history"])
def test_pictures_are_drawn_on_the_given_axes(ssd, name):
    _, given = matplotlib.pyplot.subplots()
    draw = {
        "weights": lambda ax: plotting.plot_teacher_weights(ssd, X, ax=ax),
        "representations": lambda ax: plotting.plot_representations(ssd, X, ax=ax),
        "history": lambda ax: plotting.plot_history({"loss": [1.0]}, ax=ax),
    }[name]
    assert draw(given) is given
    assert draw(None) is not given


def test_plots_reject_bad_arguments(ssd):
    with pytest.raises(ValueError, match="`ssd` should be a model from keras_ssd.wrap"):
        plotting.plot_teacher_weights(ssd.student, X)
    for samples in ([7], [-1], [0.5], []):
        with pytest.raises(ValueError, match="numbers of samples in the batch, from 0 to 6"):
            plotting.plot_representations(ssd, X, samples=samples)
    with pytest.raises(ValueError, match="`names` should be taken from .'loss'.. Received: .'val_loss'."):
        plotting.plot_history({"loss": [1.0]}, names=["val_loss"])


def test_the_library_works_without_matplotlib(monkeypatch):
    # Taken away, not looked for: Keras itself imports matplotlib where it finds it.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("callbacks", "plotting"):
        source = importlib.util.find_spec(f"keras_ssd.{name}")
        module = importlib.util.module_from_spec(source)
        source.loader.exec_module(module)
    with pytest.raises(ModuleNotFoundError, match="Plots need matplotlib"):
        module.plot_history({"loss": [1.0]})
