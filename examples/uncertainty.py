"""Is a model as sure as it is right? Reliability diagram and rejection curve of plain, distilled and Monte-Carlo.

    python examples/uncertainty.py                                         # GunPoint, needs no download of data
    python examples/uncertainty.py --dataset uci_har --data-dir path       # as examples/har.py reads it
    python examples/uncertainty.py --models results/deploy                 # what examples/deploy.py trained

A plain and a distilled model are trained from the same weights; each predicts the test split once, and once more by
`keras_ssd.predict_stochastic`, the mean of 30 passes with dropout on. The reliability diagram shows, in ten bins of
equally many windows, how often the most probable class is right against the probability it is given; the calibration
gap is the mean distance of the two. The rejection curve shows the accuracy on the windows that are kept if those of
largest predictive entropy are rejected, and left to somebody else. KERAS_BACKEND chooses the backend.
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
from sklearn.metrics import log_loss

import deploy
import keras_ssd
from _support import har_data
from keras_ssd.plotting import method_styles, plot_rejection, plot_reliability


def predictions(models, x, num_passes, seed):
    told = {name: model.predict(x, verbose=0) for name, model in models.items()}
    for name, model in models.items():
        told[f"{name}, {num_passes} passes"] = keras_ssd.predict_stochastic(
            model, x, num_passes=num_passes, seed=seed, verbose=0
        )
    return told


def draw(told, y, title):
    """Draws the two pictures and returns the scores of each method, the last three from the drawn lines."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    styles, rows = method_styles(method.partition(",")[0] for method in told), {}
    for method, prediction in told.items():
        style = {**styles[method.partition(",")[0]], "linestyle": "--" if "passes" in method else "-", "label": method}
        probabilities = prediction if isinstance(prediction, np.ndarray) else prediction.mean
        bins = plot_reliability(prediction, y, ax=left, markersize=4, **style).lines[-1].get_xydata()
        rejected, accuracy = plot_rejection(prediction, y, ax=right, **style).lines[-1].get_data()
        rows[method] = {
            "accuracy": accuracy[0],
            "NLL": log_loss(y, probabilities, labels=range(probabilities.shape[-1])),
            "calibration gap": np.abs(np.diff(bins)).mean(),
            **{f"best {1 - one:.0%}": accuracy[rejected <= one + 1e-9][-1] for one in (0.1, 0.2)},
        }
    shown = [line.get_ydata()[line.get_xdata() <= 0.5].min() for line in right.lines]
    right.set(xlim=(0, 0.5), ylim=(min(shown) - 0.005, 1.005))  # of few windows the accuracy is a lottery
    return figure, pd.DataFrame(rows).T


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
            models[method] = keras.models.load_model(arguments.models / file, compile=False)
    told = predictions(models, x, arguments.num_passes, arguments.seed)
    figure, rows = draw(told, y, f"{task.name}, {len(x)} test windows")
    print(f"\n{task.name}, {keras.backend.backend()}, {len(x)} test windows")
    print(rows.to_string(float_format="{:.4f}".format))
    path = arguments.out / f"{task.name}.png"
    figure.savefig(path, dpi=80)
    print(f"plot: {path}")


if __name__ == "__main__":
    sys.exit(main())
