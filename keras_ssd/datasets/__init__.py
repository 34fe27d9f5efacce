"""Real data sets for TensorFlow Datasets: importing this module registers `uci_har` and `ucr`.

The only module that imports tensorflow-datasets (the extra `datasets`). `hold_out_subjects` and `prepare` turn the data
into arrays for training and validation.

Example:
    import keras_ssd.datasets
    import tensorflow_datasets as tfds

    folder = tfds.download.DownloadConfig(manual_dir="downloads")  # downloads/UCI HAR Dataset, or its published zip
    train = tfds.data_source(  # needs no TensorFlow
        "uci_har", split="train", download_and_prepare_kwargs={"download_config": folder}
    )
"""

try:
    import tensorflow_datasets
except ModuleNotFoundError as error:
    if error.name != "tensorflow_datasets":
        raise
    raise ModuleNotFoundError(
        'keras_ssd.datasets needs tensorflow-datasets. Install it with `pip install "keras-ssd[datasets]"`.',
        name=error.name,
    ) from error

from keras_ssd.datasets.series import prepare
from keras_ssd.datasets.subjects import hold_out_subjects
from keras_ssd.datasets.uci_har import uci_har_dataset_builder
from keras_ssd.datasets.ucr import ucr_dataset_builder
from keras_ssd.datasets.ucr.ucr_dataset_builder import UCR_CONFIGS

del tensorflow_datasets, uci_har_dataset_builder, ucr_dataset_builder

__all__ = ["UCR_CONFIGS", "hold_out_subjects", "prepare"]
