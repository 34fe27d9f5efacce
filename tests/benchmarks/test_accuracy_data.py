"""The data sets of the accuracy benchmark: which rows train, validate, are scored."""

import keras
import numpy as np
import pytest

import data

pytestmark = pytest.mark.once  # trains by every method of others, too


@pytest.fixture
def numbered(monkeypatch):
    """A row holds its number, its label is the last digit; the numbers of test rows are negative."""
    x, y = np.arange(4000, dtype="float32").reshape(4000, 1, 1), np.arange(4000) % 10
    monkeypatch.setattr(data, "read", lambda *_: ((x, y), (-x, y), 10))
    return lambda regime: data.load("numbered", None, regime, seed=0)


def test_few_labels_leave_the_others_as_unlabelled_rows(numbered):
    task = numbered("labels 0.1")
    parts = [task.training[0], task.validation[0], task.unlabelled]
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) == 4000
    assert len(task.unlabelled) == 3600 and set(task.training[1]) == set(range(10))
    everything = numbered("all labels")
    assert everything.unlabelled is None and len(everything.training[1]) + len(everything.validation[1]) == 4000
    assert (task.test[0] == everything.test[0]).all() and (task.test[0] <= 0).all()


def test_noise_makes_labels_wrong_but_not_those_of_the_test_split(numbered):
    task = numbered("noise 0.4")
    x, y = (np.concatenate(parts) for parts in zip(task.training, task.validation, strict=True))
    assert 0.38 < np.mean(x.ravel() % 10 != y) < 0.42
    np.testing.assert_array_equal(-task.test[0].ravel() % 10, task.test[1])


def test_search_does_not_use_the_test_rows_and_scores_rows_whose_label_is_hidden(numbered):
    declared, search = numbered("noise 0.4"), numbered("search noise 0.4")
    np.testing.assert_equal((search.training, search.test), (declared.training, declared.validation))
    declared, search = numbered("labels 0.1"), numbered("search labels 0.1")
    np.testing.assert_equal((search.training, search.validation), (declared.training, declared.validation))
    np.testing.assert_array_equal(np.union1d(search.unlabelled, search.test[0]), declared.unlabelled.ravel())
    assert len(search.unlabelled) == len(search.test[1]) == 1800
    np.testing.assert_array_equal(search.test[0].ravel() % 10, search.test[1])
    with pytest.raises(ValueError, match="`regime` should be.*'half'"):
        numbered("half")


def test_images_are_read_by_class(tmp_path):
    for split, levels in (("train", (0, 255)), ("test", (255, 51))):
        for name, level in zip(("cat", "dog"), levels, strict=True):
            folder = tmp_path / "CIFAR-10-dataset" / split / name
            folder.mkdir(parents=True)
            for number in range(5):
                keras.utils.save_img(folder / f"{number}.png", np.full((4, 4, 3), level), scale=False)
    task = data.load("cifar10", tmp_path, "all labels", seed=0)
    x, y = (np.concatenate(parts) for parts in zip(task.training, task.validation, strict=True))
    assert x.shape == (10, 4, 4, 3) and x.dtype == np.float32 and task.n_classes == 2
    np.testing.assert_array_equal(x[:, 0, 0, 0], np.where(y == 1, 1.0, -1.0))
    np.testing.assert_allclose(task.test[0][:, 0, 0, 0], np.where(task.test[1] == 0, 1.0, -0.6), atol=1e-6)
    with pytest.raises(FileNotFoundError, match="should hold CIFAR-10-dataset/train/<class>"):
        data.read_images(tmp_path / "nowhere" / "CIFAR-10-dataset")
