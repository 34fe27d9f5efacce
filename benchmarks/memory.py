"""What a process keeps of models that were trained and dropped: memory a model, plain and wrapped.

    KERAS_BACKEND=tensorflow python benchmarks/memory.py

trains small models one after the other, each kind in a process of its own, and compares the memory that the process
holds after the first `--warm-up` and after `--models` further ones. TensorFlow keeps the graph of every step that it
traced, of plain models, too; how many nodes those have is printed beside it.
"""

import argparse
import gc
import json
import os
import subprocess
import sys

KINDS = ("plain", "wrapped")


def train_one(kind, arguments):
    import keras
    import numpy as np
    from keras import layers

    import keras_ssd

    x = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    stack = [layers.Dense(64, activation="relu"), layers.Dropout(0.3), layers.Dense(2, activation="softmax")]
    model = keras.Sequential([keras.Input((32,)), *stack])
    model.compile(arguments.optimizer, "sparse_categorical_crossentropy", metrics=arguments.metrics)
    if kind == "wrapped":
        model = keras_ssd.wrap(model)
    model.fit(x, y, batch_size=32, verbose=0)


def megabytes():
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def graph_nodes():
    """Nodes of all graphs of TensorFlow that are alive; 0 on other backends."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return 0
    import tensorflow as tf

    return sum(len(x.get_operations()) for x in gc.get_objects() if isinstance(x, tf.Graph))


def measure(kind, arguments):
    """Train the models and return what one more of them adds."""
    import keras

    def train(count):
        for _ in range(count):
            train_one(kind, arguments)
            if arguments.clear_session:
                keras.backend.clear_session()
            gc.collect()
        return megabytes(), graph_nodes()

    first, nodes_first = train(arguments.warm_up)
    last, nodes_last = train(arguments.models)
    return {"MB": (last - first) / arguments.models, "nodes": (nodes_last - nodes_first) / arguments.models}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100, help="how many are measured")
    parser.add_argument("--warm-up", type=int, default=100, help="how many are trained before")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--metrics", nargs="*", default=[], help="that the models are compiled with")
    parser.add_argument("--clear-session", action="store_true", help="after each model")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.kind:
        print(json.dumps(measure(arguments.kind, arguments)))
        return
    options = sys.argv[1:] if argv is None else argv
    results = {}
    for kind in KINDS:
        command = [sys.executable, __file__, *options, "--kind", kind]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        results[kind] = json.loads(run.stdout.splitlines()[-1])
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    print(f"{backend}, {arguments.optimizer}, {arguments.models} models after {arguments.warm_up}")
    print("\n|  | MB a model | graph nodes a model |\n|---|---|---|")
    for kind, result in results.items():
        print(f"| {kind} | {result['MB']:.2f} | {result['nodes']:.0f} |")


if __name__ == "__main__":
    main()
