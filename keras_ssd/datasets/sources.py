"""Published files: in a given folder, or on the publisher's server, with known checksums. The only import of TFDS."""

import contextlib
from typing import Any

try:
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error}. The data sets need tensorflow-datasets: `pip install "keras-ssd[datasets]"`.', name=error.name
    ) from error

__all__ = ["describe", "download", "given_folder", "tfds"]

TIMEOUT = 5  # seconds


def given_folder(dl_manager: Any) -> Any:
    """Return the folder of `DownloadConfig(manual_dir=...)`, or `None` if it does not exist or is empty."""
    with contextlib.suppress(AssertionError):  # how TFDS reports this
        return dl_manager.manual_dir
    return None


def describe(folder: Any) -> str:
    """Return a description of the result of `given_folder`, for an error: the folder and its first entries."""
    if folder is None:
        return "a folder that does not exist or is empty"
    names = sorted(path.name for path in folder.iterdir())
    return f"{folder}, which holds {names[:8]}{' and more' if len(names) > 8 else ''}"


def download(dl_manager: Any, name: str, url: str, url_infos: dict[str, Any] | None) -> Any:
    """Return the path of a downloaded file, kept for the next time, whose checksum is in the builder's `url_infos`.

    If the server does not answer within seconds, or sends another file, an exception of any kind is raised.
    """
    if not url_infos or url not in url_infos:
        raise ValueError(f"no checksum of {url} is known")  # TFDS would download it unchecked
    if not (dl_manager.download_dir / name / resource.get_dl_fname(url, url_infos[url].checksum)).exists():
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:  # TFDS itself would try for minutes
            response.raise_for_status()
    return dl_manager.download(url)
