"""Reads data sets of the UCR time series archive into arrays that a network can be trained on.

Example:
    dataset = ucr_data.load("GunPoint")                    # carried by the aeon package
    dataset = ucr_data.load("Coffee", data_dir="archive")  # archive/Coffee/Coffee_TRAIN.tsv and Coffee_TEST.tsv
    training, validation = ucr_data.hold_out(dataset.y_train, seed=0)
"""

import pathlib
from typing import NamedTuple

import aeon.datasets
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from keras_ssd.datasets import prepare
from keras_ssd.datasets.ucr import series_files

ARCHIVE = "UCRArchive_2018"


class Dataset(NamedTuple):
    """One data set: series (rows, length, 1) in float32, labels 0..n_classes-1, as the archive splits it."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    n_classes: int


def load(name, data_dir=None):
    """Reads one data set from `data_dir`, or through aeon, which carries a few sets and downloads the others."""
    read = read_with_aeon if data_dir is None else lambda *which: read_archive(archive_folder(data_dir), *which)
    (train, train_labels), (test, test_labels) = read(name, "TRAIN"), read(name, "TEST")
    length = max(train.shape[1], test.shape[1])
    classes = {label: number for number, label in enumerate(series_files.sorted_labels(train_labels))}
    arrays = []
    for split, series, labels in [("TRAIN", train, train_labels), ("TEST", test, test_labels)]:
        new = sorted(set(labels) - set(classes))
        if new:
            raise ValueError(f"{name}: classes of the {split} part should be in the TRAIN part. Received: {new}")
        try:
            arrays += [prepare(series, length), np.array([classes[label] for label in labels])]
        except ValueError as error:
            raise ValueError(f"{name}, {split} part: {error}") from error
    return Dataset(name, *arrays, len(classes))


def names(data_dir):
    """The names of all data sets that lie in `data_dir`, sorted."""
    return sorted(path.name.removesuffix("_TRAIN.tsv") for path in archive_folder(data_dir).glob("*/*_TRAIN.tsv"))


def archive_folder(data_dir):
    """The archive's own folder, whether `data_dir` is that folder or the one that holds it."""
    folder = pathlib.Path(data_dir)
    folder = folder / ARCHIVE if (folder / ARCHIVE).is_dir() else folder
    if not any(folder.glob("*/*_TRAIN.tsv")):
        raise FileNotFoundError(
            f"`data_dir` should hold <Name>/<Name>_TRAIN.tsv, or a folder {ARCHIVE} that does. Received: {data_dir}"
        )
    return folder


def read_archive(folder, name, split):
    path = folder / name / f"{name}_{split}.tsv"
    if not path.is_file():
        raise FileNotFoundError(f"There is no data set {name!r}: no file {path}. Found here: {names(folder)}")
    return series_files.read(path)


def read_with_aeon(name, split):
    try:
        series, labels = aeon.datasets.load_classification(name, split=split)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"aeon neither carries the data set {name!r} nor could it download it. "
            "Pass --data-dir with the folder of the UCR archive."
        ) from error
    # Series of unequal length come as a list; the tail is missing then, as in the archive's own files.
    rows = [channels[0] for channels in series]
    return pd.DataFrame(rows).to_numpy(dtype=float), [series_files.label_name(str(label)) for label in labels]


def hold_out(labels, seed, fraction=0.2):
    """Splits the rows of the training part into those to train on and those to validate on, stratified by class.

    A class with a single row keeps it for training. If every class has one row only, training rows validate, too.
    """
    rows = np.arange(len(labels))
    divisible = np.bincount(labels)[labels] > 1
    if not divisible.any():
        return rows, rows
    n_classes = len(np.unique(labels[divisible]))
    _, validation = train_test_split(
        rows[divisible],
        test_size=max(n_classes, round(fraction * divisible.sum())),
        stratify=labels[divisible],
        random_state=seed,
    )
    return np.setdiff1d(rows, validation), np.sort(validation)
