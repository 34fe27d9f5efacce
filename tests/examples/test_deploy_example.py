"""The examples that export and that draw the uncertainty: whole, on a tiny set, and their figures by hand."""

import json
import os
import re

import keras
import numpy as np
import pytest
from keras import layers

import deploy
import keras_ssd
import uncertainty
from keras_ssd.uncertainty import StochasticPrediction

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters


@pytest.mark.slow
def test_trains_exports_and_draws(slope_archive, tmp_path, capfd):
    options = ["--dataset", "Slope", "--data-dir", str(slope_archive), "--epochs", "2"]
    folder = tmp_path / "out"
    assert deploy.main([*options, "--formats", "keras", "--out", str(folder)]) == 0
    printed = capfd.readouterr().out
    assert "10 test windows of (12, 1)" in printed
    size = (folder / "plain.keras").stat().st_size
    row = re.search(rf"\n\.keras +{size} +[01]\.\d+ +1\.0000 +(\S+) ", printed)
    assert float(row[1]) < 1e-5, "as the student predicts"
    assert f"student.keras: {size} bytes, plain.keras: {size} bytes" in printed
    student = keras.models.load_model(folder / "student.keras")
    assert student.input_shape == (None, 12, 1) and not student.compiled
    own, plain = student.get_weights(), keras.models.load_model(folder / "plain.keras").get_weights()
    assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(own, plain, strict=True))
    assert all(a.shape == b.shape for a, b in zip(own, plain, strict=True))

    # What was exported is taken up again.
    uncertainty.main([*options, "--models", str(folder), "--num-passes", "5", "--out", str(tmp_path / "drawn")])
    printed = capfd.readouterr().out
    for method in ("plain ", "distilled ", "plain, 5 passes", "distilled, 5 passes"):
        assert f"\n{method}" in printed
    assert (tmp_path / "drawn" / "Slope.png").stat().st_size > 10_000


def fixed(n_outputs=3, shape=(4,)):
    """A model that gives the first values of a window as they are."""
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(n_outputs)])
    model.set_weights([np.eye(np.prod(shape), n_outputs), np.zeros(n_outputs)])
    return model


X, Y = np.eye(4, 4), np.array([0, 1, 2, 2])


