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


class TestData:
    def test_aeon_carries_basic_motions_held_out_by_class(self, basic_motions):
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

    def test_label_subset_keeps_a_fraction_of_each_class(self):
        labels = np.repeat([0, 1, 2, 0], [8, 4, 1, 5])
        rows = np.arange(13)  # the last five are held out
        for fraction, expected in [(0.5, [4, 2, 1]), (0.01, [1, 1, 1]), (1.0, [8, 4, 1])]:
            kept = har_data.label_subset(labels, rows, fraction, seed=0)
            assert np.bincount(labels[kept]).tolist() == expected, f"{fraction}, one at least"
            assert len(set(kept)) == len(kept) and set(kept) <= set(rows)
        one, again, other = (har_data.label_subset(labels, rows, 0.5, seed).tolist() for seed in (0, 0, 1))
        assert one == again != other

    def test_other_names_and_fractions_are_refused(self):
        with pytest.raises(ValueError, match="`name` should be one of .*'uci_har'.*Received: 'wisdm'"):
            har_data.load("wisdm")
        for fraction in (0, 1.5):
            with pytest.raises(ValueError, match=rf"`fraction` should lie in \(0, 1\]. Received: {fraction}"):
                har_data.label_subset(np.zeros(3, int), np.arange(3), fraction, seed=0)


def write_har(folder, subjects):
    """The published layout: 8 windows of 128 steps; signal k of window i is 100 i + k throughout."""
    names = [f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"]
    for split in ("train", "test"):
        signals = folder / "UCI HAR Dataset" / split / "Inertial Signals"
        signals.mkdir(parents=True)
        for number, name in enumerate(names):
            windows = np.repeat(100 * np.arange(8)[:, None] + number, 128, axis=1)
            np.savetxt(signals / f"{name}_{split}.txt", windows, fmt="%.7e")
        np.savetxt(signals.parent / f"y_{split}.txt", np.arange(8) % 6 + 1, fmt="%d")
        if subjects:
            np.savetxt(signals.parent / f"subject_{split}.txt", np.arange(8) // 2 + 1, fmt="%d")


class TestUciHar:
    @pytest.fixture(autouse=True)
    def datasets(self):
        pytest.importorskip("tensorflow_datasets")

    def test_reads_a_folder_and_holds_out_whole_subjects(self, tmp_path):
        write_har(tmp_path, subjects=True)
        dataset = har_data.load("uci_har", tmp_path)
        assert dataset.x_train.shape == dataset.x_test.shape == (8, 128, 9)
        assert dataset.x_train.dtype == "float32" and dataset.n_classes == 6
        order = np.argsort(dataset.x_train[:, 0, 0])  # TFDS shuffles
        assert sorted(dataset.x_train[order[3], 17]) == [300, 301, 302, 303, 304, 305, 306, 307, 308]
        assert dataset.y_train[order].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
        assert dataset.subjects_train[order].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
        order = np.argsort(dataset.x_test[:, 0, 0])
        assert dataset.subjects_test[order].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
        training, validation = har_data.hold_out(dataset, seed=0)
        assert sorted([*training, *validation]) == list(range(8))
        assert not set(dataset.subjects_train[training]) & set(dataset.subjects_train[validation])
        assert len(validation) == 2, "one of four subjects"

    def test_subjects_may_be_unknown(self, tmp_path):
        write_har(tmp_path, subjects=False)
        with pytest.warns(UserWarning, match="no subject file for train and test"):
            assert har_data.load("uci_har", tmp_path).subjects_train is None


def test_model_standardises_the_channels(basic_motions):
    x = basic_motions.x_train
    model = har.conv_net(x, 4)
    standardised = keras.ops.convert_to_numpy(model.layers[0](x))
    np.testing.assert_allclose(standardised.mean(axis=(0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(standardised.std(axis=(0, 1)), 1, atol=1e-3)


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
