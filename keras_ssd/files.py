"""Files of a wrapped model: files of the student that also hold the state of the training. Whole or absent."""

import contextlib
import inspect
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py
import keras
import numpy as np

from keras_ssd import _backend
from keras_ssd._version import __version__
from keras_ssd.copies import arrays, assign
from keras_ssd.graph import unique
from keras_ssd.noise import parts_of, seed_states
from keras_ssd.settings import OPTIONS

# Prefix of folders that hold files being written or removed; a killed process leaves them behind.
UNFINISHED = ".unfinished-"

# Further members of an archive of the plain model, and the further group of its weights file.
_CONFIG, _STATE, _TEACHER = "keras_ssd.json", "keras_ssd.weights.h5", "keras_ssd_teacher.keras"
_GROUP = "keras_ssd"
# Keras' older format.
_LEGACY = (".h5", ".hdf5")


def save(ssd: Any, filepath: Any, overwrite: bool, zipped: bool | None, **kwargs: Any) -> None:
    """Write an archive, a folder or an `.h5` file of the student; see `SSDModel.save`."""
    ssd._check_copies()
    _backend.build_optimizer(ssd)  # else loading the file warns that the optimizer has no variables
    suffixes = ("",) if zipped is False else (".keras", *_LEGACY)
    with ssd._deployed(), _replacing(filepath, suffixes, overwrite) as path:
        if path is None:
            return
        ssd.student.save(path, zipped=zipped, **kwargs)
        if os.path.isdir(path):
            _write_members(ssd, path)
        elif os.path.isfile(path) and not str(path).endswith(_LEGACY):  # other files hold the student only
            with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "a") as archive:
                _write_members(ssd, folder)
                for name in os.listdir(folder):
                    archive.write(os.path.join(folder, name), name)


def save_weights(ssd: Any, filepath: Any, overwrite: bool, **kwargs: Any) -> None:
    """Write a weights file of the student; see `SSDModel.save_weights`."""
    ssd._check_copies()
    _backend.build_optimizer(ssd)
    is_single = kwargs.get("max_shard_size") is None
    suffixes = (".weights.h5",) if is_single else ()
    with ssd._deployed(), _replacing(filepath, suffixes, overwrite) as path:
        if path is None:
            return
        ssd.student.save_weights(path, **kwargs)
        if is_single and os.path.isfile(path):
            with h5py.File(path, "a") as file:
                _write_state(ssd, file.create_group(_GROUP))


def load_weights(ssd: Any, filepath: Any, skip_mismatch: bool, **kwargs: Any) -> None:
    """Load a file of a wrapped or a plain model; see `SSDModel.load_weights`."""
    _backend.build_optimizer(ssd)
    state = {} if skip_mismatch else _read_state(filepath)
    own = {} if ssd.distillation is None else ssd.distillation.state()
    of_file = state.get("distillation", {})
    if state and {n: value.shape for n, value in of_file.items()} != {n: value.shape for n, value in own.items()}:
        raise ValueError(
            f"The file holds the state of another distillation than that of {ssd.name!r} ({ssd!r}): {filepath}. Wrap "
            "the model with the same options, or load the weights into the plain model: ssd.student.load_weights(path)."
        )
    ssd.student.load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
    _load_state(ssd, state)


def load_model(
    filepath: Any, custom_objects: dict[str, Any] | None = None, compile: bool = True, safe_mode: bool = True
) -> Any:
    """Load a wrapped model from the file that its `save` wrote; training continues where it stopped.

    `keras.models.load_model` loads the plain model from the same file.

    Args:
        filepath: path of the archive, or of the folder.
        custom_objects: as for `keras.models.load_model`.
        compile: likewise.
        safe_mode: likewise.

    Returns:
        An `SSDModel`.

    Raises:
        ValueError: if the file is not that of a wrapped model, or was written by another version.

    Example:
        >>> ssd.save("model.keras")
        >>> keras_ssd.load_model("model.keras").fit(x, y, epochs=1, verbose=0)  # training continues
    """
    if not os.path.exists(filepath):
        raise ValueError(f"`filepath` names a file that does not exist: {os.fspath(filepath)!r}")
    options = {"custom_objects": custom_objects, "safe_mode": safe_mode}
    with _members(os.fspath(filepath), _CONFIG, _STATE, _TEACHER) as folder:
        if not (folder / _CONFIG).is_file():
            raise ValueError(
                f"`filepath` holds no wrapped model: {os.fspath(filepath)!r}. If it is the file of a plain model, load "
                "it with keras.models.load_model(path) and wrap it: keras_ssd.wrap(model). A file of "
                "keras.saving.save_model(ssd, path) is loaded by keras.models.load_model, one that ends in .h5 with "
                'custom_objects={"SSDModel": keras_ssd.SSDModel}.'
            )
        record = json.loads((folder / _CONFIG).read_text())
        config = record["config"]
        config["model"] = keras.models.load_model(filepath, compile=compile, **options)
        if config["teacher"] == "model":
            config["teacher"] = keras.models.load_model(folder / _TEACHER, compile=False, **options)
        state = _read_state(folder)
    cls = keras.saving.get_registered_object(record["class"], custom_objects=custom_objects)
    if cls is None:
        raise ValueError(
            f"`filepath` holds a model of a class that is not registered: {record['class']!r}. Decorate the class with "
            "@keras.saving.register_keras_serializable() and import it before loading, or pass custom_objects."
        )
    base = next(c for c in cls.__mro__ if c.__name__ == "SSDModel")
    ssd = from_config(cls, base, config, custom_objects, safe_mode)
    _load_state(ssd, state)
    return ssd


