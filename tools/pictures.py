"""Draws the pictures of a real run, the paper's setting on GunPoint, and those of recorded rows.

`python tools/pictures.py` writes docs/pictures.png and docs/few_labels.png.
"""

import pathlib
import sys

sys.path += [str(pathlib.Path(__file__).parents[1] / part) for part in ("examples", "benchmarks")]

import keras
import matplotlib
from matplotlib.figure import Figure

import few_labels
import keras_ssd
import ucr
from _support import ucr_data

ROOT = pathlib.Path(__file__).parents[1]
EPOCHS = 80
STATISTICS = ["effective_teachers", "teachers_kept", "target_similarity", "teacher_spread", "representation_norm"]


def main():
    draw_run()
    few_labels.plot(few_labels.stored(), ROOT / "docs" / "few_labels.png")


def draw_run():
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
    with matplotlib.rc_context({"axes.prop_cycle": matplotlib.cycler(color=keras_ssd.plotting.COLORS)}):
        figure = Figure(figsize=(10, 7.6), layout="constrained")
        (left, right), (low, beside) = figure.subplots(2, 2, width_ratios=(1, 1.1))
        keras_ssd.plotting.plot_teacher_weights(ssd, dataset.x_train[:24], ax=left)
        keras_ssd.plotting.plot_representations(ssd, dataset.x_train[:24], ax=right)
        losses = [name for name in history.history if name.endswith("loss")]
        keras_ssd.plotting.plot_history(history, losses, ax=low)
        keras_ssd.plotting.plot_history(history, [name for name in STATISTICS if name in history.history], ax=beside)
        figure.savefig(ROOT / "docs" / "pictures.png", dpi=90, facecolor="white")


if __name__ == "__main__":
    main()
