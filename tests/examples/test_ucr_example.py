"""The UCR example: its reader on hand-written files, and the whole script on a tiny archive."""

import json
import re

import keras
import numpy as np
import pandas as pd
import pytest

import ucr
from _support import comparison, ucr_data

ROOT = 1.5**0.5  # of three values in a row the deviation is the root of 2 / 3

# Labels 9 and 10, a gap, a missing tail; the test part is longer.
TRAIN = "10\t0\tNaN\t2\n9\t4\t0\tNaN\n9\t1\t2\t3\n10\t3\t2\t1\n"
TEST = "9\t1\t2\t3\tNaN\n10\t-1\t-1\t1\t1\n"


def write(folder, name, train, test):
    (folder / name).mkdir(parents=True)
    (folder / name / f"{name}_TRAIN.tsv").write_text(train)
    (folder / name / f"{name}_TEST.tsv").write_text(test)


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "data"
    write(folder / "UCRArchive_2018", "Tiny", TRAIN, TEST)
    return folder


@pytest.mark.parametrize("subfolder", ["", "UCRArchive_2018"])
def test_reads_the_archives_own_layout(archive, subfolder):
    dataset = ucr_data.load("Tiny", archive / subfolder)
    up, down = [-ROOT, 0, ROOT, 0], [ROOT, 0, -ROOT, 0]
    np.testing.assert_allclose(dataset.x_train[..., 0], [up, [1, -1, 0, 0], up, down], atol=1e-6)
    np.testing.assert_allclose(dataset.x_test[..., 0], [up, [-1, -1, 1, 1]], atol=1e-6)
    assert dataset.x_train.dtype == "float32"
    assert dataset.y_train.tolist() == [1, 0, 0, 1], "10 comes after 9"
    assert dataset.y_test.tolist() == [0, 1] and dataset.n_classes == 2


def test_aeon_includes_the_default_sets():
    assert [len(ucr_data.load(name).x_train) for name in ucr.BUNDLED] == [36, 200, 50]
    gun_point = ucr_data.load("GunPoint")
    assert gun_point.x_train.shape == (50, 150, 1) and gun_point.x_test.shape == (150, 150, 1)
    assert np.bincount(gun_point.y_train).tolist() == [24, 26]


def test_small_sets_are_passed_over_several_times_in_an_epoch(archive):
    dataset = ucr_data.load("Tiny", archive)  # four rows, two of them validate
    assert [len(ucr.make_task(dataset, long, seed=0).training[0]) for long in (False, True)] == [800, 2]