def get_config(ssd: Any) -> dict[str, Any]:
    """Return the configuration of a wrapped model, including the student's and that of another teacher network."""
    serialize = keras.saving.serialize_keras_object
    options = ssd.settings.options()
    if callable(options["stochastic_layers"]):
        options["stochastic_layers"] = None  # a predicate that chose nothing, with kd_weight=0
    config = {"name": ssd.name, "model": serialize(ssd.student), "teacher": ssd.settings.kind, **options}
    config["similarity"] = serialize(ssd.settings.similarity)
    if ssd.settings.kind == "model":
        config["teacher"] = serialize(ssd._teacher_network.content)
        config["teacher"].pop("compile_config", None)
    # The wrapper's `compile` compiles the student.
    config["model"].pop("compile_config", None)
    return config


def from_config(
    cls: Any, base: Any, config: dict[str, Any], custom_objects: dict[str, Any] | None, safe_mode: bool = True
) -> Any:
    """Make a wrapped model of a class, whose base is `SSDModel`, from its configuration.

    Models in it may be models or configurations; `custom_objects` and `safe_mode` are as for `load_model`.
    """
    config = dict(config)
    # Includes subclasses, which pass on the arguments that they do not name.
    classes = [c for c in cls.__mro__ if issubclass(c, base)]
    known = {"name", "trainable", *OPTIONS}.union(*(inspect.signature(c.__init__).parameters for c in classes))
    needed = {"model", "teacher", "similarity"}
    unknown, missing = sorted(set(config) - known), sorted(needed - set(config))
    if unknown or missing:
        what = f"holds options unknown to keras-ssd {__version__}: {unknown}" if unknown else f"lacks {missing}"
        raise ValueError(
            f"The configuration of the {cls.__name__} {what}. It was probably written by another version or package: "
            "`pip install --upgrade keras-ssd`, or load the plain model from the file, keras.models.load_model(path), "
            "and wrap it."
        )
    for name in needed:
        if not isinstance(config[name], keras.Model):
            config[name] = _restored(name, config[name], custom_objects, safe_mode)
    return cls(**config)


def _restored(name: str, config: Any, custom_objects: dict[str, Any] | None, safe_mode: bool) -> Any:
    """Deserialise one entry of a configuration without running code from the file.

    Functions are taken from the registry of custom objects only: older versions of Keras import what a file names.
    """
    remedy = (
        "Decorate it with @keras.saving.register_keras_serializable() and import it before loading, or pass "
        "custom_objects."
    )
    if isinstance(config, dict) and config.get("class_name") == "function":
        function = config["config"]
        known = {**keras.saving.get_custom_objects(), **(custom_objects or {})}
        if not any(function in (key, key.rpartition(">")[2]) for key in known):
            raise ValueError(
                f"`{name}` of the saved SSDModel is a function that is not registered: {function}. {remedy}"
            )
    try:
        return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects, safe_mode=safe_mode)
    except TypeError as error:
        raise ValueError(
            f"`{name}` of the saved SSDModel cannot be restored, probably because of a custom object. {remedy} "
            f"Keras says: {error}"
        ) from error


# The state of the wrapper: arrays by name, in the groups of an HDF5 file.


def _variables(ssd: Any) -> dict[str, list[Any]]:
    """Return the variables that Keras' file of the student lacks, beside those of the two layers."""
    parts = parts_of(ssd.student)
    # For layers with LoRA Keras' files hold the merged kernel, and adapters of 0.
    adapted = unique([v for part in parts if getattr(part, "lora_enabled", False) for v in part.weights])
    held = {id(v) for part in (ssd.student, ssd.average, ssd.distillation) if part is not None for v in part.variables}
    own = [v for v in ssd.weights if id(v) not in held]  # of a subclass
    return {"adapted": adapted, "seeds": seed_states([ssd.student]), "own": own}


def _write_state(ssd: Any, group: Any) -> None:
    """Write the state to a group, while the student holds the deployed weights."""
    layers = {"average": ssd.average, "distillation": ssd.distillation}
    state = {name: layer.state() for name, layer in layers.items() if layer is not None}
    for name, variables in _variables(ssd).items():
        state[name] = {str(i): value for i, value in enumerate(arrays(variables))}
    for part, values in state.items():
        part_group = group.create_group(part)
        for name, value in values.items():
            # HDF5 has no bfloat16.
            part_group[name] = value.astype("float32") if str(value.dtype) == "bfloat16" else value


