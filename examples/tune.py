"""Searches how to distil a Conv1D net with Keras Tuner, or whether not to.

    python examples/tune.py                                                # GunPoint, needs no download of data
    python examples/tune.py --dataset Coffee --data-dir path/to/archive    # a data set of the UCR archive
    python examples/tune.py --dataset uci_har --data-dir path              # path/UCI HAR Dataset, as published
    python examples/tune.py --workers 2                                    # a chief and two workers on this machine

The first trial is the plain model. Trials are compared on a part of the training split (on HAR: whole subjects, where
they are known); the test split is used once, at the end, for the best trial and the plain one. The ranking, a heat map
and the history of the search go to the folder `--out`; a search that was interrupted goes on when it is called again,
but for `--tuner grid`.
KERAS_BACKEND chooses the backend.
"""

import argparse
import contextlib
import logging
import os
import pathlib
import socket
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
import keras_tuner
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import keras_ssd.tuner
from _support import har_data, ucr_data

# What stands in the heat map is a list of choices, so that its cells are met more than once.
SPACE = {
    "similarity": "kl",
    "num_teachers": 8,
    "kd_weight": [0.1, 0.3, 1.0],
    "temperature": [1.0, 2.0, 4.0, 8.0],
    "percentile": [0.0, 50.0, 90.0],
    "guidance_temperature": None,
    "dropout_rate": None,
}
RESTARTS = 3


def load(name, data_dir, seed):
    """Returns the data set and the training rows to train on and to validate on."""
    if name in har_data.NAMES:
        dataset = har_data.load(name, data_dir)
        return dataset, *har_data.hold_out(dataset, seed)
    dataset = ucr_data.load(name, data_dir)
    return dataset, *ucr_data.hold_out(dataset.y_train, seed)


def model_builder(dataset):
    def build(hp):
        inputs = keras.Input(dataset.x_train.shape[1:])
        x = keras.layers.BatchNormalization(momentum=0.9)(inputs)  # HAR comes in the sensors' own units
        for filters, kernel_size in [(32, 8), (64, 5), (32, 3)]:
            x = keras.layers.Conv1D(filters, kernel_size, padding="same", use_bias=False)(x)
            x = keras.layers.BatchNormalization(momentum=0.9)(x)  # small sets make few steps
            x = keras.layers.Activation("relu")(x)
        x = keras.layers.GlobalAveragePooling1D()(x)
        x = keras.layers.Dropout(0.3)(x)
        model = keras.Model(inputs, keras.layers.Dense(dataset.n_classes, activation="softmax")(x))
        optimizer = keras.optimizers.Adam(3e-3)
        model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    return build


def make_tuner(arguments, dataset):
    hypermodel = keras_ssd.tuner.SSDHyperModel(
        model_builder(dataset),
        teacher=arguments.teacher,
        space=None if arguments.all else SPACE,
        snapshot_epochs=arguments.epochs if arguments.teacher == "snapshot" else None,
    )
    makers = {
        "random": (keras_tuner.RandomSearch, {"max_trials": arguments.trials}),
        "bayesian": (keras_tuner.BayesianOptimization, {"max_trials": arguments.trials, "num_initial_points": 6}),
        "hyperband": (keras_tuner.Hyperband, {"max_epochs": arguments.epochs}),  # chooses the number of trials itself
        "grid": (keras_tuner.GridSearch, {"max_trials": arguments.trials}),
    }
    maker, options = makers[arguments.tuner]
    return maker(
        hypermodel,
        objective="val_loss",
        seed=arguments.seed,
        directory=arguments.out,
        project_name=f"{dataset.name}-{arguments.tuner}-{arguments.teacher}-{arguments.epochs}",
        **options,
    )


def ranking(trials):
    """The trials, best first, as a table of their scores and settings."""
    rows = []
    for trial in trials:
        metrics = {name: trial.metrics.get_best_value(name) for name in ("val_loss", "val_accuracy")}
        settings = {name.removeprefix("ssd_"): v for name, v in trial.hyperparameters.values.items() if "/" not in name}
        rows.append({"trial": trial.trial_id, **metrics, **settings})
    return pd.DataFrame(rows)


def plot(table, path):
    figure = Figure(figsize=(11, 4), layout="constrained")
    heat_map, history = figure.subplots(1, 2)
    distilled = table[table.distill]
    if {"temperature", "percentile"} <= set(distilled):
        # With --all the values are continuous: a few bins of each.
        axes = {
            name: distilled[name] if distilled[name].nunique() <= 6 else pd.qcut(distilled[name], 4, precision=1)
            for name in ("temperature", "percentile")
        }
        cells = distilled.groupby([axes["percentile"], axes["temperature"]], observed=True).val_loss.mean().unstack()
        image = heat_map.imshow(cells, aspect="auto", cmap="viridis_r")
        heat_map.set_xticks(range(cells.shape[1]), [str(one) for one in cells.columns])
        heat_map.set_yticks(range(cells.shape[0]), [str(one) for one in cells.index])
        figure.colorbar(image, ax=heat_map, label="validation loss, mean over trials")
    heat_map.set(title="distilled trials (white: none)", xlabel="temperature", ylabel="percentile")
    scores = table.sort_values("trial").reset_index()
    history.plot(scores.val_loss.cummin(), "0.6", drawstyle="steps-post", label="best so far")
    averages = scores.reindex(columns=["average"]).average.eq(True)
    methods = np.select([scores.distill, averages], ["distilled", "averaged"], "plain")
    for method, style in keras_ssd.plotting.method_styles(sorted(set(methods))).items():
        history.plot(scores.val_loss[methods == method], "o", label=method, color=style["color"])
    history.set(title="history of the search", xlabel="trial", ylabel="validation loss (nats)", yscale="log")
    history.locator_params(axis="x", integer=True, min_n_ticks=1)
    history.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
    print(f"plot: {path}")


