"""Is a model as sure as it is right? Reliability diagram and rejection curve of plain, distilled and Monte-Carlo.

    python examples/uncertainty.py                                         # GunPoint, needs no download of data
    python examples/uncertainty.py --dataset uci_har --data-dir path       # as examples/har.py reads it
    python examples/uncertainty.py --models results/deploy                 # what examples/deploy.py trained

A plain and a distilled model are trained from the same weights; each predicts the test split once, and once more by
`keras_ssd.predict_stochastic`, the mean of 30 passes with dropout on. The reliability diagram shows, in ten bins of
equally many windows, how often the most probable class is right against the probability it is given; the calibration
gap is the mean distance of the two. The rejection curve shows the accuracy on the windows that are kept if those of
largest predictive entropy are left to somebody else. KERAS_BACKEND chooses the backend.
"""

import argparse
import logging
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay, calibration_curve
from sklearn.metrics import log_loss

import deploy
import keras_ssd
from _support import har_data

BINS = {"n_bins": 10, "strategy": "quantile"}


def entropy(probabilities):
    return -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-30)), axis=-1)


def predictions(models, x, num_passes, seed):
    """For each method probabilities `(windows, classes)` and predictive entropy `(windows,)`."""
    told = {}
    for name, model in models.items():
        probabilities = model.predict(x, verbose=0)
        told[name] = probabilities, entropy(probabilities)
    for name, model in models.items():
        passes = keras_ssd.predict_stochastic(model, x, num_passes=num_passes, seed=seed, verbose=0)
        told[f"{name}, {num_passes} passes"] = passes.mean, passes.predictive_entropy
    return told


def rejection_curve(correct, uncertainty):
    """Share of windows kept, 1/n .. 1, and the accuracy on those of lowest uncertainty."""
    kept = np.arange(1, len(correct) + 1)
    return kept / len(correct), np.cumsum(correct[np.argsort(uncertainty, kind="stable")]) / kept


def scores(probabilities, uncertainty, y):
    correct, confidence = probabilities.argmax(axis=-1) == y, probabilities.max(axis=-1)
    observed, predicted = calibration_curve(correct, confidence, **BINS)
    share, accuracy = rejection_curve(correct, uncertainty)
    return {
        "accuracy": correct.mean(),
        "NLL": log_loss(y, probabilities, labels=range(probabilities.shape[-1])),
        "calibration gap": np.abs(observed - predicted).mean(),
        "best 90 %": accuracy[np.searchsorted(share, 0.9)],
        "best 80 %": accuracy[np.searchsorted(share, 0.8)],
    }


def plot(told, y, title, path):
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    reliability, rejection = figure.subplots(1, 2)
    for number, (method, (probabilities, uncertainty)) in enumerate(told.items()):
        style = {"color": f"C{number % 2}", "linestyle": "-" if number < 2 else "--"}
        correct = probabilities.argmax(axis=-1) == y
        CalibrationDisplay.from_predictions(
            correct, probabilities.max(axis=-1), **BINS, name=method, ax=reliability, markersize=4, **style
        )
        share, accuracy = rejection_curve(correct, uncertainty)
        rejection.plot(share, accuracy, label=method, **style)
    points = np.concatenate([line.get_xydata().ravel() for line in reliability.get_lines()[1:]])
    reliability.set(
        xlim=(points.min() - 0.05, 1.02),
        ylim=(points.min() - 0.05, 1.02),
        title=f"{title}: reliability",
        xlabel="probability of the most probable class",
        ylabel="how often it is right",
    )
    rejection.set(title="rejection curve", xlabel="share of windows kept", ylabel="accuracy on them", xlim=(0.5, 1))
    kept = [line.get_ydata()[line.get_xdata() >= 0.5] for line in rejection.get_lines()]
    rejection.set_ylim(min(map(np.min, kept)) - 0.005, 1.005)
    rejection.legend()
    figure.savefig(path, dpi=80)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", default="GunPoint", metavar="NAME", help=f"of the UCR archive, or {har_data.NAMES}"
    )
    parser.add_argument("--data-dir", type=pathlib.Path, help="where the data set lies; default: where aeon has it")
    parser.add_argument("--models", type=pathlib.Path, help="folder with plain.keras and student.keras")
    parser.add_argument("--num-passes", type=int, default=30, help="default 30")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100, help="of each training; default 100")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/uncertainty"), help="for the picture")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    arguments.out.mkdir(parents=True, exist_ok=True)
    task, (x, y) = deploy.load(arguments.dataset, arguments.data_dir, arguments.seed)
    models = {}
    for method, file in (("plain", "plain.keras"), ("distilled", "student.keras")):
        if arguments.models is None:
            models[method] = deploy.train(task, method, arguments.seed, arguments.epochs)
        else:
            models[method] = keras.models.load_model(arguments.models / file)
    told = predictions(models, x, arguments.num_passes, arguments.seed)
    rows = pd.DataFrame({method: scores(*one, y) for method, one in told.items()}).T
    print(f"\n{task.name}, {keras.backend.backend()}, {len(x)} test windows")
    print(rows.to_string(float_format="{:.4f}".format))
    path = arguments.out / f"{task.name}.png"
    plot(told, y, task.name, path)
    print(f"plot: {path}")


if __name__ == "__main__":
    sys.exit(main())
