"""Builder of `ucr`: the 128 data sets of the UCR archive of 2018, one configuration each."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from keras_ssd.datasets import sources
from keras_ssd.datasets.ucr import series_files

HOMEPAGE = "https://www.cs.ucr.edu/~eamonn/time_series_data_2018/"
ARCHIVE = "UCRArchive_2018"
NAMES = """
    ACSF1 Adiac AllGestureWiimoteX AllGestureWiimoteY AllGestureWiimoteZ ArrowHead Beef BeetleFly BirdChicken BME Car
    CBF Chinatown ChlorineConcentration CinCECGTorso Coffee Computers CricketX CricketY CricketZ Crop
    DiatomSizeReduction DistalPhalanxOutlineAgeGroup DistalPhalanxOutlineCorrect DistalPhalanxTW DodgerLoopDay
    DodgerLoopGame DodgerLoopWeekend Earthquakes ECG200 ECG5000 ECGFiveDays ElectricDevices EOGHorizontalSignal
    EOGVerticalSignal EthanolLevel FaceAll FaceFour FacesUCR FiftyWords Fish FordA FordB FreezerRegularTrain
    FreezerSmallTrain Fungi GestureMidAirD1 GestureMidAirD2 GestureMidAirD3 GesturePebbleZ1 GesturePebbleZ2 GunPoint
    GunPointAgeSpan GunPointMaleVersusFemale GunPointOldVersusYoung Ham HandOutlines Haptics Herring HouseTwenty
    InlineSkate InsectEPGRegularTrain InsectEPGSmallTrain InsectWingbeatSound ItalyPowerDemand LargeKitchenAppliances
    Lightning2 Lightning7 Mallat Meat MedicalImages MelbournePedestrian MiddlePhalanxOutlineAgeGroup
    MiddlePhalanxOutlineCorrect MiddlePhalanxTW MixedShapesRegularTrain MixedShapesSmallTrain MoteStrain
    NonInvasiveFetalECGThorax1 NonInvasiveFetalECGThorax2 OliveOil OSULeaf PhalangesOutlinesCorrect Phoneme
    PickupGestureWiimoteZ PigAirwayPressure PigArtPressure PigCVP PLAID Plane PowerCons ProximalPhalanxOutlineAgeGroup
    ProximalPhalanxOutlineCorrect ProximalPhalanxTW RefrigerationDevices Rock ScreenType SemgHandGenderCh2
    SemgHandMovementCh2 SemgHandSubjectCh2 ShakeGestureWiimoteZ ShapeletSim ShapesAll SmallKitchenAppliances
    SmoothSubspace SonyAIBORobotSurface1 SonyAIBORobotSurface2 StarLightCurves Strawberry SwedishLeaf Symbols
    SyntheticControl ToeSegmentation1 ToeSegmentation2 Trace TwoLeadECG TwoPatterns UMD UWaveGestureLibraryAll
    UWaveGestureLibraryX UWaveGestureLibraryY UWaveGestureLibraryZ Wafer Wine WordSynonyms Worms WormsTwoClass Yoga
""".split()


def config_name(archive_name: str) -> str:
    """Return TFDS' name of a data set, in snake case: `ECGFiveDays` is `ecg_five_days`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", archive_name).lower()


# The name of the configuration of each data set, by its name in the archive.
UCR_CONFIGS = {name: config_name(name) for name in NAMES}


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
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "series": tfds.features.Tensor(
                        shape=(None, 1), dtype=np.float32, doc="NaN stands for missing values and for a missing tail"
                    ),
                    # Names are set when the files are read: 0 to K-1 are the archive's own labels in sorted order.
                    "label": tfds.features.ClassLabel(),
                }
            ),
            supervised_keys=("series", "label"),
            homepage=HOMEPAGE,
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
        files = [f"{name}_{split.upper()}.tsv", f"{name}_{split.upper()}.ts"]
        if folder is not None:
            for place in (folder / ARCHIVE / name, folder / name, folder):
                for file in files:
                    if (place / file).is_file():
                        return place / file
        raise FileNotFoundError(
            f"The UCR data set {name} is read from a folder that holds {name}/{files[0]} (or .ts), or from one that "
            f"holds the folder {ARCHIVE}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS} "
            f"Received: manual_dir={sources.describe(folder)}"
        )
