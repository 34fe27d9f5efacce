"""Trains a plain and a distilled Conv1D net on data sets of the UCR archive and compares them on the test split.

    python examples/ucr.py                                             # GunPoint, needs no download of data
    python examples/ucr.py --dataset all --data-dir path/to/archive      # every data set of the archive's own layout
    python examples/ucr.py --dataset Coffee Ham --data-dir path --paper  # the paper's pipeline and setting

Plain and distilled start from the same weights and train for as many epochs with the same batches and a learning rate
that falls to 0 (with a constant one the last epoch is a lottery on sets this small). With `--teacher snapshot` and
`--paper` the paper's pipeline applies: the plain model, stopped early, is the teacher, and the student goes on from its
weights. As such a student trains for longer than the plain model, the fair control is `plain, continued`: the same
weights, trained for as many more epochs without teachers. The averaged weights of `--teacher ema` are compared with
those of `plain, averaged`, which had no teachers, for the same reason.

Part of the training split is held out for early stopping and for the curves; nothing is chosen on the test split.
The results of every run go to a CSV file; runs that it holds already are not repeated. The exit status is 1 if a run
diverged. KERAS_BACKEND chooses the backend.
"""

import argparse
import logging
import os
import pathlib
import sys
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greeting would bury the table

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, log_loss

import keras_ssd
import ucr_data

BATCH_SIZE = 16
LEARNING_RATE = 1e-3
PATIENCE = 20  # epochs that the paper's teacher waits for a lower validation loss
CONTROLS = {"snapshot": "plain, continued", "paper": "plain, continued", "ema": "plain, averaged"}


class Run(NamedTuple):
    """One training: what was fitted, its history, the epoch at which it took over, seconds per epoch."""

    trained: keras.Model
    history: dict
    first_epoch: int
    seconds: float


class EpochProgress(keras.callbacks.Callback):
    """A progress bar over the epochs, which also takes their times."""

    def __init__(self, epochs):
        super().__init__()
        shown = ["loss", "val_loss", "val_accuracy"]
        interval = 0.2 if sys.stdout.isatty() else float("inf")  # in a log file only the final state
        self.bar = keras.utils.Progbar(epochs, unit_name="epoch", interval=interval, stateful_metrics=shown)
        self.shown = shown
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.began)
        self.logs = [(name, float(logs[name])) for name in self.shown if name in logs]
        self.bar.update(epoch + 1, self.logs, finalize=False)

    def on_train_end(self, logs=None):
        self.bar.update(len(self.seconds), self.logs, finalize=True)

    def steady(self):
        """Seconds per epoch without the first one, in which the backends compile."""
        return float(np.mean(self.seconds[1:] or self.seconds))