def test_own_student_and_own_windows_and_a_converter_that_crashes(tmp_path, monkeypatch, capfd):
    """What writes ONNX aborts its process; the student is written all the same."""
    package = deploy.FORMATS["onnx"].packages[-1]
    for needed in deploy.FORMATS["onnx"].packages:
        pytest.importorskip(needed, reason=f"ONNX needs {needed}")
    keras_ssd.wrap(fixed(), kd_weight=0, ema_momentum=0.99).save(tmp_path / "mine.keras")
    np.savez(tmp_path / "mine.npz", x=X, y=Y, notes=["a", "b"])
    (tmp_path / "fakes" / package).mkdir(parents=True)
    (tmp_path / "fakes" / package / "__init__.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'fakes'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    options = ["--model", str(tmp_path / "mine.keras"), "--windows", str(tmp_path / "mine.npz")]
    assert deploy.main([*options, "--formats", "onnx", "--out", str(tmp_path / "out")]) == 1
    printed = capfd.readouterr().out
    assert "mine.npz" in printed and "4 test windows of (4,)" in printed
    assert re.search(r"\nONNX.* the converter crashed \(SIGABRT\)", printed)
    taken = keras.models.load_model(tmp_path / "out" / "student.keras")
    assert not taken.compiled
    np.testing.assert_array_equal(taken.get_weights()[0], fixed().get_weights()[0])


def test_a_file_whose_runtime_is_missing_is_written(tmp_path, monkeypatch):
    """A microcontroller's file needs TensorFlow; LiteRT's package only runs it here."""
    written = deploy.FORMATS["keras"]._replace(runtime=("no_such_runtime", "json", "nor_this"))
    monkeypatch.setitem(deploy.FORMATS, "keras", written)
    fixed().save(tmp_path / "mine.keras")
    (tmp_path / "row").mkdir()
    np.savez(tmp_path / "row" / "arrays.npz", calibration=X, x=X, y=Y, reference=X[:, :3])
    deploy.write_row("keras", tmp_path / "mine.keras", tmp_path / "out.keras", tmp_path / "row")
    row = json.loads((tmp_path / "row" / "row.json").read_text())
    reason = "written, not run: pip install no_such_runtime nor_this"
    assert row == {"bytes": (tmp_path / "out.keras").stat().st_size, "reason": reason}


@pytest.mark.parametrize(
    "arrays, error",
    [
        ({"X": X, "labels": Y}, r"lacks \['x', 'y'\], holds \['X', 'labels'\]"),
        ({"x": X[:, :, None], "y": Y}, r"`x` should have the shape \(rows, 4\).*Received: \(4, 4, 1\)"),
        ({"x": X[:0], "y": Y[:0]}, r"`x` should have the shape \(rows, 4\).*Received: \(0, 4\)"),
        ({"x": X, "y": Y, "calibration": X[0]}, r"`calibration` should have the shape \(rows, 4\).*Received: \(4,\)"),
        ({"x": np.where(X, np.nan, 1), "y": Y}, "`x` should hold finite numbers: leave out windows with gaps"),
        ({"x": X.astype(str), "y": Y}, "`x` should hold finite numbers"),
        ({"x": X, "y": X[:, :3]}, r"`y` should have the shape \(4,\), one class each. Received: \(4, 3\)"),
        ({"x": X, "y": Y + 1}, r"`y` should hold integers from 0 to 2. Received: \[1 2 3\]"),
        ({"x": X, "y": Y / 2}, "`y` should hold integers from 0 to 2"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, error):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(SystemExit, match=error):
        deploy.reference(fixed(), deploy.read_windows(tmp_path / "mine.npz"))


def test_what_is_no_file_of_arrays_is_refused(tmp_path):
    for name, content in {"empty.npz": b"", "text.npz": b"text", "zip.npz": b"PK\x03\x04"}.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "array.npy", X)
    for name in ("empty.npz", "text.npz", "zip.npz", "array.npy", "missing.npz"):
        with pytest.raises(SystemExit, match=r"should be a file of numpy.savez\(path, x=..., y=...\)"):
            deploy.read_windows(tmp_path / name)


def test_models_that_are_no_classifier_of_one_window_are_refused():
    one, other = keras.Input((4,)), keras.Input((4,))
    with pytest.raises(SystemExit, match="one input and one output. It has 2 and 1"):
        deploy.reference(keras.Model([one, other], layers.Add()([one, other])), {"x": X, "y": Y})
    inputs = keras.Input(batch_shape=(1, 20, 2))
    memory = keras.Model(inputs, layers.Dense(2)(layers.GRU(3, stateful=True, name="memory")(inputs)))
    with pytest.raises(SystemExit, match=r"layers \['memory'\] are stateful: rebuild"):
        deploy.reference(memory, {"x": X, "y": Y})


def test_latency_and_accuracy_are_taken_from_the_outputs(monkeypatch):
    """Three of four windows right, all classes as the reference has them, and 0.25 from it at most."""
    monkeypatch.setattr(deploy, "TIMED_CALLS", 7)
    calls = []

    def run(window):
        calls.append(window.shape)
        return np.array([[1.0, 0.0]]) if window.sum() > 0 else np.array([[0.0, 1.0]])

    x = np.array([[1.0], [2.0], [-1.0], [-1.0]], "float32")
    figures = deploy.measure(run, x, np.array([0, 0, 1, 0]), np.array([[1, 0], [0.75, 0.25], [0, 1], [0, 1]]))
    assert figures.pop("median ms") > 0 and calls == [(1, 1)] * (deploy.WARM_UP + 7)
    assert figures == {"accuracy": 0.75, "agreement": 1, "max difference": 0.25}
    assert deploy.classes(np.array([[0.7], [0.4]])).tolist() == [True, False], "of one output"


def test_scores_of_uncertainty():
    """Ten windows at probability 0.8, eight of them right: no gap. The two wrong ones have the largest entropy."""
    prediction = StochasticPrediction(np.tile([0.8, 0.2], (10, 1)), None, np.arange(10))
    figures = uncertainty.draw({"plain": prediction}, np.array([0] * 8 + [1] * 2), "ten")[1].loc["plain"]
    assert figures["accuracy"] == 0.8
    assert figures["calibration gap"] == pytest.approx(0, abs=1e-9)
    assert figures["best 80%"] == 1.0
    assert figures["best 90%"] == pytest.approx(8 / 9)
    assert figures["NLL"] == pytest.approx(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2)))
