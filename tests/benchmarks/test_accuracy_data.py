"""The data sets of the accuracy benchmark: which rows train, validate, are scored."""

import keras
import numpy as np
import pytest

import data

pytestmark = pytest.mark.once  # trains by every method of others, too


def test_few_labels_leave_the_others_as_unlabelled_rows():
    task = data.load("digits", None, "labels 0.1", seed=0)
    everything = data.load("digits", None, "all labels", seed=0)
    n_labelled = len(task.training[1]) + len(task.validation[1])
    assert everything.unlabelled is None
    assert n_labelled + len(task.unlabelled) == len(everything.training[1]) + len(everything.validation[1]) == 898
    assert 80 <= n_labelled <= 100 and set(task.training[1]) == set(range(10))
    assert not rows_of(task.unlabelled) & set(labels_of(task))
    np.testing.assert_array_equal(task.test[1], everything.test[1])


def rows_of(x):
    return {row.tobytes() for row in x}


def labels_of(task):
    """The label of each row that trains or validates."""
    parts = (zip(*part, strict=True) for part in (task.training, task.validation))
    return {row.tobytes(): label for part in parts for row, label in part}


def test_noise_makes_labels_wrong_but_not_those_of_the_test_split():
    clean, noisy = (data.load("digits", None, regime, seed=0) for regime in ("all labels", "noise 0.4"))
    right = labels_of(clean)
    for x, y in (noisy.training, noisy.validation):
        wrong = np.mean([right[row.tobytes()] != label for row, label in zip(x, y, strict=True)])
        assert 0.3 < wrong < 0.5
    np.testing.assert_array_equal(noisy.test[1], clean.test[1])


def test_search_does_not_use_the_test_rows_and_scores_rows_whose_label_is_hidden():
    declared, search = (data.load("digits", None, regime, seed=0) for regime in ("noise 0.4", "search noise 0.4"))
    np.testing.assert_equal((search.training, search.test), (declared.training, declared.validation))
    declared, search = (data.load("digits", None, regime, seed=0) for regime in ("labels 0.1", "search labels 0.1"))
    np.testing.assert_equal((search.training, search.validation), (declared.training, declared.validation))
    hidden, unlabelled, scored = map(rows_of, (declared.unlabelled, search.unlabelled, search.test[0]))
    assert unlabelled | scored == hidden and not unlabelled & scored
    assert abs(len(search.unlabelled) - len(search.test[1])) <= 1
    right = labels_of(data.load("digits", None, "all labels", seed=0))
    assert [right[row.tobytes()] for row in search.test[0]] == search.test[1].tolist()


def test_an_unknown_regime_is_refused():
    with pytest.raises(ValueError, match="`regime` should be.*'half'"):
        data.load("digits", None, "half", seed=0)


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
