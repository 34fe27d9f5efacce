"""Compares plain and distilled training of a small Conv1D net on data sets of the UCR archive, on the test split.

    python examples/ucr.py                                  # three bundled data sets, about a minute, no download
    python examples/ucr.py --seeds 5                         # the same, five times
    python examples/ucr.py --dataset Coffee Ham --data-dir path --paper  # the paper's pipeline and setting
    python examples/ucr.py --long --dataset all --data-dir path          # every data set of the archive, for hours

By default the learning rate is constant, as in most people's `model.fit`; sets with few rows are passed over several
times in an epoch, so that each method makes as many steps. With `--long` the network is larger, the learning rate falls
to 0 (with a constant one the last epoch is a lottery on sets this small), an epoch is one pass, and there are more of
them: what the recorded tables are of.

All methods start from the same weights and train for as many epochs with the same batches. The weights of
`--teacher self` (the default) and `ema` are averaged, so the fair control is `plain, averaged`, which averages its
weights and has no teachers. With `--teacher snapshot` and `--paper` the paper's pipeline applies: the plain model,
stopped early, is the teacher, and the student goes on from its weights. As such a student trains for longer than the
plain model, the fair control is `plain, continued`: the same weights, trained for as many more epochs without teachers.

Part of the training split is held out for early stopping and for the curves; nothing is chosen on the test split.
The results of every run go to a CSV file; runs that it holds already are not repeated. The exit status is 1 if a run
diverged. KERAS_BACKEND chooses the backend.
"""

import argparse
import logging
import math
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from _support import comparison, networks, ucr_data

# Of the sets with one channel that aeon carries: plain training is above 95 % on GunPoint and ItalyPowerDemand, and the
# series of ACSF1 are too long for a minute.
BUNDLED = ["ArrowHead", "OSULeaf", "PickupGestureWiimoteZ"]
BATCH_SIZE = 16
ROWS_PER_EPOCH = 800  # about, unless `--long`: with 20 epochs the 1000 steps of the accuracy benchmark
CURVES = 3  # data sets whose curves are drawn

MEANINGS = {
    "plain": "model.fit",
    "plain, averaged": "averaged weights, no teachers: wrap(model, kd_weight=0, ema_momentum=0.99).fit",
    "plain, continued": "model.fit from the same weights as the distilled one, for as many more epochs",
    "distilled": "wrap(model{}).fit",
}
STYLES = {
    "plain": (comparison.COLORS[0], "o"),
    "plain, averaged": (comparison.COLORS[1], "s"),
    "plain, continued": (comparison.COLORS[1], "s"),
    "distilled": (comparison.COLORS[2], "^"),
}


def small_net(dataset):
    """Three convolutions, two of them with strides, and dropout behind the pooling."""
    return conv_net(dataset, filters=(32, 64, 32), strides=(4, 2, 1))


def conv_net(dataset, filters=(64, 128, 64), strides=(1, 1, 1)):
    """A smaller FCN baseline with dropout, of `--long`."""
    inputs = x = keras.Input(dataset.x_train.shape[1:])
    for number, width, stride in zip(filters, (8, 5, 3), strides, strict=True):
        x = networks.convolution(x, number, width, "relu", stride)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dropout(0.3)(x)
    return keras.Model(inputs, keras.layers.Dense(dataset.n_classes, activation="softmax")(x))


def new_model(dataset, seed, weights=None):
    """A compiled Conv1D net of `--long`; the same seed gives the same initial weights."""
    return comparison.new_model(lambda: conv_net(dataset), seed, weights)


def compare(dataset, arguments, seed):
    """Trains plain, the control and distilled. Returns their runs by name."""
    training, validation = ucr_data.hold_out(dataset.y_train, seed)
    if not arguments.long:
        training = np.tile(training, max(1, round(ROWS_PER_EPOCH / len(training))))
    task = comparison.Task(
        dataset.name,
        lambda: (conv_net if arguments.long else small_net)(dataset),
        (dataset.x_train[training], dataset.y_train[training]),
        (dataset.x_train[validation], dataset.y_train[validation]),
        BATCH_SIZE,
    )
    return comparison.compare(
        task, arguments.setting, arguments.num_teachers, seed, arguments.epochs, falling=arguments.long
    )


