"""Files that are whole or absent: what is written takes its place only when it is complete."""

import contextlib
import os
import tempfile

# Of folders that hold what is being written or removed; a kill leaves them behind.
UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def written_beside(path):
    """Give a path to write to, in a folder of its own beside `path`, and rename it to `path` at the end.

    After an exception, or the death of the process, `path` is what it was before.

    Args:
        path: of the file or the new folder.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as beside:
        written = os.path.join(beside, name)
        yield written
        os.replace(written, path)


def can_be_written_beside(path, suffix):
    """Whether `path` names a local file, of the right suffix, in a folder that can take another."""
    if not isinstance(path, (str, os.PathLike)):
        return False
    path = os.fspath(path)
    if "://" in path or not path.endswith(suffix) or os.path.isdir(path):
        return False
    folder = os.path.dirname(os.path.realpath(path))
    return os.path.isdir(folder) and os.access(folder, os.W_OK)
