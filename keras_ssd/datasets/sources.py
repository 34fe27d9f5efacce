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
    """Return the path of a downloaded file whose checksum is known; a file that was downloaded before is used again.

    Args:
        dl_manager: TFDS' download manager.
        name: string, name of the data set.
        url: string.
        url_infos: the builder's property with this name: sizes and checksums by URL, from its checksums.tsv.

    Raises:
        Exception: of any kind, if the server does not answer within seconds, or sends another file.
    """
    if url not in (url_infos or {}):
        raise ValueError(f"no checksum of {url} is known")  # TFDS would download it unchecked
    if not (dl_manager.download_dir / name / resource.get_dl_fname(url, url_infos[url].checksum)).exists():  # type: ignore[index]
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:  # TFDS itself would try for minutes
            response.raise_for_status()
    return dl_manager.download(url)
