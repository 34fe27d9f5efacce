"""Trains on sensor windows of which few are labelled: what do the others teach?

    python examples/unlabelled.py                                                    # BasicMotions, no download
    python examples/unlabelled.py --dataset uci_har --data-dir path                    # path/UCI HAR Dataset
    python examples/unlabelled.py --dataset uci_har --label-fraction 0.02 0.1 1         # the learning curve

All networks hold the same augmentation, and take the same number of steps with as many labelled windows in each:

- plain: on the labelled windows;
- averaged: the same with averaged weights (`keras_ssd.AVERAGING`), the control;
- distilled: three windows without a label beside each that has one; four teachers, the moving average of the network,
  see views of their own, and their mean is a label where it is sure (`keras_ssd.SEMI_SUPERVISED`);
- all labels: as averaged, with every label of the training split, the upper bound.

BasicMotions, which needs no download, is learnt from 8 windows already: it shows how, not how much.

Nothing is chosen on the test split, which is used once for every model; nothing is chosen on other labels either, which
are too few. The results go to a CSV file; runs that it holds already are not repeated. KERAS_BACKEND chooses the
backend.
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

import har
import keras_ssd
from _support import comparison, har_data
from keras_ssd.augmentation import Jitter, Rotation, Scaling, TimeMask, TimeShift

BATCH_SIZE = 16  # labelled windows
METHODS = ("plain", "averaged", "distilled", "all labels")


def network(x, n_classes):
    """The net of `har.py` with the augmentation of benchmarks/few_labels.md."""
    return har.conv_net(x, n_classes, [Rotation(10)], [Scaling(0.2), Jitter(0.1), TimeMask(0.25), TimeShift(0.25)])


def run(dataset, fraction, ratio, seed, epochs, n_steps):
    """Trains by every method. Returns their runs by name."""
    everything = np.arange(len(dataset.y_train))
    labelled = har_data.label_subset(dataset.y_train, everything, fraction, seed)
    unlabelled = np.setdiff1d(everything, labelled)
    x, y = dataset.x_train, dataset.y_train

    def evenly(rows):
        return har_data.EvenEpochs(x[rows], y[rows], n_steps, BATCH_SIZE, seed)

    def train(method, options, data):
        # Every channel is standardised as in all windows: that takes no labels.
        model = comparison.new_model(lambda: network(x, dataset.n_classes), seed)
        model = model if options is None else keras_ssd.wrap(model, seed=seed, **options)
        # The data comes in batches of its own.
        task = comparison.Task(f"{dataset.name}, {len(labelled)} labels", None, (data,), None, batch_size=None)
        return comparison.fit(method, model, task, seed, epochs)

    mixed = keras_ssd.join_unlabelled(
        (x[labelled], y[labelled]),
        x[unlabelled] if len(unlabelled) else x,
        ratio=ratio,
        batch_size=BATCH_SIZE,
        seed=seed,
        steps_per_epoch=n_steps,
    )
    return {
        "plain": train("plain", None, evenly(labelled)),
        "averaged": train("averaged", keras_ssd.AVERAGING, evenly(labelled)),
        "distilled": train("distilled", keras_ssd.SEMI_SUPERVISED, mixed),
        "all labels": train("all labels", keras_ssd.AVERAGING, evenly(everything)),
    }


def table(rows):
    """Mean and deviation over the seeds, and what the windows without a label add."""
    groups = rows.groupby(["label_fraction", "method"], sort=False)
    means = groups[["accuracy", "nll"]].mean()
    means.insert(1, "+-", groups.accuracy.std(ddof=1) if rows.seed.nunique() > 1 else np.nan)
    lines = [means.to_string(float_format="{:.4f}".format)]
    paired = rows.pivot(index=["label_fraction", "seed"], columns="method", values="accuracy")
    for method in METHODS[:2]:
        for fraction, values in (paired["distilled"] - paired[method]).groupby("label_fraction"):
            better, worse = int((values > 0).sum()), int((values < 0).sum())
            lines.append(
                f"{fraction:.0%} labels: distilled minus {method}: accuracy {values.mean():+.4f}; "
                f"more accurate with {better}, less with {worse} of {len(values)} seeds"
            )
    return "\n".join(lines)


def plot(rows, title, path):
    """Accuracy against the share of labels, with the deviation over the seeds."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    styles = keras_ssd.plotting.method_styles(METHODS)
    for number, (method, marker) in enumerate(zip(METHODS, "os^D", strict=True)):
        scores = rows[rows.method == method].groupby("label_fraction").accuracy
        mean, deviation = scores.mean(), scores.std(ddof=1).fillna(0)
        beside = mean.index * 1.04 ** (number - 1.5)  # so that no error bar hides another
        axes.errorbar(beside, mean, deviation, marker=marker, capsize=3, label=method, **styles[method])
    fractions = sorted(rows.label_fraction.unique())
    title = f"{title}: mean and deviation over {rows.seed.nunique()} seeds"
    axes.set(xscale="log", xlabel="share of the training windows with a label", ylabel="test accuracy", title=title)
    axes.set_xticks(fractions, [f"{one:.0%}" for one in fractions], minor=False)
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100, facecolor="white")
    print(f"plot: {path}")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=har_data.NAMES, default="basic_motions", help="default basic_motions")
    parser.add_argument("--data-dir", type=pathlib.Path, help="folder of UCI HAR; default: download it")
    parser.add_argument("--label-fraction", type=float, nargs="+", help="default 0.02, of BasicMotions 0.2")
    parser.add_argument("--ratio", type=float, default=3, help="windows without a label for each with one; default 3")
    parser.add_argument("--seeds", type=comparison.seeds, default=[0, 1, 2], help="how many, or which (0,5,7)")
    parser.add_argument("--epochs", type=int, default=20, help="of each training; default 20")
    parser.add_argument("--steps", type=int, help="in an epoch; default 50, of BasicMotions 15")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/unlabelled"))
    arguments = parser.parse_args(argv)
    is_small = arguments.dataset == "basic_motions"
    arguments.label_fraction = arguments.label_fraction or [0.2 if is_small else 0.02]
    arguments.steps = arguments.steps or (15 if is_small else 50)
    if not all(0 < one <= 1 for one in arguments.label_fraction):
        parser.error(f"--label-fraction should lie in (0, 1]. Received: {arguments.label_fraction}")
    arguments.setting_name = f"ratio {arguments.ratio:g}, {arguments.steps} steps, views"
    return arguments


def main(argv=None):
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    arguments.out.mkdir(parents=True, exist_ok=True)
    dataset = har_data.load(arguments.dataset, arguments.data_dir)
    frames = []
    for fraction in arguments.label_fraction:

        def train(seed, fraction=fraction):
            options = arguments.ratio, seed, arguments.epochs, arguments.steps
            runs = run(dataset, fraction, *options)
            keras.backend.clear_session()
            test = dataset.x_test, dataset.y_test, dataset.n_classes
            return {method: comparison.scores(one, *test) for method, one in runs.items()}

        frames.append(comparison.repeat(arguments, train, dataset=dataset.name, label_fraction=fraction))
        print("\n" + table(frames[-1]), flush=True)
    rows = pd.concat(frames)
    print(f"\n{dataset.name}, {len(arguments.seeds)} seeds\n{table(rows)}")
    plot(rows, dataset.name, arguments.out / f"{dataset.name}.png")
    return int((rows.status == "diverged").any())


if __name__ == "__main__":
    sys.exit(main())
