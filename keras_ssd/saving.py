"""Saving: files that are complete or absent, and the checks of a stored configuration of an `SSDModel`."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import h5py
import keras

from keras_ssd._version import __version__

# Prefix of folders that hold files being written or removed; a killed process leaves them behind.
UNFINISHED = ".unfinished-"

# The group of a weights file that holds the wrapper's own state, next to the weights of the student.
_STATE = "keras_ssd"


@contextlib.contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a path to write to, in a temporary folder next to `path`, and rename it to `path` at the end.

    If an exception is raised or the process is killed, `path` is unchanged.

    Args:
        path: path of the file or the new folder.

    Yields:
        The path to write to; it has the name of `path`.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as beside:
        written = os.path.join(beside, name)
        yield written
        os.replace(written, path)


def can_be_written_beside(path: Any, suffix: str) -> bool:
    """Return whether `path` names a local file with the right suffix in a folder that can be written to.

    Args:
        path: the path as given by the user.
        suffix: how the name must end, such as `".keras"`.
    """
    if not isinstance(path, (str, os.PathLike)):
        return False
    path = os.fspath(path)
    if "://" in path or not path.endswith(suffix) or os.path.isdir(path):
        return False
    folder = os.path.dirname(os.path.realpath(path))
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def is_weights_file(path: Any) -> bool:
    """Return whether `path` names a local weights file of Keras in a single part."""
    return isinstance(path, (str, os.PathLike)) and str(path).endswith(".weights.h5") and "://" not in str(path)


@contextlib.contextmanager
def state_beside_weights(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a path for the weights file of a wrapper, and add that file to the weights file of its student.

    The plain model finds its weights in their usual place and does not see the rest.

    Args:
        path: path of the student's weights file.

    Yields:
        The path to write the wrapper's weights file to.
    """
    folder = os.path.dirname(os.path.realpath(path))
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder if os.access(folder, os.W_OK) else None) as beside:
        whole = os.path.join(beside, "state.weights.h5")
        yield whole
        with h5py.File(whole, "r") as source, h5py.File(path, "a") as target:
            _copy(source, target.create_group(_STATE))


@contextlib.contextmanager
def state_in_weights(path: str | os.PathLike[str]) -> Iterator[str | None]:
    """Extract the weights file of a wrapper from the weights file of its student.

    Args:
        path: path of a weights file.

    Yields:
        The path of the wrapper's weights file, or `None` if `path` is the file of a plain model.
    """
    with tempfile.TemporaryDirectory(prefix="keras-ssd-") as folder:
        whole: str | None = os.path.join(folder, "state.weights.h5")
        with h5py.File(path, "r") as source:
            if _STATE in source:
                with h5py.File(whole, "w") as target:
                    _copy(source[_STATE], target)
            else:
                whole = None
        yield whole


def _copy(source: Any, target: Any) -> None:
    for name in source:
        source.copy(name, target)
    for name, value in source.attrs.items():
        target.attrs[name] = value


def check_config(config: dict[str, Any], class_name: str, known: set[str], needed: set[str]) -> None:
    """Raise unless a configuration holds only known options and all required options.

    Args:
        config: dictionary.
        class_name: class name of the model.
        known: set of the options that this version knows.
        needed: set of the options that are required.

    Raises:
        ValueError: if an option is unknown or missing. The message names the options, and says what to do.
    """
    unknown, missing = sorted(set(config) - known), sorted(needed - set(config))
    if unknown or missing:
        what = f"holds options unknown to keras-ssd {__version__}: {unknown}" if unknown else f"lacks {missing}"
        raise ValueError(
            f"The configuration of the {class_name} {what}. It was probably written by another version or "
            "package: `pip install --upgrade keras-ssd`, or save the plain model, `ssd.student`, where it was trained; "
            "every version reads that file."
        )


def restored(name: str, config: Any, custom_objects: dict[str, Any] | None) -> Any:
    """Restore a part of the model from its configuration; no code of the file is run.

    Functions are resolved only from the registry of custom objects: Keras 3.6 would import whatever a file names.

    Args:
        name: name of the option.
        config: its configuration in the file.
        custom_objects: as given to `keras.models.load_model`.

    Returns:
        The option's value.

    Raises:
        ValueError: if `config` names an unknown class or function. The message says what to do.
    """
    remedy = (
        "Decorate it with @keras.saving.register_keras_serializable() and import it before loading, or pass "
        "custom_objects to keras.models.load_model."
    )
    if isinstance(config, dict) and config.get("class_name") == "function":
        function = config["config"]
        known = keras.saving.get_registered_object(function, custom_objects=custom_objects) is not None
        # Keras 3.6 writes the name without the package.
        if not known and not any(key.endswith(f">{function}") for key in keras.saving.get_custom_objects()):
            raise ValueError(
                f"`{name}` of the saved SSDModel is a function that is not registered: {function}. {remedy}"
            )
    try:
        return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    except TypeError as error:
        raise ValueError(
            f"`{name}` of the saved SSDModel cannot be restored, probably because of a custom object. {remedy} "
            f"Keras says: {error}"
        ) from error
