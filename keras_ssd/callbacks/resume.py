"""Callbacks that make an interrupted run end bit-identical to an uninterrupted one."""

import json
import os
import pathlib
import shutil
from typing import Any

import keras
import numpy as np

from keras_ssd._typing import Logs
from keras_ssd.files import UNFINISHED, written_beside
from keras_ssd.graph import unique
from keras_ssd.model import SSDModel
from keras_ssd.noise import seed_states
from keras_ssd.settings import check_integer


class SeedEachEpoch(keras.callbacks.Callback):
    """Seeds all random generators at the beginning of every epoch, from a seed and the number of the epoch.

    Keras does not store the states of its generators, so a resumed run draws different dropout masks than an
    uninterrupted run. With this callback and `AtomicBackup` or `BackupAndRestore`, both end with the same weights, bit
    for bit. It works with any Keras model, wrapped or not.

    It seeds the generators of the model's layers and of its teachers, and, by `keras.utils.set_random_seed`, those of
    Python, NumPy and the backend. Whether the order of the samples is also repeated depends on the backend and the
    data:

    - JAX and PyTorch: yes. Each epoch has its own order, drawn from the epoch's seed.
    - TensorFlow, arrays: only if `keras.utils.set_random_seed` was called before `fit`, with the same seed in both
      runs. Keras then uses the same order in all epochs. For an order that differs between epochs on every backend,
      draw it in the data set:

          class Shuffled(keras.utils.PyDataset):
              def on_epoch_begin(self):
                  self.order = np.random.permutation(n_samples)

    - A set made by `join_unlabelled`: yes if it was made from arrays, with its `seed` or after
      `keras.utils.set_random_seed`; no if it was made from sets that come in batches.
    - A `tf.data.Dataset` with its own `shuffle`: no, its state cannot be accessed. Use a `PyDataset`.

    It needs backups after whole epochs, `BackupAndRestore(save_freq="epoch")`, which is the default: a repeated epoch
    draws the same numbers again.

    Args:
        seed: integer, >= 0.

    Raises:
        ValueError: if `seed` is not an integer, or negative.

    Example:
        >>> callbacks = [keras_ssd.callbacks.SeedEachEpoch(7), keras_ssd.callbacks.AtomicBackup("backup")]
        >>> keras.utils.set_random_seed(7)
        >>> ssd.fit(x, y, epochs=100, callbacks=callbacks)
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        check_integer("seed", seed, 0)
        self.seed = int(seed)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Seed this epoch."""
        states = _seed_states(self.model)
        # Below 2**31: some backends hold seeds as int32.
        drawn = np.random.SeedSequence([self.seed, epoch]).generate_state(len(states) + 1) >> 1
        keras.utils.set_random_seed(int(drawn[0]))
        for state, value in zip(states, drawn[1:], strict=True):
            state.assign(np.array([value, 0], dtype=keras.backend.standardize_dtype(state.dtype)))
        if isinstance(self.model, SSDModel):
            joined = self.model._fit_state.joined_dataset
            if joined is not None:
                joined.epoch = epoch


