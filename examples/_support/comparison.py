"""Plain against distilled training, as the examples compare them: from the same weights, on the same batches.

With the teachers `snapshot` and `paper` the paper's pipeline applies: the plain model, stopped early, is the teacher,
and the student goes on from its weights. The fair control is then `plain, continued`: the same weights, trained for as
many more epochs without teachers. The averaged weights of `self` and `ema` are compared with those of `plain,
averaged`.

Example:
    task = comparison.Task("digits", build, training=(x, y), validation=(x_val, y_val), batch_size=16)
    runs = comparison.compare(task, setting="self", num_teachers=None, seed=0, epochs=100)
    rows = [{"method": method, **comparison.scores(run, x_test, y_test, 10)} for method, run in runs.items()]
"""

import pathlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, log_loss

import keras_ssd

LEARNING_RATE = 1e-3
PATIENCE = 20  # epochs that the paper's teacher waits for a lower validation loss
CONTROLS = {
    "self": "plain, averaged",
    "ema": "plain, averaged",
    "snapshot": "plain, continued",
    "paper": "plain, continued",
}
# Of Okabe and Ito, distinct for colour-blind readers, too.
COLORS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#595959"]
REPEATS = ("dataset", "seed", "subject")  # columns that tell the repetitions of one comparison apart


class Task(NamedTuple):
    """What is compared: `build()` returns a new model that classifies, `training` and `validation` are `(x, y)`."""

    name: str
    build: Callable
    training: tuple
    validation: tuple
    batch_size: int


class Run(NamedTuple):
    """One training: what was fitted, its history, the epoch at which it took over, seconds per epoch."""

    trained: keras.Model
    history: dict
    first_epoch: int
    seconds: float

    @property
    def model(self):
        """The model to deploy."""
        return getattr(self.trained, "student", self.trained)


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


def new_model(build, seed, weights=None):
    """A compiled model; the same seed gives the same initial weights."""
    keras.utils.set_random_seed(seed)
    model = build()
    if weights is not None:
        model.set_weights(weights)
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(method, model, task, seed, epochs, first_epoch=0, callbacks=(), falling=True):
    """Trains with a learning rate that falls to 0; with a constant one the last epoch of a small set is a lottery."""
    print(f"{task.name}, seed {seed}: {method}", flush=True)
    keras.utils.set_random_seed(seed)  # plain and distilled see the same batches
    progress = EpochProgress(epochs)
    if falling:
        decay = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs)
        callbacks = [keras.callbacks.LearningRateScheduler(lambda epoch: float(decay(epoch))), *callbacks]
    history = model.fit(
        *task.training,
        validation_data=task.validation,
        batch_size=task.batch_size,
        epochs=epochs,
        verbose=0,
        callbacks=[progress, keras.callbacks.TerminateOnNaN(), *callbacks],
    )
    return Run(model, history.history, first_epoch, progress.steady())


def distiller(model, setting, num_teachers, seed):
    if setting == "paper":
        return keras_ssd.wrap(model, **keras_ssd.PAPER)
    return keras_ssd.wrap(model, teacher=setting, num_teachers=num_teachers, seed=seed)


def compare(task, setting, num_teachers, seed, epochs, falling=True):
    """Trains plain, distilled and, where plain is no fair comparison, the control. Returns their runs by name.

    `falling` says whether the learning rate falls to 0.
    """
    warm_start = setting in ("snapshot", "paper")
    stop_early = keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
    model = new_model(task.build, seed)
    callbacks = [stop_early] if warm_start else []
    runs = {"plain": fit("plain", model, task, seed, epochs, callbacks=callbacks, falling=falling)}
    weights = model.get_weights() if warm_start else None
    first_epoch = len(runs["plain"].history["loss"]) if warm_start else 0
    if control := CONTROLS.get(setting):
        model = new_model(task.build, seed, weights)
        if control == "plain, averaged":
            model = keras_ssd.wrap(model, kd_weight=0, ema_momentum=0.99)  # evaluates no teachers
        runs[control] = fit(control, model, task, seed, epochs, first_epoch, falling=falling)
    ssd = distiller(new_model(task.build, seed, weights), setting, num_teachers, seed)
    runs["distilled"] = fit(f"distilled ({setting})", ssd, task, seed, epochs, first_epoch, falling=falling)
    return runs


def scores(run, x, y, n_classes):
    """The scores of one run on the test split; if its loss or predictions left the finite numbers, it has diverged."""
    predictions = run.model.predict(x, verbose=0)
    finite = bool(np.isfinite(predictions).all() and np.isfinite(run.history["loss"]).all())
    return {
        "accuracy": accuracy_score(y, predictions.argmax(axis=1)),
        "nll": log_loss(y, predictions, labels=range(n_classes)) if finite else np.nan,
        "seconds_per_epoch": run.seconds,
        "parameters": run.model.count_params(),
        "status": "finished" if finite else "diverged",
    }


