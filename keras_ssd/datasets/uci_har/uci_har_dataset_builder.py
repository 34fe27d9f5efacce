"""Builder of `uci_har`: six activities recognised from a smartphone at the waist."""

import contextlib
import warnings
import zipfile
import zlib

import numpy as np
import tensorflow_datasets as tfds

from keras_ssd.datasets import sources

URL = "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip"
FOLDER = "UCI HAR Dataset"
ZIPS = ("human+activity+recognition+using+smartphones.zip", f"{FOLDER}.zip")  # the second lies inside the first
SIGNALS = tuple(f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
STEPS = 128
ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")  # 1 to 6
WHAT_TO_DO = (
    f"Fetch {URL} yourself and put it, as it is or extracted to a folder {FOLDER!r}, into the folder that you pass as "
    "`download_config=tfds.download.DownloadConfig(manual_dir=...)`."
)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Windows of 128 steps of 9 inertial signals at 50 Hz, their activity and subject."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Not needed if {URL} can be downloaded. {WHAT_TO_DO}"

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "signals": tfds.features.Tensor(
                        shape=(STEPS, len(SIGNALS)),
                        dtype=np.float32,
                        doc=f"{', '.join(SIGNALS)}; acceleration in g, angular velocity in rad/s, at 50 Hz",
                    ),
                    "label": tfds.features.ClassLabel(names=ACTIVITIES),
                    "subject": tfds.features.Scalar(np.int32, doc="1 to 30, whose window it is; -1 if unknown"),
                }
            ),
            supervised_keys=("signals", "label"),
            homepage="https://archive.ics.uci.edu/dataset/240/human+activity+recognition+using+smartphones",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager):
        folder = sources.given_folder(dl_manager)
        path = find_given(folder) or self._download(dl_manager, folder)
        with opened(path) as root:  # both splits are read before anything is written
            splits = {split: read_split(root, split) for split in ("train", "test")}
        unknown = [split for split, (_, _, subjects) in splits.items() if (subjects < 0).all()]
        if unknown:
            warnings.warn(
                f"{path} has no subject file for {' and '.join(unknown)}: their `subject` is -1, unknown.", stacklevel=2
            )
        return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

    def _generate_examples(self, signals, labels, subjects):
        for row in range(len(labels)):
            yield row, {"signals": signals[row], "label": labels[row], "subject": subjects[row]}

    def _download(self, dl_manager, folder):
        try:
            return sources.download(dl_manager, self.name, URL, self.url_infos)
        except Exception as error:
            raise RuntimeError(
                f"UCI HAR lies in no folder that was given, and could not be downloaded. {WHAT_TO_DO} "
                f"Received: manual_dir={sources.describe(folder)}, {type(error).__name__}: {error}"
            ) from error


def find_given(folder):
    """The data set's folder inside `folder`, or its zip, or `folder` itself; `None` if it is not there."""
    if folder is None:
        return None
    if folder.name == FOLDER or (folder / "train" / "Inertial Signals").is_dir():
        return folder
    if (folder / FOLDER).is_dir():
        return folder / FOLDER
    return next((folder / name for name in ZIPS if (folder / name).is_file()), None)


@contextlib.contextmanager
def opened(path):
    """The data set's folder as a path: `path`, or what lies in it if it is a zip, or in the zip that lies in that."""
    if path.is_dir():
        yield path
        return
    try:
        with contextlib.ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            if f"{FOLDER}.zip" in archive.namelist():
                inner = stack.enter_context(archive.open(f"{FOLDER}.zip"))  # never as a whole in memory
                archive = stack.enter_context(zipfile.ZipFile(inner))
                archive.filename = f"{path}/{FOLDER}.zip"  # for messages
            yield zipfile.Path(archive, f"{FOLDER}/")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise damaged(path, f"it is not a whole zip file ({error})") from error


def read_split(root, split):
    """Signals (rows, 128, 9), labels 0 to 5 and subjects (-1 where unknown) of `root`/`split`."""
    folder = root / split
    labels = read(folder / f"y_{split}.txt", np.int64)
    rows = len(labels)
    if labels.shape != (rows, 1) or not np.isin(labels, range(1, len(ACTIVITIES) + 1)).all():
        raise damaged(folder / f"y_{split}.txt", f"it should hold a number from 1 to {len(ACTIVITIES)} in each line")
    signals = np.empty((rows, STEPS, len(SIGNALS)), dtype=np.float32)
    for channel, name in enumerate(SIGNALS):
        path = folder / "Inertial Signals" / f"{name}_{split}.txt"
        values = read(path, np.float32)
        if values.shape != (rows, STEPS) or not np.isfinite(values).all():
            found = f"shape {values.shape}, {np.isfinite(values).sum()} finite"
            raise damaged(path, f"it should hold {STEPS} finite numbers for each of {rows} labels. Received: {found}")
        signals[..., channel] = values
    path = folder / f"subject_{split}.txt"
    subjects = read(path, np.int32) if path.exists() else np.full((rows, 1), -1, dtype=np.int32)
    if subjects.shape != (rows, 1):
        raise damaged(path, f"it should hold a number for each of the {rows} labels. Received: {len(subjects)}")
    return signals, labels[:, 0] - 1, subjects[:, 0]


def read(path, dtype):
    """The numbers of a text file, (rows, columns); an error says where to get a whole one."""
    try:
        return sources.read_table(path, dtype)
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    except ValueError as error:
        raise damaged(path, f"it should hold a table of numbers ({error})") from error


def damaged(path, reason):
    """The error that says what is wrong with a file, and what to do."""
    return ValueError(f"UCI HAR cannot be read from {path}: {reason}. {WHAT_TO_DO}")
