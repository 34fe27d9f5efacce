"""The paper's experiments in affective computing: pain or stress, one subject left out at a time.

    python examples/affective.py --data-dir path                # pain; all folds: every subject is left out once
    python examples/affective.py --data-dir path --folds 5      # the first five of them
    python examples/affective.py --data-dir path --paper        # the paper's pipeline and setting
    python examples/affective.py --dataset stress_predict --data-dir path    # stress from a wristband
    python examples/affective.py --dataset e4 --data-dir path   # recordings of your own with such a wristband

The data are part A of the BioVid heat pain database (https://www.nit.ovgu.de/BioVid.html), which its authors give to
researchers on request: 87 subjects, 20 recordings of each level, 5.5 seconds at 512 Hz. The folder `path` should hold
`biosignals_filtered/<subject>/<subject>-<level>-<number>_bio.csv` as published: tab separated, with a header that names
the columns time, gsr, ecg, emg_trapezius, emg_corrugator and emg_zygomaticus. No pain (BL1) is told from the strongest
(PA4), by the column gsr. Signals of your own do as well, if they are laid out like that; see `--levels` and `--signal`.

The network is PainAttnNet (Lu, Ozek, Kamarthi, arXiv 2303.06845): convolutions at three scales, a residual block with
squeeze and excitation, and a transformer encoder, with dropout in all of them but the residual block.

In each fold a fifth of the other subjects is held out for early stopping and for the curves; the subject that was left
out is scored once. `--teacher`, `--paper` and `--set` are those of `examples/ucr.py`, with the same controls. The
rows go to files; those that they hold already are not repeated. The exit status is 1 if a run diverged.
KERAS_BACKEND chooses the backend.

Stress-Predict (34 subjects with an Empatica E4, https://doi.org/10.3390/s22218135; `path` holds Raw_data and
Processed_data) is compared on new people, with other options (`--dataset stress_predict --help`) and the methods of
`_support/new_people.py`. It prints balanced accuracy by subject and draws the confusion matrices. All subjects did the
same tasks in the same order, so a column beside it says what the minute of the recording alone would give; no network
is fed it. Recordings of your own are read by `--dataset e4`: `path/<subject>/` with EDA.csv, TEMP.csv and HR.csv as
the E4 writes them, and `path/labels.csv` with the columns subject, start, end (seconds since the recording's start) and
label.
"""

import argparse
import functools
import logging
import os
import pathlib
import re
import sys
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
import numpy as np
import pandas as pd
from keras import layers
from matplotlib.figure import Figure
from sklearn.model_selection import GroupShuffleSplit

import keras_ssd
from _support import comparison, empatica, new_people
from _support.csv_columns import read_columns

FOLDER = "biosignals_filtered"
BATCH_SIZE = 128
WRISTBANDS = {"stress_predict": empatica.load_stress_predict, "e4": empatica.load_folders}


class Dataset(NamedTuple):
    """Recordings (rows, steps, 1), their level as 0 or 1, whose each is."""

    x: np.ndarray
    y: np.ndarray
    subjects: np.ndarray


def load(data_dir, levels, signal):
    """Reads one signal of the recordings of some levels of all subjects."""
    folder = pathlib.Path(data_dir)
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    rows = {}
    for path in sorted(folder.glob("*/*_bio.csv")):
        name = re.fullmatch(r"(.+)-(\w+)-(\d+)_bio\.csv", path.name)
        if not name:
            raise ValueError(f"{path} should be named <subject>-<level>-<number>_bio.csv")
        if name[2] in levels:
            rows[path] = (read(path, signal), levels.index(name[2]), path.parent.name)
    found = {level for _, level, _ in rows.values()}
    if len(found) < len(levels):
        raise FileNotFoundError(
            f"`data_dir` should hold {FOLDER}/<subject>/<subject>-<level>-<number>_bio.csv with the levels {levels}. "
            f"Received: {data_dir}, with {[levels[one] for one in sorted(found)]}"
        )
    if len({subject for _, _, subject in rows.values()}) < 3:
        raise ValueError(
            f"`data_dir` should hold 3 subjects at least: to train, validate and test. Received: {data_dir}"
        )
    steps = pd.Series({path: len(values) for path, (values, _, _) in rows.items()})
    usual = steps.mode()[0]
    if (steps != usual).any():
        path = (steps != usual).idxmax()
        raise ValueError(f"Each recording should be as long as most are, {usual}. Received: {steps[path]} in {path}")
    x, y, subjects = (np.array(column) for column in zip(*rows.values(), strict=True))
    return Dataset(x[..., None], y, subjects)


def read(path, signal):
    """One column of a recording."""
    return read_columns(path, [signal], separator="\t")[signal].to_numpy("float32")


def pain_attn_net(x, n_classes):
    """PainAttnNet, which standardises the signal by the mean and the deviation of `x`."""
    inputs = keras.Input(x.shape[1:])
    signal = layers.Normalization(axis=None, mean=x.mean(), variance=x.var())(inputs)
    scales = [
        scale(signal, kernel_size=50, strides=6, first_pool=(8, 2), next_kernel_size=8, last_pool=(4, 4)),
        scale(signal, kernel_size=512, strides=42, first_pool=(4, 4), next_kernel_size=4, last_pool=(2, 2)),
        scale(signal, kernel_size=1024, strides=84, first_pool=(8, 8), next_kernel_size=7, last_pool=(2, 2)),
    ]
    x = layers.Dropout(0.5)(layers.Concatenate()(scales))
    x = residual_block(x, filters=30)
    for _ in range(2):
        x = encoder(x)
    x = across_steps(layers.LayerNormalization(), x)
    return keras.Model(inputs, layers.Dense(n_classes, activation="softmax")(layers.Flatten()(x)))