def _read_state(filepath: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the state of the wrapper in a file or folder; nothing for that of a plain model."""

    def read(group: Any) -> dict[str, dict[str, np.ndarray]]:
        return {part: {name: np.array(value) for name, value in values.items()} for part, values in group.items()}

    path = _local_path(filepath)
    if path.endswith(".weights.h5") and os.path.isfile(path):
        with h5py.File(path) as file:
            return read(file.get(_GROUP, {}))
    with _members(path, _STATE) as folder:
        if not (folder / _STATE).is_file():
            return {}
        with h5py.File(folder / _STATE) as file:
            return read(file)


def _load_state(ssd: Any, state: dict[str, dict[str, np.ndarray]]) -> None:
    for name, variables in _variables(ssd).items():
        values = state.get(name, {})
        if len(values) == len(variables):
            assign(variables, [values[str(i)] for i in range(len(values))])
    if ssd.average is not None and "average" in state:
        ssd.average.load_state(state["average"], is_training=ssd._fit_state.is_running)
    elif ssd.average is not None:
        ssd.average.restart()
    if ssd.distillation is not None and "distillation" in state:
        ssd.distillation.load_state(state["distillation"])


def _write_members(ssd: Any, folder: str) -> None:
    """Write the members that are added to those of the plain model, while the student holds the deployed weights."""
    config = {**ssd.get_config(), "teacher": ssd.settings.kind}
    for name in ("model", "student"):  # as a subclass may call it
        config.pop(name, None)
    record = {"version": __version__, "class": keras.saving.get_registered_name(type(ssd)), "config": config}
    pathlib.Path(folder, _CONFIG).write_text(json.dumps(record))
    with h5py.File(os.path.join(folder, _STATE), "w") as file:
        _write_state(ssd, file)
    if ssd.settings.kind == "model":
        ssd._teacher_network.content.save(os.path.join(folder, _TEACHER))


@contextlib.contextmanager
def _members(path: str, *names: str) -> Iterator[pathlib.Path]:
    """Yield a folder that holds the named members of an archive or a folder, as far as they exist."""
    with tempfile.TemporaryDirectory() as copies:
        if path.endswith(".keras") and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(copies, [name for name in names if name in archive.namelist()])
        yield pathlib.Path(path if os.path.isdir(path) else copies)


# Files that are whole or absent.


@contextlib.contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a path to write a file or folder to, in a temporary folder next to `path`, and rename it to `path`.

    It has the name of `path`, which is unchanged if an exception is raised or the process is killed.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as beside:
        written = os.path.join(beside, name)
        yield written
        if os.path.isdir(path):  # a folder cannot replace another one that is not empty
            os.replace(path, os.path.join(beside, "replaced"))
        elif os.path.isfile(path) and os.path.isfile(written):
            shutil.copymode(path, written)
        os.replace(written, path)


@contextlib.contextmanager
def _replacing(filepath: Any, suffixes: tuple[str, ...], overwrite: bool) -> Iterator[Any]:
    """Yield the path to write to, beside a local file of the user; `None` if the user keeps the old file.

    Unless the path has one of the `suffixes` that Keras accepts it is yielded itself, and Keras raises its own errors.
    """
    path = _local_path(filepath)
    folder = os.path.dirname(os.path.realpath(path))
    is_ours = path and path.endswith(suffixes) and os.path.isdir(folder)
    # Keras writes into an empty folder, and raises its own error for a folder in the place of a file.
    if not is_ours or (os.path.isdir(path) and not _is_folder_of_a_model(path, suffixes)):
        yield filepath
    elif not overwrite and os.path.exists(path) and not _may_replace(path):
        yield None
    elif not os.access(folder, os.W_OK):
        yield filepath
    else:
        with written_beside(path) as written:
            yield written


def _local_path(filepath: Any) -> str:
    """Return the path of a local file or folder as given by the user; empty if it is something else."""
    path = os.fspath(filepath) if isinstance(filepath, (str, os.PathLike)) else ""
    return "" if "://" in path else path


def _is_folder_of_a_model(path: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a folder can be replaced by that of a model; raise if other files in it would be lost."""
    names = os.listdir(path) if suffixes == ("",) else []
    members = {"assets", "config.json", "metadata.json", _CONFIG, _STATE, _TEACHER}
    others = sorted(name for name in names if name not in members and not name.startswith("model.weights"))
    if others or (names and os.path.realpath(path) == os.path.realpath(os.getcwd())):
        raise ValueError(
            f"`filepath` is a folder that holds other files, or the working directory: {path!r} ({others[:5]}). Pass "
            "the path of a new folder."
        )
    return bool(names)


def _may_replace(path: str) -> bool:
    """Ask whether an existing file is replaced, as Keras does."""
    answer = ""
    while answer not in ("y", "n"):
        answer = input(f"[WARNING] {path} already exists - overwrite? [y/n]").strip().lower()
    return answer == "y"
