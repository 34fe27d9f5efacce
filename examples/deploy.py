"""From fit to the watch: exports a student to the formats of phones and microcontrollers, and measures each file.

    python examples/deploy.py --model student.keras --windows mine.npz  # your student and your windows
    python examples/deploy.py                                           # trains one on GunPoint, needs no download
    python examples/deploy.py --dataset uci_har --data-dir path         # as examples/har.py reads it; also with --model

`student.keras` is a file of `ssd.save` or `ssd.student.save`, of a model with one input and one output that classifies.
`mine.npz` is written by `numpy.savez("mine.npz", x=windows, y=labels)`: test windows (rows, ...) in the shape of the
model's input and labels 0, 1, ...; an array `calibration` of training windows gives the ranges of int8. Without it the
first array does, which flatters int8 a little.

Formats: .keras, SavedModel, ONNX, and LiteRT in float32, float16 (weights) and int8 (weights, activations, inputs and
outputs; ranges from up to 200 windows), and the int8 file as an array in a C header. Each file takes one window. For
each: bytes, accuracy, share of windows with the class that Keras gives (agreement), largest difference of a
probability from Keras, and the median latency of a window, one by one, on one thread of the CPU (JAX: on its own).

Each format is written and measured in a process of its own, so that a converter that crashes is a row with its reason.
SavedModel, LiteRT and, from JAX, ONNX are written from the .keras file on TensorFlow, whatever KERAS_BACKEND is. The
exit status is 1 if a format that was asked for by name could not be written.
"""

import argparse
import importlib.util
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
import numpy as np
import pandas as pd

import keras_ssd

N_CALIBRATION, WARM_UP, TIMED_CALLS = 200, 20, 1000
ONE_THREAD = dict.fromkeys(["OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"], "1")
C_HEADER = (
    "#pragma once\n#include <stdalign.h>\n"
    "alignas(16) const unsigned char student[] = {{\n{}\n}};\nconst unsigned int student_len = {};\n"
)


def load(name, data_dir, seed):
    """What is trained, `comparison.Task`, and the test split, for a HAR or a UCR data set."""
    import har  # here, as the processes that convert need none of these
    import ucr
    from _support import comparison, har_data, ucr_data

    if name in har_data.NAMES:
        dataset = har_data.load(name, data_dir)
        return har.make_task(dataset, 1.0, seed), (dataset.x_test, dataset.y_test)
    dataset = ucr_data.load(name, data_dir)
    parts = [(dataset.x_train[rows], dataset.y_train[rows]) for rows in ucr_data.hold_out(dataset.y_train, seed)]
    task = comparison.Task(name, lambda: ucr.conv_net(dataset), *parts, batch_size=ucr.BATCH_SIZE)
    return task, (dataset.x_test, dataset.y_test)


def train(task, method, seed, epochs):
    """A trained model, `plain` or `distilled`, from the same initial weights and with the same names of layers."""
    from _support import comparison

    keras.utils.clear_session()
    model = comparison.new_model(task.build, seed)
    trained = keras_ssd.wrap(model, seed=seed) if method == "distilled" else model
    return comparison.fit(method, trained, task, seed, epochs).model


def read_windows(path):
    """The arrays of an .npz file: `x`, `y` and, if the file holds it, `calibration`."""
    try:
        arrays = dict(np.load(path))
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise SystemExit(f"`--windows` should be a file of numpy.savez(path, x=..., y=...). {path}: {error}") from error
    if missing := [name for name in ("x", "y") if name not in arrays]:
        raise SystemExit(f"`--windows` should hold the arrays x and y. {path} lacks {missing}, holds {list(arrays)}")
    return {name: arrays[name] for name in ("x", "y", "calibration") if name in arrays}


def reference(model, arrays):
    """Keras' outputs for the windows, after checks of the model and of all arrays."""
    inputs, outputs = getattr(model, "inputs", []), getattr(model, "outputs", [])
    if len(inputs) != 1 or len(outputs) != 1:
        raise SystemExit(f"The model should have one input and one output. It has {len(inputs)} and {len(outputs)}")
    if stateful := [layer.name for layer in every_layer(model) if getattr(layer, "stateful", False)]:
        raise SystemExit(f"The layers {stateful} are stateful: rebuild the model without and set its weights")
    lengths = itertools.zip_longest(inputs[0].shape[1:], arrays["x"].shape[1 : len(inputs[0].shape)])
    window = tuple(given if length is None else length for length, given in lengths)  # None: of any length
    for name in [name for name in arrays if name != "y"]:
        if arrays[name].shape[1:] != window or not len(arrays[name]):
            wanted = f"(rows, {', '.join(map(str, window))}), that of the model's input"
            raise SystemExit(f"`{name}` should have the shape {wanted}. Received: {arrays[name].shape}")
        if arrays[name].dtype.kind not in "fiub" or not np.isfinite(arrays[name]).all():
            raise SystemExit(f"`{name}` should hold finite numbers: leave out windows with gaps, or fill the gaps")
        arrays[name] = arrays[name].astype("float32")
    predicted, y = model.predict(arrays["x"], verbose=0), arrays["y"]
    n_classes = max(predicted.shape[-1], 2)  # a single output is the probability of class 1
    if y.shape != predicted.shape[:-1]:
        raise SystemExit(f"`y` should have the shape {predicted.shape[:-1]}, one class each. Received: {y.shape}")
    if y.dtype.kind not in "iub" or y.min() < 0 or y.max() >= n_classes:
        raise SystemExit(f"`y` should hold integers from 0 to {n_classes - 1}. Received: {np.unique(y)[:20]}")
    return predicted


