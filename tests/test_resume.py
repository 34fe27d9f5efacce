"""A training process is killed by SIGKILL and another process continues: it ends like the uninterrupted run.

Run as a script, this file is that process: `python test_resume.py TEACHER KILL FOLDER`.
"""

import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_ssd
from keras_ssd.callbacks import KDWeightSchedule, SeedEachEpoch, TeacherSnapshot

EPOCHS = 4


class Kill(keras.callbacks.Callback):
    """Ends the process, without a word to anybody."""

    def __init__(self, when):
        super().__init__()
        self.when = when
        self.epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.when == "within-epoch" and (self.epoch, batch) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, epoch, logs=None):
        if self.when == "after-epoch" and epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Shuffled(keras.utils.PyDataset):
    """Another order in every epoch, on every backend."""

    x = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
    y = np.arange(24) % 3
    order = np.arange(24)

    def on_epoch_begin(self):
        self.order = np.random.permutation(24)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = self.order[8 * index : 8 * index + 8]
        return self.x[rows], self.y[rows]


def train(teacher, kill, folder):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(8, "relu")(inputs))
    x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(keras.layers.Dense(6)(x)))
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    first = []
    if teacher == "pipeline":
        first = [TeacherSnapshot(at_epoch=2, restore_best_weights=False)]
    if teacher != "plain":
        kind = "snapshot" if teacher == "pipeline" else teacher
        model = keras_ssd.wrap(model, teacher=kind, num_teachers=4)
        first.append(KDWeightSchedule(lambda epoch: 0.5 + epoch))
    backup = keras.callbacks.BackupAndRestore(os.path.join(folder, "backup"))
    callbacks = [*first, SeedEachEpoch(1), backup, Kill(kill)]
    if teacher == "self":
        # Arrays: on JAX and PyTorch another order in every epoch, too.
        data = dict(x=Shuffled.x, y=Shuffled.y, batch_size=8)
    else:
        data = dict(x=Shuffled())
    history = model.fit(**data, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    weights = {f"w{i}": value for i, value in enumerate(model.get_weights())}
    optimizer = {f"o{i}": keras.ops.convert_to_numpy(v.value) for i, v in enumerate(model.optimizer.variables)}
    np.savez(os.path.join(folder, "end.npz"), epochs=len(history.history["loss"]), **weights, **optimizer)


def run(*arguments):
    return subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.compiled  # compared with processes of their own, which compile
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is POSIX")
@pytest.mark.parametrize(
    "teacher, kill",
    [
        pytest.param("self", "after-epoch", marks=pytest.mark.slow),
        pytest.param("pipeline", "within-epoch", marks=pytest.mark.slow),
        *(
            pytest.param(teacher, kill, marks=[pytest.mark.slow, pytest.mark.once])
            for teacher, kill in [
                ("self", "within-epoch"),
                ("snapshot", "within-epoch"),
                ("ema", "within-epoch"),
                ("pipeline", "after-epoch"),
                ("plain", "within-epoch"),
            ]
        ),
    ],
)
def test_a_killed_run_ends_as_the_uninterrupted_one(teacher, kill, tmp_path):
    train(teacher, "never", tmp_path)
    expected = dict(np.load(tmp_path / "end.npz"))
    assert expected["epochs"] == EPOCHS
    (tmp_path / "end.npz").unlink()

    killed = run(teacher, kill, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "end.npz").exists()
    assert (tmp_path / "backup" / "latest.weights.h5").exists()

    resumed = run(teacher, "never", tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    ended = dict(np.load(tmp_path / "end.npz"))
    assert ended.pop("epochs") == EPOCHS - 2
    expected.pop("epochs")
    assert set(ended) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(ended[name], value, err_msg=name)


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
