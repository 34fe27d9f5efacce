"""Saving: files that are whole or absent, and what a stored configuration of an `SSDModel` must hold."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import h5py
import keras

from keras_ssd._version import __version__

# Prefix of folders that hold what is being written or removed; a kill leaves them behind.
UNFINISHED = ".unfinished-"

# The group of a weights file in which the wrapper's own state lies beside the weights of the student.
_STATE = "keras_ssd"


@contextlib.contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a path to write to, in a folder of its own beside `path`, and rename it to `path` at the end.

    After an exception, or the death of the process, `path` is what it was before.

    Args:
        path: of the file or the new folder.

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
    """Return whether `path` names a local file, of the right suffix, in a folder that can take another.

    Args:
        path: what the user gave as a path.
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
    """Return whether `path` names a local weights file of Keras that is not in several parts."""
    return isinstance(path, (str, os.PathLike)) and str(path).endswith(".weights.h5") and "://" not in str(path)


@contextlib.contextmanager
def state_beside_weights(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a path for the weights file of a wrapper, which then becomes a part of the file of its student.

    The plain model finds its weights where it looks for them, and does not see the rest.

    Args:
        path: of the weights file of the student.

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
    """Take the weights file of a wrapper out of that of its student.

    Args:
        path: of a weights file.

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
    """Raise unless a configuration holds what this version knows and needs.

    Args:
        config: dictionary.
        class_name: of the model.
        known: set of the options that this version knows.
        needed: set of the options that must be there.

    Raises:
        ValueError: if an option is unknown or missing. It names the options, and says what to do.
    """
    unknown, missing = sorted(set(config) - known), sorted(needed - set(config))
    if unknown or missing:
        what = f"holds options unknown to keras-ssd {__version__}: {unknown}" if unknown else f"lacks {missing}"
        raise ValueError(
            f"The configuration of the {class_name} {what}. It was probably written by another version or "
            "package: `pip install --upgrade keras-ssd`, or save the plain model, `ssd.student`, where it was trained; "
            "that is read by every version."
        )


def restored(name: str, config: Any, custom_objects: dict[str, Any] | None) -> Any:
    """Restore a part of the model from its configuration; no code of the file is run.

    Functions are resolved only from the registry of custom objects: Keras 3.6 would import whatever a file names.

    Args:
        name: of the option.
        config: what stands for it in the file.
        custom_objects: as given to `keras.models.load_model`.

    Returns:
        The option's value.

    Raises:
        ValueError: if `config` names a class or function that is not known. It says what to do.
    """
    remedy = (
        "Decorate it with @keras.saving.register_keras_serializable() and import it before, or pass "
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
            f"`{name}` of the saved SSDModel cannot be restored, probably for a class or function of yours. {remedy} "
            f"Keras says: {error}"
        ) from error
