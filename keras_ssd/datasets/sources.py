"""Where the published files are: in a folder that was given, or, known by its checksum, on the publisher's server."""

import contextlib
import queue
import threading

import requests
from tensorflow_datasets.core.download import resource

TIMEOUT = 5  # seconds
N_NAMES = 8  # of what lies in a folder, in an error


def given_folder(dl_manager):
    """Return the folder of `DownloadConfig(manual_dir=...)`, or `None` where it does not exist or is empty."""
    with contextlib.suppress(AssertionError):  # so TFDS says it
        return dl_manager.manual_dir
    return None


def describe(folder):
    """Return what an error says of the result of `given_folder`: the folder and what lies in it."""
    if folder is None:
        return "a folder that does not exist or is empty"
    names = sorted(path.name for path in folder.iterdir())
    return f"{folder}, which holds {names[:N_NAMES]}{' and more' if len(names) > N_NAMES else ''}"


def download(dl_manager, name, url, url_infos):
    """Download a file whose checksum is known; a file that was downloaded before is used again.

    Args:
        dl_manager: TFDS' download manager.
        name: String, the data set's.
        url: String.
        url_infos: The builder's property of that name: sizes and checksums by URL, from its checksums.tsv.

    Returns:
        The file's path.

    Raises:
        Exception: Of any kind, if the server is not reached within seconds, or sends another file.
    """
    if url not in (url_infos or {}):
        raise ValueError(f"no checksum of {url} is known")  # TFDS would download it unchecked
    kept = dl_manager.download_dir / name / resource.get_dl_fname(url, url_infos[url].checksum)
    if not kept.exists():
        _check_reachable(url)  # TFDS itself would try for minutes
    return dl_manager.download(url)


def _check_reachable(url):
    """Ask for the file's header. In a thread, as looking up a name knows no timeout."""
    answer = queue.Queue()

    def ask():
        try:
            with requests.get(url, stream=True, timeout=TIMEOUT) as response:
                response.raise_for_status()
            answer.put(None)
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = answer.get(timeout=TIMEOUT)
    except queue.Empty:
        error = TimeoutError(f"no answer within {TIMEOUT} seconds")
    if error is not None:
        raise error
