"""The UCR example: its reader on hand-written files, and the whole script on a tiny archive."""

import json
import re

import keras
import numpy as np
import pandas as pd
import pytest

import ucr
from _support import comparison, ucr_data

ROOT_HALF = 0.5**0.5
ROOT_THREE_HALVES = 1.5**0.5

# Labels -1/1, a gap, a short series (missing tail), a constant series.
TRAIN = """\
1\t0\t1\tNaN\t3\t4
-1\t3\t1\tNaN\tNaN\tNaN
-1\t7\t7\t7\t7\tNaN
1\t0\t4\t4\t0\tNaN
"""
TEST = """\
-1\t1\t2\t3\tNaN\tNaN
1\t-1\t-1\t1\t1\tNaN
"""


def write(folder, name, train, test):
    (folder / name).mkdir(parents=True)
    (folder / name / f"{name}_TRAIN.tsv").write_text(train)
    (folder / name / f"{name}_TEST.tsv").write_text(test)


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "data"
    write(folder / "UCRArchive_2018", "Tiny", TRAIN, TEST)
    return folder


@pytest.fixture
def learnable(tmp_path):
    """Two sets of 20 + 10 series, whose class is the sign of their slope."""
    generator = np.random.default_rng(0)

    def rows(count):
        for number in range(count):
            label = 1 if number % 2 else -1
            values = label * np.arange(12) + generator.normal(size=12)
            yield "\t".join([str(label), *(f"{value:.4f}" for value in values)])

    for name in ("Slope", "Tilt"):
        write(tmp_path / "data" / "UCRArchive_2018", name, "\n".join(rows(20)), "\n".join(rows(10)))
    return tmp_path / "data"


@pytest.mark.parametrize("subfolder", ["", "UCRArchive_2018"])
def test_reads_the_archives_own_layout(archive, subfolder):
    dataset = ucr_data.load("Tiny", archive / subfolder)
    expected_train = [
        [-2 * ROOT_HALF, -ROOT_HALF, 0, ROOT_HALF, 2 * ROOT_HALF],  # the gap is filled with 2
        [1, -1, 0, 0, 0],  # normalised over its two values only
        [0, 0, 0, 0, 0],
        [-1, 1, 1, -1, 0],
    ]
    expected_test = [[-ROOT_THREE_HALVES, 0, ROOT_THREE_HALVES, 0, 0], [-1, -1, 1, 1, 0]]
    np.testing.assert_allclose(dataset.x_train[..., 0], expected_train, atol=1e-6)
    np.testing.assert_allclose(dataset.x_test[..., 0], expected_test, atol=1e-6)
    assert dataset.x_train.dtype == "float32"
    assert dataset.y_train.tolist() == [1, 0, 0, 1]
    assert dataset.y_test.tolist() == [0, 1]
    assert dataset.n_classes == 2


def test_pads_the_shorter_split_to_the_longer(tmp_path):
    write(tmp_path, "Short", "1\t0\t2\n2\t2\t0\n", "2\t0\t0\t2\t2\n")
    dataset = ucr_data.load("Short", tmp_path)
    np.testing.assert_allclose(dataset.x_train[..., 0], [[-1, 1, 0, 0], [1, -1, 0, 0]])
    np.testing.assert_allclose(dataset.x_test[..., 0], [[-1, -1, 1, 1]])


def test_labels_are_sorted_as_numbers(tmp_path):
    write(tmp_path, "Many", "10\t0\t1\n3\t0\t1\n-1\t0\t1\n", "3\t0\t1\n10\t0\t1\n")
    dataset = ucr_data.load("Many", tmp_path)
    assert dataset.y_train.tolist() == [2, 1, 0]
    assert dataset.y_test.tolist() == [1, 2]


def test_labels_that_look_alike_as_numbers_are_classes_of_their_own(tmp_path):
    lines = "20190102\t0\t1\n20190101\t1\t0\n1_1\t0\t1\n11\t1\t0\n"
    write(tmp_path, "Dates", lines, lines)
    dataset = ucr_data.load("Dates", tmp_path)
    assert dataset.y_train.tolist() == [3, 2, 1, 0] and dataset.n_classes == 4


GOOD = "1\t0.5\t1.5\t2.5\n2\t5\t6\t8\n"