def scale(x, kernel_size, strides, first_pool, next_kernel_size, last_pool):
    """The signal at one of three scales, 75 steps of 64 features."""
    x = convolution(x, 64, kernel_size, "gelu", strides=strides)
    x = layers.Dropout(0.5)(layers.MaxPooling1D(*first_pool, padding="same")(x))
    x = convolution(x, 128, next_kernel_size, "gelu")
    x = convolution(x, 64, next_kernel_size, "gelu")
    return across_steps(layers.Dense(75), layers.MaxPooling1D(*last_pool, padding="same")(x))


def convolution(x, filters, kernel_size, activation, strides=1, padding="same"):
    x = layers.Conv1D(filters, kernel_size, strides, padding, use_bias=False)(x)
    return layers.Activation(activation)(layers.BatchNormalization()(x))


def across_steps(layer, x):
    """Applies a layer of features to the steps instead."""
    return layers.Permute((2, 1))(layer(layers.Permute((2, 1))(x)))


def residual_block(x, filters, reduction=16):
    """Two convolutions beside a shortcut; what they add is weighted by feature: squeeze and excitation."""
    shortcut = convolution(x, filters, 1, "linear")
    x = convolution(x, filters, 1, "relu")
    x = convolution(x, filters, 1, "linear")
    squeezed = layers.GlobalAveragePooling1D(keepdims=True)(x)
    squeezed = layers.Dense(max(1, filters // reduction), activation="relu", use_bias=False)(squeezed)
    excitation = layers.Dense(filters, activation="sigmoid", use_bias=False)(squeezed)
    return layers.Activation("relu")(layers.Add()([shortcut, layers.Multiply()([x, excitation])]))


def encoder(x, n_heads=5, dropout=0.1):
    """A transformer encoder whose queries, keys and values are causal convolutions; its perceptron mixes steps."""
    n_steps, n_features = x.shape[1:]
    query, key, value = (causal_block(x) for _ in range(3))
    attention = layers.MultiHeadAttention(n_heads, n_features // n_heads, dropout=dropout)(query, value, key)
    x = layers.Add()([query, layers.Dropout(dropout)(attention)])
    hidden = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    hidden = layers.Dropout(dropout)(layers.Dense(120, activation="relu")(hidden))
    hidden = layers.Permute((2, 1))(layers.Dense(n_steps)(hidden))
    return layers.Add()([x, layers.Dropout(dropout)(hidden)])


def causal_block(x, kernel_size=7):
    filters = x.shape[-1]
    hidden = convolution(x, filters, kernel_size, "relu", padding="causal")
    hidden = convolution(hidden, filters, kernel_size, "linear", padding="causal")
    return layers.Activation("relu")(layers.Add()([x, hidden]))


def make_fold(dataset, n_classes, subject, seed):
    """What is compared when `subject` is left out."""
    left_out = dataset.subjects == subject
    x, y, subjects = dataset.x[~left_out], dataset.y[~left_out], dataset.subjects[~left_out]
    split = GroupShuffleSplit(1, test_size=0.2, random_state=seed)
    training, validation = next(split.split(x, groups=subjects))
    return comparison.Task(
        f"without {subject}",
        lambda: pain_attn_net(x[training], n_classes),
        (x[training], y[training]),
        (x[validation], y[validation]),
        BATCH_SIZE,
    )


def run_folds(dataset, arguments):
    """The rows of all folds; the subject that was left out is scored once."""
    rows, n_classes = [], len(arguments.levels)
    key = {"dataset": "-".join(arguments.levels), "signal": arguments.signal}
    for subject in np.unique(dataset.subjects)[: arguments.folds]:
        left_out = dataset.subjects == subject
        make = functools.partial(make_fold, dataset, n_classes, subject)
        test = dataset.x[left_out], dataset.y[left_out]
        rows += comparison.run(arguments, make, test, **key, subject=str(subject))
    return rows


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["biovid", *WRISTBANDS], default="biovid", help="default biovid")
    parser.add_argument(
        "--data-dir", type=pathlib.Path, required=True, help=f"folder of the data set: of {FOLDER}, say"
    )
    if new_people.chosen(argv, WRISTBANDS):
        return new_people.parse(parser, argv, out="results/affective", epochs=10)
    parser.add_argument("--levels", nargs="+", default=["BL1", "PA4"], help="classes, in the files' names")
    parser.add_argument("--signal", default="gsr", help="column of the files; default gsr")
    parser.add_argument("--folds", type=int, help="how many subjects to leave out in turn; default: each one")
    comparison.add_options(parser, out="results/affective", epochs=100, n_seeds=1)
    return comparison.parse(parser, argv)


def main(argv=None):
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    if arguments.dataset in WRISTBANDS:
        people = WRISTBANDS[arguments.dataset](arguments.data_dir)
        return new_people.compare(people, arguments, "balanced_accuracy", balanced=True, beside=new_people.time_only)
    arguments.out.mkdir(parents=True, exist_ok=True)
    dataset = load(arguments.data_dir, arguments.levels, arguments.signal)
    result = keras_ssd.Comparison(run_folds(dataset, arguments), unit="subject")
    title = f"{' against '.join(arguments.levels)}, {arguments.setting}"
    print(f"\n{title}, {len(result.units)} subjects left out in turn", result, sep="\n")
    figure = result.plot(ax=Figure((7, 1 + 0.5 * len(result.pairs)), layout="constrained").subplots()).figure
    figure.savefig(arguments.out / f"{'-'.join(arguments.levels)}-{arguments.setting_name}.png")
    return comparison.status(result.rows)


if __name__ == "__main__":
    sys.exit(main())