# Writing: each function writes one format of a model to `path`, for windows of one shape.


def write_keras(model, path, windows):
    model.save(path)
    keras.models.load_model(path, compile=False).save(path)  # drops the optimizer's state, two thirds of the file


def write_exported(model, path, windows, form="tf_saved_model"):
    """Keras' own export, for one window at a time."""
    if keras.backend.backend() == "tensorflow":
        # Of the tensors that Normalization holds, tf2onnx would make further inputs of the file; of arrays, constants.
        for layer in every_layer(model):
            if isinstance(layer, keras.layers.Normalization):
                layer.mean, layer.variance = map(keras.ops.convert_to_numpy, (layer.mean, layer.variance))
    one_window = keras.InputSpec(shape=(1, *windows.shape[1:]), dtype="float32")
    model.export(str(path), format=form, input_signature=[one_window], verbose=False)


def write_litert(model, path, windows, types="float32"):
    """The file, or with the ending .h a C array of it."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as saved_model:
        write_exported(model, saved_model, windows)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
        if types != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if types == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if types == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
            # Evenly spread, as neighbours are of one person.
            rows = np.linspace(0, len(windows) - 1, min(len(windows), N_CALIBRATION)).astype(int)
            converter.representative_dataset = lambda: ([window[None]] for window in windows[rows])
        content = converter.convert()
    if path.suffix == ".h":
        lines = (", ".join(map(str, content[start : start + 24])) for start in range(0, len(content), 24))
        content = C_HEADER.format(",\n".join(lines), len(content)).encode()
    path.write_bytes(content)


def every_layer(model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from every_layer(layer)


# Running: each function opens a file and returns a callable from one window (1, ...) to its probabilities (1, classes).


def open_keras(path):
    return keras.models.load_model(path, compile=False).predict_on_batch


def open_saved_model(path):
    import tensorflow as tf

    artifact = tf.saved_model.load(str(path))
    return lambda window: artifact.serve(window).numpy()


def open_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda window: session.run(None, {name: window})[0]


def open_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    content = path.read_bytes()
    if path.suffix == ".h":
        content = bytes(map(int, re.search(rb"{(.*?)}", content, re.S)[1].split(b",")))
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (scale_out, zero_out) = given["quantization"], returned["quantization"]  # scale 0: not quantised

    def run(window):
        if scale:
            window = np.clip(np.round(window / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], window)
        interpreter.invoke()
        outputs = interpreter.get_tensor(returned["index"])
        return scale_out * (outputs.astype(np.float32) - zero_out) if scale_out else outputs

    return run


class Format(NamedTuple):
    title: str
    suffix: str
    write: callable
    open: callable
    packages: tuple = ("tensorflow",)  # that writing it needs
    runtime: tuple = ("ai_edge_litert",)  # and running it


ON_TORCH = keras.backend.backend() == "torch"
ONNX_PACKAGES = ("onnx", *(("onnxscript",) if ON_TORCH else ("tensorflow", "tf2onnx")))
FORMATS = {
    "keras": Format(".keras", ".keras", write_keras, open_keras, (), ()),
    "savedmodel": Format("SavedModel", "_saved_model", write_exported, open_saved_model, runtime=()),
    "onnx": Format("ONNX", ".onnx", partial(write_exported, form="onnx"), open_onnx, ONNX_PACKAGES, ("onnxruntime",)),
    "litert": Format("LiteRT float32", ".tflite", write_litert, open_litert),
    "litert-float16": Format("LiteRT float16", "_float16.tflite", partial(write_litert, types="float16"), open_litert),
    "litert-int8": Format("LiteRT int8", "_int8.tflite", partial(write_litert, types="int8"), open_litert),
    "c-array": Format("C array of int8", "_int8.h", partial(write_litert, types="int8"), open_litert),
}


def convert(key, source, folder, arrays, timeout=600):
    """The row of a format: written to `folder` from the file `source` and measured, or the reason why it is not."""
    form = FORMATS[key]
    path = folder / f"{source.stem}{form.suffix}"
    for earlier in folder.glob(f"{path.name}*") if path != source else ():
        shutil.rmtree(earlier) if earlier.is_dir() else earlier.unlink()
    if packages := missing(form.packages):
        return {"format": form.title, "reason": f"pip install {packages}"}
    environment = os.environ | ONE_THREAD | {"CUDA_VISIBLE_DEVICES": ""}
    if "tensorflow" in form.packages:
        environment["KERAS_BACKEND"] = "tensorflow"
    with tempfile.TemporaryDirectory() as work:
        np.savez(f"{work}/arrays.npz", **arrays)
        command = [sys.executable, __file__, "--row", key, source, path, work]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=timeout)
            row = json.loads(pathlib.Path(work, "row.json").read_text())
        except subprocess.TimeoutExpired:
            row = {"reason": f"not finished after {timeout:g} s: pass a longer --timeout"}
        except FileNotFoundError:
            status, said = done.returncode, done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            row = {"reason": f"the converter crashed ({ended}) {' '.join(said)[:200]}".strip()}
    return {"format": form.title, **row}


def missing(packages):
    return " ".join(package for package in packages if importlib.util.find_spec(package) is None)


def write_row(key, source, path, work):
    """What the process does."""
    path, arrays, row = pathlib.Path(path), dict(np.load(f"{work}/arrays.npz")), {}
    try:
        FORMATS[key].write(keras.models.load_model(source, compile=False), path, arrays["calibration"])
        row["bytes"] = size(path)
        if packages := missing(FORMATS[key].runtime):
            row["reason"] = f"written, not run: pip install {packages}"
        else:
            row |= measure(FORMATS[key].open(path), arrays["x"], arrays["y"], arrays["reference"])
    except Exception as error:  # each converter has its own kinds
        row |= {"reason": (str(error).strip() or type(error).__name__).splitlines()[0][:200]}
    pathlib.Path(work, "row.json").write_text(json.dumps(row))


def size(path):
    """Bytes of a file with what lies beside it (weights of large ONNX graphs), or of a folder."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_size for file in files if file.is_file())


