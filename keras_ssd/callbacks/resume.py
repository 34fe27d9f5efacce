"""Callbacks that make an interrupted run end bit-identical to an uninterrupted one."""

import json
import os
import pathlib
import shutil

import keras
import numpy as np

from keras_ssd._typing import Logs
from keras_ssd.files import UNFINISHED, written_beside
from keras_ssd.model import SSDModel
from keras_ssd.noise import seed_states
from keras_ssd.settings import check_integer

_PREFIX, _MANIFEST = "backup-", "manifest.json"


class SeedEachEpoch(keras.callbacks.Callback):
    """Seeds all random generators at the beginning of every epoch, from a seed and the number of the epoch.

    Keras does not store the states of its generators, so a resumed run draws different dropout masks than an
    uninterrupted run. With this callback and `AtomicBackup` or `BackupAndRestore`, both end with the same weights, bit
    for bit. It works with any Keras model, wrapped or not.

    It seeds the generators of the model's layers and of its teachers, and, by `keras.utils.set_random_seed`, those of
    Python, NumPy and the backend. Whether the order of the samples is also repeated depends on the data:

    - Arrays on JAX and PyTorch: yes. Each epoch has its own order, drawn from the epoch's seed.
    - Arrays on TensorFlow: only if `keras.utils.set_random_seed` was called before `fit`, with the same seed in both
      runs. Keras then uses the same order in all epochs. For an order that differs between epochs on every backend,
      draw it in `on_epoch_begin` of a `keras.utils.PyDataset`: `self.order = np.random.permutation(n_samples)`. Also
      set an order in its `__init__`: on TensorFlow Keras reads two batches before.
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
        wrapped = self.model if isinstance(self.model, SSDModel) else None
        # The student's states come first, so that they get the same numbers as in the plain model.
        states = seed_states([self.model] if wrapped is None else [wrapped.student, wrapped])
        # Below 2**31: some backends hold seeds as int32.
        drawn = np.random.SeedSequence([self.seed, epoch]).generate_state(len(states) + 1) >> 1
        keras.utils.set_random_seed(int(drawn[0]))
        for state, value in zip(states, drawn[1:], strict=True):
            state.assign(np.array([value, 0], dtype=keras.backend.standardize_dtype(state.dtype)))
        if wrapped is not None and wrapped._fit_state.joined_dataset is not None:
            wrapped._fit_state.joined_dataset.epoch = epoch


class AtomicBackup(keras.callbacks.Callback):
    """`keras.callbacks.BackupAndRestore` after every epoch, for runs that may be killed at any moment.

    Keras' callback writes the weights and then, to a second file, the number of the epoch. A process that is killed in
    between leaves new weights with an old number, and the resumed run silently trains an epoch twice; killed while one
    of the files is written, it cannot be resumed at all.

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
        for unfinished in pathlib.Path(self.backup_dir).glob(f"{UNFINISHED}*"):
            shutil.rmtree(unfinished)
        for folder in self._backups()[-1:]:
            _check_files(folder)
            try:
                self._of_keras(folder).on_train_begin()
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(
                    f"`backup_dir` holds a backup that cannot be loaded into the model {self.model.name!r}: {folder} "
                    f"({error}). If it belongs to another model, pass another folder; to start again remove it."
                ) from error

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write a backup, then remove the previous backup."""
        older = self._backups()
        number = 1 + max(map(_number, older), default=0)
        with written_beside(os.path.join(self.backup_dir, f"{_PREFIX}{number}")) as folder:
            self._of_keras(folder).on_epoch_end(epoch)
            pathlib.Path(folder, _MANIFEST).write_text(json.dumps(_file_sizes(folder)))
        self._remove(older)

    def on_train_end(self, logs: Logs = None) -> None:
        """Remove the backup."""
        if self.delete_checkpoint:
            self._remove(self._backups())
            if not os.listdir(self.backup_dir):
                os.rmdir(self.backup_dir)

    def _of_keras(self, folder: str | os.PathLike[str]) -> keras.callbacks.BackupAndRestore:
        callback = keras.callbacks.BackupAndRestore(os.fspath(folder))
        callback.set_model(self.model)
        return callback

    def _backups(self) -> list[pathlib.Path]:
        folders = pathlib.Path(self.backup_dir).glob(f"{_PREFIX}*")
        return sorted((folder for folder in folders if folder.name[len(_PREFIX) :].isdecimal()), key=_number)

    def _remove(self, backups: list[pathlib.Path]) -> None:
        for folder in backups:
            # Renamed first: the rest of an interrupted removal must not be taken for a backup.
            shutil.rmtree(folder.replace(folder.with_name(f"{UNFINISHED}{_number(folder)}")))


def _number(folder: pathlib.Path) -> int:
    return int(folder.name[len(_PREFIX) :])


def _file_sizes(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Return the size in bytes of each file in a folder, by its path within the folder."""
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _check_files(folder: pathlib.Path) -> None:
    """Raise unless the files of a backup match its manifest."""
    sizes = _file_sizes(folder)
    try:
        expected = json.loads((folder / _MANIFEST).read_text())
        damages = {
            name: f"has {sizes[name]} bytes, but {size} were written" if name in sizes else "is missing"
            for name, size in expected.items()
            if sizes.get(name) != size
        }
    except (OSError, ValueError) as error:
        damages = {_MANIFEST: f"cannot be read ({error})"}
    for name, what in damages.items():
        raise ValueError(
            f"`backup_dir` holds a damaged backup: {folder / name} {what}. Copy the backup again, with all of its "
            f"files, or remove {folder} to start again."
        )
