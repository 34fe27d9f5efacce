"""A process may be killed at any moment: its files are complete or absent, and the resumed run ends the same.

Run as a script, this file kills training processes: `python test_crash.py TEACHER KILLS FOLDER`. They are forked from a
process that has imported Keras, so that twenty starts take seconds.
"""

import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback

import keras
import numpy as np
import pytest

import keras_ssd
from keras_ssd.callbacks import AtomicBackup, SeedEachEpoch, TeacherSnapshot
from same_weights import arrays

BACKEND = keras.backend.backend()
N_SAMPLES, BATCHES = 24, 3
EPOCHS = 24


class Shuffled(keras.utils.PyDataset):
    """Another order in every epoch, on every backend."""

    x = np.random.default_rng(0).normal(size=(N_SAMPLES, 6)).astype("float32")
    y = np.arange(N_SAMPLES) % 3
    order = np.arange(N_SAMPLES)

    def on_epoch_begin(self):
        self.order = np.random.permutation(N_SAMPLES)

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        rows = self.order[index::BATCHES]
        return self.x[rows], self.y[rows]


@keras.saving.register_keras_serializable(package="tests")
class Dense(keras.layers.Dense):
    """Lets others look on in the midst of saving."""

    watch = None

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if Dense.watch is not None:
            Dense.watch()


def compiled(model, optimizer):
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=BACKEND == "jax")
    return model


