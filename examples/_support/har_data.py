"""Reads human activity recognition from wearable sensors: windows of a few signals, what was done, and by whom.

Example:
    dataset = har_data.load()                                 # BasicMotions, carried by the aeon package
    dataset = har_data.load("uci_har", data_dir="downloads")  # downloads/UCI HAR Dataset, or its published zip
    training, validation = har_data.hold_out(dataset, seed=0)
"""

import contextlib
import os
import pathlib
import tempfile
from typing import NamedTuple

import aeon.datasets
import keras
import numpy as np

from _support import ucr_data

NAMES = ("basic_motions", "uci_har")


class Dataset(NamedTuple):
    """Windows (rows, steps, channels) in float32, labels 0..n_classes-1, whose each row is (or `None`)."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    subjects_train: np.ndarray | None
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list
    subjects_test: np.ndarray | None = None

    @property
    def n_classes(self):
        return len(self.class_names)


def load(name="basic_motions", data_dir=None):
    """Reads `basic_motions` from aeon, or `uci_har` from `data_dir`; without one it is downloaded."""
    if name not in NAMES:
        raise ValueError(f"`name` should be one of {NAMES}. Received: {name!r}")
    return load_basic_motions() if name == "basic_motions" else load_uci_har(data_dir)


def load_basic_motions():
    """Accelerometer and gyroscope of a smart watch, 100 steps at 10 Hz, 4 activities, 40 windows in each split."""
    arrays = []
    for split in ("train", "test"):
        signals, labels = aeon.datasets.load_basic_motions(split=split)
        class_names, classes = np.unique(labels, return_inverse=True)
        arrays.append((signals.transpose(0, 2, 1).astype("float32"), classes))
    return Dataset("basic_motions", *arrays[0], None, *arrays[1], [str(name) for name in class_names])


def load_uci_har(data_dir=None):
    """Smartphone at the waist, 9 signals, 128 steps at 50 Hz, 6 activities; the published split, by subject.

    TFDS shuffles the rows, alike each time. Array records are read without TensorFlow. What lies in `data_dir` is read
    anew each time, as it may change; what was downloaded is kept.
    """
    import tensorflow_datasets as tfds

    import keras_ssd.datasets  # noqa: F401  registers the builder

    tfds.disable_progress_bar()
    downloads = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser() / "array_record"
    with contextlib.nullcontext(downloads) if data_dir is None else tempfile.TemporaryDirectory() as folder:
        builder = tfds.builder("uci_har", data_dir=folder)
        config = tfds.download.DownloadConfig(manual_dir=None if data_dir is None else str(data_dir))
        with contextlib.redirect_stdout(None):  # where TFDS tells of a folder that is soon gone
            builder.download_and_prepare(download_config=config, file_format="array_record")
        (x_train, y_train, subjects), (x_test, y_test, others) = (
            columns(builder.as_data_source(split), ("signals", "label", "subject")) for split in ("train", "test")
        )
        class_names = builder.info.features["label"].names
    known, others = (each if (each >= 0).all() else None for each in (subjects, others))
    return Dataset("uci_har", x_train, y_train, known, x_test, y_test, class_names, others)


def columns(source, names):
    """The named features of all rows of a TFDS data source, each as one array."""
    rows = [source[number] for number in range(len(source))]
    return [np.stack([row[name] for row in rows]) for name in names]


def hold_out(dataset, seed, fraction=0.2):
    """Splits the training rows into those to train on and those to validate on: by subject, or, unknown, by class."""
    if dataset.subjects_train is None:
        return ucr_data.hold_out(dataset.y_train, seed, fraction)
    import keras_ssd.datasets

    return keras_ssd.datasets.hold_out_subjects(dataset.subjects_train, fraction=fraction, seed=seed)


class EvenEpochs(keras.utils.PyDataset):
    """Epochs of one length, however many rows there are: every row comes as often as any other, but for one.

    Args:
        x: windows.
        y: labels.
        n_steps: batches of an epoch.
        batch_size: rows of a batch.
        seed: of the order.
    """

    def __init__(self, x, y, n_steps, batch_size, seed):
        super().__init__()
        self.x, self.y, self.n_steps, self.batch_size = x, y, n_steps, batch_size
        self.generator = np.random.default_rng(seed)
        self.waiting = np.empty(0, int)
        self.on_epoch_end()

    def __len__(self):
        return self.n_steps

    def __getitem__(self, step):
        rows = self.rows[step * self.batch_size : (step + 1) * self.batch_size]
        return self.x[rows], self.y[rows]

    def on_epoch_end(self):
        """Draw the next epoch."""
        n = self.n_steps * self.batch_size
        while len(self.waiting) < n:
            self.waiting = np.append(self.waiting, self.generator.permutation(len(self.y)))
        self.rows, self.waiting = self.waiting[:n], self.waiting[n:]


def label_subset(labels, rows, fraction, seed, least=1):
    """The part of `rows` that keeps its labels: `fraction` of each class, rounded, but `least` of it, or all it has."""
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` should lie in (0, 1]. Received: {fraction}")
    generator = np.random.default_rng(seed)
    kept = []
    for one in np.unique(labels[rows]):
        of_class = rows[labels[rows] == one]
        n_kept = min(len(of_class), max(least, round(fraction * len(of_class))))
        kept.append(generator.choice(of_class, n_kept, replace=False))
    return np.sort(np.concatenate(kept))
