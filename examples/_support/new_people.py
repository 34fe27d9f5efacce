"""How well a network knows people that it has not seen: each subject is left out in turn, and every method compared.

In a fold, a fifth of the other subjects validates. All methods start from the same weights and see the same batches.
With a budget of `epochs` (of Adam at a constant 0.001, what most users run):

    plain                   `model.fit`, the weights of the last epoch
    best epoch              ... of the epoch with the lowest validation loss
    averaged                ... their moving average, without teachers
    wrap(model)             `keras_ssd.wrap(model).fit`, which averages the weights, too
    first half              ... the best epoch of the first half of the plain run: where the next four begin
    paper, continued        the second half with the paper's teachers, and without any
    paper, averaged; continued, averaged    ... their moving averages
"""

import argparse
import functools
import json
import pathlib

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, confusion_matrix, log_loss, recall_score
from sklearn.model_selection import GroupShuffleSplit, LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.class_weight import compute_class_weight

import keras_ssd
from _support import comparison
from _support.networks import NETWORKS

BATCH_SIZE = 64
MOMENTUM = 0.99  # of the averages, the default of `wrap`
METHODS = (
    "plain",
    "best epoch",
    "averaged",
    "wrap(model)",
    "first half",
    "paper",
    "continued",
    "paper, averaged",
    "continued, averaged",
)


class Fold:
    """What all methods share when a subject is left out.

    Args:
        people: a `People`.
        subject: who is left out.
        network: a name of `NETWORKS`.
        epochs: the budget.
        seed: of weights, batches, dropout, and of who validates.
        balanced: whether rare classes weigh more, so that all have the same part in the loss.
    """

    def __init__(self, people, subject, network, epochs, seed, balanced):
        others = people.subjects != subject
        x, y, subjects = people.x[others], people.y[others], people.subjects[others]
        split = GroupShuffleSplit(1, test_size=0.2, random_state=seed)
        training, validation = next(split.split(x, groups=subjects))
        # A smaller last batch would be compiled apart, for each method: up to 63 windows by lot are left out for good.
        lot = np.random.default_rng(seed).permutation(training)
        training = np.sort(lot[len(lot) % BATCH_SIZE :]) if len(lot) > BATCH_SIZE else training
        self.training, self.validation = (x[training], y[training]), (x[validation], y[validation])
        self.test = people.x[~others], people.y[~others]
        self.n_classes, self.network, self.epochs, self.seed = people.n_classes, network, epochs, seed
        self.class_weight = None
        if balanced:
            classes = np.unique(y[training])
            weights = compute_class_weight("balanced", classes=classes, y=y[training])
            self.class_weight = dict(zip(classes.tolist(), weights.tolist(), strict=True))

    def model(self, weights=None):
        build = NETWORKS[self.network]
        return comparison.new_model(lambda: build(self.training[0].shape[1:], self.n_classes), self.seed, weights)

    def fit(self, model, epochs):
        """Trains; returns the student's own weights after each epoch, which the average is not fed into."""
        keras.utils.set_random_seed(self.seed)  # the same batches for all
        kept = _Weights()
        model.fit(
            *self.training,
            batch_size=BATCH_SIZE,
            epochs=epochs,
            class_weight=self.class_weight,
            verbose=0,
            callbacks=[kept],
        )
        return kept.weights

    def best(self, model, weights):
        """Those weights that have the lowest validation loss."""

        def loss(candidate):
            model.set_weights(candidate)
            return log_loss(self.validation[1], self.predict(model, self.validation[0]), labels=range(self.n_classes))

        return min(weights, key=loss)

    def predict(self, model, x):
        return model.predict(x, batch_size=256, verbose=0)

    def predictions(self):
        """What each method predicts for the subject that was left out."""
        predictor = self.model()  # one for all, so that its program is compiled once
        model = self.model()
        of_epochs = self.fit(
            keras_ssd.wrap(model, kd_weight=0, ema_momentum=MOMENTUM), self.epochs
        )  # the average only watches
        weights = {
            "plain": of_epochs[-1],
            "best epoch": self.best(predictor, of_epochs),
            "averaged": model.get_weights(),
        }
        model = self.model()
        self.fit(keras_ssd.wrap(model, seed=self.seed), self.epochs)
        weights["wrap(model)"] = model.get_weights()
        half = self.epochs // 2
        weights["first half"] = start = self.best(predictor, of_epochs[:half])
        for name, options in [("paper", keras_ssd.PAPER), ("continued", {"kd_weight": 0})]:
            model = self.model(start)
            ssd = keras_ssd.wrap(model, **{**options, "ema_momentum": MOMENTUM, "seed": self.seed})
            weights[name] = self.fit(ssd, self.epochs - half)[-1]
            weights[f"{name}, averaged"] = model.get_weights()
        found = {}
        for name in METHODS:
            predictor.set_weights(weights[name])
            found[name] = self.predict(predictor, self.test[0])
        return found


class _Weights(keras.callbacks.Callback):
    """Keeps the student's weights of each epoch."""

    def on_train_begin(self, logs=None):
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(getattr(self.model, "student", self.model).get_weights())


