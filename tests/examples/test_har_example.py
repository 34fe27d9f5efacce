"""The activity recognition example: its data, what is held out of them, and the whole script on a small real set."""

import json

import keras
import numpy as np
import pytest

import har
from _support import har_data


def short(dataset):
    """Twelve windows of 24 steps in each split, three of every class."""
    rows = np.concatenate([np.flatnonzero(dataset.y_train == one)[:3] for one in range(4)])
    return dataset._replace(
        x_train=dataset.x_train[rows, :24],
        y_train=dataset.y_train[rows],
        x_test=dataset.x_test[rows, :24],
        y_test=dataset.y_test[rows],
    )


@pytest.fixture(scope="module")
def basic_motions():
    return har_data.load()


def test_aeon_carries_basic_motions_held_out_by_class(basic_motions):
    assert basic_motions.x_train.shape == basic_motions.x_test.shape == (40, 100, 6)
    assert basic_motions.x_train.dtype == "float32"
    assert np.bincount(basic_motions.y_train).tolist() == [10, 10, 10, 10]
    assert basic_motions.class_names == ["badminton", "running", "standing", "walking"]
    assert basic_motions.subjects_train is None and basic_motions.n_classes == 4
    first_step = [0.079106, 0.394032, 0.551444, 0.351565, 0.02397, 0.633883]  # of the file: standing
    np.testing.assert_allclose(basic_motions.x_train[0, 0], first_step, atol=1e-6)
    assert basic_motions.y_train[0] == 2
    training, validation = har_data.hold_out(basic_motions, seed=0)
    assert sorted([*training, *validation]) == list(range(40))
    assert np.bincount(basic_motions.y_train[validation]).tolist() == [2, 2, 2, 2], "subjects are unknown"


def test_label_subset_keeps_a_fraction_of_each_class():
    labels = np.repeat([0, 1, 2, 0], [8, 4, 1, 5])
    rows = np.arange(13)  # the last five are held out
    for fraction, expected in [(0.5, [4, 2, 1]), (0.01, [1, 1, 1]), (1.0, [8, 4, 1])]:
        kept = har_data.label_subset(labels, rows, fraction, seed=0)
        assert np.bincount(labels[kept]).tolist() == expected, f"{fraction}, one at least"
        assert len(set(kept)) == len(kept) and set(kept) <= set(rows)
    one, again, other = (har_data.label_subset(labels, rows, 0.5, seed).tolist() for seed in (0, 0, 1))
    assert one == again != other
    for fraction in (0, 1.5):
        with pytest.raises(ValueError, match=rf"`fraction` should lie in \(0, 1\]. Received: {fraction}"):
            har_data.label_subset(labels, rows, fraction, seed=0)
    with pytest.raises(ValueError, match="`name` should be one of .*'uci_har'.*Received: 'wisdm'"):
        har_data.load("wisdm")


def test_reads_a_folder_of_uci_har_and_holds_out_whole_subjects_if_they_are_known(tmp_path):
    published = pytest.importorskip("test_datasets_uci_har")  # two subjects, 1 and 3, in the training part
    folder = published.write(tmp_path)
    dataset = har_data.load("uci_har", tmp_path)
    assert dataset.x_train.shape == (3, 128, 9) and dataset.x_test.shape == (2, 128, 9)
    assert dataset.x_train.dtype == "float32" and dataset.n_classes == 6
    order = np.argsort(dataset.x_train[:, 0, 0])  # TFDS shuffles
    assert dataset.x_train[order[2], 17, 4] == published.value("train", 2, 17, 4)
    assert dataset.y_train[order].tolist() == [4, 5, 0] and dataset.subjects_train[order].tolist() == [1, 1, 3]
    assert dataset.subjects_test[np.argsort(-dataset.x_test[:, 0, 0])].tolist() == [2, 4]
    training, validation = (dataset.subjects_train[rows] for rows in har_data.hold_out(dataset, seed=0))
    assert len(training) + len(validation) == 3 and {*training} ^ {*validation} == {1, 3}
    (folder / "train" / "subject_train.txt").unlink()
    with pytest.warns(UserWarning, match="no subject file for train"):
        assert har_data.load("uci_har", tmp_path).subjects_train is None


@pytest.mark.slow
@pytest.mark.once
def test_script(basic_motions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(har_data, "load", lambda *_: short(basic_motions))
    call = ["--epochs", "2", "--seeds", "1", "--label-fraction", "0.5", "--out", str(tmp_path)]
    assert har.main(call) == 0
    printed = capsys.readouterr().out
    assert "basic_motions, 50% of the labels" in printed
    (path,) = tmp_path.glob("*.jsonl")
    rows = {row["arm"]: row for row in map(json.loads, path.read_text().splitlines())}
    assert list(rows) == ["plain", "averaged", "wrap"]
    assert (tmp_path / "basic_motions-0.5-self.png").read_bytes().startswith(b"\x89PNG")

    n_parameters = har.conv_net(short(basic_motions).x_train, 4).count_params()
    for name in ("plain", "wrap"):
        path = tmp_path / f"basic_motions-0.5-self-{name}.keras"
        assert f"{path}: {n_parameters} parameters, {path.stat().st_size / 1024:.0f} KiB" in printed
        # Four bytes each; the optimizer's state would be twice as much again.
        assert 4 * n_parameters < path.stat().st_size < 6 * n_parameters
    student = keras.saving.load_model(tmp_path / "basic_motions-0.5-self-wrap.keras")
    assert student.count_params() == n_parameters and type(student) is keras.Sequential
    accuracy = (student.predict(short(basic_motions).x_test, verbose=0).argmax(axis=1) == np.repeat(range(4), 3)).mean()
    np.testing.assert_allclose(accuracy, rows["wrap"]["accuracy"], rtol=1e-6)
