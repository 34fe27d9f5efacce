"""Trains a plain and a distilled Conv1D net on data sets of the UCR archive and compares them on the test split.

    python examples/ucr.py                                             # GunPoint, needs no download of data
    python examples/ucr.py --dataset all --data-dir path/to/archive      # every data set of the archive's own layout
    python examples/ucr.py --dataset Coffee Ham --data-dir path --paper  # the paper's pipeline and setting

Plain and distilled start from the same weights and train for as many epochs with the same batches and a learning rate
that falls to 0 (with a constant one the last epoch is a lottery on sets this small). With `--teacher snapshot` and
`--paper` the paper's pipeline applies: the plain model, stopped early, is the teacher, and the student goes on from its
weights. As such a student trains for longer than the plain model, the fair control is `plain, continued`: the same
weights, trained for as many more epochs without teachers. The weights of `--teacher self` (the default) and `ema` are
averaged, so these are compared with `plain, averaged`, too, which had no teachers.

Part of the training split is held out for early stopping and for the curves; nothing is chosen on the test split.
The results of every run go to a CSV file; runs that it holds already are not repeated. The exit status is 1 if a run
diverged. KERAS_BACKEND chooses the backend.
"""

import argparse
import logging
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greeting would bury the table

import keras
import pandas as pd
from matplotlib.figure import Figure

from _support import comparison, ucr_data

BATCH_SIZE = 16


def conv_net(dataset):
    """A smaller FCN baseline with dropout."""
    inputs = keras.Input(dataset.x_train.shape[1:])
    x = inputs
    for filters, kernel_size in [(64, 8), (128, 5), (64, 3)]:
        x = keras.layers.Conv1D(filters, kernel_size, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)  # small sets make few steps
        x = keras.layers.Activation("relu")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dropout(0.3)(x)
    return keras.Model(inputs, keras.layers.Dense(dataset.n_classes, activation="softmax")(x))


def new_model(dataset, seed, weights=None):
    """A compiled Conv1D net; the same seed gives the same initial weights."""
    return comparison.new_model(lambda: conv_net(dataset), seed, weights)


def compare(dataset, arguments, seed):
    """Trains plain, distilled and, where plain is no fair comparison, the control. Returns their runs by name."""
    training, validation = ucr_data.hold_out(dataset.y_train, seed)
    task = comparison.Task(
        dataset.name,
        lambda: conv_net(dataset),
        (dataset.x_train[training], dataset.y_train[training]),
        (dataset.x_train[validation], dataset.y_train[validation]),
        BATCH_SIZE,
    )
    return comparison.compare(task, arguments.setting, arguments.num_teachers, seed, arguments.epochs)


def plot(runs, dataset, path):
    """Saves the training curves and the teachers' weights of one batch, before and after the percentile filter."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    curves, heat_maps = figure.subplots(2, 2)
    comparison.plot_curves(runs, dataset.name, *curves)
    ssd, batch = runs["distilled"].trained, dataset.x_train[:BATCH_SIZE]
    before, after = ssd.guidance_weights(batch, percentile=0), ssd.guidance_weights(batch)
    for axes, weights, when in zip(heat_maps, (before, after), ("before", "after"), strict=True):
        image = axes.imshow(weights, aspect="auto", vmin=0)
        axes.set(title=f"teachers' weights {when} the percentile filter", xlabel="teacher", ylabel="sample")
        figure.colorbar(image, ax=axes)
    figure.savefig(path)
    print(f"plot: {path}")


def run_dataset(dataset, arguments):
    """Runs every seed that the CSV file does not hold yet. Returns the rows of all of them."""

    def train(seed):
        runs = compare(dataset, arguments, seed)
        test = dataset.x_test, dataset.y_test, dataset.n_classes
        scores = {method: comparison.scores(run, *test) for method, run in runs.items()}
        if seed == arguments.seeds[0]:
            plot(runs, dataset, arguments.out / f"{dataset.name}-{arguments.setting_name}.png")
        return scores

    return comparison.repeat(arguments, train, dataset=dataset.name)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", default=["GunPoint"], metavar="NAME", help="or `all` with --data-dir")
    parser.add_argument("--data-dir", type=pathlib.Path, help=f"folder {ucr_data.ARCHIVE}, or the one that holds it")
    comparison.add_options(parser, out="results/ucr", epochs=100)
    arguments = comparison.parse(parser, argv)
    if arguments.dataset == ["all"]:
        if arguments.data_dir is None:
            parser.error("--dataset all needs --data-dir, the folder of the archive")
        arguments.dataset = ucr_data.names(arguments.data_dir)
    return arguments


def main(argv=None):
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    setting = arguments.setting
    arguments.out.mkdir(parents=True, exist_ok=True)
    frames = []
    for name in arguments.dataset:
        frames.append(run_dataset(ucr_data.load(name, arguments.data_dir), arguments))
        print(comparison.summary(frames[-1], f"{name}, {setting}, {len(arguments.seeds)} seeds"), flush=True)
    rows = pd.concat(frames)
    if len(frames) > 1:
        print(comparison.summary(rows, f"Mean over {len(frames)} data sets, {setting}, {len(arguments.seeds)} seeds"))
    return int((rows.status == "diverged").any())


if __name__ == "__main__":
    sys.exit(main())