def report(tuner, trials, dataset, folder):
    table = ranking(trials)
    table.to_csv(folder / "ranking.csv", index=False)
    print(f"\n{dataset.name}: {len(trials)} trials, ranked by the loss on held-out training rows")
    print(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    plot(table, folder / "search.png")
    print(f"\nbest setting: {trials[0].hyperparameters.values}")
    undistilled = [trial for trial in trials if not trial.hyperparameters["ssd_distill"]]
    averaged = [trial for trial in undistilled if trial.hyperparameters.values.get("ssd_average")]
    plain = [trial for trial in undistilled if trial not in averaged]
    print("test split, used once:")
    found = {"best": trials, "averaged": averaged, "plain": plain}
    for name, trial in {name: some[0] for name, some in found.items() if some}.items():
        student = tuner.load_model(trial).student
        predicted = student.predict(dataset.x_test, verbose=0).argmax(axis=1)
        print(f"  {name} (trial {trial.trial_id}): accuracy {np.mean(predicted == dataset.y_test):.4f}")
        student.save(folder / f"{name}.keras")


def run(arguments):
    """One process: the whole search, or the chief or a worker of one, as the environment variables say."""
    dataset, training, validation = load(arguments.dataset, arguments.data_dir, arguments.seed)
    keras.utils.set_random_seed(arguments.seed)
    # Keras Tuner prints every condition that it sends to another process.
    quiet = open(os.devnull, "w") if "KERASTUNER_ORACLE_IP" in os.environ else None
    with quiet or contextlib.nullcontext(), contextlib.redirect_stdout(quiet or sys.stdout):
        tuner = make_tuner(arguments, dataset)
        trials = keras_ssd.tuner.search(
            tuner,
            dataset.x_train[training],
            dataset.y_train[training],
            validation_data=(dataset.x_train[validation], dataset.y_train[validation]),
            batch_size=16 if len(training) < 1000 else 64,
            epochs=arguments.epochs,
            verbose=0,
        )
    if trials is not None:
        report(tuner, trials, dataset, pathlib.Path(tuner.project_dir))
    return 0


def distribute(argv, n_workers, out):
    """A chief and its workers on this machine. A worker that dies is started again and runs its own trial again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(name):
        environment = {
            **os.environ,
            "KERASTUNER_TUNER_ID": name,
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(port),
        }
        command = [sys.executable, __file__, *argv]
        if name == "chief":
            return subprocess.Popen(command, env=environment)
        with open(out / f"{name}.log", "a") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        print(f"{name}: process {process.pid}, log {out / name}.log", flush=True)
        return process

    processes = {"chief": start("chief")}
    restarts = 0
    try:
        while processes["chief"].poll() is None:
            time.sleep(0.5)
            if len(processes) == 1:
                # The chief makes or reloads the project before it listens; workers must not be in its way.
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        processes.update({f"tuner{i}": start(f"tuner{i}") for i in range(n_workers)})
            for name, process in processes.items():
                if name != "chief" and process.poll():
                    restarts += 1
                    if restarts > RESTARTS:
                        print(f"{name} ended with status {process.returncode} again: giving up, see its log")
                        return 1
                    processes[name] = start(name)
        return processes["chief"].returncode
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
                process.wait()


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="GunPoint", help="of the UCR archive, uci_har or basic_motions")
    parser.add_argument("--data-dir", type=pathlib.Path, help="folder of the archive, or of HAR")
    parser.add_argument("--tuner", choices=["random", "bayesian", "hyperband", "grid"], default="random")
    parser.add_argument("--teacher", choices=["self", "snapshot", "ema"], default="self", help="default self")
    parser.add_argument("--all", action="store_true", help="search all parameters, not just the usual suspects")
    parser.add_argument("--trials", type=int, default=12, help="default 12")
    parser.add_argument("--epochs", type=int, default=40, help="of each trial; default 40")
    parser.add_argument("--workers", type=int, default=0, help="processes beside the chief; default 0: only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/tune"), help="default results/tune")
    return parser.parse_args(argv)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.workers and "KERASTUNER_TUNER_ID" not in os.environ:
        return distribute(argv, arguments.workers, arguments.out)
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
