"""Real data sets for TensorFlow Datasets, and what turns their series and subjects into arrays for training.

With the extra `datasets` (tensorflow-datasets), importing this module registers `uci_har` and `ucr`. Without it,
`prepare` and `hold_out_subjects` are here all the same.

Example::

    import keras_ssd.datasets
    import tensorflow_datasets as tfds

    folder = tfds.download.DownloadConfig(manual_dir="downloads")  # downloads/UCI HAR Dataset, or its published zip
    train = tfds.data_source(  # needs no TensorFlow
        "uci_har", split="train", download_and_prepare_kwargs={"download_config": folder}
    )
"""

import importlib.util

from keras_ssd.datasets.series import prepare
from keras_ssd.datasets.subjects import hold_out_subjects
from keras_ssd.datasets.ucr.names import UCR_CONFIGS

if importlib.util.find_spec("tensorflow_datasets") is not None:
    importlib.import_module("keras_ssd.datasets.uci_har.uci_har_dataset_builder")
    importlib.import_module("keras_ssd.datasets.ucr.ucr_dataset_builder")

__all__ = ["UCR_CONFIGS", "hold_out_subjects", "prepare"]