def plain_model():
    keras.utils.set_random_seed(0)
    return compiled(keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")]), "sgd")


def make_model(teacher):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(Dense(8, "relu")(inputs))
    x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
    model = compiled(model, keras.optimizers.Adam(0.02))
    return keras_ssd.wrap(model, teacher=teacher, num_teachers=4, kd_weight=0.5)


def state(model):
    """Everything that a backup holds: weights, those of the teachers and their step count, the optimizer."""
    return arrays([*model.weights, *model.optimizer.variables])


def are_equal(left, right):
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


# At every moment: what lies in the folder whenever a file is opened, renamed or removed, and in the midst of writing.
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile"}


def contents(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


class Moments:
    """What lies in a folder at each moment at which something in it is about to change."""

    def __init__(self, folder):
        self.folder = folder
        self.taken = []
        self.is_watching = True
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        is_ours = self.is_watching and event in WATCHED and str(arguments[0]).startswith(str(self.folder))
        if is_ours and not (event == "open" and str(arguments[1]).startswith("r")):
            self.take()

    def take(self):
        self.is_watching = False
        self.taken.append(contents(self.folder))
        self.is_watching = True

    def write(self, part, folder):
        """Write each state of a part of the folder, one by one, into another folder."""
        states = [{n: content for n, content in taken.items() if n.startswith(part)} for taken in self.taken]
        for files, _ in itertools.groupby(states):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, content in files.items():
                path = folder / name
                (path if content is False else path.parent).mkdir(parents=True, exist_ok=True)
                if content is not False:
                    path.write_bytes(content)
            yield folder / part


class States(keras.callbacks.Callback):
    """Notes the state before the first epoch, and after each; or stops before the first."""

    def __init__(self, stop=False):
        super().__init__()
        self.stop = stop
        self.first_epoch = None
        self.states = {}

    def on_epoch_begin(self, epoch, logs=None):
        if self.first_epoch is None:
            self.first_epoch, self.states[epoch] = epoch, state(self.model)
        if self.stop:
            raise InterruptedError

    def on_epoch_end(self, epoch, logs=None):
        self.states[epoch + 1] = state(self.model)


@pytest.mark.slow
def test_at_every_moment_there_is_a_whole_backup_and_a_whole_checkpoint(tmp_path):
    def built():
        model = make_model("ema")
        model.optimizer.build(model.trainable_variables)
        return model

    folder, copy = tmp_path / "run", tmp_path / "copy"
    folder.mkdir()
    noted, moments = States(), Moments(folder)
    Dense.watch = moments.take
    try:
        callbacks = [
            noted,
            keras.callbacks.ModelCheckpoint(folder / "last.keras"),
            keras.callbacks.ModelCheckpoint(folder / "last.weights.h5", save_weights_only=True),
            AtomicBackup(folder / "backup"),
        ]
        built().fit(Shuffled(), epochs=2, verbose=0, callbacks=callbacks)
    finally:
        moments.is_watching, Dense.watch = False, None
    assert set(os.listdir(folder)) == {"last.keras", "last.weights.h5"}

    def epoch_of(model):
        resumed = States(stop=True)
        with pytest.raises(InterruptedError):  # outside of training the student holds the average
            model.fit(Shuffled(), verbose=0, callbacks=[resumed])
        return [epoch for epoch, one in noted.states.items() if are_equal(resumed.states[0], one)]

    def load_weights(path):
        model = built()
        model.load_weights(path)
        return model

    for name, load in (("last.keras", keras_ssd.load_model), ("last.weights.h5", load_weights)):
        found = [epoch_of(load(path)) if path.exists() else [] for path in moments.write(name, copy)]
        assert found == [[], [1], [2]]

    found = []
    for backup in moments.write("backup", copy):
        resumed = States(stop=True)
        with pytest.raises(InterruptedError):
            built().fit(Shuffled(), epochs=3, verbose=0, callbacks=[AtomicBackup(backup), resumed])
        found.append(resumed.first_epoch)
        assert are_equal(resumed.states[resumed.first_epoch], noted.states[resumed.first_epoch])
    # Never back, but for the beginning when training has ended and the backup is removed.
    while found[-1] == 0:
        found.pop()
    assert found == sorted(found) and set(found) == {0, 1, 2} and len(found) > 10


@pytest.mark.parametrize("backup_dir", ["", None, 3, "gs://bucket/backup"])
def test_a_backup_needs_a_local_folder(backup_dir):
    with pytest.raises(ValueError, match="`backup_dir` should be .* Received: backup_dir="):
        AtomicBackup(backup_dir)


def test_delete_checkpoint_false_keeps_the_backup_of_a_finished_run(tmp_path):
    """And a plain model can have one, too."""
    model, again = plain_model(), plain_model()
    model.fit(Shuffled(), epochs=1, verbose=0, callbacks=[AtomicBackup(str(tmp_path / "removed"))])
    keep = AtomicBackup(tmp_path / "kept", delete_checkpoint=False)
    model.fit(Shuffled(), epochs=2, verbose=0, callbacks=[keep])
    assert os.listdir(tmp_path) == ["kept"] and os.listdir(tmp_path / "kept") == ["backup-2"]
    keep = AtomicBackup(tmp_path / "kept", delete_checkpoint=False)
    assert again.fit(Shuffled(), epochs=2, verbose=0, callbacks=[keep]).epoch == []
    assert int(keras.ops.convert_to_numpy(again.optimizer.iterations)) == 3 * BATCHES
    assert again.fit(Shuffled(), epochs=3, verbose=0, callbacks=[keep]).epoch == [2]


@pytest.fixture(scope="module")
def backup_of_an_epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backup")
    make_model("self").fit(Shuffled(), epochs=1, verbose=0, callbacks=[AtomicBackup(folder, delete_checkpoint=False)])
    return folder


def test_a_backup_lists_its_files(backup_of_an_epoch):
    files = {path.name: path.stat().st_size for path in (backup_of_an_epoch / "backup-1").iterdir()}
    assert set(files) == {"latest.weights.h5", "training_metadata.json", "manifest.json"}
    del files["manifest.json"]
    assert json.loads((backup_of_an_epoch / "backup-1" / "manifest.json").read_text()) == files


@pytest.mark.parametrize(
    "name, bytes_left, reason",
    [
        ("latest.weights.h5", None, "is missing"),
        ("latest.weights.h5", -1, "has {cut} bytes, but {size} were written"),
        ("training_metadata.json", 0, "has 0 bytes, but {size} were written"),
        ("manifest.json", None, r"cannot be read \(.*\)"),
        ("manifest.json", -1, r"cannot be read \(.*\)"),
    ],
)
def test_a_backup_with_a_lost_or_cut_file_is_refused(backup_of_an_epoch, tmp_path, name, bytes_left, reason):
    shutil.copytree(backup_of_an_epoch, tmp_path / "copy")
    path = tmp_path / "copy" / "backup-1" / name
    reason = reason.format(size=path.stat().st_size, cut=path.stat().st_size - 1)
    if bytes_left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:bytes_left])
    model = make_model("self")
    before = model.get_weights()
    with pytest.raises(ValueError, match=rf"damaged backup: .*backup-1/{name} {reason}\. .*remove .* to start again"):
        model.fit(Shuffled(), epochs=2, verbose=0, callbacks=[AtomicBackup(tmp_path / "copy")])
    assert are_equal(before, model.get_weights())