def run_dataset(dataset, arguments, curves):
    """Runs every seed that the CSV file does not hold yet. Returns the rows of all of them.

    The runs of the first seed, if it is run, are put into `curves` by the name of the data set.
    """

    def train(seed):
        runs = compare(dataset, arguments, seed)
        if seed == arguments.seeds[0] and len(curves) < CURVES:
            curves[dataset.name] = {method: (run.first_epoch, run.history["val_loss"]) for method, run in runs.items()}
        test = dataset.x_test, dataset.y_test, dataset.n_classes
        return {method: comparison.scores(run, *test) for method, run in runs.items()}

    return comparison.repeat(arguments, train, dataset=dataset.name)


def table(rows):
    """Test accuracy of each data set by method, and the means of all that was measured."""
    methods = rows.method.unique()
    by_set = rows.pivot_table(index="dataset", columns="method", values="accuracy", sort=False)[methods]
    means = rows.groupby("method")[["accuracy", "nll", "seconds_per_epoch"]].mean().T[methods]
    means.index = ["mean", "mean nll", "mean seconds per epoch"]
    return pd.concat([by_set, means]).rename_axis(columns=None)


def report(rows, arguments):
    """What the rows say, as text: one table, what its columns mean, and the differences."""
    n_seeds = len(arguments.seeds)
    rate = "a learning rate that falls to 0" if arguments.long else "constant learning rate"
    given = {"self": "", "paper": ", **PAPER"}.get(arguments.setting, f', teacher="{arguments.setting}"')
    return "\n".join(
        [
            f"\nTest accuracy: {arguments.setting}, {rate}, {arguments.epochs} epochs, {n_seeds} "
            f"seed{'s'[: n_seeds > 1]}, {keras.backend.backend()}",
            table(rows).to_string(float_format="{:.4f}".format),
            *(f"{method}: {MEANINGS[method].format(given)}" for method in rows.method.unique()),
            *comparison.differences(rows),
        ]
    )


def plot(rows, curves, path):
    """Saves the validation losses by epoch of what was trained now, and the test accuracies of all data sets."""
    by_set = rows.pivot_table(index="dataset", columns="method", values="accuracy", sort=False)
    n_columns, n_rows = (2, math.ceil((len(curves) + 1) / 2)) if curves else (1, 1)
    figure = Figure(figsize=(4.5 * n_columns, n_rows * max(2.9, 1 + 0.25 * len(by_set))), layout="constrained")
    axes_of = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    *losses, accuracy = axes_of[: len(curves) + 1]
    for axes in axes_of[len(curves) + 1 :]:
        axes.remove()
    for axes, (name, methods) in zip(losses, curves.items(), strict=True):
        for method, (first_epoch, loss) in methods.items():
            axes.plot(first_epoch + 1 + np.arange(len(loss)), loss, color=STYLES[method][0], label=method)
        axes.set(title=name, xlabel="epoch", ylabel="validation loss")
    for method in rows.method.unique():
        color, marker = STYLES[method]
        accuracy.plot(by_set[method], by_set.index, marker, color=color, label=method, markersize=9, alpha=0.8)
    accuracy.invert_yaxis()
    accuracy.margins(y=0.2)
    accuracy.set(title="test accuracy", xlabel="accuracy")
    accuracy.grid(axis="y", alpha=0.4)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, facecolor="white")
    print(f"picture: {path}")


def parse(argv):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--dataset", nargs="+", default=BUNDLED, metavar="NAME", help=f"default {' '.join(BUNDLED)}; `all`: --data-dir"
    )
    parser.add_argument("--data-dir", type=pathlib.Path, help=f"folder {ucr_data.ARCHIVE}, or the one that holds it")
    help_long = "larger network, falling learning rate; 100 epochs, 3 seeds"
    parser.add_argument("--long", action="store_true", help=help_long)
    long = "--long" in argv
    comparison.add_options(parser, out="results/ucr", epochs=100 if long else 20, n_seeds=3 if long else 1)
    arguments = comparison.parse(parser, argv)
    if not long:
        arguments.setting_name += "-quick"
    if arguments.dataset == ["all"]:
        if arguments.data_dir is None:
            parser.error("--dataset all needs --data-dir, the folder of the archive")
        arguments.dataset = ucr_data.names(arguments.data_dir)
    return arguments


def main(argv=None):
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    arguments.out.mkdir(parents=True, exist_ok=True)
    curves = {}
    rows = pd.concat(
        [run_dataset(ucr_data.load(name, arguments.data_dir), arguments, curves) for name in arguments.dataset]
    )
    print(report(rows, arguments))
    plot(rows, curves, arguments.out / f"{arguments.setting_name}.png")
    return int((rows.status == "diverged").any())


if __name__ == "__main__":
    sys.exit(main())
