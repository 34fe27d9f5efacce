"""Trains a plain and a distilled Conv1D net to recognise activities from wearable sensors, and compares them.

    python examples/har.py                                            # BasicMotions, needs no download of data
    python examples/har.py --dataset uci_har                          # downloads UCI HAR (60 MB)
    python examples/har.py --dataset uci_har --data-dir path          # path/UCI HAR Dataset, or the zip as published
    python examples/har.py --dataset uci_har --label-fraction 0.05    # as if few windows had labels
    python examples/har.py --dataset sp_sw_har --data-dir path        # new people: every subject is left out in turn

Part of the training split is held out for early stopping and for the curves: whole subjects where they are known. The
test split is used once, at the end. `--teacher`, `--paper` and `--set` are those of `examples/ucr.py`, with the same
controls. The rows go to a file; those that it holds already are not repeated. Of the first seed the curves and
confusion matrices are drawn, and the plain and the distilled model are saved, to be compared in size: the distilled one
is the same network, so it costs the same wherever it runs. The exit status is 1 if a run diverged. KERAS_BACKEND
chooses the backend.

`sp_sw_har` (a smartwatch, 23 subjects, https://doi.org/10.1016/j.dib.2023.109809; `path` holds its folder DATA) is
compared on new people, with other options (`--dataset sp_sw_har --help`) and the methods of `_support/new_people.py`.
It prints accuracy by subject and draws the confusion matrices; folds that the CSV file holds are not repeated.
"""

import argparse
import functools
import logging
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

import keras_ssd
from _support import comparison, har_data, new_people, sp_sw_har


def conv_net(x, n_classes, augmentation=(), standardised_augmentation=()):
    """A small Conv1D net with dropout that takes the sensors' own units: it standardises every channel as in `x`.

    Layers of augmentation can be put before that and behind it.
    """
    blocks = []
    for filters, kernel_size in [(64, 8), (128, 5), (64, 3)]:
        blocks.append(keras.layers.Conv1D(filters, kernel_size, padding="same", use_bias=False))
        blocks.append(keras.layers.BatchNormalization(momentum=0.9))  # small sets make few steps
        blocks.append(keras.layers.Activation("relu"))
    return keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            *augmentation,
            keras.layers.Normalization(mean=x.mean(axis=(0, 1)), variance=x.var(axis=(0, 1))),
            *standardised_augmentation,
            *blocks,
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(n_classes, activation="softmax"),
        ]
    )


def make_task(dataset, label_fraction, seed):
    training, validation = har_data.hold_out(dataset, seed)
    training = har_data.label_subset(dataset.y_train, training, label_fraction, seed)
    x, y = dataset.x_train[training], dataset.y_train[training]
    return comparison.Task(
        dataset.name,
        lambda: conv_net(x, dataset.n_classes),
        (x, y),
        (dataset.x_train[validation], dataset.y_train[validation]),
        batch_size=16 if len(x) < 1000 else 64,
    )


def plot(runs, dataset, path):
    """Saves the training curves and the confusion matrices of plain and distilled on the test split."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    curves, matrices = figure.subplots(2, 2)
    comparison.plot_curves(runs, dataset.name, *curves)
    for axes, (method, run) in zip(matrices, runs.items(), strict=True):
        predicted = run.model.predict(dataset.x_test, verbose=0).argmax(axis=1)
        ConfusionMatrixDisplay.from_predictions(
            dataset.y_test,
            predicted,
            labels=range(dataset.n_classes),
            display_labels=[name.lower().replace("_", "\n") for name in dataset.class_names],
            xticks_rotation=45,
            colorbar=False,
            cmap="Blues",
            ax=axes,
        )
        axes.set(title=f"{method}, test split", xlabel="recognised as", ylabel="activity")
    figure.savefig(path, dpi=80)
    print(f"plot: {path}")


def save(runs, stem):
    """Saves what would be deployed, without the state of the optimizer, and prints what it weighs."""
    for method, run in runs.items():
        path, trained = stem.with_name(f"{stem.name}-{method}.keras"), run.model
        model = type(trained).from_config(trained.get_config())
        model.set_weights(trained.get_weights())
        model.save(path)
        print(f"{path}: {model.count_params()} parameters, {path.stat().st_size / 1024:.0f} KiB")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*har_data.NAMES, "sp_sw_har"]
    parser.add_argument("--dataset", choices=names, default="basic_motions", help="default basic_motions")
    parser.add_argument("--data-dir", type=pathlib.Path, help="folder of the data set; default: download UCI HAR")
    if new_people.chosen(argv, ["sp_sw_har"]):
        return new_people.parse(parser, argv, out="results/har", epochs=10)
    parser.add_argument("--label-fraction", type=float, default=1.0, help="of the training rows; default 1: all")
    comparison.add_options(parser, out="results/har", epochs=40)
    arguments = comparison.parse(parser, argv)
    if not 0 < arguments.label_fraction <= 1:
        parser.error(f"--label-fraction should lie in (0, 1]. Received: {arguments.label_fraction}")
    return arguments


def main(argv=None):
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    if arguments.dataset == "sp_sw_har":
        return new_people.compare(sp_sw_har.load(arguments.data_dir), arguments, "accuracy", balanced=False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    dataset = har_data.load(arguments.dataset, arguments.data_dir)
    labelled = "" if arguments.label_fraction == 1 else f"-{arguments.label_fraction:g}"
    stem, runs = arguments.out / f"{dataset.name}{labelled}-{arguments.setting_name}", {}
    make = functools.partial(make_task, dataset, arguments.label_fraction)
    test = dataset.x_test, dataset.y_test
    rows = comparison.run(arguments, make, test, runs=runs, label_fraction=arguments.label_fraction)
    shown = {arm: runs[arm] for arm in ("plain", next(iter(arguments.settings))) if arm in runs}
    if len(shown) == 2:
        plot(shown, dataset, stem.with_name(f"{stem.name}.png"))
        save(shown, stem)
    print(f"\n{dataset.name}, {arguments.label_fraction:.0%} of the labels", keras_ssd.Comparison(rows), sep="\n")
    return comparison.status(rows)


if __name__ == "__main__":
    sys.exit(main())
