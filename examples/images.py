"""Trains a plain and a distilled convolutional net on images, with augmentation inside the model, and compares them.

    python examples/images.py                                       # scikit-learn's digits, needs no download of data
    python examples/images.py --dataset cifar10 --flip              # downloads it through TensorFlow Datasets (TFDS)
    python examples/images.py --dataset cifar100 --flip --data-dir path/of/tfds

Any image set of TFDS with the features `image` (all of one size) and `label` and the splits `train` and `test` will do.
The augmentation belongs to the model, not to the pipeline of the data: then the teachers see the very sample, shifted
and turned, that the student sees, and differ from it by their dropout alone.

Part of the training split is held out for early stopping and for the curves; the test split is used once, at the end.
`--teacher`, `--paper` and `--set` are those of `examples/ucr.py`, with the same controls. The rows go to a file; those
that it holds already are not repeated. The exit status is 1 if a run diverged. KERAS_BACKEND chooses the
backend.
"""

import argparse
import functools
import logging
import os
import pathlib
import sys
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
import numpy as np
import sklearn.datasets
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split

import keras_ssd
from _support import comparison, ucr_data


class Dataset(NamedTuple):
    """Images (rows, height, width, channels) with values from 0 to `brightest`, labels 0..n_classes-1."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    n_classes: int
    brightest: int


def load(name, data_dir=None):
    if name != "digits":
        return load_with_tfds(name, data_dir)
    digits = sklearn.datasets.load_digits()
    # The set has no test split of its own: a fixed one, whatever the seed of the training.
    x, x_test, y, y_test = train_test_split(
        digits.images[..., None].astype("float32"), digits.target, test_size=0.3, stratify=digits.target, random_state=0
    )
    return Dataset(name, x, y, x_test, y_test, n_classes=10, brightest=16)


def load_with_tfds(name, data_dir):
    """Reads `train` and `test`; of what is not prepared yet, as array records, which need no TensorFlow."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")
    arrays = []
    for split in ("train", "test"):
        if builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
            rows = builder.as_data_source(split)
        else:  # prepared in an earlier year
            rows = tfds.as_numpy(builder.as_dataset(split))
        images, labels = zip(*((row["image"], row["label"]) for row in rows), strict=True)
        arrays += [np.stack(images), np.array(labels)]
    return Dataset(name, *arrays, n_classes=builder.info.features["label"].num_classes, brightest=255)


def augmenting_net(dataset, flip):
    """A small convolutional net. Augmentation is random in training only, and no noise of the teachers'."""
    inputs = keras.Input(dataset.x_train.shape[1:])
    x = keras.layers.Rescaling(2 / dataset.brightest, offset=-1)(inputs)
    if flip:
        x = keras.layers.RandomFlip("horizontal")(x)
    x = keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest")(x)
    x = keras.layers.RandomRotation(0.03, fill_mode="nearest")(x)
    for filters in (32, 64, 128):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)  # small sets make few steps
        x = keras.layers.Activation("relu")(x)
        if filters < 128:
            x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.5)(x)
    return keras.Model(inputs, keras.layers.Dense(dataset.n_classes, activation="softmax")(x))


def make_task(dataset, flip, seed):
    training, validation = ucr_data.hold_out(dataset.y_train, seed)
    return comparison.Task(
        dataset.name,
        lambda: augmenting_net(dataset, flip),
        (dataset.x_train[training], dataset.y_train[training]),
        (dataset.x_train[validation], dataset.y_train[validation]),
        batch_size=32 if len(training) < 10_000 else 128,
    )


def plot(runs, dataset, path):
    """Saves some images, the same augmented, and the training curves."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    examples, accuracy, loss = figure.subplots(1, 3)
    comparison.plot_curves(runs, dataset.name, accuracy, loss)
    model = next(iter(runs.values())).model
    last = [layer for layer in model.layers if isinstance(layer, keras.layers.RandomRotation)][-1]
    augment = keras.Model(model.input, last.output)
    rows = dataset.x_train[:8].astype("float32")
    augmented = [keras.ops.convert_to_numpy(augment(rows, training=True)) for _ in range(4)]
    versions = [rows, *((images + 1) / 2 * dataset.brightest for images in augmented)]
    framed = [np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)]) for images in versions]
    grid = np.concatenate([np.concatenate(list(images), axis=1) for images in framed])
    examples.imshow(np.clip(grid / dataset.brightest, 0, 1).squeeze(), cmap="gray_r")
    examples.set(title="images (first row) and what\nstudent and teachers see of them", xticks=[], yticks=[])
    figure.savefig(path, dpi=80)
    print(f"plot: {path}")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="digits, or a name of TFDS; default digits")
    parser.add_argument("--data-dir", type=pathlib.Path, help="folder of TFDS; default: its own default")
    parser.add_argument("--flip", action="store_true", help="mirror at random: for photographs, not for characters")
    comparison.add_options(parser, out="results/images", epochs=30)
    return comparison.parse(parser, argv)


def main(argv=None):
    arguments = parse(argv)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it remarks on every new model that is compiled
    arguments.out.mkdir(parents=True, exist_ok=True)
    dataset = load(arguments.dataset, arguments.data_dir)
    runs = {}
    make = functools.partial(make_task, dataset, arguments.flip)
    rows = comparison.run(arguments, make, (dataset.x_test, dataset.y_test), runs=runs, flip=arguments.flip)
    if runs:
        plot(runs, dataset, arguments.out / f"{dataset.name}-{arguments.setting_name}.png")
    print(f"\n{dataset.name}", keras_ssd.Comparison(rows), sep="\n")
    return comparison.status(rows)


if __name__ == "__main__":
    sys.exit(main())
