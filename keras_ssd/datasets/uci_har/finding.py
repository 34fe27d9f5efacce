"""Finds the files of UCI HAR: in a folder or a zip, nested, renamed or in lower case."""

import contextlib
import itertools
import zipfile
import zlib
from typing import Any

FOLDER = "UCI HAR Dataset"
# As published, and the zip that lies inside it.
ZIPS = ("human+activity+recognition+using+smartphones.zip", f"{FOLDER}.zip")
DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError)  # what reading a damaged zip may raise


def find(folder: Any, stack: contextlib.ExitStack, depth: int = 3) -> Any:
    """Return the data set's folder: `folder`, or one in it or in a zip that lies there; `None` if it is not there.

    Names may be in lower case, folders nested up to `depth` deep, a zip may have another name; `stack` keeps it open.
    """
    if child(child(folder, "train"), "Inertial Signals").is_dir():
        return folder
    paths = sorted(folder.iterdir(), key=lambda path: (not same(path.name, FOLDER, *ZIPS), path.name))
    folders = [path for path in paths if path.is_dir() and path.name[0] not in "._"] if depth else []
    zips = [path for path in paths if path.is_file() and path.name.lower().endswith(".zip")]
    found = itertools.chain(
        (find(path, stack, depth - 1) for path in folders), (find_in_zip(path, stack) for path in zips)
    )
    return next(filter(None, found), folder if same(folder.name, FOLDER) else None)


def find_in_zip(path: Any, stack: contextlib.ExitStack) -> Any:
    """Return the data set's folder in a zip, or in a zip in it; raise if it should be there by the name of the zip."""
    is_published = same(path.name, *ZIPS)
    try:
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(path.open("rb"))))
        archive.filename = str(path)  # for messages
        found = find(zipfile.Path(archive), stack)
    except DAMAGES as error:
        if not is_published:
            return None
        raise ValueError(f"{path}: it is not a complete zip file ({error})") from error
    if found is None and is_published:
        names = [entry.filename for entry in archive.infolist()[:8]]
        raise ValueError(f"{path}: it should hold train/y_train.txt. Received: {names}")
    return found


def child(folder: Any, name: str) -> Any:
    """Return the entry of a folder by its name, ignoring case; it may be missing."""
    path = folder / name
    entries = folder.iterdir() if folder.is_dir() and not path.exists() else ()
    return next((entry for entry in entries if same(entry.name, name)), path)


def same(name: str, *others: str) -> bool:
    """Return whether a name is one of the others, ignoring case."""
    return name.lower() in map(str.lower, others)
