"""A student in every format that the backend can write, against Keras' own predictions; and what is refused."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers

import deploy
import keras_ssd

# The exporters and TensorFlow's converter warn of their own and each other's old names.
pytestmark = pytest.mark.filterwarnings("ignore")

BACKEND = keras.backend.backend()
WRITES = {
    "tensorflow": ["keras", "savedmodel", "onnx", "litert", "litert-float16", "litert-int8"],
    "jax": ["keras", "savedmodel", "onnx"],
    "torch": ["keras", "onnx"],
}
NEEDS = {
    "savedmodel": ["tensorflow"],
    "onnx": ["onnxruntime", *{"tensorflow": ["tf2onnx"], "torch": ["onnxscript"], "jax": ["jax2onnx"]}[BACKEND]],
    "litert": ["ai_edge_litert"],
}
# Half a step of int8 in [0, 1] is 0.002; the ranges of three layers add to it.
TOLERANCE = {"litert-float16": 2e-3, "litert-int8": 3e-2}
X = np.random.default_rng(0).normal(size=(60, 20, 2)).astype("float32")
Y = (X.mean(axis=(1, 2)) > 0).astype(int)


def network():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((20, 2))
    x = layers.Normalization(mean=[0.1, -0.2], variance=[1.2, 0.9])(inputs)
    x = layers.Conv1D(8, 3, padding="same", use_bias=False)(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


def fitted(distil):
    model = network()
    (keras_ssd.wrap(model, seed=0) if distil else model).fit(X, Y, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def student():
    return fitted(distil=True)


def skip_unless_installed(key):
    for package in NEEDS.get(key.split("-")[0], []):
        pytest.importorskip(package, reason=f"{key} on {BACKEND} needs {package}")


@pytest.mark.parametrize("key", WRITES[BACKEND])
def test_a_file_predicts_what_keras_predicts(student, tmp_path, key):
    skip_unless_installed(key)
    paths, refusals = deploy.export(student, "student", tmp_path, [key], X)
    assert refusals == {}
    run = deploy.FORMATS[key].open(paths[key])
    expected = student.predict(X, verbose=0)
    assert np.ptp(expected[:, 0]) > 0.05
    outputs = np.concatenate([run(window[None]) for window in X])
    np.testing.assert_allclose(outputs, expected, atol=TOLERANCE.get(key, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in WRITES[BACKEND] if key in ("keras", "onnx", "litert")])
def test_distilled_and_plain_are_the_same_network(student, tmp_path, key):
    skip_unless_installed(key)
    paths, _ = deploy.export(student, "student", tmp_path, [key], X)
    plain_paths, _ = deploy.export(fitted(distil=False), "plain", tmp_path, [key], X)
    if key == "onnx":
        (graph, nodes), (other, _) = deploy.onnx_graph(paths[key]), deploy.onnx_graph(plain_paths[key])
        assert graph == other
        assert nodes > 4
        assert deploy.same_graph(paths[key], plain_paths[key]).endswith("byte for byte the same")
    else:
        assert deploy.size(paths[key]) == deploy.size(plain_paths[key]) > 1000


def test_another_network_has_another_graph(student, tmp_path):
    skip_unless_installed("onnx")
    keras.utils.clear_session()
    inputs = keras.Input((20, 2))
    other = keras.Model(inputs, layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling1D()(inputs)))
    paths, _ = deploy.export(student, "student", tmp_path, ["onnx"], X)
    other_paths, _ = deploy.export(other, "other", tmp_path, ["onnx"], X)
    assert deploy.same_graph(paths["onnx"], other_paths["onnx"]).endswith("NOT the same")


def test_the_keras_file_holds_no_optimizer(student, tmp_path):
    student.save(tmp_path / "whole.keras")
    paths, _ = deploy.export(student, "student", tmp_path, ["keras"], X)
    assert not keras.models.load_model(paths["keras"]).compiled
    assert deploy.size(paths["keras"]) < deploy.size(tmp_path / "whole.keras")


def test_the_int8_file_computes_in_int8(student, tmp_path):
    """Weights and activations; only the inputs and outputs of the file are float32."""
    if BACKEND != "tensorflow":
        pytest.skip("LiteRT is written on TensorFlow only")
    skip_unless_installed("litert")
    from ai_edge_litert.interpreter import Interpreter

    paths, _ = deploy.export(student, "student", tmp_path, ["litert-int8"], X)
    interpreter = Interpreter(str(paths["litert-int8"]))
    interpreter.allocate_tensors()
    types = [details["dtype"] for details in interpreter.get_tensor_details()]
    assert [d["dtype"] for d in interpreter.get_input_details() + interpreter.get_output_details()] == [np.float32] * 2
    assert types.count(np.float32) == 2
    assert types.count(np.int8) > 6


def test_a_recurrent_model(tmp_path):
    keys = [key for key in WRITES[BACKEND] if key in ("onnx", "litert")]
    for key in keys:
        skip_unless_installed(key)
    keras.utils.clear_session()
    inputs = keras.Input((20, 2))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(layers.LSTM(3)(inputs)))
    paths, refusals = deploy.export(model, "recurrent", tmp_path, keys, X)
    assert refusals == {}
    for key, path in paths.items():
        run = deploy.FORMATS[key].open(path)
        outputs = np.concatenate([run(window[None]) for window in X])
        np.testing.assert_allclose(outputs, model.predict(X, verbose=0), atol=1e-5)


def test_a_model_for_windows_of_any_length_is_exported_for_those_at_hand(tmp_path):
    skip_unless_installed("onnx")
    keras.utils.clear_session()
    inputs = keras.Input((None, 2))
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(4, 3, padding="same")(inputs))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    keys = [key for key in WRITES[BACKEND] if key in ("onnx", "litert")]
    paths, refusals = deploy.export(model, "any", tmp_path, keys, X)
    assert refusals == {}
    for key, path in paths.items():
        outputs = deploy.FORMATS[key].open(path)(X[:1])
        np.testing.assert_allclose(outputs, model.predict(X[:1], verbose=0), atol=1e-5)


# What is refused.


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow writes every format")
@pytest.mark.parametrize("key", [key for key in deploy.FORMATS if key not in WRITES[BACKEND]] or ["none"])
def test_unsupported_format_error_names_the_workaround(student, tmp_path, key):
    skip_unless_installed(key)
    paths, refusals = deploy.export(student, "student", tmp_path, [key], X)
    assert paths == {}
    assert f"cannot be written on {BACKEND}: load the .keras file on TensorFlow" in refusals[key]
    assert "KERAS_BACKEND=tensorflow python examples/deploy.py --model student.keras" in refusals[key]


@pytest.mark.parametrize(
    "key, package, hint", [("onnx", "onnxruntime", "export"), ("litert", "ai_edge_litert", "export")]
)
def test_a_missing_package_names_the_extra(monkeypatch, student, tmp_path, key, package, hint):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    _, refusals = deploy.export(student, "student", tmp_path, [key], X)
    assert package in refusals[key]
    assert f'pip install "keras-ssd[{hint}]"' in refusals[key]


def test_a_stateful_model_is_refused(tmp_path):
    inputs = keras.Input(batch_shape=(1, 20, 2))
    model = keras.Model(inputs, layers.Dense(2)(layers.GRU(3, stateful=True, name="memory")(inputs)))
    paths, refusals = deploy.export(model, "stateful", tmp_path, ["keras", "onnx"], X)
    assert paths == {}
    assert set(refusals) == {"keras", "onnx"}
    for refusal in refusals.values():
        assert "The layers ['memory'] are stateful" in refusal
        assert "stateful=False" in refusal


def test_an_operation_that_a_format_lacks_is_refused(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip("LiteRT is written on TensorFlow only")
    skip_unless_installed("litert")
    inputs = keras.Input((20, 2))
    x = keras.ops.erfinv(keras.ops.tanh(layers.Flatten()(inputs)))
    paths, refusals = deploy.export(keras.Model(inputs, layers.Dense(2)(x)), "odd", tmp_path, ["keras", "litert"], X)
    assert set(paths) == {"keras"}
    assert "LiteRT float32 refuses this model (" in refusals["litert"]
    assert refusals["litert"].endswith("replace the layer of that operation, or take another format")
