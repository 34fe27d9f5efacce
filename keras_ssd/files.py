"""Files of a wrapped model: files of the student that also hold the state of the training. Whole or absent."""

import contextlib
import inspect
import io
import json
import os
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
# The members of a folder of a model, beside those whose names begin with `model.weights`.
_OF_A_MODEL = {"assets", "config.json", "metadata.json", _CONFIG, _STATE, _TEACHER}
# Keras' older format.
_LEGACY = (".h5", ".hdf5")

_NEWER = (
    "It was probably written by another version or package: `pip install --upgrade keras-ssd`, or load the plain model "
    "from the file, keras.models.load_model(path), and wrap it."
)


def save(ssd: Any, filepath: Any, overwrite: bool, zipped: bool | None, **kwargs: Any) -> None:
    """Write an archive, a folder or an `.h5` file of the student; see `SSDModel.save`."""
    ssd._check_copies()
    _backend.build_optimizer(ssd)  # else loading the file warns that the optimizer has no variables
    state = _state(ssd)
    suffixes = ("",) if zipped is False else (".keras", *_LEGACY)
    with ssd._deployed(), _replacing(filepath, suffixes, overwrite) as path:
        if path is None:
            return
        ssd.student.save(path, zipped=zipped, **kwargs)
        if str(path).endswith(_LEGACY) or not os.path.exists(path):
            return  # Keras' older format, and files at a URL, hold the student only
        for name, content in _members(ssd, state).items():
            if os.path.isdir(path):
                with open(os.path.join(path, name), "wb") as file:
                    file.write(content)
            else:
                with zipfile.ZipFile(path, "a") as archive:
                    archive.writestr(name, content)


def save_weights(ssd: Any, filepath: Any, overwrite: bool, **kwargs: Any) -> None:
    """Write a weights file of the student; see `SSDModel.save_weights`."""
    ssd._check_copies()
    _backend.build_optimizer(ssd)
    state = _state(ssd)
    is_single = kwargs.get("max_shard_size") is None
    suffixes = (".weights.h5",) if is_single else ()
    with ssd._deployed(), _replacing(filepath, suffixes, overwrite) as path:
        if path is None:
            return
        ssd.student.save_weights(path, **kwargs)
        if is_single and os.path.isfile(path):
            with h5py.File(path, "a") as file:
                _write(file.create_group(_GROUP), state)


def load_weights(ssd: Any, filepath: Any, skip_mismatch: bool, **kwargs: Any) -> None:
    """Load a file of a wrapped or a plain model; see `SSDModel.load_weights`."""
    _backend.build_optimizer(ssd)
    state = None if skip_mismatch else _read_state(filepath)
    if state is not None:
        _check_state(ssd, state, filepath)
    ssd.student.load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
    _load_state(ssd, state or {})


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
    content = _member(filepath, _CONFIG)
    if content is None:
        raise ValueError(
            f"`filepath` holds no wrapped model: {os.fspath(filepath)!r}. If it is the file of a plain model, load it "
            "with keras.models.load_model(path) and wrap it: keras_ssd.wrap(model). A file of "
            "keras.saving.save_model(ssd, path) is loaded by keras.models.load_model, one that ends in .h5 with "
            'custom_objects={"SSDModel": keras_ssd.SSDModel}.'
        )
    options = {"custom_objects": custom_objects, "safe_mode": safe_mode}
    config = json.loads(content)
    config["config"]["model"] = keras.models.load_model(filepath, compile=compile, **options)
    if config["config"]["teacher"] == "model":
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, _TEACHER)
            with open(path, "wb") as file:
                file.write(_member(filepath, _TEACHER) or b"")
            config["config"]["teacher"] = keras.models.load_model(path, compile=False, **options)
    cls = keras.saving.get_registered_object(config["class"], custom_objects=custom_objects)
    if cls is None:
        raise ValueError(
            f"`filepath` holds a model of a class that is not registered: {config['class']!r}. Decorate the class with "
            "@keras.saving.register_keras_serializable() and import it before loading, or pass custom_objects."
        )
    ssd = from_config(
        cls, next(c for c in cls.__mro__ if c.__name__ == "SSDModel"), config["config"], custom_objects, safe_mode
    )
    _load_state(ssd, _read_state(filepath) or {})
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
    """Make a wrapped model from its configuration; models in it may be models or configurations.

    Args:
        cls: the class.
        base: `SSDModel`.
        config: the configuration.
        custom_objects: as given to `keras.models.load_model`.
        safe_mode: likewise.
    """
    config = dict(config)
    # Includes subclasses, which pass on the arguments that they do not name.
    classes = [c for c in cls.__mro__ if issubclass(c, base)]
    known = {"name", "trainable", *OPTIONS}.union(*(inspect.signature(c.__init__).parameters for c in classes))
    needed = {"model", "teacher", "similarity"}
    unknown, missing = sorted(set(config) - known), sorted(needed - set(config))
    if unknown or missing:
        what = f"holds options unknown to keras-ssd {__version__}: {unknown}" if unknown else f"lacks {missing}"
        raise ValueError(f"The configuration of the {cls.__name__} {what}. {_NEWER}")
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


