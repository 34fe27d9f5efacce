"""The data of the accuracy benchmark: what is trained on, what is chosen on, what is scored once."""

import functools
import pathlib
import sys
from typing import NamedTuple

import keras
import numpy as np
import sklearn.datasets
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from _support import har_data, ucr_data  # noqa: E402

OFFLINE = ("ArrowHead", "GunPoint", "ItalyPowerDemand", "digits")  # carried by aeon and scikit-learn
OTHERS = ("uci_har", "digits")
IMAGES = "CIFAR-10-dataset"  # its folder


class Task(NamedTuple):
    """Arrays `(rows, steps, channels)`, of images `(rows, height, width, channels)`, in float32; labels 0..n_classes-1.

    Attributes:
        name: of the data set.
        training: `(x, y)`.
        validation: `(x, y)`, rows of the training split; whatever is chosen is chosen on them.
        test: `(x, y)`.
        unlabelled: inputs of the training split whose labels are not used, or `None` if all are.
        n_classes: of the data set.
    """

    name: str
    training: tuple
    validation: tuple
    test: tuple
    unlabelled: np.ndarray | None
    n_classes: int


def names(data_dir):
    """The series that can be read: without a folder those that aeon and scikit-learn carry; not the images."""
    return OFFLINE if data_dir is None else (*ucr_data.names(data_dir), *OTHERS)


@functools.lru_cache(maxsize=1)
def read(name, data_dir):
    """`((x, y) of the training split, (x, y) of the test split, n_classes)`."""
    if name == "digits":
        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        rows = (images.reshape(-1, 8, 8) / 16).astype("float32")  # read row by row, as a series of 8 steps
        x_train, x_test, y_train, y_test = train_test_split(
            rows, labels, test_size=0.5, stratify=labels, random_state=0
        )
        return (x_train, y_train), (x_test, y_test), 10
    if name == "uci_har":
        har = har_data.load("uci_har", data_dir)
        mean, deviation = har.x_train.mean((0, 1)), har.x_train.std((0, 1))
        scaled = [((x - mean) / deviation).astype("float32") for x in (har.x_train, har.x_test)]
        return (scaled[0], har.y_train), (scaled[1], har.y_test), har.n_classes
    if name == "cifar10":
        return read_images(pathlib.Path(data_dir) / IMAGES)
    ucr = ucr_data.load(name, data_dir)
    return (ucr.x_train, ucr.y_train), (ucr.x_test, ucr.y_test), ucr.n_classes


def read_images(folder):
    """Images of `<folder>/train/<class>/<any name>.png` and `<folder>/test/...`, from -1 to 1; what `read` returns."""
    classes = sorted(path.name for path in (folder / "train").glob("*/"))
    if not classes:
        raise FileNotFoundError(f"`data_dir` should hold {folder.name}/train/<class>/<name>.png. There is no {folder}")
    splits = []
    for split in ("train", "test"):
        files = [(path, label) for label, name in enumerate(classes) for path in (folder / split / name).glob("*.png")]
        files.sort()
        images = np.stack([keras.utils.img_to_array(keras.utils.load_img(path)) for path, _ in files])
        splits.append((images / 127.5 - 1, np.array([label for _, label in files])))
    return *splits, len(classes)


def load(name, data_dir, regime, seed):
    """One data set in one regime.

    Args:
        name: one of `names`.
        data_dir: the folder of the data, or `None`.
        regime: `"all labels"`; `"labels 0.1"`, of which a tenth of each class is used (at least two rows, one of them
            to validate); `"noise 0.4"`, four of ten labels of training and validation are wrong. With `search ` before
            it the validation rows, of few labels half of the rows without, stand in for the test rows, which nothing
            gets to see.
        seed: which rows validate, keep their label or get a wrong one.

    Returns:
        A `Task`.
    """
    (x, y), test, n_classes = read(name, data_dir)
    is_search, regime = regime.startswith("search "), regime.removeprefix("search ")
    kept = np.arange(len(y))
    if regime.startswith("labels "):
        kept = har_data.label_subset(y, kept, float(regime.split()[1]), seed, least=2)
    elif regime.startswith("noise "):
        y = _noisy(y, float(regime.split()[1]), n_classes, seed)
    elif regime != "all labels":
        raise ValueError(f"`regime` should be 'all labels', 'labels 0.1' or 'noise 0.4'. Received: {regime!r}")
    training, validation = (kept[rows] for rows in ucr_data.hold_out(y[kept], seed))
    rest = np.setdiff1d(np.arange(len(y)), kept)
    validation = x[validation], y[validation]
    if is_search:
        test = validation
        if len(rest):  # of few labels next to none validate: half of the rows whose label is hidden stand in
            rest, scored = train_test_split(rest, test_size=0.5, random_state=seed)
            test = x[scored], y[scored]
    unlabelled = x[rest] if len(rest) else None
    return Task(name, (x[training], y[training]), validation, test, unlabelled, n_classes)


def _noisy(labels, rate, n_classes, seed):
    generator = np.random.default_rng(seed)
    wrong = generator.random(len(labels)) < rate
    others = (labels + generator.integers(1, n_classes, size=len(labels))) % n_classes
    return np.where(wrong, others, labels)
