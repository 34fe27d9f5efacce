"""A process may be killed at any moment: its files are complete or absent, and the resumed run ends the same.

Run as a script, this file trains in processes that kill themselves: `python test_crash.py TEACHER STEP FOLDER`. They
are forked from a process that has imported Keras, so that twenty starts take seconds.
"""

import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import traceback

import keras
import numpy as np
import pytest
from keras import ops

import callback_runs
import keras_ssd
from callback_runs import Shuffled
from keras_ssd.callbacks import AtomicBackup, SeedEachEpoch, TeacherSnapshot
from same_weights import arrays

BACKEND = keras.backend.backend()


def make_model(teacher=None):
    """A plain model, or a wrapped one."""
    model = callback_runs.make_model(jit_compile=BACKEND == "jax")
    return model if teacher is None else keras_ssd.wrap(model, teacher=teacher, num_teachers=4, kd_weight=0.5)


def state(model):
    """Everything that a backup holds: weights, those of the teachers and their step count, the optimizer."""
    return arrays([*model.weights, *model.optimizer.variables])


def are_equal(left, right):
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_backup_needs_a_local_folder():
    for backup_dir in ("", None, 3, "gs://bucket/backup"):
        with pytest.raises(ValueError, match="`backup_dir` should be .* Received: backup_dir="):
            AtomicBackup(backup_dir)


def test_a_finished_run_whose_backup_is_kept_returns_at_once_with_its_weights(tmp_path):
    def fit(model, folder, epochs=2, **options):
        first = []
        if getattr(model, "settings", None) and model.settings.kind == "snapshot":
            first = [TeacherSnapshot(at_epoch=1, restore_best_weights=False)]
        callbacks = [*first, SeedEachEpoch(1), AtomicBackup(tmp_path / folder, **options)]
        return model.fit(Shuffled(), epochs=epochs, verbose=0, callbacks=callbacks).epoch

    for teacher in (None, "ema", "snapshot"):
        model, again = make_model(teacher), make_model(teacher)
        assert fit(model, "kept", delete_checkpoint=False) == [0, 1]
        assert os.listdir(tmp_path / "kept") == ["backup-2"]
        assert fit(again, "kept", delete_checkpoint=False) == []
        assert are_equal(state(again), state(model))
        assert fit(again, "kept", epochs=3) == [2]  # which removes it
        assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def backup_of_an_epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backup")
    make_model("self").fit(Shuffled(), epochs=1, verbose=0, callbacks=[AtomicBackup(folder, delete_checkpoint=False)])
    return folder


def test_a_backup_with_a_lost_or_cut_file_is_refused(backup_of_an_epoch, tmp_path):
    model = make_model("self")
    before = state(model)
    for name, bytes_left, reason in (
        ("latest.weights.h5", None, "is missing"),
        ("latest.weights.h5", -1, "has {cut} bytes, but {size} were written"),
        ("training_metadata.json", 0, "has 0 bytes, but {size} were written"),
        ("manifest.json", None, r"cannot be read \(.*\)"),
        ("manifest.json", -1, r"cannot be read \(.*\)"),
    ):
        copy = shutil.copytree(backup_of_an_epoch, tmp_path / "copy")
        path = copy / "backup-1" / name
        reason = reason.format(size=path.stat().st_size, cut=path.stat().st_size - 1)
        if bytes_left is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:bytes_left])
        message = rf"damaged backup: .*backup-1/{name} {reason}\. .*remove .* to start again"
        with pytest.raises(ValueError, match=message):
            model.fit(Shuffled(), epochs=2, verbose=0, callbacks=[AtomicBackup(copy)])
        shutil.rmtree(copy)
    assert are_equal(before, state(model)[: len(before)])  # the optimizer has been built since then


def test_a_backup_of_another_model_is_refused(backup_of_an_epoch):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(
        ValueError, match="(?s)`backup_dir` holds a backup that cannot be loaded .*backup-1.* remove it"
    ):
        model.fit(Shuffled(), epochs=2, verbose=0, callbacks=[AtomicBackup(backup_of_an_epoch)])


# Real kills.


WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile"}
EPOCHS = 20


class Kill(keras.callbacks.Callback):
    """Kills its process at a moment of training: the number 0 is between two batches.

    The others are those at which something in a folder is about to change (a file is opened, renamed or removed), and
    those in the midst of writing.
    """

    def __init__(self, folder, due):
        super().__init__()
        self.folder, self.due, self.moment = str(folder), due, None
        save_variables = keras.layers.Dense.save_own_variables
        keras.layers.Dense.save_own_variables = lambda layer, store: (save_variables(layer, store), self.count())
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if event in WATCHED and str(arguments[0]).startswith(self.folder):
            if event != "open" or not str(arguments[1]).startswith("r"):
                self.count()

    def count(self):
        if self.moment is not None:
            self.moment += 1
            self.on_train_batch_end(None)

    def on_epoch_begin(self, epoch, logs=None):
        self.moment = self.moment or 0

    def on_train_batch_end(self, batch, logs=None):
        if self.moment == self.due:
            os.kill(os.getpid(), signal.SIGKILL)


