"""The image example: its readers, its augmentation, and the whole script."""

import json

import numpy as np
import pytest

import images


@pytest.fixture(scope="module")
def digits():
    return images.load("digits")


def test_scikit_learn_includes_digits(digits):
    assert digits.x_train.shape == (1257, 8, 8, 1) and digits.x_test.shape == (540, 8, 8, 1)
    assert digits.x_train.dtype == "float32"
    assert (digits.x_train.min(), digits.x_train.max(), digits.brightest) == (0, 16, 16)
    assert np.bincount(digits.y_test).tolist() == [54, 55, 53, 55, 54, 55, 54, 54, 52, 54]


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_reads_a_set_in_either_format(tmp_path, file_format):
    """Nine images, all as bright as their number; the label is the number modulo 3."""
    tfds = pytest.importorskip("tensorflow_datasets")
    if file_format == "tfrecord":
        pytest.importorskip("tensorflow")
    rows = [(number, {"image": np.full((4, 4, 3), number, "uint8"), "label": number % 3}) for number in range(9)]
    image = tfds.features.Image(shape=(4, 4, 3), encoding_format="png")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny_images",
        version="1.0.0",
        data_dir=tmp_path,
        file_format=file_format,
        features=tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=3)}),
        split_datasets={"train": rows[:6], "test": rows[6:]},
    )
    dataset = images.load("tiny_images", tmp_path)
    assert dataset.x_train.shape == (6, 4, 4, 3) and dataset.x_test.shape == (3, 4, 4, 3)
    numbers = dataset.x_train[:, 3, 2, 1]
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5]
    assert (dataset.y_train == numbers % 3).all()
    assert (dataset.n_classes, dataset.brightest) == (3, 255)


@pytest.mark.slow
@pytest.mark.once
def test_script(digits, tmp_path, capsys, monkeypatch):
    rows = np.concatenate([np.flatnonzero(digits.y_train == one)[:3] for one in range(10)])
    few = digits._replace(x_train=digits.x_train[rows], y_train=digits.y_train[rows])
    monkeypatch.setattr(images, "load", lambda *_: few)
    call = ["--epochs", "2", "--seeds", "1", "--flip", "--out", str(tmp_path)]
    assert images.main(call) == 0
    printed = capsys.readouterr().out
    assert "digits\nscore " in printed and "accuracy on test_data: no difference was shown" in printed
    (path,) = tmp_path.glob("*.jsonl")
    assert [json.loads(line)["arm"] for line in path.read_text().splitlines()] == ["plain", "averaged", "wrap"]
    assert (tmp_path / "digits-self.png").read_bytes().startswith(b"\x89PNG")
