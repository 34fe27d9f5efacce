"""What the examples share: a task, training one model for it, comparing by `keras_ssd.compare`, rows in a CSV file.

Example:
    task = comparison.Task("digits", build, training=(x, y), validation=(x_val, y_val), batch_size=16)
    rows = comparison.run(arguments, lambda seed: task, test=(x_test, y_test))
    print(keras_ssd.Comparison(rows))
"""

import ast
import pathlib
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


class Task(NamedTuple):
    """What is compared: `build()` returns a new model that classifies, `training` and `validation` are `(x, y)`."""

    name: str
    build: Callable
    training: tuple
    validation: tuple
    batch_size: int


class Run(NamedTuple):
    """One training: what was fitted, its history, seconds per epoch."""

    trained: keras.Model
    history: dict
    seconds: float

    @property
    def model(self):
        """The model to deploy."""
        return getattr(self.trained, "student", self.trained)


class Keep(keras.callbacks.Callback):
    """Puts the run of an arm into a dictionary, for plots of the models themselves."""

    def __init__(self, runs, arm):
        super().__init__()
        self.runs, self.arm = runs, arm

    def on_train_end(self, logs=None):
        self.runs[self.arm] = Run(self.model, self.model.history.history, 0.0)


def compiled(model):
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def new_model(build, seed, weights=None):
    """A compiled model; the same seed gives the same initial weights."""
    keras.utils.set_random_seed(seed)
    model = build()
    if weights is not None:
        model.set_weights(weights)
    return compiled(model)


def falling_rate(epochs):
    """A learning rate that falls to 0; with a constant one the last epoch of a small set is a lottery."""
    decay = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs)
    return keras.callbacks.LearningRateScheduler(lambda epoch: float(decay(epoch)))


def fit(method, model, task, seed, epochs, callbacks=()):
    """Trains one model with a falling learning rate."""
    print(f"{task.name}, seed {seed}: {method}", flush=True)
    keras.utils.set_random_seed(seed)  # plain and distilled see the same batches
    began = time.perf_counter()
    history = model.fit(
        *task.training,
        validation_data=task.validation,
        batch_size=task.batch_size,
        epochs=epochs,
        verbose=0,
        callbacks=[keras.callbacks.TerminateOnNaN(), falling_rate(epochs), *callbacks],
    )
    return Run(model, history.history, (time.perf_counter() - began) / epochs)


def run(arguments, make_task, test, falling=True, runs=None, **key):
    """The rows of `keras_ssd.compare` for all seeds, with `key` in each. The folder's file keeps them.

    Args:
        arguments: as from `parse`.
        make_task: a function of the seed that returns a `Task`.
        test: the rows to score, `(x, y)`.
        falling: whether the learning rate falls to 0.
        runs: a dictionary for the runs of the first seed, by arm, if they are trained now.
    """

    def callbacks(arm):
        kept = [Keep(runs, arm)] if runs is not None and seed == arguments.seeds[0] else []
        stop = keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
        first_stage = arm == "plain" and arguments.setting in ("snapshot", "paper")
        nan = keras.callbacks.TerminateOnNaN()
        return [nan, *[falling_rate(arguments.epochs)] * falling, *[stop] * first_stage, *kept]

    rows = []
    for seed in arguments.seeds:
        task = make_task(seed)
        print(f"{task.name}, seed {seed}", flush=True)
        names = dict.fromkeys([task.name, *key.values(), arguments.setting_name, arguments.epochs])
        name = "-".join(map(str, names))
        result = keras_ssd.compare(
            lambda task=task: compiled(task.build()),
            task.training,
            task.validation,
            test,
            arguments.settings,
            seeds=[seed],
            out=arguments.out / f"{name}-{keras.backend.backend()}.jsonl",
            batch_size=task.batch_size,
            epochs=arguments.epochs,
            callbacks=callbacks,
        )
        rows += [{**key, **row} for row in result.rows]
    return rows


def status(rows):
    """The exit status of a script: 1 if a run diverged."""
    return int(any(row["status"] == "diverged" for row in rows))


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
    """Draws accuracy and validation loss by epoch into two axes; the legend of both is on the right."""
    for arm, style in keras_ssd.plotting.method_styles(runs).items():
        history = runs[arm].history
        epochs = 1 + np.arange(len(history["loss"]))
        accuracy.plot(epochs, history["accuracy"], alpha=0.3, **style)
        accuracy.plot(epochs, history["val_accuracy"], **style)
        loss.plot(epochs, history["val_loss"], label=arm, **style)
    accuracy.set(title=f"{title}: validation accuracy (pale: training)", xlabel="epoch", ylabel="accuracy")
    title = "validation loss, without distillation"
    loss.set(title=title, xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    for axes in (accuracy, loss):
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    loss.legend(loc="center left", bbox_to_anchor=(1, 0.5))


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
    help_set = "a further arm with these options of `wrap` changed, and named by them; may be repeated"
    parser.add_argument("--set", nargs="+", action="append", default=[], metavar="OPTION=VALUE", help=help_set)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out), help=f"default {out}")


def value(text):
    """A Python literal, or the text itself: `0.5`, `None`, `cosine`."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def parse(parser, argv):
    """Parses and adds `settings` for `keras_ssd.compare`, and `setting_name`, by which files are named."""
    arguments = parser.parse_args(argv)
    if arguments.paper and arguments.num_teachers is not None:
        parser.error("--paper fixes the number of teachers: leave --num-teachers out or use --teacher snapshot")
    if unnamed := [one for options in arguments.set for one in options if "=" not in one]:
        parser.error(f"--set takes OPTION=VALUE. Received: {unnamed}")
    arguments.setting = "paper" if arguments.paper else arguments.teacher
    num_teachers = arguments.num_teachers
    arguments.setting_name = arguments.setting if num_teachers is None else f"{arguments.setting}-{num_teachers}"
    options = keras_ssd.PAPER if arguments.paper else {"teacher": arguments.teacher, "num_teachers": num_teachers}
    changes = [dict(one.split("=", 1) for one in changed) for changed in arguments.set]
    arm = "wrap" if arguments.setting_name == "self" else arguments.setting_name
    arguments.settings = {arm: options} | {
        " ".join(changed): {**options, **{name: value(text) for name, text in change.items()}}
        for changed, change in zip(arguments.set, changes, strict=True)
    }
    return arguments
