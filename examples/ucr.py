"""Compares plain and distilled training of a small Conv1D net on data sets of the UCR archive, on the test split.

    python examples/ucr.py                                  # three bundled data sets, about a minute, no download
    python examples/ucr.py --seeds 5                         # the same, five times
    python examples/ucr.py --paper --set percentile=0 --set similarity=cosine --set num_teachers=8   # ablations
    python examples/ucr.py --dataset Coffee Ham --data-dir path --paper  # the paper's pipeline and setting
    python examples/ucr.py --long --dataset all --data-dir path          # every data set of the archive, for hours

By default the learning rate is constant, as in most people's `model.fit`; sets with few rows are passed over several
times in an epoch, so that each method makes as many steps. With `--long` the network is larger, the learning rate falls
to 0 (with a constant one the last epoch is a lottery on sets this small), an epoch is one pass, and there are more of
them: what the recorded tables are of.

All arms of `keras_ssd.compare` start from the same weights and see the same batches. `averaged` averages the weights
and has no teachers; with `--teacher snapshot` and `--paper` the plain model of the best epoch is the teacher, and the
student and its control `continued`, without teachers, go on from its weights. Each `--set` is a further arm.

Part of the training split is held out for early stopping; nothing is chosen on the test split. The rows go to files in
`--out`; those that they hold already are not repeated. The exit status is 1 if a run diverged. KERAS_BACKEND chooses
the backend.
"""

import argparse
import functools
import logging
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import keras_ssd
from _support import comparison, networks, ucr_data

# Of the sets with one channel that aeon carries: plain training is above 95 % on GunPoint and ItalyPowerDemand, and the
# series of ACSF1 are too long for a minute.
BUNDLED = ["ArrowHead", "OSULeaf", "PickupGestureWiimoteZ"]
BATCH_SIZE = 16
ROWS_PER_EPOCH = 800  # about, unless `--long`: with 20 epochs the 1000 steps of the accuracy benchmark


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


def make_task(dataset, long, seed):
    training, validation = ucr_data.hold_out(dataset.y_train, seed)
    if not long:
        training = np.tile(training, max(1, round(ROWS_PER_EPOCH / len(training))))
    return comparison.Task(
        dataset.name,
        lambda: (conv_net if long else small_net)(dataset),
        (dataset.x_train[training], dataset.y_train[training]),
        (dataset.x_train[validation], dataset.y_train[validation]),
        BATCH_SIZE,
    )


def run(name, arguments):
    """The rows of one data set."""
    dataset = ucr_data.load(name, arguments.data_dir)
    make = functools.partial(make_task, dataset, arguments.long)
    test = dataset.x_test, dataset.y_test
    return comparison.run(arguments, make, test, falling=arguments.long, dataset=dataset.name)


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
    rows = [row for name in arguments.dataset for row in run(name, arguments)]
    result = keras_ssd.Comparison(rows, unit="dataset" if len(arguments.dataset) > 1 else "seed")
    rate = "a learning rate that falls to 0" if arguments.long else "constant learning rate"
    table = pd.DataFrame(rows).pivot_table(index="dataset", columns="arm", values="accuracy", sort=False)[result.arms]
    print(f"\n{rate}, {arguments.epochs} epochs, seeds {arguments.seeds}, {keras.backend.backend()}: accuracy")
    print(table.rename_axis(columns=None).to_string(float_format="{:.4f}".format), result, sep="\n\n")
    figure = result.plot(ax=Figure((7, 1 + 0.5 * len(result.pairs)), layout="constrained").subplots()).figure
    figure.savefig(arguments.out / f"{arguments.setting_name}.png", dpi=80)
    return comparison.status(rows)


if __name__ == "__main__":
    sys.exit(main())