def test_bad_input_is_named(archive, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data set 'Absent'.*Found here: \['Tiny'\]"):
        ucr_data.load("Absent", archive)
    with pytest.raises(FileNotFoundError, match="`data_dir` should hold .* Received: .*empty"):
        ucr_data.names(tmp_path / "empty")
    for name, train, test, cause in [
        ("Hollow", "1\t0\t1\n2\tNaN\tNaN\n", "1\t0\t1\n", r"Hollow, TRAIN part: .*only missing values in rows \[1\]"),
        ("New", "1\t0\t1\n2\t1\t0\n", "1\t0\t1\n3\t0\t1\n", r"New: classes of the TEST part .* Received: \['3'\]"),
    ]:
        write(tmp_path, name, train, test)
        with pytest.raises(ValueError, match=cause):
            ucr_data.load(name, tmp_path)


def test_a_fifth_of_each_class_is_held_out_but_one_row_at_least_and_no_single_one():
    for labels, validated_classes in [
        ([0] * 10 + [1] * 10, [0, 0, 1, 1]),
        ([0, 0, 1, 1, 2, 2], [0, 1, 2]),
        ([0, 0, 0, 1], [0]),
    ]:
        labels = np.array(labels)
        training, validation = ucr_data.hold_out(labels, seed=0)
        assert sorted(labels[validation]) == validated_classes and set(labels[training]) == set(labels)
        assert sorted([*training, *validation]) == list(range(len(labels)))
    single_rows = ucr_data.hold_out(np.arange(3), seed=0)
    assert [rows.tolist() for rows in single_rows] == [[0, 1, 2]] * 2, "training rows validate"


PAPER = ["--paper", "--long", "--set", "percentile=0"]
PAPER_ARMS = ["plain", "averaged", "continued", "paper", "percentile=0"]


@pytest.mark.parametrize(
    ("sets", "options", "arms", "found"),
    [
        (["Slope", "Tilt"], [], ["plain", "averaged", "wrap"], "over 2 units (dataset)"),
        pytest.param(["Slope"], PAPER, PAPER_ARMS, "a single seed has no interval", marks=pytest.mark.slow),
    ],
    ids=["self", "paper, long"],
)
def test_script(slope_archive, tmp_path, capsys, monkeypatch, sets, options, arms, found):
    monkeypatch.setattr(ucr, "ROWS_PER_EPOCH", 32)
    out = tmp_path / "out"
    call = ["--dataset", *sets, "--data-dir", str(slope_archive), "--seeds", "0,", "--epochs", "2", "--out", str(out)]
    assert ucr.main(call + options) == 0
    printed = capsys.readouterr().out
    assert "2 epochs, seeds [0], " in printed and found in printed
    for name, path in zip(sets, sorted(out.glob("*.jsonl")), strict=True):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["arm"] for row in rows] == arms
        assert re.search(" +".join([name, *(f"{row['accuracy']:.4f}" for row in rows)]), printed)
    assert [path.read_bytes()[:4] for path in out.glob("*.png")] == [b"\x89PNG"]
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("a recorded run was repeated"))
    assert ucr.main(call + options) == 0


def test_run_with_a_non_finite_loss_counts_as_diverged(archive):
    dataset = ucr_data.load("Tiny", archive)
    model = ucr.new_model(dataset, seed=0)
    test = dataset.x_test, dataset.y_test, dataset.n_classes
    rows = [comparison.scores(comparison.Run(model, {"loss": [1.0, last]}, 0.1), *test) for last in (0.5, np.nan)]
    assert [row["status"] for row in rows] == ["finished", "diverged"]
    assert [comparison.status(rows[:n]) for n in (1, 2)] == [0, 1], "the exit status of a script"


def test_each_set_is_a_further_arm():
    call = ["--num-teachers", "4", "--set", "percentile=0", "similarity=cosine", "--set", "num_teachers=2"]
    own = {"teacher": "self", "num_teachers": 4}
    assert ucr.parse(call).settings == {
        "self-4": own,
        "percentile=0 similarity=cosine": {**own, "percentile": 0, "similarity": "cosine"},
        "num_teachers=2": {**own, "num_teachers": 2},
    }
    assert ucr.parse(["--teacher", "ema"]).settings == {"ema": {"teacher": "ema", "num_teachers": None}}
    assert ucr.parse(["--paper", "--set", "dropout_rate=0.5"]).settings["dropout_rate=0.5"]["num_teachers"] == 30


@pytest.mark.parametrize("name", ["007", "NA", "1e3"])
def test_rows_are_found_again_by_names_that_look_like_something_else(tmp_path, name):
    path, trained = tmp_path / "results.csv", []
    for key in [{"dataset": "7", "seed": 0}, {"dataset": name, "seed": 0}, {"dataset": name, "seed": 0}]:
        rows = comparison.resume(path, key, lambda: trained.append(1) or {"plain": {"accuracy": 0.5, "nll": np.nan}})
    assert len(trained) == 2 and rows.dataset.tolist() == [name] and rows.nll.isna().all()


def test_rows_that_are_appended_replace_the_file_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    comparison.append(pd.DataFrame({"accuracy": [0.5]}), path)

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError, match="no space"):
        comparison.append(pd.DataFrame({"accuracy": [0.25]}), path)
    assert path.read_text() == "accuracy\n0.5\n"


def test_seeds():
    assert [comparison.seeds(text) for text in ("3", "0,5", "4,")] == [[0, 1, 2], [0, 5], [4]]
