"""Files of a wrapped model: archives, weights that the plain model can load, exports, configuration."""

import contextlib
import inspect
import os
from typing import Any

import keras
import numpy as np

from keras_ssd import saving
from keras_ssd.settings import OPTIONS, Settings

# Names under which a wrapper's file holds the raw weights, if its student carries the average.
_RAW, _DIGEST = "raw_weight_", "lent_weights_digest"

# `super()` is keras.Model here, as `Storage` is mixed into a model; type checkers do not know.
_Model: Any = object


class Storage(_Model):
    """The methods of `SSDModel` that deal with files."""

    name: Any
    settings: Settings
    student: Any
    _averaging: Any
    _build_optimizer_of_student: Any
    _end_training: Any
    _fit_state: Any
    _teacher_network: Any
    _watch: Any

    def save(self, filepath: Any, overwrite: bool = True, zipped: bool | None = None, **kwargs: Any) -> None:
        self._watch.content.check_held_copies(self)
        # `ModelCheckpoint` calls this, too: a killed process must not leave a partial file in place of a complete one.
        with self._carrying_average():
            if zipped is False or not overwrite or not saving.can_be_written_beside(filepath, ".keras"):
                return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
            with saving.written_beside(filepath) as written:
                return super().save(written, zipped=zipped, **kwargs)

    def save_weights(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> None:
        """Save all weights in a file from which the plain model can load the deployed weights, too.

        In addition to the student's weights the file holds everything that the wrapper needs to continue training: the
        raw weights, the held weights, the optimizer. For files in several parts (`max_shard_size`) and files at a URL,
        Keras' own format of the wrapper is used, which the plain model cannot read.

        Args:
            filepath: path that ends in `.weights.h5`.
            overwrite: whether an existing file is replaced without asking.
            **kwargs: as for `keras.Model.save_weights`.
        """
        if kwargs.get("max_shard_size") is not None or not saving.is_weights_file(filepath):
            with self._carrying_average():
                return super().save_weights(filepath, overwrite=overwrite, **kwargs)
        if not overwrite and os.path.exists(filepath):
            before = os.stat(filepath).st_mtime_ns
            self.student.save_weights(filepath, overwrite=False)  # Keras asks
            if os.stat(filepath).st_mtime_ns == before:
                return None
        if not saving.can_be_written_beside(filepath, ".weights.h5"):
            return self._write_weights(filepath)
        with saving.written_beside(filepath) as written:
            return self._write_weights(written)

    def _carrying_average(self) -> Any:
        return contextlib.nullcontext() if self._averaging is None else self._averaging.carried()

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        lent = None if self._averaging is None else self._averaging.lent()
        if lent is not None:
            for i, value in enumerate(lent[0]):
                store[f"{_RAW}{i}"] = value
            store[_DIGEST] = lent[1]

    def load_own_variables(self, store: Any) -> None:
        stored = {name: store[name] for name in store.keys()}  # noqa: SIM118  the store is no dictionary
        raw = [np.array(stored.pop(f"{_RAW}{i}")) for i in range(sum(name.startswith(_RAW) for name in stored))]
        digest = stored.pop(_DIGEST, None)
        if self._averaging is not None:
            self._averaging.note_lent(raw, None if digest is None else np.array(digest))
        super().load_own_variables(stored)

    def _write_weights(self, path: Any) -> None:
        self._build_optimizer_of_student()
        with self._carrying_average():
            self.student.save_weights(path)
            with saving.state_beside_weights(path) as whole:
                super().save_weights(whole)

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Load all weights from a file of a wrapper, or the student's weights from a file of the plain model.

        In the second case the moving average restarts from the loaded weights.

        Args:
            filepath: path of the file.
            skip_mismatch: whether layers that do not fit are skipped.
            **kwargs: as for `keras.Model.load_weights`.
        """
        is_legacy = str(filepath).endswith((".h5", ".hdf5")) and not str(filepath).endswith("weights.h5")
        if not is_legacy and not (saving.is_weights_file(filepath) and os.path.isfile(filepath)):
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
            return self._end_loading()
        self._build_optimizer_of_student()
        if not is_legacy:
            with saving.state_in_weights(filepath) as whole:
                if whole is not None:
                    super().load_weights(whole, skip_mismatch=skip_mismatch, **kwargs)
                    return self._end_loading()
        self.student.load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        if self._averaging is not None:
            self._averaging.restart()
        return None

    def _end_loading(self) -> None:
        """Let the student carry what it carries at this time: raw weights during `fit`, else the average."""
        if not self._fit_state.is_running:
            self._end_training()
        elif self._averaging is not None:
            self._averaging.take_back()

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Export the student as `predict` uses it: with the averaged weights, also during training.

        Args:
            *args: as for `keras.Model.export`.
            **kwargs: likewise.
        """
        with self._carrying_average():
            return self.student.export(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        student = keras.saving.serialize_keras_object(self.student)
        teacher = self.settings.kind
        if teacher == "model":
            teacher = keras.saving.serialize_keras_object(self._teacher_network.content)
            teacher.pop("compile_config", None)
        # The wrapper is compiled; its student was at most compiled before, and that optimizer is not needed any more.
        student.pop("compile_config", None)
        options = self.settings.options()
        if callable(options["stochastic_layers"]):
            options["stochastic_layers"] = None  # a predicate that chose nothing, with kd_weight=0
        return {
            "name": self.name,
            "model": student,
            "teacher": teacher,
            **options,
            "similarity": keras.saving.serialize_keras_object(self.settings.similarity),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        config = dict(config)
        # Includes subclasses, which pass on the arguments that they do not name.
        classes = [c for c in cls.__mro__ if issubclass(c, Storage)]
        known = {"name", "trainable", *OPTIONS}.union(*(inspect.signature(c.__init__).parameters for c in classes))
        saving.check_config(config, cls.__name__, known, needed={"model", "teacher", "similarity"})
        for name in ("model", "teacher", "similarity"):
            config[name] = saving.restored(name, config[name], custom_objects)
        return cls(**config)