def test_trailing_tab_of_each_line_is_not_a_value(tmp_path):
    write(tmp_path, "Tabs", GOOD.replace("\n", "\t\n"), GOOD)
    dataset = ucr_data.load("Tabs", tmp_path)
    assert dataset.x_train.shape == (2, 3, 1)
    np.testing.assert_array_equal(dataset.x_train, dataset.x_test)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        pytest.param(GOOD.replace("1.5", "?"), r"line 1: .* '\?' .* column 2", id="question mark"),
        pytest.param(GOOD.replace(".", ","), "line 1: .* '0,5' .* column 1", id="decimal comma"),
        pytest.param("# mine\n" + GOOD, "line 1: it should hold a label and a series", id="comment"),
        pytest.param(GOOD.encode("utf-16"), "it should be UTF-8 text", id="UTF-16"),
        pytest.param(GOOD + "2\t5\t6\n", "line 3: it holds 2 columns, but the first holds 3", id="short line"),
        pytest.param(GOOD.replace("6", ""), "line 2: .* '' .* column 2", id="empty cell"),
        pytest.param(GOOD.replace("6", "inf"), "line 2: it holds an infinite number", id="infinite"),
        pytest.param("", "it is empty", id="empty"),
    ],
)
def test_a_damaged_file_is_named_with_line_and_cause(tmp_path, text, cause):
    write(tmp_path, "Mine", GOOD, GOOD)
    (tmp_path / "Mine" / "Mine_TEST.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"Mine_TEST.tsv: {cause}"):
        ucr_data.load("Mine", tmp_path)


def test_a_class_that_only_the_test_part_has_is_named(tmp_path):
    write(tmp_path, "New", "1\t0\t1\n2\t1\t0\n", "1\t0\t1\n3\t0\t1\n")
    with pytest.raises(ValueError, match=r"New: classes of the TEST part .* Received: \['3'\]"):
        ucr_data.load("New", tmp_path)


def test_aeon_includes_gunpoint():
    dataset = ucr_data.load("GunPoint")
    assert dataset.x_train.shape == (50, 150, 1)
    assert dataset.x_test.shape == (150, 150, 1)
    assert np.bincount(dataset.y_train).tolist() == [24, 26]


def test_aeon_includes_the_default_sets():
    assert [len(ucr_data.load(name).x_train) for name in ucr.BUNDLED] == [36, 200, 50]


def test_small_sets_are_passed_over_several_times_in_an_epoch(archive):
    dataset = ucr_data.load("Tiny", archive)  # four rows, two of them validate
    assert [len(ucr.make_task(dataset, long, seed=0).training[0]) for long in (False, True)] == [800, 2]


def test_bad_input_is_named(archive, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data set 'Absent'.*Found here: \['Tiny'\]"):
        ucr_data.load("Absent", archive)
    with pytest.raises(FileNotFoundError, match="`data_dir` should hold .* Received: .*empty"):
        ucr_data.names(tmp_path / "empty")
    write(tmp_path, "Hollow", "1\t0\t1\n2\tNaN\tNaN\n", "1\t0\t1\n")
    with pytest.raises(ValueError, match=r"Hollow, TRAIN part: .*only missing values in rows \[1\]"):
        ucr_data.load("Hollow", tmp_path)


@pytest.mark.parametrize(
    ("labels", "validated_classes"),
    [
        pytest.param([0] * 10 + [1] * 10, [0, 0, 1, 1], id="a fifth, stratified"),
        pytest.param([0, 0, 1, 1, 2, 2], [0, 1, 2], id="one row per class at least"),
        pytest.param([0, 0, 0, 1], [0], id="a single row stays in training"),
    ],
)
def test_hold_out(labels, validated_classes):
    labels = np.array(labels)
    training, validation = ucr_data.hold_out(labels, seed=0)
    assert sorted(labels[validation]) == validated_classes
    assert sorted([*training, *validation]) == list(range(len(labels)))
    assert set(labels[training]) == set(labels)


def test_hold_out_of_single_rows_validates_on_training_rows():
    training, validation = ucr_data.hold_out(np.arange(3), seed=0)
    assert training.tolist() == validation.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "arms"),
    [
        pytest.param([], ["plain", "averaged", "wrap"], id="self"),
        pytest.param(
            ["--teacher", "ema", "--long"],
            ["plain", "averaged", "ema"],
            id="ema, long",
            marks=(pytest.mark.slow, pytest.mark.once),
        ),
        pytest.param(
            ["--paper", "--set", "percentile=0"],
            ["plain", "averaged", "continued", "paper", "percentile=0"],
            id="paper",
            marks=(pytest.mark.slow, pytest.mark.once),
        ),
    ],
)
def test_script(learnable, tmp_path, capsys, monkeypatch, options, arms):
    monkeypatch.setattr(ucr, "ROWS_PER_EPOCH", 32)
    out = tmp_path / "out"
    call = ["--dataset", "Slope", "--data-dir", str(learnable), "--seeds", "0,", "--epochs", "2", "--out", str(out)]
    assert ucr.main(call + options) == 0
    printed = capsys.readouterr().out
    assert "2 epochs, seeds [0], " in printed and "no difference was shown; a single seed has no interval" in printed
    (path,) = out.glob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["arm"] for row in rows] == arms
    accuracies = " ".join(f"{row['accuracy']:.4f}" for row in rows)
    assert re.search("Slope *" + accuracies.replace(" ", " +"), printed)
    (picture,) = out.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("a recorded run was repeated"))
    assert ucr.main(call + options) == 0


