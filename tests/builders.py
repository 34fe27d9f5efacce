"""TensorFlow Datasets builders in a temporary folder, for the tests of `keras_ssd.datasets`."""

import tensorflow_datasets as tfds

import keras_ssd.datasets  # noqa: F401, registers the builders


def make_builder(name, tmp_path):
    tfds.disable_progress_bar()
    return tfds.builder(name, data_dir=tmp_path / "prepared", file_format="array_record")


def prepare(builder, folder):
    """Prepare from a given folder, and return the builder."""
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    return builder


def assert_nothing_is_left(builder):
    """No data of this builder, not even partly written."""
    assert not builder.data_path.exists() and not list(builder.data_path.parent.glob("*"))
