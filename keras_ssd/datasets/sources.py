"""Published files: in a given folder, or on the publisher's server, with known checksums."""

import contextlib
import queue
import threading
from typing import Any

import requests
from tensorflow_datasets.core.download import resource

TIMEOUT = 5  # seconds
N_NAMES = 8  # number of names in a folder that an error lists


def given_folder(dl_manager: Any) -> Any:
    """Return the folder of `DownloadConfig(manual_dir=...)`, or `None` if it does not exist or is empty."""
    with contextlib.suppress(AssertionError):  # how TFDS reports this
        return dl_manager.manual_dir
    return None


def describe(folder: Any) -> str:
    """Return a description of the result of `given_folder`, for an error: the folder and its entries."""
    if folder is None:
        return "a folder that does not exist or is empty"
    names = sorted(path.name for path in folder.iterdir())
    return f"{folder}, which holds {names[:N_NAMES]}{' and more' if len(names) > N_NAMES else ''}"


def download(dl_manager: Any, name: str, url: str, url_infos: dict[str, Any] | None) -> Any:
    """Download a file whose checksum is known; a file that was downloaded before is used again.

    Args:
        dl_manager: TFDS' download manager.
        name: string, name of the data set.
        url: string.
        url_infos: the builder's property with this name: sizes and checksums by URL, from its checksums.tsv.

    Returns:
        The file's path.

    Raises:
        Exception: of any kind, if the server is not reached within seconds, or sends another file.
    """
    url_infos = url_infos or {}
    if url not in url_infos:
        raise ValueError(f"no checksum of {url} is known")  # TFDS would download it unchecked
    kept = dl_manager.download_dir / name / resource.get_dl_fname(url, url_infos[url].checksum)
    if not kept.exists():
        _check_reachable(url)  # TFDS itself would try for minutes
    return dl_manager.download(url)


def _check_reachable(url: str) -> None:
    """Request the header of the file. In a thread, because the name lookup has no timeout."""
    answer: queue.Queue[Exception | None] = queue.Queue()

    def ask() -> None:
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
