"""The examples that export and that draw the uncertainty: whole, on a tiny set, and their figures by hand."""

import keras
import numpy as np
import pytest
from keras import layers

import deploy
import keras_ssd
import uncertainty
from keras_ssd.uncertainty import StochasticPrediction

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters

FORMAT = "onnx" if keras.backend.backend() == "torch" else "savedmodel"
PACKAGES = {"onnx": ["onnxscript", "onnxruntime"], "savedmodel": ["tensorflow"]}[FORMAT]


@pytest.fixture
def archive(tmp_path):
    """Two classes by the sign of the slope, 20 + 10 series of 12 steps."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data" / "Slope"
    folder.mkdir(parents=True)
    for split, count in (("TRAIN", 20), ("TEST", 10)):
        labels = np.where(np.arange(count) % 2, 1, -1)
        values = labels[:, None] * np.arange(12) + generator.normal(size=(count, 12))
        np.savetxt(folder / f"Slope_{split}.tsv", np.column_stack([labels, values]), delimiter="\t", fmt="%.4f")
    return tmp_path / "data"


@pytest.mark.slow
def test_trains_exports_and_draws(archive, tmp_path, monkeypatch, capfd):
    for package in PACKAGES:
        pytest.importorskip(package, reason=f"{FORMAT} on this backend needs {package}")
    monkeypatch.setattr(deploy, "TIMED_CALLS", 3)
    options = ["--dataset", "Slope", "--data-dir", str(archive), "--epochs", "2"]
    folder = tmp_path / "out"
    assert deploy.main([*options, "--formats", "keras", FORMAT, "--out", str(folder)]) == 0
    printed = capfd.readouterr().out
    assert "10 test windows of (12, 1)" in printed
    assert ".keras: distilled" in printed
    student = keras.models.load_model(folder / "student.keras")
    assert student.input_shape == (None, 12, 1)
    assert not student.compiled
    own, plain = student.get_weights(), keras.models.load_model(folder / "plain.keras").get_weights()
    assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(own, plain, strict=True))
    assert all(a.shape == b.shape for a, b in zip(own, plain, strict=True))

    # What was exported is taken up again, by both examples.
    again = ["--model", str(folder / "student.keras"), "--formats", "keras", "--out", str(tmp_path / "again")]
    assert deploy.main([*options, *again]) == 0
    taken = keras.models.load_model(tmp_path / "again" / "student.keras").get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(own, taken, strict=True))
    uncertainty.main([*options, "--models", str(folder), "--num-passes", "5", "--out", str(tmp_path / "drawn")])
    printed = capfd.readouterr().out
    for method in ("plain ", "distilled ", "plain, 5 passes", "distilled, 5 passes"):
        assert f"\n{method}" in printed
    assert (tmp_path / "drawn" / "Slope.png").stat().st_size > 10_000


def test_unsupported_requested_format_sets_the_exit_status(archive, tmp_path, monkeypatch, capfd):
    model = keras.Sequential([keras.Input((12, 1)), layers.Flatten(), layers.Dense(2, activation="softmax")])
    model.save(tmp_path / "student.keras")
    monkeypatch.setitem(deploy.FORMATS, "onnx", deploy.FORMATS["onnx"]._replace(write=refuse))
    options = ["--dataset", "Slope", "--data-dir", str(archive), "--model", str(tmp_path / "student.keras")]
    assert deploy.main([*options, "--formats", "onnx", "--out", str(tmp_path / "out")]) == 1
    assert "cannot be written" in capfd.readouterr().out


def refuse(model, path, windows):
    raise deploy.Refused("ONNX cannot be written")


def test_a_model_for_other_windows_is_refused(tmp_path):
    keras.Sequential([keras.Input((7, 1)), layers.Flatten(), layers.Dense(2)]).save(tmp_path / "student.keras")
    with pytest.raises(SystemExit, match=r"`--model` takes windows of shape \(7, 1\), `--dataset` has \(12, 1\)"):
        deploy.from_file(tmp_path / "student.keras", np.zeros((3, 12, 1), "float32"))


def test_student_of_a_wrapped_model_is_deployed(tmp_path):
    model = keras.Sequential([keras.Input((12, 1)), layers.Flatten(), layers.Dropout(0.2), layers.Dense(2)])
    ssd = keras_ssd.wrap(model, seed=0)
    ssd.save(tmp_path / "wrapped.keras")
    models = deploy.from_file(tmp_path / "wrapped.keras", np.zeros((3, 12, 1), "float32"))
    for one in models.values():
        assert not isinstance(one, keras_ssd.SSDModel)
    for own, loaded, other in zip(
        model.get_weights(), models["student"].get_weights(), models["plain"].get_weights(), strict=True
    ):
        np.testing.assert_array_equal(own, loaded)
        assert np.abs(own - other).min() > 0.005


def test_latency_and_accuracy_are_taken_from_the_outputs(monkeypatch):
    """Three of four windows right, and 0.25 from the reference at most."""
    monkeypatch.setattr(deploy, "TIMED_CALLS", 7)
    calls = []

    def run(window):
        calls.append(window.shape)
        return np.array([[1.0, 0.0]]) if window.sum() > 0 else np.array([[0.0, 1.0]])

    x = np.array([[1.0], [2.0], [-1.0], [-1.0]], "float32")
    reference = np.array([[1, 0], [0.75, 0.25], [0, 1], [0, 1]])
    figures = deploy.measure(run, x, np.array([0, 0, 1, 0]), reference)
    assert figures["accuracy"] == 0.75
    assert figures["max difference"] == 0.25
    assert 0 < figures["median ms"] <= figures["p99 ms"]
    assert calls == [(1, 1)] * (4 + deploy.WARM_UP + 7)


def test_scores_of_uncertainty():
    """Ten windows at probability 0.8, eight of them right: no gap. The two wrong ones have the largest entropy."""
    probabilities = np.tile([0.8, 0.2], (10, 1))
    y = np.array([0] * 8 + [1] * 2)
    prediction = StochasticPrediction(probabilities, None, np.arange(10))
    figures = uncertainty.draw({"plain": prediction}, y, "ten")[1].loc["plain"]
    assert figures["accuracy"] == 0.8
    assert figures["calibration gap"] == pytest.approx(0, abs=1e-9)
    assert figures["best 80%"] == 1.0
    assert figures["best 90%"] == pytest.approx(8 / 9)
    assert figures["NLL"] == pytest.approx(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2)))