def measure(run, x, y, reference):
    windows, outputs, seconds = [np.ascontiguousarray(window[None]) for window in x], [], []
    for window in itertools.islice(itertools.cycle(windows), max(len(x), WARM_UP + TIMED_CALLS)):
        began = time.perf_counter()
        output = run(window)
        seconds.append(time.perf_counter() - began)
        outputs.append(np.array(output))
    outputs = np.concatenate(outputs[: len(x)])
    return {
        "accuracy": float(np.mean(classes(outputs) == y)),
        "agreement": float(np.mean(classes(outputs) == classes(reference))),
        "max difference": float(np.abs(outputs - reference).max()),
        "median ms": float(1000 * np.median(seconds[WARM_UP:])),
    }


def classes(outputs):
    return outputs.argmax(axis=-1) if outputs.shape[-1] > 1 else outputs[..., 0] > 0.5


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, help="a student's .keras file, instead of training one")
    parser.add_argument("--windows", type=pathlib.Path, help="an .npz file with x, y and perhaps calibration")
    parser.add_argument("--dataset", default="GunPoint", metavar="NAME", help="of UCR, or as in examples/har.py")
    parser.add_argument("--data-dir", type=pathlib.Path, help="where the data set lies; default: where aeon has it")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, metavar="FORMAT", help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100, help="of each training; default 100")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for a format; default 600")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/deploy"), help="for the files")
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)  # what `convert` calls
    arguments = parser.parse_args(argv)
    if arguments.windows is not None and arguments.model is None:
        parser.error("--windows needs --model, the student that takes them")
    if arguments.model and arguments.model.resolve() == (arguments.out / "student.keras").resolve():
        parser.error("--out should be another folder than that of --model: its student.keras would be replaced")
    return arguments


def main(argv=None):
    arguments = parse(argv)
    if arguments.row:
        return write_row(*arguments.row)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.windows is None:
        task, (x, y) = load(arguments.dataset, arguments.data_dir, arguments.seed)
        name, arrays = task.name, {"x": x, "y": y, "calibration": task.training[0]}
    else:
        name, arrays = arguments.windows.name, read_windows(arguments.windows)
    if arguments.model is None:
        plain, model = (train(task, method, arguments.seed, arguments.epochs) for method in ("plain", "distilled"))
        write_keras(plain, arguments.out / "plain.keras", x)
    else:
        model = keras.models.load_model(arguments.model, compile=False)
    source = arguments.out / "student.keras"
    predicted = reference(model, arrays)
    arrays = {"calibration": arrays["x"], "reference": predicted, **arrays}
    write_keras(model, source, arrays["x"])
    formats = arguments.formats or FORMATS
    rows = [convert(key, source, arguments.out, arrays, arguments.timeout) for key in formats]
    print(f"\n{name}, {keras.backend.backend()}, {len(predicted)} test windows of {arrays['x'].shape[1:]}")
    table = pd.DataFrame(rows).set_index("format")
    table = table[sorted(table, key="reason".__eq__)]  # last
    formatters = {"bytes": "{:.0f}".format, "max difference": "{:.1e}".format}
    print(table.to_string(float_format="{:.4f}".format, formatters=formatters, na_rep="-"), end="\n\n")
    if arguments.model is None:
        print(f"student.keras: {size(source)} bytes, plain.keras: {size(arguments.out / 'plain.keras')} bytes")
    print(f"files: {arguments.out}")
    return int(arguments.formats is not None and any("bytes" not in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