def _state(ssd: Any) -> dict[str, dict[str, np.ndarray]]:
    layers = {"average": ssd.average, "distillation": ssd.distillation}
    state = {name: layer.state() for name, layer in layers.items() if layer is not None}
    with ssd._deployed():
        for name, variables in _variables(ssd).items():
            state[name] = {str(i): value for i, value in enumerate(arrays(variables))}
    return state


def _variables(ssd: Any) -> dict[str, list[Any]]:
    """Return the variables that Keras' file of the student lacks, beside those of the two layers."""
    parts = parts_of(ssd.student)
    # For layers with LoRA Keras' files hold the merged kernel, and adapters of 0.
    adapted = unique([v for part in parts if getattr(part, "lora_enabled", False) for v in part.weights])
    held = {id(v) for part in (ssd.student, ssd.average, ssd.distillation) if part is not None for v in part.variables}
    own = [v for v in ssd.weights if id(v) not in held]  # of a subclass
    return {"adapted": adapted, "seeds": seed_states([ssd.student]), "own": own}


def _check_state(ssd: Any, state: dict[str, dict[str, np.ndarray]], filepath: Any) -> None:
    """Raise unless the state of a file is that of the same distillation."""
    of_file, own = state.get("distillation"), None if ssd.distillation is None else ssd.distillation.state()
    shapes = [None if part is None else {name: np.shape(part[name]) for name in part} for part in (of_file, own)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The file holds the state of another distillation than that of {ssd.name!r} ({ssd!r}): {filepath}. Wrap "
            "the model with the same options, or load the weights into the plain model: ssd.student.load_weights(path)."
        )


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


def _write(group: Any, state: dict[str, dict[str, np.ndarray]]) -> None:
    for part, values in state.items():
        for name, value in values.items():
            # HDF5 has no bfloat16.
            value = value.astype("float32") if str(value.dtype) == "bfloat16" else value
            group.create_dataset(f"{part}/{name}", data=value)
        group.require_group(part)


def _read_state(filepath: Any) -> dict[str, dict[str, np.ndarray]] | None:
    """Return the state of the wrapper in a file; `None` for the file of a plain model."""
    path = os.fspath(filepath) if isinstance(filepath, (str, os.PathLike)) else ""
    if path.endswith(".weights.h5") and os.path.isfile(path):
        with h5py.File(path, "r") as file:
            return _read(file[_GROUP]) if _GROUP in file else None
    content = _member(path, _STATE)
    if content is None:
        return None
    with h5py.File(io.BytesIO(content), "r") as file:
        return _read(file)


def _read(group: Any) -> dict[str, dict[str, np.ndarray]]:
    return {part: {name: np.array(value) for name, value in values.items()} for part, values in group.items()}


def _members(ssd: Any, state: dict[str, dict[str, np.ndarray]]) -> dict[str, bytes]:
    """Return by name the members that are added to an archive of the plain model."""
    config = {**ssd.get_config(), "teacher": ssd.settings.kind}
    for name in ("model", "student"):  # as a subclass may call it
        config.pop(name, None)
    record = {"version": __version__, "class": keras.saving.get_registered_name(type(ssd)), "config": config}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        _write(file, state)
    members = {_CONFIG: json.dumps(record).encode(), _STATE: buffer.getvalue()}
    if ssd.settings.kind == "model":
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, _TEACHER)
            ssd._teacher_network.content.save(path)
            with open(path, "rb") as stored:
                members[_TEACHER] = stored.read()
    return members


def _member(filepath: Any, name: str) -> bytes | None:
    """Return a member of an archive or folder, `None` if there is none."""
    path = os.path.join(filepath, name) if os.path.isdir(filepath) else filepath
    if path != filepath and os.path.isfile(path):
        with open(path, "rb") as file:
            return file.read()
    if os.path.isfile(filepath) and zipfile.is_zipfile(filepath):
        with zipfile.ZipFile(filepath) as archive:
            return archive.read(name) if name in archive.namelist() else None
    return None


# Files that are whole or absent.


@contextlib.contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a path to write to, in a temporary folder next to `path`, and rename it to `path` at the end.

    If an exception is raised or the process is killed, `path` is unchanged.

    Args:
        path: path of the file or the folder.

    Yields:
        The path to write to; it has the name of `path`.
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

    Args:
        filepath: the path as given by the user.
        suffixes: the endings that Keras accepts. For all other paths `filepath` itself is yielded, and Keras raises its
            own errors.
        overwrite: whether an existing file is replaced without asking.
    """
    path = os.fspath(filepath) if isinstance(filepath, (str, os.PathLike)) else ""
    folder = os.path.dirname(os.path.realpath(path))
    if not path.endswith(suffixes) or not path or "://" in path or not os.path.isdir(folder):
        yield filepath
        return
    if os.path.isdir(path) and not _is_folder_of_a_model(path, suffixes):
        yield filepath  # Keras writes into an empty folder, and raises its own error for a file
        return
    if not overwrite and os.path.exists(path) and not _may_replace(path):
        yield None
        return
    if not os.access(folder, os.W_OK):
        yield filepath
        return
    with written_beside(path) as written:
        yield written


def _is_folder_of_a_model(path: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a folder can be replaced by that of a model.

    Raises:
        ValueError: if a model is to be written to a folder with other files, which would be lost.
    """
    names = os.listdir(path) if suffixes == ("",) else []
    others = sorted(name for name in names if name not in _OF_A_MODEL and not name.startswith("model.weights"))
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
