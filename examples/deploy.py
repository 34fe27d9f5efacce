"""From fit to the watch: trains a student, exports it to every format the backend can write, and measures each file.

    python examples/deploy.py                                          # GunPoint, needs no download of data
    python examples/deploy.py --dataset uci_har --data-dir path        # as examples/har.py reads it
    python examples/deploy.py --dataset GunPoint --model student.keras # exports a student that was trained elsewhere

Formats: .keras, SavedModel, ONNX, and LiteRT in float32, float16 (weights) and int8 (weights and activations, whose
ranges are taken from up to 200 training windows; inputs and outputs stay float32). Each file takes one window, of the
data set's shape. For each: size in bytes, accuracy on the test split, largest difference of a probability from Keras,
and the latency of a window, timed one by one. ONNX and LiteRT run on one thread, .keras and SavedModel with the threads
of their framework. Keras' own `quantize` covers Dense layers only, so it is not among them.

A plain model is trained and exported, too: the distilled student's files must have its graph and its size.

A format that a backend cannot write is refused with the way round. KERAS_BACKEND chooses the backend; ONNX and LiteRT
need the packages of the extra `export`. The exit status is 1 if a format that was asked for by name is refused.
"""

import argparse
import contextlib
import importlib.util
import itertools
import logging
import os
import pathlib
import sys
import tempfile
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
import numpy as np
import pandas as pd

import har
import keras_ssd
import ucr
from _support import comparison, har_data, ucr_data

N_REPRESENTATIVE = 200
WARM_UP, TIMED_CALLS = 20, 1000


class Refused(Exception):
    """A format that cannot be written here, with the reason and what to do, in one sentence."""


def load(name, data_dir, seed):
    """What is trained, `comparison.Task`, and the test split, for a HAR or a UCR data set."""
    if name in har_data.NAMES:
        dataset = har_data.load(name, data_dir)
        return har.make_task(dataset, 1.0, seed), (dataset.x_test, dataset.y_test)
    dataset = ucr_data.load(name, data_dir)
    parts = [(dataset.x_train[rows], dataset.y_train[rows]) for rows in ucr_data.hold_out(dataset.y_train, seed)]
    task = comparison.Task(name, lambda: ucr.conv_net(dataset), *parts, batch_size=ucr.BATCH_SIZE)
    return task, (dataset.x_test, dataset.y_test)


def train(task, method, seed, epochs):
    """A trained model, `plain` or `distilled`, from the same initial weights and with the same names of layers."""
    keras.utils.clear_session()
    model = comparison.new_model(task.build, seed)
    trained = keras_ssd.wrap(model, seed=seed) if method == "distilled" else model
    return comparison.fit(method, trained, task, seed, epochs).model


def from_file(path, windows):
    """The student of a .keras file, and the same network with other weights to compare its files with."""
    student, other = (deployed(keras.models.load_model(path, compile=False)) for _ in range(2))
    expected, given = student.input_shape[1:], windows.shape[1:]
    if len(expected) != len(given) or any(a not in (b, None) for a, b in zip(expected, given, strict=True)):
        raise SystemExit(
            f"`--model` takes windows of shape {expected}, `--dataset` has {given}: name the one it is for"
        )
    other.set_weights(
        [w + np.linspace(0.01, 0.02, w.size, dtype=w.dtype).reshape(w.shape) for w in other.get_weights()]
    )
    return {"plain": other, "student": student}


def deployed(model):
    return getattr(model, "student", model)


# Writing: each function writes one format of a model to `path`, for windows of one shape.


def write_keras(model, path, windows):
    model.save(path)
    keras.models.load_model(path, compile=False).save(path)  # drops the optimizer's state, two thirds of the file


def write_saved_model(model, path, windows):
    require("SavedModel", ["tensorflow"], extra="tensorflow")
    refuse_backends("SavedModel", ["torch"])
    with quiet():
        model.export(path, format="tf_saved_model", input_signature=one_window(windows), verbose=False)


def write_onnx(model, path, windows):
    needed = {"tensorflow": ["tf2onnx", "onnx"], "torch": ["onnxscript", "onnx"]}
    backend = keras.backend.backend()
    require("ONNX", ["onnxruntime", *needed.get(backend, [])])
    if backend == "jax" and importlib.util.find_spec("jax2onnx") is None:
        raise Refused(
            "ONNX on jax needs jax2onnx, which keras-ssd[export] leaves out as it brings thirty packages: "
            f"pip install jax2onnx, or {on_tensorflow('ONNX')}"
        )
    with quiet(), constants_as_arrays(model):
        model.export(path, format="onnx", input_signature=one_window(windows), verbose=False)


