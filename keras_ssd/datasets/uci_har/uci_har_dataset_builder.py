"""Builder of `uci_har`: six activities recognised from a smartphone at the waist."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_ssd.datasets import sources
from keras_ssd.datasets.sources import tfds
from keras_ssd.datasets.uci_har.finding import DAMAGES, FOLDER, find, find_in_zip
from keras_ssd.datasets.uci_har.window_files import ACTIVITIES, SIGNALS, STEPS, read_split

URL = "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip"
WHAT_TO_DO = (
    f"Fetch {URL} yourself and put it, as it is or extracted to a folder {FOLDER!r}, into the folder that you pass as "
    "`download_config=tfds.download.DownloadConfig(manual_dir=...)`."
)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Windows of 128 steps of 9 inertial signals at 50 Hz, their activity and subject."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Not needed if {URL} can be downloaded. {WHAT_TO_DO}"

    def _info(self) -> tfds.core.DatasetInfo:
        units = "acceleration in g, angular velocity in rad/s, at 50 Hz"
        features = {
            "signals": tfds.features.Tensor(
                shape=(STEPS, len(SIGNALS)), dtype=np.float32, doc=f"{', '.join(SIGNALS)}; {units}"
            ),
            "label": tfds.features.ClassLabel(names=ACTIVITIES),
            "subject": tfds.features.Scalar(np.int32, doc="1 to 30, subject of the window; -1 if unknown"),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("signals", "label"),
            homepage="https://archive.ics.uci.edu/dataset/240/human+activity+recognition+using+smartphones",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = sources.given_folder(dl_manager)
        root = folder
        try:
            with contextlib.ExitStack() as stack:
                root = folder and find(folder, stack)
                root = root or find_in_zip(self._download(dl_manager, folder), stack)
                # Both splits are read before anything is written.
                splits = {split: read_split(root, split) for split in ("train", "test")}
        except (ValueError, *DAMAGES) as error:
            cause = error if isinstance(error, ValueError) else f"{root}: it is not a complete zip file ({error})"
            raise ValueError(f"UCI HAR cannot be read from {cause}. {WHAT_TO_DO}") from error
        unknown = [split for split, (_, _, subjects) in splits.items() if (subjects < 0).all()]
        if unknown:
            warnings.warn(
                f"{root} has no subject file for {' and '.join(unknown)}: their `subject` is -1, unknown.", stacklevel=2
            )
        return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

    def _generate_examples(self, *arrays: np.ndarray) -> Iterator[Any]:
        for number, row in enumerate(zip(*arrays, strict=True)):
            yield number, dict(zip(("signals", "label", "subject"), row, strict=True))

    def _download(self, dl_manager: Any, folder: Any) -> Any:
        try:
            return sources.download(dl_manager, self.name, URL, self.url_infos)
        except Exception as error:
            raise RuntimeError(
                f"UCI HAR was not found in a given folder, and could not be downloaded. {WHAT_TO_DO} "
                f"Received: manual_dir={sources.describe(folder)}, {type(error).__name__}: {error}"
            ) from error