def test_several_data_sets_are_the_unit(monkeypatch, tmp_path, capsys):
    costs = {"epochs": 1, "steps": 1, "seconds_per_step": 0.1, "seconds": 1.0}
    known = {"control": "", "seed": 0, "fold": None, "scored_on": "test_data"}
    scores = {"Slope": (0.6, 0.7), "Tilt": (0.8, 0.6)}

    def rows(name, arguments):
        for arm, accuracy in zip(("plain", "averaged"), scores[name], strict=True):
            status = "diverged" if accuracy == 0.8 else "finished"
            yield {"dataset": name, "arm": arm, **known, "accuracy": accuracy, **costs, "status": status}

    monkeypatch.setattr(ucr, "run", rows)
    assert ucr.main(["--dataset", "Slope", "Tilt", "--out", str(tmp_path)]) == 1, "a run diverged"
    printed = capsys.readouterr().out
    # Differences .1 and -.2: deviation .2121, and 12.7062 is Student's quantile of one degree of freedom.
    assert re.search(r"accuracy +averaged +0.6500 +0.0707 +-0.0500 ± 1.9059", printed)
    assert "over 2 units (dataset)" in printed


def test_run_with_a_non_finite_loss_counts_as_diverged(archive):
    dataset = ucr_data.load("Tiny", archive)
    model = ucr.new_model(dataset, seed=0)
    run = comparison.Run(model, {"loss": [1.0, float("nan")]}, 0.1)
    test = dataset.x_test, dataset.y_test, dataset.n_classes
    assert comparison.scores(run, *test)["status"] == "diverged"
    assert comparison.scores(run._replace(history={"loss": [1.0, 0.5]}), *test)["status"] == "finished"


def test_each_set_is_a_further_arm():
    arguments = ucr.parse(
        ["--num-teachers", "4", "--set", "percentile=0", "similarity=cosine", "--set", "num_teachers=2"]
    )
    assert arguments.settings == {
        "self-4": {"teacher": "self", "num_teachers": 4},
        "percentile=0 similarity=cosine": {
            "teacher": "self",
            "num_teachers": 4,
            "percentile": 0,
            "similarity": "cosine",
        },
        "num_teachers=2": {"teacher": "self", "num_teachers": 2},
    }
    assert ucr.parse(["--paper", "--set", "dropout_rate=0.5"]).settings["dropout_rate=0.5"]["num_teachers"] == 30


def test_plain_and_distilled_start_from_the_same_weights(archive):
    dataset = ucr_data.load("Tiny", archive)
    for one, other in zip(
        ucr.new_model(dataset, seed=3).get_weights(), ucr.new_model(dataset, seed=3).get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--paper", "--num-teachers", "4"], "--paper fixes the number"),
        (["--dataset", "all"], "needs --data-dir"),
        (["--set", "percentile"], "--set takes OPTION=VALUE. Received: ['percentile']"),
    ],
    ids=["paper with num_teachers", "all without data_dir", "set without value"],
)
def test_options_that_exclude_each_other(options, complaint, capsys):
    with pytest.raises(SystemExit):
        ucr.parse(options)
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("name", ["007", "1", "NA", "1e3", "Slope"])
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


@pytest.mark.parametrize(("text", "expected"), [("3", [0, 1, 2]), ("0,5", [0, 5]), ("4,", [4])])
def test_seeds(text, expected):
    assert comparison.seeds(text) == expected