@contextlib.contextmanager
def constants_as_arrays(model):
    """Of the tensors that Normalization holds, tf2onnx would make further inputs of the file; of arrays, constants."""
    held = [(one, one.mean, one.variance) for one in every_layer(model) if isinstance(one, keras.layers.Normalization)]
    try:
        for layer, *moments in held:
            layer.mean, layer.variance = map(keras.ops.convert_to_numpy, moments)
        yield
    finally:
        for layer, mean, variance in held:
            layer.mean, layer.variance = mean, variance


def every_layer(model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from every_layer(layer)


def write_litert(model, path, windows, types="float32"):
    require("LiteRT", ["ai_edge_litert"])
    refuse_backends("LiteRT", ["jax", "torch"])
    import tensorflow as tf

    with quiet(), tempfile.TemporaryDirectory() as saved_model:
        model.export(saved_model, format="tf_saved_model", input_signature=one_window(windows), verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
        if types != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if types == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if types == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            # Evenly spread, as neighbours are of one person.
            rows = np.linspace(0, len(windows) - 1, min(len(windows), N_REPRESENTATIVE)).astype(int)
            converter.representative_dataset = lambda: ([window[None]] for window in windows[rows])
        path.write_bytes(converter.convert())


def one_window(windows):
    return [keras.InputSpec(shape=(1, *windows.shape[1:]), dtype="float32")]


def refuse_backends(name, backends):
    if keras.backend.backend() in backends:
        raise Refused(f"{name} cannot be written on {keras.backend.backend()}: {on_tensorflow(name)}")


def on_tensorflow(name):
    return (
        "load the .keras file on TensorFlow and export it there, "
        f"KERAS_BACKEND=tensorflow python examples/deploy.py --model student.keras --formats {name.lower()} ..."
    )


def require(name, packages, extra="export"):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise Refused(f'{name} needs {" and ".join(missing)}: pip install "keras-ssd[{extra}]"')


@contextlib.contextmanager
def quiet():
    """Without the exporters' remarks, which some write past Python to the standard output and error of the process."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl", "tf2onnx", "torch.onnx", "jax")]
    levels = [logger.level for logger in loggers]
    saved = [os.dup(number) for number in (1, 2)]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        with open(os.devnull, "w") as nowhere:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    input_index, output_index = (
        details[0]["index"] for details in (interpreter.get_input_details(), interpreter.get_output_details())
    )

    def run(window):
        interpreter.set_tensor(input_index, window)
        interpreter.invoke()
        return interpreter.get_tensor(output_index)

    return run


class Format(NamedTuple):
    """How a format is called, named as a file, written and run."""

    title: str
    suffix: str
    write: callable
    open: callable


def litert(types):
    return lambda model, path, windows: write_litert(model, path, windows, types)


FORMATS = {
    "keras": Format(".keras", ".keras", write_keras, open_keras),
    "savedmodel": Format("SavedModel", "_saved_model", write_saved_model, open_saved_model),
    "onnx": Format("ONNX", ".onnx", write_onnx, open_onnx),
    "litert": Format("LiteRT float32", ".tflite", litert("float32"), open_litert),
    "litert-float16": Format("LiteRT float16", "_float16.tflite", litert("float16"), open_litert),
    "litert-int8": Format("LiteRT int8", "_int8.tflite", litert("int8"), open_litert),
}


def export(model, name, folder, formats, windows):
    """Writes a model in all `formats` that can be. Returns the paths by format, and the refusals."""
    paths, refusals = {}, {}
    for key in formats:
        path = folder / f"{name}{FORMATS[key].suffix}"
        try:
            refuse_states(model)
            FORMATS[key].write(model, path, windows)
            paths[key] = path
        except Refused as refusal:
            refusals[key] = str(refusal)
        except Exception as error:  # each converter has its own kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            refusals[key] = (
                f"{FORMATS[key].title} refuses this model ({reason[:200]}): "
                "replace the layer of that operation, or take another format"
            )
    return paths, refusals


def refuse_states(model):
    stateful = [layer.name for layer in every_layer(model) if getattr(layer, "stateful", False)]
    if stateful:
        raise Refused(
            f"The layers {stateful} are stateful, so that a file would carry one window's state into the next: rebuild "
            "the model with stateful=False and set its weights"
        )


# Measuring.


def size(path):
    """Bytes of a file with what lies beside it (weights of large ONNX graphs), or of a folder."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_size for file in files if file.is_file())


def measure(run, x, y, reference):
    windows = [np.ascontiguousarray(window[None]) for window in x]
    outputs = np.concatenate([np.array(run(window)) for window in windows])
    for window in itertools.islice(itertools.cycle(windows), WARM_UP):
        run(window)
    seconds = []
    for window in itertools.islice(itertools.cycle(windows), TIMED_CALLS):
        began = time.perf_counter()
        run(window)
        seconds.append(time.perf_counter() - began)
    return {
        "accuracy": float(np.mean(outputs.argmax(axis=-1) == y)),
        "max difference": float(np.abs(outputs - reference).max()),
        "median ms": float(1000 * np.median(seconds)),
        "p99 ms": float(1000 * np.percentile(seconds, 99)),
    }


def table(paths, x, y, reference):
    rows = []
    for key, path in paths.items():
        with quiet():
            run = FORMATS[key].open(path)
        rows.append({"format": FORMATS[key].title, "bytes": size(path), **measure(run, x, y, reference)})
    return pd.DataFrame(rows).set_index("format")


def same_size(paths, plain_paths):
    """One line for each format: the size of the distilled student's file against that of the plain model."""
    for key, path in paths.items():
        own, other = size(path), size(plain_paths[key])
        verdict = "the same" if own == other else f"{own - other:+d}, in names that the exporter numbers as it goes"
        yield f"{FORMATS[key].title}: distilled {own} bytes, plain {other}: {verdict}"


def same_graph(path, plain_path):
    (graph, nodes), (other, _) = onnx_graph(path), onnx_graph(plain_path)
    verdict = "byte for byte the same" if graph == other else "NOT the same"
    return f"ONNX graphs of distilled and plain, {nodes} nodes, without names and values of weights: {verdict}"


def onnx_graph(path):
    """An ONNX file as bytes, and its number of operations: operations, attributes, connections, types and shapes.

    Left out are the values of weights, and names, which are numbered anew: exporters number them over a whole process.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    renumber(model.graph, {})
    for tensor in model.graph.initializer:
        if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
            for field in ("raw_data", "float_data", "external_data"):
                tensor.ClearField(field)
    for part in (model, model.graph):
        for field in ("metadata_props", "doc_string"):
            part.ClearField(field)
    return model.SerializeToString(deterministic=True), len(model.graph.node)


def renumber(graph, names):
    """Numbers the names of a graph, and of the graphs in it, in the order in which the operations mention them."""

    def number(name):
        return name and names.setdefault(name, str(len(names)))

    for value in graph.input:
        value.name = number(value.name)
    for node in graph.node:
        node.name = ""
        for field in ("doc_string", "metadata_props"):
            node.ClearField(field)
        node.input[:] = map(number, node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                renumber(attribute.g, names)
        node.output[:] = map(number, node.output)
    for value in [*graph.output, *graph.initializer]:
        value.name = number(value.name)
        value.ClearField("doc_string")
    graph.initializer.sort(key=lambda tensor: int(tensor.name))
    graph.name = ""
    graph.ClearField("value_info")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", default="GunPoint", metavar="NAME", help=f"of the UCR archive, or {har_data.NAMES}"
    )
    parser.add_argument("--data-dir", type=pathlib.Path, help="where the data set lies; default: where aeon has it")
    parser.add_argument("--model", type=pathlib.Path, help="a student's .keras file, instead of training one")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, metavar="FORMAT", help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100, help="of each training; default 100")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/deploy"), help="for the files")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    arguments.out.mkdir(parents=True, exist_ok=True)
    task, (x, y) = load(arguments.dataset, arguments.data_dir, arguments.seed)
    windows = np.asarray(task.training[0], "float32")
    if arguments.model is not None:
        models = from_file(arguments.model, windows)
    else:
        models = {
            name: train(task, method, arguments.seed, arguments.epochs)
            for name, method in (("plain", "plain"), ("student", "distilled"))
        }
    formats = arguments.formats or list(FORMATS)
    plain_paths, _ = export(models["plain"], "plain", arguments.out, formats, windows)
    paths, refusals = export(models["student"], "student", arguments.out, formats, windows)
    if paths:
        reference = models["student"].predict(x, verbose=0)
        figures = table(paths, x, y, reference)
        print(f"\n{task.name}, {keras.backend.backend()}, {len(x)} test windows of {x.shape[1:]}, one at a time")
        formatters = {"max difference": "{:.1e}".format}
        print(figures.to_string(float_format="{:.4f}".format, formatters=formatters), end="\n\n")
        print(*same_size(paths, plain_paths), sep="\n")
        if "onnx" in paths:
            print(same_graph(paths["onnx"], plain_paths["onnx"]))
    for refusal in dict.fromkeys(refusals.values()):
        print(refusal)
    print(f"files: {arguments.out}")
    return int(arguments.formats is not None and bool(refusals))


if __name__ == "__main__":
    sys.exit(main())
