"""Finds the files of UCI HAR: in a folder or a zip, nested, renamed or in lower case."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

FOLDER = "UCI HAR Dataset"
ZIPS = ("human+activity+recognition+using+smartphones.zip", f"{FOLDER}.zip")  # the second lies inside the first


def find_given(folder: Any) -> Any:
    """Return the data set's folder inside `folder`, or its zip, or `folder` itself; `None` if it is not there.

    Names may be in lower case, folders may be nested up to three deep, and the zip may have another name.
    """
    if folder is None:
        return None
    return find_root(folder) or find_zip(folder)


def find_root(folder: Any, depth: int = 3) -> Any:
    """Return `folder` or the first folder in it that holds the windows, else a folder with the name of the data set."""
    if is_root(folder):
        return folder
    inner = [path for path in entries(folder) if path.is_dir() and path.name[0] not in "._"] if depth else []
    inner.sort(key=lambda path: not same(path.name, FOLDER))
    found = filter(None, (find_root(path, depth - 1) for path in inner))
    named = folder if same(folder.name, FOLDER) else None
    return next(found, named)


def is_root(folder: Any) -> bool:
    """Return whether a folder holds the windows of the training split."""
    return child(child(folder, "train"), "Inertial Signals").is_dir()


def find_zip(folder: Any) -> Any:
    """Return the zip with one of its published names, else the first zip that holds the data."""
    zips = [path for path in entries(folder) if path.is_file() and path.name.lower().endswith(".zip")]
    published = [path for name in ZIPS for path in zips if same(path.name, name)]
    return next(iter(published or filter(holds_the_data, zips)), None)


def holds_the_data(path: Any) -> bool:
    """Return whether a file is a zip with labels of the training split in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return inner_zip(archive) is not None or root_in_zip(archive) is not None
    except zipfile.BadZipFile:
        return False


def inner_zip(archive: zipfile.ZipFile) -> str | None:
    """Return the name of the zip inside the published zip, or `None`."""
    return next((name for name in archive.namelist() if same(name.rpartition("/")[2], f"{FOLDER}.zip")), None)


def root_in_zip(archive: zipfile.ZipFile) -> str | None:
    """Return the folder of a zip, `""` or with a `/` at its end, that holds the labels of `train`, or `None`."""
    labels = "train/y_train.txt"
    found = [name for name in archive.namelist() if f"/{name}".lower().endswith(f"/{labels}")]
    return min(found, key=len)[: -len(labels)] if found else None


def entries(folder: Any) -> list[Any]:
    """Return the entries of a folder, sorted by name."""
    return sorted(folder.iterdir(), key=lambda path: path.name) if folder.is_dir() else []


def child(folder: Any, name: str) -> Any:
    """Return the entry of a folder by its name, ignoring case; it may be missing."""
    path = folder / name
    return path if path.exists() else next((entry for entry in entries(folder) if same(entry.name, name)), path)


def same(name: str, other: str) -> bool:
    """Return whether two names are equal, ignoring case."""
    return name.lower() == other.lower()


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Any]:
    """Yield the data set's folder as a path: `path`, or the folder in it if it is a zip or a zip that holds a zip.

    Raises:
        ValueError: if the zip is damaged, or holds other files.
    """
    if path.is_dir():
        yield path
        return
    try:
        with contextlib.ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            if name := inner_zip(archive):
                inner = stack.enter_context(archive.open(name))  # never read into memory as a whole
                archive = stack.enter_context(zipfile.ZipFile(inner))
                archive.filename = f"{path}/{name}"  # for messages
            root = root_in_zip(archive)
            if root is None:
                raise ValueError(
                    f"{archive.filename}: it should hold train/y_train.txt. Received: {archive.namelist()[:8]}"
                )
            yield zipfile.Path(archive, root)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: it is not a complete zip file ({error})") from error