def scores(y, predicted, n_classes):
    """The scores of one subject; `confusion` has a row for each true class, as JSON."""
    finite = bool(np.isfinite(predicted).all())
    classes = np.nan_to_num(predicted).argmax(axis=1)
    recalls = recall_score(y, classes, labels=np.unique(y), average="macro", zero_division=0)
    return {
        "accuracy": accuracy_score(y, classes),
        "balanced_accuracy": recalls,
        "nll": log_loss(y, predicted, labels=range(n_classes)) if finite else np.nan,
        "windows": len(y),
        "confusion": json.dumps(confusion_matrix(y, classes, labels=range(n_classes)).tolist()),
        "status": "finished" if finite else "diverged",
    }


def time_only(people):
    """Balanced accuracy for each subject of a logistic regression that knows the minute of the recording and no signal.

    If it is far above chance, the order of the tasks was the same for all, and a signal that drifts can tell the time.
    """
    minutes = np.floor(people.minutes)[:, None]
    model = make_pipeline(
        OneHotEncoder(handle_unknown="ignore"), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    predicted = cross_val_predict(model, minutes, people.y, groups=people.subjects, cv=LeaveOneGroupOut())
    found = {}
    for subject in np.unique(people.subjects):
        rows = people.subjects == subject
        labels = np.unique(people.y[rows])
        found[subject] = recall_score(people.y[rows], predicted[rows], labels=labels, average="macro", zero_division=0)
    return pd.Series(found, name="time only")


def run(people, arguments, balanced):
    """Runs every fold that the CSV file does not hold yet, with a progress bar. Returns the rows of all."""
    path = arguments.out / f"{people.name}.csv"
    key = {"dataset": people.name, "network": arguments.network, "epochs": arguments.epochs}
    key["backend"] = keras.backend.backend()
    subjects = np.unique(people.subjects)[: arguments.folds]
    folds = [(seed, str(subject)) for seed in arguments.seeds for subject in subjects]
    bar = keras.utils.Progbar(len(folds), unit_name="fold")
    frames = []
    for number, (seed, subject) in enumerate(folds, start=1):
        train = functools.partial(run_fold, people, subject, arguments, seed, balanced)
        frames.append(comparison.resume(path, {**key, "seed": seed, "subject": subject}, train))
        bar.update(number)
    return pd.concat(frames)


def run_fold(people, subject, arguments, seed, balanced):
    """The scores of every method on one subject, by method."""
    fold = Fold(people, subject, arguments.network, arguments.epochs, seed, balanced)
    y = fold.test[1]
    return {name: scores(y, predicted, people.n_classes) for name, predicted in fold.predictions().items()}


def table(rows, score, beside=None):
    """The score of each subject (rows) by each method (columns), their mean and deviation."""
    by_subject = rows.pivot_table(index="subject", columns="method", values=score)[list(METHODS)]
    if beside is not None:
        by_subject = by_subject.join(beside)
    return pd.concat([by_subject, by_subject.mean().to_frame("mean").T, by_subject.std().to_frame("+-").T])


def plot_confusion(rows, class_names, path, methods=("plain", "wrap(model)")):
    """Saves the confusion matrices of two methods over all subjects, in shares of the true class."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, method in zip(figure.subplots(1, len(methods)), methods, strict=True):
        counts = np.sum([json.loads(text) for text in rows[rows.method == method].confusion], axis=0)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        names = [name.lower().replace("_", "\n") for name in class_names]
        ConfusionMatrixDisplay(shares, display_labels=names).plot(
            ax=axes, cmap="Blues", colorbar=False, values_format=".2f", xticks_rotation=45
        )
        axes.set(title=f"{method}, subjects that were left out", xlabel="recognised as", ylabel="class")
    figure.savefig(path, dpi=80)
    print(f"plot: {path}")


def compare(people, arguments, score, balanced, beside=None):
    """Runs, prints and draws the comparison of one data set. Returns the exit status, 1 if a run diverged.

    `beside(people)` may return a further column of the table: a score by subject.
    """
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = run(people, arguments, balanced)
    n_subjects = rows.subject.nunique()
    name = f"{people.name}, {arguments.network}, {arguments.epochs} epochs, {keras.backend.backend()}"
    print(f"\n{name}: {score} on the subject that was left out, {n_subjects} subjects")
    print(table(rows, score, beside(people) if beside else None).to_string(float_format="{:.4f}".format))
    print("\nWith a budget" + __doc__.partition("With a budget")[2].rstrip())
    plot_confusion(rows, people.class_names, arguments.out / f"{people.name}-{arguments.network}.png")
    return int((rows.status == "diverged").any())


def chosen(argv, names):
    """Whether `--dataset` is one of the names, before all options are known."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--dataset")
    return parser.parse_known_args(argv)[0].dataset in names


def parse(parser, argv, out, epochs):
    """Parses with the options that a comparison on new people has."""
    parser.add_argument("--network", choices=list(NETWORKS), default="conv", help="default conv")
    parser.add_argument("--folds", type=int, help="how many subjects to leave out in turn; default: each one")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"of each training; default {epochs}")
    parser.add_argument("--seeds", type=comparison.seeds, default=[0], help="how many (3), or which (0,5,7); default 1")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out), help=f"default {out}")
    arguments = parser.parse_args(argv)
    if arguments.data_dir is None:
        parser.error(f"--dataset {arguments.dataset} needs --data-dir, the folder of the data set")
    if arguments.epochs < 2:
        parser.error(f"--epochs should be 2 at least: half of them for what goes on. Received: {arguments.epochs}")
    return arguments
