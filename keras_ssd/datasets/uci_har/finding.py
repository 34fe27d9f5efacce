"""Finds the files of UCI HAR: in a folder or a zip, nested, renamed or in lower case."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

FOLDER = "UCI HAR Dataset"
# As published, and the zip that lies inside it.
ZIPS = ("human+activity+recognition+using+smartphones.zip", f"{FOLDER}.zip")


def find_given(folder: Any) -> Any:
    """Return the data set's folder inside `folder`, or its zip, or `folder` itself; `None` if it is not there.

    Names may be in lower case, folders may be nested up to three deep, and the zip may have another name.
    """
    return None if folder is None else find_root(folder) or find_zip(folder)


def find_root(folder: Any, depth: int = 3) -> Any:
    """Return `folder` or the first folder in it that holds the windows, else a folder with the name of the data set."""
    if child(child(folder, "train"), "Inertial Signals").is_dir():
        return folder
    inner = [path for path in entries(folder) if path.is_dir() and path.name[0] not in "._"] if depth else []
    inner.sort(key=lambda path: not same(path.name, FOLDER))
    found = filter(None, (find_root(path, depth - 1) for path in inner))
    return next(found, folder if same(folder.name, FOLDER) else None)


def find_zip(folder: Any) -> Any:
    """Return the zip with one of its published names, else the first zip that holds the data."""
    zips = [path for path in entries(folder) if path.is_file() and path.name.lower().endswith(".zip")]
    published = [path for name in ZIPS for path in zips if same(path.name, name)]
    for path in zips if not published else ():
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            if inner_zip(archive) or root_in_zip(archive) is not None:
                return path
    return next(iter(published), None)


def inner_zip(archive: zipfile.ZipFile) -> str | None:
    """Return the name of the zip inside the published zip, or `None`."""
    return next((name for name in archive.namelist() if same(name.rpartition("/")[2], ZIPS[1])), None)


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
    """Yield the data set's folder as a path: `path`, or the folder in it if it is a zip or a zip that holds a zip."""
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
                names = archive.namelist()[:8]
                raise ValueError(f"{archive.filename}: it should hold train/y_train.txt. Received: {names}")
            yield zipfile.Path(archive, root)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: it is not a complete zip file ({error})") from error