def test_a_backup_of_another_model_is_refused(backup_of_an_epoch):
    message = "(?s)`backup_dir` holds a backup that cannot be loaded .*backup-1.* remove it"
    with pytest.raises(ValueError, match=message):
        plain_model().fit(Shuffled(), epochs=2, verbose=0, callbacks=[AtomicBackup(backup_of_an_epoch)])


@pytest.mark.parametrize("teacher", ["ema", "snapshot"])
def test_resuming_a_finished_run_returns_its_weights(tmp_path, teacher):
    ended = []
    for _ in range(2):
        model = make_model(teacher)
        first = [TeacherSnapshot(at_epoch=1, restore_best_weights=False)] if teacher == "snapshot" else []
        backup = AtomicBackup(tmp_path, delete_checkpoint=False)
        history = model.fit(Shuffled(), epochs=2, verbose=0, callbacks=[*first, SeedEachEpoch(1), backup])
        ended.append((history.epoch, state(model)))
    assert [epochs for epochs, _ in ended] == [[0, 1], []]
    assert are_equal(ended[0][1], ended[1][1])


def test_failed_save_leaves_the_old_file(tmp_path):
    def fail():
        raise InterruptedError

    model = make_model("self")
    for name, save in (("a.keras", model.save), ("a.weights.h5", model.save_weights)):
        save(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        Dense.watch = fail
        try:
            with pytest.raises(InterruptedError):
                save(tmp_path / name)
        finally:
            Dense.watch = None
        assert (tmp_path / name).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.keras", "a.weights.h5"]
    # What is not one local file with the right name is left to Keras.
    with pytest.raises(ValueError, match=r"filepath=a\.txt"):
        model.save("a.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.save(tmp_path / "nowhere" / "a.keras")


# Real kills.
class Report(keras.callbacks.Callback):
    """Tells another process how far training is: `(number of batches, whether files are being written)`."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe
        self.epoch = 0

    def tell(self, batches, is_writing):
        os.write(self.pipe, f"{self.epoch * BATCHES + batches} {int(is_writing)}\n".encode())

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.tell(batch + 1, is_writing=batch + 1 == BATCHES)


def train(teacher, folder, pipe):
    """One process of the run: goes on from what lies in the folder, which must be whole."""
    if (folder / "last.keras").exists():
        left = keras_ssd.load_model(folder / "last.keras")
        assert all(np.isfinite(value).all() for value in state(left))
    model = make_model("snapshot" if teacher == "pipeline" else teacher)
    first = [TeacherSnapshot(at_epoch=4, restore_best_weights=False)] if teacher == "pipeline" else []
    report = Report(pipe)

    def log(epoch, logs):
        with (folder / "log.jsonl").open("ab", buffering=0) as file:
            file.write((json.dumps([epoch, logs]) + "\n").encode())

    callbacks = [
        *first,
        SeedEachEpoch(1),
        keras.callbacks.LambdaCallback(on_epoch_end=log),
        report,
        keras.callbacks.ModelCheckpoint(folder / "last.keras"),
        AtomicBackup(folder / "backup", delete_checkpoint=False),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: report.tell(BATCHES, is_writing=False)),
    ]
    model.fit(Shuffled(), epochs=EPOCHS, verbose=0, callbacks=callbacks)
    np.savez(folder / "end.npz", *state(model))


def run(teacher, folder, moment=None, delay=0.0):
    """Train in a process of its own, until it ends or is killed.

    It is killed `delay` seconds after `moment` batches, or, if that ends in .5, while it writes files after them.
    Returns `(exit code, negative for a signal; reports with their times)`.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            train(teacher, folder, writing)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    reports = []
    with os.fdopen(reading) as pipe:
        for line in pipe:
            batches, is_writing = map(int, line.split())
            reports.append((time.monotonic(), batches, is_writing))
            if moment is not None and batches + 0.5 * is_writing >= moment:
                moment = None
                time.sleep(delay)
                os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), reports


def kill_and_compare(teacher, n_kills, folder):
    """Kill a run again and again and compare its end with that of one that is left alone."""
    alone, killed = folder / "alone", folder / "killed"
    for path in (alone, killed):
        path.mkdir()
    code, reports = run(teacher, alone)
    assert code == 0
    times = [moment for moment, _, _ in reports]
    writing = np.median([times[i + 1] - times[i] for i, report in enumerate(reports) if report[2]])
    epoch = (times[-1] - times[BATCHES]) / (EPOCHS - 1)
    generator = random.Random(n_kills)
    # Not at the very end, so that the process does not escape by ending.
    moments = sorted(generator.randrange(2 * BATCHES * (EPOCHS - 3)) / 2 for _ in range(n_kills))
    n_writing = 0
    for i, moment in enumerate(moments):
        if i % 2:
            moment = BATCHES * (moment // BATCHES + 1) + 0.5
        code, reports = run(teacher, killed, moment, generator.uniform(0, writing if i % 2 else epoch))
        assert code == -signal.SIGKILL, code
        n_writing += reports[-1][2]
    assert run(teacher, killed)[0] == 0

    expected, ended = (dict(np.load(path / "end.npz")) for path in (alone, killed))
    assert len(expected) > 8 and are_equal(list(ended.values()), list(expected.values()))
    logs_alone, logs_killed = ([*map(json.loads, (path / "log.jsonl").open())] for path in (alone, killed))
    by_epoch = dict(logs_alone)
    assert list(by_epoch) == list(range(EPOCHS)) and {epoch for epoch, _ in logs_killed} == set(by_epoch)
    # A repeated epoch gives the same result.
    assert all(logs == by_epoch[epoch] for epoch, logs in logs_killed)
    left = [keras_ssd.load_model(path / "last.keras") for path in (alone, killed)]
    assert are_equal(*map(state, left))
    print(f"{n_kills} kills, {n_writing} while files were written; epoch {epoch:.3f} s, writing {writing:.3f} s")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork and SIGKILL are POSIX")
@pytest.mark.parametrize(
    "teacher, n_kills",
    [
        pytest.param("self", 20 if BACKEND == "torch" else 3, id="self"),
        pytest.param("pipeline", 3, id="pipeline", marks=pytest.mark.once),  # files are written alike on every backend
    ],
)
def test_repeatedly_killed_run_ends_as_the_uninterrupted_run(teacher, n_kills, tmp_path):
    command = [sys.executable, __file__, teacher, str(n_kills), str(tmp_path)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    print(result.stdout)


if __name__ == "__main__":
    if BACKEND == "torch":
        # What is imported with the first step is imported once. TensorFlow and JAX start threads, which do not survive
        # a fork.
        make_model("self").fit(Shuffled(), verbose=0)
    kill_and_compare(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