def new_model(dataset, seed, weights=None):
    """A compiled Conv1D net (a smaller FCN baseline with dropout); the same seed gives the same initial weights."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(dataset.x_train.shape[1:])
    x = inputs
    for filters, kernel_size in [(64, 8), (128, 5), (64, 3)]:
        x = keras.layers.Conv1D(filters, kernel_size, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)  # small sets make few steps
        x = keras.layers.Activation("relu")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dropout(0.3)(x)
    model = keras.Model(inputs, keras.layers.Dense(dataset.n_classes, activation="softmax")(x))
    if weights is not None:
        model.set_weights(weights)
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(method, model, dataset, seed, epochs, first_epoch=0, callbacks=()):
    print(f"{dataset.name}, seed {seed}: {method}", flush=True)
    training, validation = ucr_data.hold_out(dataset.y_train, seed)
    keras.utils.set_random_seed(seed)  # plain and distilled see the same batches
    progress = EpochProgress(epochs)
    falling = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: float(falling(epoch)))
    history = model.fit(
        dataset.x_train[training],
        dataset.y_train[training],
        validation_data=(dataset.x_train[validation], dataset.y_train[validation]),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        verbose=0,
        callbacks=[progress, schedule, keras.callbacks.TerminateOnNaN(), *callbacks],
    )
    return Run(model, history.history, first_epoch, progress.steady())


def distiller(model, setting, n_teachers, seed):
    if setting == "paper":
        return keras_ssd.SSDModel.paper(model)
    return keras_ssd.wrap(model, teacher=setting, n_teachers=n_teachers, seed=seed)


def compare(dataset, setting, n_teachers, seed, epochs):
    """Trains plain, distilled and, where plain is no fair comparison, the control. Returns their runs by name."""
    warm_start = setting in ("snapshot", "paper")
    stop_early = keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
    model = new_model(dataset, seed)
    runs = {"plain": fit("plain", model, dataset, seed, epochs, callbacks=[stop_early] if warm_start else [])}
    weights = model.get_weights() if warm_start else None
    first_epoch = len(runs["plain"].history["loss"]) if warm_start else 0
    if control := CONTROLS.get(setting):
        model = new_model(dataset, seed, weights)
        if setting == "ema":
            model = keras_ssd.wrap(model, teacher="ema", kd_weight=0)  # averages, but evaluates no teachers
        runs[control] = fit(control, model, dataset, seed, epochs, first_epoch)
    ssd = distiller(new_model(dataset, seed, weights), setting, n_teachers, seed)
    runs["distilled"] = fit(f"distilled ({setting})", ssd, dataset, seed, epochs, first_epoch)
    return runs


def scores(run, dataset):
    """The test scores of one run; a run whose loss or predictions left the finite numbers has diverged."""
    model = getattr(run.trained, "student", run.trained)
    predictions = model.predict(dataset.x_test, verbose=0)
    finite = bool(np.isfinite(predictions).all() and np.isfinite(run.history["loss"]).all())
    return {
        "accuracy": accuracy_score(dataset.y_test, predictions.argmax(axis=1)),
        "nll": log_loss(dataset.y_test, predictions, labels=range(dataset.n_classes)) if finite else np.nan,
        "seconds_per_epoch": run.seconds,
        "parameters": model.count_params(),
        "status": "finished" if finite else "diverged",
    }


def plot(runs, dataset, path):
    """Saves the training curves and the teachers' weights of one batch, before and after the percentile filter."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    (accuracy, loss), heat_maps = figure.subplots(2, 2)
    for number, (method, run) in enumerate(runs.items()):
        epochs = run.first_epoch + 1 + np.arange(len(run.history["loss"]))
        accuracy.plot(epochs, run.history["accuracy"], f"C{number}", label=f"{method}: training")
        accuracy.plot(epochs, run.history["val_accuracy"], f"C{number}--", label=f"{method}: validation")
        loss.plot(epochs, run.history["val_loss"], f"C{number}", label=method)
    accuracy.set(title=f"{dataset.name}: accuracy", xlabel="epoch", ylabel="accuracy")
    loss.set(title="validation loss, without distillation", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    accuracy.legend()
    loss.legend()
    ssd, batch = runs["distilled"].trained, dataset.x_train[:BATCH_SIZE]
    before, after = ssd.teacher_weights(batch, percentile=0), ssd.teacher_weights(batch)
    for axes, weights, when in zip(heat_maps, (before, after), ("before", "after"), strict=True):
        image = axes.imshow(weights, aspect="auto", vmin=0)
        axes.set(title=f"teachers' weights {when} the percentile filter", xlabel="teacher", ylabel="sample")
        figure.colorbar(image, ax=axes)
    figure.savefig(path)
    print(f"plot: {path}")


def summary(rows, title):
    """The table of means over seeds and data sets, and what distillation changes against each other method."""
    groups = rows.groupby("method", sort=False)
    table = groups[["accuracy", "nll", "seconds_per_epoch", "parameters"]].mean()
    if rows.dataset.nunique() == 1 and rows.seed.nunique() > 1:
        table.insert(1, "+-", groups.accuracy.std())
    lines = ["", title, table.to_string(float_format="{:.4f}".format, formatters={"parameters": "{:.0f}".format})]
    paired = rows.pivot(index=["dataset", "seed"], columns="method", values=["accuracy", "nll"])
    for method in table.index.drop("distilled"):
        gain = {score: paired[score]["distilled"] - paired[score][method] for score in ("accuracy", "nll")}
        by_set = gain["accuracy"].groupby("dataset").mean()
        lines.append(
            f"distilled minus {method}: accuracy {gain['accuracy'].mean():+.4f}, nll {gain['nll'].mean():+.4f}; "
            f"more accurate on {(by_set > 0).sum()}, less on {(by_set < 0).sum()} of {len(by_set)}"
        )
    for row in rows[rows.status == "diverged"].itertuples():
        lines.append(f"DIVERGED: {row.dataset}, seed {row.seed}, {row.method}")
    return "\n".join(lines)


def recorded(path, key):
    """The rows of one experiment in the CSV file of earlier calls."""
    if not path.exists():
        return pd.DataFrame()
    rows = pd.read_csv(path)
    return rows[(rows[list(key)] == pd.Series(key)).all(axis=1)]


def run_dataset(dataset, arguments, setting):
    """Runs every seed that the CSV file does not hold yet. Returns the rows of all of them."""
    folder, frames = arguments.out, []
    path = folder / "results.csv"
    for seed in arguments.seeds:
        key = {
            "dataset": dataset.name,
            "setting": setting if arguments.n_teachers is None else f"{setting}-{arguments.n_teachers}",
            "epochs": arguments.epochs,
            "backend": keras.backend.backend(),
            "seed": seed,
        }
        rows = recorded(path, key)
        if rows.empty:
            runs = compare(dataset, setting, arguments.n_teachers, seed, arguments.epochs)
            rows = pd.DataFrame([{**key, "method": method, **scores(run, dataset)} for method, run in runs.items()])
            rows.to_csv(path, mode="a", header=not path.exists(), index=False)
            if seed == arguments.seeds[0]:
                plot(runs, dataset, folder / f"{dataset.name}-{key['setting']}.png")
        frames.append(rows)
    return pd.concat(frames)


def seeds(text):
    """`3` stands for the seeds 0, 1, 2; `0,5,7` for just those."""
    return [int(part) for part in text.split(",") if part] if "," in text else list(range(int(text)))


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", default=["GunPoint"], metavar="NAME", help="or `all` with --data-dir")
    parser.add_argument("--data-dir", type=pathlib.Path, help=f"folder {ucr_data.ARCHIVE}, or the one that holds it")
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2], help="how many (3), or which (0,5,7); default 3")
    parser.add_argument("--epochs", type=int, default=100, help="of each training; default 100")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--teacher", choices=["self", "snapshot", "ema"], default="self", help="default self")
    kind.add_argument("--paper", action="store_true", help="the paper's setting: snapshot, 30 teachers, features")
    parser.add_argument("--n-teachers", type=int, help="stochastic passes per step; default: that of the teacher")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/ucr"), help="default results/ucr")
    arguments = parser.parse_args(argv)
    if arguments.paper and arguments.n_teachers is not None:
        parser.error("--paper fixes the number of teachers: leave --n-teachers out or use --teacher snapshot")
    if arguments.dataset == ["all"]:
        if arguments.data_dir is None:
            parser.error("--dataset all needs --data-dir, the folder of the archive")
        arguments.dataset = ucr_data.names(arguments.data_dir)
    return arguments


def main(argv=None):
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    setting = "paper" if arguments.paper else arguments.teacher
    arguments.out.mkdir(parents=True, exist_ok=True)
    frames = []
    for name in arguments.dataset:
        frames.append(run_dataset(ucr_data.load(name, arguments.data_dir), arguments, setting))
        print(summary(frames[-1], f"{name}, {setting}, {len(arguments.seeds)} seeds"), flush=True)
    rows = pd.concat(frames)
    if len(frames) > 1:
        print(summary(rows, f"Mean over {len(frames)} data sets, {setting}, {len(arguments.seeds)} seeds"))
    return int((rows.status == "diverged").any())


if __name__ == "__main__":
    sys.exit(main())
