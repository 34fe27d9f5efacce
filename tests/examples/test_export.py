"""A student in every format, against Keras' own predictions; and the row of what cannot be written."""

import importlib.util
import json
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
from keras import layers

import deploy
import keras_ssd

# The exporters and TensorFlow's converter warn of their own and each other's old names.
pytestmark = pytest.mark.filterwarnings("ignore")

BACKEND = keras.backend.backend()
# What is written without going over to TensorFlow in another process.
HERE = [key for key in deploy.FORMATS if BACKEND == "tensorflow" or "tensorflow" not in deploy.FORMATS[key].packages]
# Half a step of int8 in [0, 1] is 0.002; the ranges of three layers add to it.
TOLERANCE = {"litert-float16": 2e-3, "litert-int8": 3e-2, "c-array": 3e-2}
X = np.random.default_rng(0).normal(size=(60, 20, 2)).astype("float32")
Y = (X.mean(axis=(1, 2)) > 0).astype(int)


@pytest.fixture(autouse=True)
def few_calls(monkeypatch):
    monkeypatch.setattr(deploy, "TIMED_CALLS", 3)


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


@pytest.fixture(scope="module")
def student():
    model = network()
    keras_ssd.wrap(model, seed=0).fit(X, Y, epochs=2, verbose=0)
    return model


def skip_unless_installed(key):
    for package in deploy.FORMATS[key].packages:
        pytest.importorskip(package, reason=f"{key} on {BACKEND} needs {package}")


def arrays_for(model):
    return {"x": X, "y": Y, "calibration": X, "reference": model.predict(X, verbose=0)}


def written(key, model, folder):
    """Path and row of a format, by the code of the converting process but in this one."""
    skip_unless_installed(key)
    path, source = folder / f"student{deploy.FORMATS[key].suffix}", folder / "source.keras"
    model.save(source)
    np.savez(folder / "arrays.npz", **arrays_for(model))
    deploy.write_row(key, source, path, folder)
    return path, json.loads((folder / "row.json").read_text())


@pytest.mark.parametrize("key", HERE)
def test_a_file_predicts_what_keras_predicts(student, tmp_path, key):
    path, row = written(key, student, tmp_path)
    expected = student.predict(X, verbose=0)
    assert np.ptp(expected[:, 0]) > 0.05
    run = deploy.FORMATS[key].open(path)
    outputs = np.concatenate([run(window[None]) for window in X])
    np.testing.assert_allclose(outputs, expected, atol=TOLERANCE.get(key, 1e-5))
    assert row["bytes"] == deploy.size(path)
    assert row["accuracy"] == np.mean(outputs.argmax(axis=1) == Y)
    assert row["agreement"] == np.mean(outputs.argmax(axis=1) == expected.argmax(axis=1))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT is written on TensorFlow only")
def test_the_int8_file_computes_in_int8_from_input_to_output(student, tmp_path):
    path, _ = written("litert-int8", student, tmp_path)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    types = [details["dtype"] for details in interpreter.get_tensor_details()]
    assert [d["dtype"] for d in interpreter.get_input_details() + interpreter.get_output_details()] == [np.int8] * 2
    assert np.float32 not in types and types.count(np.int8) > 6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT is written on TensorFlow only")
def test_the_c_array_is_aligned_and_holds_the_int8_file(student, tmp_path):
    """Read back by a C and a C++ compiler where there are any."""
    path, _ = written("c-array", student, tmp_path)
    content = path.read_text()
    assert content.startswith("#pragma once\n#include <stdalign.h>\nalignas(16) const unsigned char student[] = {\n")
    data, length = re.fullmatch(r".*\{(.*)\};\nconst unsigned int student_len = (\d+);\n", content, re.S).groups()
    data = bytes(map(int, data.split(",")))
    assert len(data) == int(length) and data[4:8] == b"TFL3"
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include <stdint.h>\n#include "student_int8.h"\n#include "student_int8.h"\n'
        "int main(void) { fwrite(student, 1, student_len, stdout); return (uintptr_t)student % 16 != 0; }\n"
    )
    for compiler in filter(shutil.which, ("gcc", "g++")):
        subprocess.run([compiler, "-Wall", "-Werror", "main.c", "-o", "main"], cwd=tmp_path, check=True)
        assert subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout == data


@pytest.mark.parametrize("key", [key for key in HERE if key in ("onnx", "litert")])
def test_a_recurrent_model_for_windows_of_any_length_is_exported_for_those_at_hand(tmp_path, key):
    keras.utils.clear_session()
    inputs = keras.Input((None, 2))
    x = layers.LSTM(3)(layers.Conv1D(4, 3, strides=4, padding="same")(inputs))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    assert written(key, model, tmp_path)[1]["max difference"] < 1e-5


# Processes of their own, and rows with a reason.


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in ("onnx", "litert-int8") if key not in HERE] or ["onnx"])
def test_a_process_on_tensorflow_writes_what_this_backend_cannot(student, tmp_path, key):
    skip_unless_installed(key)
    deploy.write_keras(student, tmp_path / "student.keras", X)
    row = deploy.convert(key, tmp_path / "student.keras", tmp_path, arrays_for(student))
    assert row["max difference"] < TOLERANCE.get(key, 1e-5)
    assert row["bytes"] == deploy.size(tmp_path / f"student{deploy.FORMATS[key].suffix}")


def test_a_process_that_takes_too_long_is_killed_and_leaves_no_earlier_file(student, tmp_path):
    skip_unless_installed("onnx")
    (tmp_path / "student.onnx").write_text("of an earlier run")
    row = deploy.convert("onnx", tmp_path / "student.keras", tmp_path, arrays_for(student), timeout=0.01)
    assert row == {"format": "ONNX", "reason": "not finished after 0.01 s: pass a longer --timeout"}
    assert not (tmp_path / "student.onnx").exists()


def test_a_missing_package_is_named(monkeypatch, student, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name))
    assert deploy.convert("litert", tmp_path / "student.keras", tmp_path, {})["reason"] == "pip install tensorflow"


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT is written on TensorFlow only")
def test_the_reason_of_a_format_that_lacks_an_operation_is_the_converters(tmp_path):
    inputs = keras.Input((20, 2))
    x = keras.ops.erfinv(keras.ops.tanh(layers.Flatten()(inputs)))
    path, row = written("litert", keras.Model(inputs, layers.Dense(2)(x)), tmp_path)
    assert set(row) == {"reason"} and len(row["reason"]) > 10
    assert not path.exists()
