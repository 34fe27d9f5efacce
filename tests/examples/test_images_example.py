"""The image example: its readers, that the teachers share the student's augmented sample, and the whole script."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import images
import keras_ssd


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
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(4, 4, 3), encoding_format="png"),
                        "label": tfds.features.ClassLabel(num_classes=3),
                    }
                ),
            )

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


def test_teachers_see_the_students_augmented_sample(digits):
    x = digits.x_train[:8]
    model = images.augmenting_net(digits, flip=True)
    before_dropout = keras.Model(model.input, [layer.output for layer in model.layers][-3])
    # The teachers' dropout removes or doubles, as the student's does, so what both keep is the same number, if
    # both saw the same sample. A sample augmented again would differ.
    ssd = keras_ssd.wrap(model, num_teachers=4, distill="representation", similarity="cosine", seed=0)
    student, teachers, _ = ssd.teacher_representations(x)
    kept_by_teacher, kept_by_student = teachers != 0, (student != 0)[:, None]
    both = kept_by_teacher & kept_by_student
    assert 0.1 < both.mean() < 0.4
    np.testing.assert_allclose(teachers[both], np.broadcast_to(student[:, None], teachers.shape)[both], rtol=1e-4)
    one, other = (ops.convert_to_numpy(before_dropout(x, training=True)) for _ in range(2))
    assert np.abs(one - other).max() > 1e-3, "the augmentation changes the features"


def test_augmentation_is_for_training_only(digits):
    model = images.augmenting_net(digits, flip=True)
    one, other = (ops.convert_to_numpy(model(digits.x_train[:4], training=False)) for _ in range(2))
    np.testing.assert_array_equal(one, other)


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
