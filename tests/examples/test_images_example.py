"""The image example: its readers, its augmentation, and the whole script."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import images


@pytest.fixture(scope="module")
def digits():
    return images.load("digits")


def test_scikit_learn_includes_digits(digits):
    assert digits.x_train.shape == (1257, 8, 8, 1) and digits.x_test.shape == (540, 8, 8, 1)
    assert digits.x_train.dtype == "float32"
    assert (digits.x_train.min(), digits.x_train.max(), digits.brightest) == (0, 16, 16)
    assert np.bincount(digits.y_test).tolist() == [54, 55, 53, 55, 54, 55, 54, 54, 52, 54]


@pytest.fixture(scope="module")
def tiny():
    """A set of six images of 4 x 4, all as bright as their number; the label is the number modulo 3."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(4, 4, 3), encoding_format="png")
            features = {"image": image, "label": tfds.features.ClassLabel(num_classes=3)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 6), "test": self._generate_examples(6, 9)}

        def _generate_examples(self, first, last):
            for number in range(first, last):
                yield number, {"image": np.full((4, 4, 3), number, "uint8"), "label": number % 3}

    return TinyImages


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_reads_a_set_in_either_format(tiny, tmp_path, file_format):
    if file_format == "tfrecord":
        pytest.importorskip("tensorflow")
    tiny(data_dir=tmp_path).download_and_prepare(file_format=file_format)
    dataset = images.load("tiny_images", tmp_path)
    assert dataset.x_train.shape == (6, 4, 4, 3) and dataset.x_test.shape == (3, 4, 4, 3)
    numbers = dataset.x_train[:, 3, 2, 1]
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5]
    assert (dataset.y_train == numbers % 3).all()
    assert (dataset.n_classes, dataset.brightest) == (3, 255)


def test_augmentation_is_for_training_only(digits):
    model = images.augmenting_net(digits, flip=True)
    before_dropout = keras.Model(model.input, [layer.output for layer in model.layers][-3])
    x = digits.x_train[:8]
    modes = (False, False, True, True)
    one, same, augmented, other = (ops.convert_to_numpy(before_dropout(x, training=mode)) for mode in modes)
    np.testing.assert_array_equal(one, same)
    assert np.abs(augmented - other).max() > 1e-3


@pytest.mark.slow
@pytest.mark.once
def test_script(digits, tmp_path, capsys, monkeypatch):
    rows = np.concatenate([np.flatnonzero(digits.y_train == one)[:3] for one in range(10)])
    few = digits._replace(x_train=digits.x_train[rows], y_train=digits.y_train[rows])
    monkeypatch.setattr(images, "load", lambda *_: few)
    call = ["--epochs", "2", "--seeds", "1", "--out", str(tmp_path)]
    assert images.main(call) == 0
    printed = capsys.readouterr().out
    assert "digits\nscore " in printed and "accuracy on test_data: no difference was shown" in printed
    (path,) = tmp_path.glob("*.jsonl")
    assert [json.loads(line)["arm"] for line in path.read_text().splitlines()] == ["plain", "averaged", "wrap"]
    assert (tmp_path / "digits-self.png").read_bytes().startswith(b"\x89PNG")
