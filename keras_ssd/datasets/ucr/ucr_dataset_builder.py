"""Builder of `ucr`: the 128 data sets of the UCR archive of 2018, one configuration each."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_ssd.datasets import sources
from keras_ssd.datasets.sources import tfds
from keras_ssd.datasets.ucr import series_files
from keras_ssd.datasets.ucr.names import UCR_CONFIGS

HOMEPAGE = "https://www.cs.ucr.edu/~eamonn/time_series_data_2018/"
ARCHIVE = "UCRArchive_2018"


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """One data set of the archive."""

    archive_name: str = ""


class Builder(tfds.core.GeneratorBasedBuilder):
    """Univariate series with NaN where values are missing, and their class."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS = [
        Config(name=config, archive_name=name, description=f"{name} of the UCR archive of 2018.")
        for name, config in UCR_CONFIGS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "The archive's zip is protected by a password, so it is not downloaded for you. Either fetch it from "
        f"{HOMEPAGE}, extract it with the password given there and pass the folder {ARCHIVE} as "
        "`download_config=tfds.download.DownloadConfig(manual_dir=...)`, or fetch a single data set with aeon: "
        '`aeon.datasets.load_classification("Coffee", extract_path="folder")` and `manual_dir="folder"`.'
    )

    def _info(self) -> tfds.core.DatasetInfo:
        doc = "NaN stands for missing values and for a missing tail"
        features = {
            "series": tfds.features.Tensor(shape=(None, 1), dtype=np.float32, doc=doc),
            # Names are set when the files are read: 0 to K-1 are the archive's own labels in sorted order.
            "label": tfds.features.ClassLabel(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=("series", "label"), homepage=HOMEPAGE
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = sources.given_folder(dl_manager)
        # Both splits are read before anything is written.
        splits = {split: self._read_split(folder, split) for split in ("train", "test")}
        length = max(series.shape[1] for series, _ in splits.values())
        names = series_files.sorted_labels(label for _, labels in splits.values() for label in labels)
        self.info.features["label"].names = names
        return {split: self._generate_examples(*arrays, length) for split, arrays in splits.items()}

    def _generate_examples(self, series: np.ndarray, labels: list[str], length: int) -> Iterator[Any]:
        padded = np.pad(series, [(0, 0), (0, length - series.shape[1])], constant_values=np.nan)
        for row, label in enumerate(labels):
            yield row, {"series": padded[row, :, None], "label": label}

    def _read_split(self, folder: Any, split: str) -> tuple[np.ndarray, list[str]]:
        try:
            return series_files.read(self._find(folder, split))
        except ValueError as error:
            raise ValueError(
                f"{self.builder_config.archive_name} cannot be read from {error}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            ) from error

    def _find(self, folder: Any, split: str) -> Any:
        name = self.builder_config.archive_name
        file = f"{name}_{split.upper()}"
        places = [folder / ARCHIVE / name, folder / name, folder] if folder is not None else []
        for path in [place / f"{file}.{ending}" for place in places for ending in ("tsv", "ts")]:
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"The UCR data set {name} is read from a folder that holds {name}/{file}.tsv (or .ts), or from one that "
            f"holds the folder {ARCHIVE}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS} "
            f"Received: manual_dir={sources.describe(folder)}"
        )