def plot_curves(runs, title, accuracy, loss):
    """Draws accuracy and validation loss by epoch into two axes."""
    for number, (method, run) in enumerate(runs.items()):
        epochs, color = run.first_epoch + 1 + np.arange(len(run.history["loss"])), COLORS[number]
        accuracy.plot(epochs, run.history["accuracy"], color=color, label=f"{method}: training")
        accuracy.plot(epochs, run.history["val_accuracy"], "--", color=color, label=f"{method}: validation")
        loss.plot(epochs, run.history["val_loss"], color=color, label=method)
    accuracy.set(title=f"{title}: accuracy", xlabel="epoch", ylabel="accuracy")
    loss.set(title="validation loss, without distillation", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    accuracy.legend()
    loss.legend()


def summary(rows, title, counted="dataset"):
    """The table of means over all repetitions, and what distillation changes against each other method.

    Gains and losses are counted over the data sets, or over another of the columns `REPEATS`.
    """
    groups = rows.groupby("method", sort=False)
    table = groups[["accuracy", "nll", "seconds_per_epoch", "parameters"]].mean()
    if rows.dataset.nunique() == 1 and groups.size().max() > 1:
        table.insert(1, "+-", groups.accuracy.std())
    text = table.to_string(float_format="{:.4f}".format, formatters={"parameters": "{:.0f}".format})
    return "\n".join(["", title, text, *differences(rows, counted)])


def differences(rows, counted="dataset"):
    """Lines that say what distillation changes against each other method, and which runs diverged."""
    repeats = [column for column in REPEATS if column in rows]
    paired = rows.pivot(index=repeats, columns="method", values=["accuracy", "nll"])
    lines = []
    for method in rows.method[rows.method != "distilled"].unique():
        gain = {score: paired[score]["distilled"] - paired[score][method] for score in ("accuracy", "nll")}
        by_one = gain["accuracy"].groupby(counted).mean().round(9)  # equal means may differ in their last digits
        means = {score: round(values.mean(), 9) + 0.0 for score, values in gain.items()}
        lines.append(
            f"distilled minus {method}: accuracy {means['accuracy']:+.4f}, nll {means['nll']:+.4f}; "
            f"more accurate on {(by_one > 0).sum()}, less on {(by_one < 0).sum()} of {len(by_one)}"
        )
    for row in rows[rows.status == "diverged"].itertuples():
        lines.append(
            "DIVERGED: " + ", ".join([row.dataset, *(f"{c} {getattr(row, c)}" for c in repeats[1:]), row.method])
        )
    return lines


def resume(path, key, train):
    """The rows of one experiment: those that the CSV file holds already, or those that `train()` returns.

    Args:
        path: the CSV file; new rows are appended.
        key: dictionary of the columns that tell this experiment from the others.
        train: runs it and returns a dictionary of scores by method.
    """
    if path.exists():
        words = {name: str for name, value in key.items() if isinstance(value, str)}  # a subject `01` is not 1
        rows = pd.read_csv(path, dtype=words, keep_default_na=False, na_values=[""])
        rows = rows[(rows[list(key)] == pd.Series(key)).all(axis=1)]
        if not rows.empty:
            return rows
    rows = pd.DataFrame([{**key, "method": method, **scored} for method, scored in train().items()])
    append(rows, path)
    return rows


def append(rows, path):
    """Appends to a CSV file, so that it is whole at any time: a new one is written beside it and takes its name."""
    text = path.read_text() if path.exists() else ""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text + rows.to_csv(header=not text, index=False))
    beside.replace(path)


def repeat(arguments, train, **key):
    """The rows of one experiment for all seeds; `train(seed)` runs those that the folder's CSV file does not hold."""
    key |= {"setting": arguments.setting_name, "epochs": arguments.epochs, "backend": keras.backend.backend()}
    path = arguments.out / "results.csv"
    return pd.concat([resume(path, {**key, "seed": seed}, partial(train, seed)) for seed in arguments.seeds])


def seeds(text):
    """`3` stands for the seeds 0, 1, 2; `0,5,7` for just those."""
    return [int(part) for part in text.split(",") if part] if "," in text else list(range(int(text)))


def add_options(parser, out, epochs, n_seeds=3):
    """Gives a parser the options that all comparisons have."""
    help_seeds = f"how many (3), or which (0,5,7); default {n_seeds}"
    parser.add_argument("--seeds", type=seeds, default=list(range(n_seeds)), help=help_seeds)
    parser.add_argument("--epochs", type=int, default=epochs, help=f"of each training; default {epochs}")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--teacher", choices=["self", "snapshot", "ema"], default="self", help="default self")
    kind.add_argument("--paper", action="store_true", help="the paper's setting: snapshot, 30 teachers, features")
    parser.add_argument("--num-teachers", type=int, help="stochastic passes per step; default: that of the teacher")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out), help=f"default {out}")


def parse(parser, argv):
    """Parses and adds `setting`, what the distilled model is trained by, and `setting_name`, with its teachers."""
    arguments = parser.parse_args(argv)
    if arguments.paper and arguments.num_teachers is not None:
        parser.error("--paper fixes the number of teachers: leave --num-teachers out or use --teacher snapshot")
    arguments.setting = "paper" if arguments.paper else arguments.teacher
    num_teachers = arguments.num_teachers
    arguments.setting_name = arguments.setting if num_teachers is None else f"{arguments.setting}-{num_teachers}"
    return arguments
