"""Draws the pictures of a real run, the paper's setting on GunPoint.

`python tools/pictures.py` writes docs/pictures.png.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import keras
from matplotlib.figure import Figure

import keras_ssd
import ucr
from _support import ucr_data

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "pictures.png"
EPOCHS = 80


def main():
    dataset = ucr_data.load("GunPoint")
    training, validation = ucr_data.hold_out(dataset.y_train, seed=0)
    ssd = keras_ssd.wrap(ucr.new_model(dataset, seed=0), teacher="snapshot", seed=0)
    keras.utils.set_random_seed(0)
    history = ssd.fit(
        dataset.x_train[training],
        dataset.y_train[training],
        validation_data=(dataset.x_train[validation], dataset.y_train[validation]),
        batch_size=ucr.BATCH_SIZE,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[
            keras_ssd.callbacks.TeacherSnapshot(at_epoch=EPOCHS // 2, restore_best_weights=False),
            keras_ssd.callbacks.TeacherMonitor(),
        ],
    )
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    keras_ssd.plotting.plot_teacher_weights(ssd, dataset.x_train[:24], ax=left)
    keras_ssd.plotting.plot_representations(ssd, dataset.x_train[:24], ax=middle)
    keras_ssd.plotting.plot_history(history, ax=right)
    figure.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