def train(teacher, folder, due=None):
    """Go on from what lies in the folder, which must be whole; for `due` see `Kill`."""
    kind = "snapshot" if teacher == "pipeline" else teacher

    def load_weights(path):
        model = make_model(kind)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        return model

    lines = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []
    epochs = {json.loads(line)[0] for line in lines}
    for name, load in (("last.keras", keras_ssd.load_model), ("last.weights.h5", load_weights)):
        assert (folder / name).exists() or len(epochs) < 2  # from the end of the first epoch there always is one
        if (folder / name).exists():
            left = load(folder / name)
            assert all(np.isfinite(value).all() for value in state(left))
            steps = int(ops.convert_to_numpy(left.optimizer.iterations))  # of the same epoch in all parts of the file
            assert steps % len(Shuffled()) == 0
            assert left.average is None or int(ops.convert_to_numpy(left.average.steps)) == steps
    model = make_model(kind)
    first = [TeacherSnapshot(at_epoch=2, restore_best_weights=False)] if teacher == "pipeline" else []

    def log(epoch, logs):
        with (folder / "log.jsonl").open("ab", buffering=0) as file:
            file.write((json.dumps([epoch, logs]) + "\n").encode())

    callbacks = [
        *first,
        SeedEachEpoch(1),
        kill := Kill(folder, due),
        keras.callbacks.LambdaCallback(on_epoch_end=log),
        keras.callbacks.ModelCheckpoint(folder / "last.keras"),
        keras.callbacks.ModelCheckpoint(folder / "last.weights.h5", save_weights_only=True),
        AtomicBackup(folder / "backup", delete_checkpoint=False),
    ]
    model.fit(Shuffled(), epochs=EPOCHS, verbose=0, callbacks=callbacks)
    np.savez(folder / "end.npz", *state(model), kill.moment)


def run(*arguments):
    """Train in a process of its own; return its exit code, negative for a signal."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            train(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_and_compare(teacher, step, folder):
    """Kill a run at every `step`-th moment of an epoch, and compare its end with that of one that is left alone."""
    alone, killed = folder / "alone", folder / "killed"
    for path in (alone, killed):
        path.mkdir()
    assert run(teacher, alone) == 0
    *expected, n_moments = np.load(alone / "end.npz").values()
    moments = range(0, math.ceil(n_moments / EPOCHS) + 1, step)
    for moment in moments:
        assert run(teacher, killed, moment) == -signal.SIGKILL, moment
    assert run(teacher, killed) == 0

    *ended, _ = np.load(killed / "end.npz").values()
    assert len(expected) > 8 and are_equal(ended, expected)
    logs_alone, logs_killed = ([*map(json.loads, (path / "log.jsonl").open())] for path in (alone, killed))
    by_epoch, epochs = dict(logs_alone), [epoch for epoch, _ in logs_killed]
    assert list(by_epoch) == list(range(EPOCHS)) == sorted(set(epochs))
    # Never back to an epoch before, and a repeated epoch gives the same result.
    assert epochs == sorted(epochs) and all(logs == by_epoch[epoch] for epoch, logs in logs_killed)
    left = [keras_ssd.load_model(path / "last.keras") for path in (alone, killed)]
    assert are_equal(*map(state, left))
    print(f"{len(moments)} kills at {n_moments} moments of {EPOCHS} epochs; {len(epochs)} epochs were trained")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork and SIGKILL are POSIX")
@pytest.mark.parametrize(
    "teacher, step",
    [
        pytest.param("self", 1 if BACKEND == "torch" else 10, id="self"),
        pytest.param("pipeline", 8, id="pipeline", marks=pytest.mark.once),  # files are written alike on every backend
    ],
)
def test_repeatedly_killed_run_ends_as_the_uninterrupted_run(teacher, step, tmp_path):
    command = [sys.executable, __file__, teacher, str(step), str(tmp_path)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    print(result.stdout)  # with the number of kills


if __name__ == "__main__":
    if BACKEND == "torch":
        # What is imported with the first step is imported once. TensorFlow and JAX start threads, which do not survive
        # a fork.
        make_model("self").fit(Shuffled(), verbose=0)
    kill_and_compare(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