class AtomicBackup(keras.callbacks.Callback):
    """`keras.callbacks.BackupAndRestore` after every epoch, for runs that may be killed at any moment.

    Keras' callback writes the weights and then, to a second file, the number of the epoch. A process that is killed
    in between leaves new weights with an old number, and the resumed run silently trains an epoch twice. A process that
    is killed while the first backup or the second file is written cannot be resumed at all.

    This callback lets Keras write each backup to a new folder, renames the folder when it is complete, and then
    removes the previous backup. A backup lists its files and their sizes in `manifest.json`: if a file is lost or
    truncated later, in a copy or on a full disk, resuming raises an error that names the file.

    It works with any Keras model, wrapped or not. Place it after callbacks that change the model at the end of an epoch
    (`TeacherSnapshot`), and use it together with `SeedEachEpoch`.

    Args:
        backup_dir: path of a local folder that nothing else uses.
        delete_checkpoint: whether the backup is removed when `fit` ends. Pass `False` if the process may be killed
            between the end of `fit` and the use of the model: `fit` then returns at once with the final weights.
            Defaults to `True`.

    Raises:
        ValueError: if `backup_dir` is not a local path, or holds a backup with a missing or truncated file, or a backup
            that cannot be loaded into the model.

    Example:
        >>> callbacks = [keras_ssd.callbacks.SeedEachEpoch(7), keras_ssd.callbacks.AtomicBackup("backup")]
        >>> ssd.fit(x, y, epochs=100, callbacks=callbacks)  # start the same script again after a kill
    """

    _PREFIX = "backup-"
    _MANIFEST = "manifest.json"

    def __init__(self, backup_dir: str | os.PathLike[str], delete_checkpoint: bool = True) -> None:
        super().__init__()
        is_path = isinstance(backup_dir, (str, os.PathLike)) and os.fspath(backup_dir)
        if not is_path or "://" in os.fspath(backup_dir):
            raise ValueError(
                "`backup_dir` should be the path of a local folder; for others use keras.callbacks.BackupAndRestore. "
                f"Received: backup_dir={backup_dir!r}"
            )
        self.backup_dir = os.fspath(backup_dir)
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs: Logs = None) -> None:
        """Resume from the newest backup, if there is one."""
        os.makedirs(self.backup_dir, exist_ok=True)
        for name in os.listdir(self.backup_dir):
            if name.startswith(UNFINISHED):
                shutil.rmtree(os.path.join(self.backup_dir, name))
        numbers = self._numbers()
        if not numbers:
            return
        folder = self._folder(numbers[-1])
        self._check_files(folder)
        try:
            self._of_keras(folder).on_train_begin()
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"`backup_dir` holds a backup that cannot be loaded into the model {self.model.name!r}: {folder} "
                f"({error}). If it belongs to another model, pass another folder; to start again remove it."
            ) from error

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write a backup, then remove the previous backup."""
        older = self._numbers()
        with written_beside(self._folder(older[-1] + 1 if older else 1)) as folder:
            self._of_keras(folder).on_epoch_end(epoch)
            pathlib.Path(folder, self._MANIFEST).write_text(json.dumps(_file_sizes(folder)))
        self._remove(older)

    def on_train_end(self, logs: Logs = None) -> None:
        """Remove the backup."""
        if self.delete_checkpoint:
            self._remove(self._numbers())
            if not os.listdir(self.backup_dir):
                os.rmdir(self.backup_dir)

    def _check_files(self, folder: str) -> None:
        """Raise unless the files of a backup match its manifest."""
        manifest = pathlib.Path(folder, self._MANIFEST)
        try:
            expected = json.loads(manifest.read_text())
        except (OSError, ValueError) as error:
            raise _damaged(manifest, f"cannot be read ({error})") from error
        sizes = _file_sizes(folder)
        for name, size in expected.items():
            if name not in sizes:
                raise _damaged(pathlib.Path(folder, name), "is missing")
            if sizes[name] != size:
                raise _damaged(pathlib.Path(folder, name), f"has {sizes[name]} bytes, but {size} were written")

    def _of_keras(self, folder: str) -> keras.callbacks.BackupAndRestore:
        callback = keras.callbacks.BackupAndRestore(folder)
        callback.set_model(self.model)
        return callback

    def _folder(self, number: int) -> str:
        return os.path.join(self.backup_dir, f"{self._PREFIX}{number}")

    def _numbers(self) -> list[int]:
        names = [name.removeprefix(self._PREFIX) for name in os.listdir(self.backup_dir)]
        return sorted(int(name) for name in names if name.isdecimal())

    def _remove(self, numbers: list[int]) -> None:
        for number in numbers:
            # Renamed first: the rest of an interrupted removal must not be taken for a backup.
            removed = os.path.join(self.backup_dir, f"{UNFINISHED}{number}")
            os.replace(self._folder(number), removed)
            shutil.rmtree(removed)


def _file_sizes(folder: str) -> dict[str, int]:
    """Return the size in bytes of each file in a folder, by its path within the folder."""
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _damaged(path: pathlib.Path, what: str) -> ValueError:
    return ValueError(
        f"`backup_dir` holds a damaged backup: {path} {what}. Copy the backup again, with all of its files, or remove "
        f"{path.parent} to start again."
    )


def _seed_states(model: keras.Model) -> list[Any]:
    """Return the states of all seed generators in a model."""
    # The student's states come first, so that they get the same numbers as in the plain model.
    first = seed_states([model.student]) if isinstance(model, SSDModel) else []
    return unique([*first, *seed_states([model])])
