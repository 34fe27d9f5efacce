"""New people: the readers on tiny files in the publishers' layouts, windows, folds, methods and both scripts."""

import json
import re

import keras
import numpy as np
import pandas as pd
import pytest

import affective
import har
from _support import empatica, networks, new_people, people, sp_sw_har
from _support.csv_columns import read_columns


def write_watch(folder, subject, execution, labels, offset=0.0):
    """An execution as published; channel k of sample i is `offset + i + k / 10`."""
    values = offset + np.arange(len(labels))[:, None] + np.arange(6) / 10
    table = pd.DataFrame(values, columns=["x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro"])
    table["timestamp"], table["label"] = 1657533977810, labels  # samples come in bursts
    path = folder / "DATA" / subject / f"{subject}_{execution:02d}_sw.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path


def write_signal(path, start, rate, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f"{value:.6f}" for value in [start, rate, *values]) + "\n")


def write_wristband(folder, start, seconds, level=0.0):
    """EDA rises by 1 in a second, TEMP by 2, HR is the number of the second; HR begins 10 seconds later."""
    write_signal(folder / "EDA.csv", start, 4, level + np.arange(4 * seconds) / 4)
    write_signal(folder / "TEMP.csv", start, 4, np.arange(4 * seconds) / 2)
    write_signal(folder / "HR.csv", start + 10, 1, np.arange(10, seconds))
    (folder / "IBI.csv").write_text(f"{start}, IBI\n604.0,0.687500\n")


def write_stress_predict(folder, labels):
    """The published layout: `labels` by participant, one for each second from the 10th on."""
    frames = []
    for number, of_one in labels.items():
        start = 1_644_000_000 + 10_000 * number
        write_wristband(folder / "Raw_data" / f"S{number:02d}", start, len(of_one) + 10, level=number)
        columns = {"Participant": number, "HR": 80.0, "respr": 12.0, "Time(sec)": start + 10 + np.arange(len(of_one))}
        frames.append(pd.DataFrame({**columns, "Label": of_one}))
    path = folder / "Processed_data" / "Improved_All_Combined_hr_rsp_binary.csv"
    path.parent.mkdir(parents=True)
    pd.concat(frames).to_csv(path, index=False)
    return path


TABLE = b"time\tgsr\tlabel\n0\t0.5\ta\n1\t1.5\ta\n2\t2.5\tb\n3\t3.5\tb\n"


@pytest.mark.parametrize(
    ("table", "cause"),
    [
        pytest.param(TABLE.replace(b"2.5", b""), "line 4, column 'gsr': a value is missing", id="empty"),
        pytest.param(TABLE.replace(b"2.5", b"nan"), "line 4, .* 'nan' is no finite", id="NaN"),
        pytest.param(TABLE.replace(b"2.5", b"-inf"), "line 4, .* '-inf' is no finite", id="infinite"),
        pytest.param(TABLE.replace(b"2.5", b"2,5"), "line 4, .* '2,5' is no finite", id="decimal comma"),
        pytest.param(TABLE.replace(b"\tb", b"\t"), "line 4: label is missing", id="no word"),
        pytest.param(TABLE.replace(b"\t", b","), r"columns \['gsr', 'label'\]. Received: \['time,gsr", id="commas"),
        pytest.param(TABLE.replace(b"3.5", b"3.5\t\t"), "cannot be read: .*line 5", id="many cells"),
        pytest.param(TABLE.decode().encode("utf-16"), "cannot be read: .*utf-8", id="UTF-16"),
        pytest.param(b"", "cannot be read: No columns", id="empty file"),
    ],
)
def test_a_damaged_table_is_named_with_line_and_cause(tmp_path, table, cause):
    (tmp_path / "table.csv").write_bytes(table)
    with pytest.raises(ValueError, match=f"table.csv.*{cause}"):
        read_columns(tmp_path / "table.csv", ["gsr"], ["label"], separator="\t")


class TestWindows:
    def test_begin_every_stride_and_have_the_label_of_most_samples(self):
        """Of two labels that are equally frequent the lower one; what is left over is dropped."""
        for labels, expected in [("000011111", [0, 0, 1]), ("00011110", [0, 1, 1]), ("111", [])]:
            starts, of_windows = people.starts_of_windows(np.array([*map(int, labels)]), steps=4, stride=2)
            assert starts.tolist() == [0, 2, 4][: len(expected)] and of_windows.tolist() == expected
        windows = people.cut(np.stack([np.arange(6), 10 * np.arange(6)], axis=1), np.array([0, 3]), 3)
        assert windows.tolist() == [[[0, 0], [1, 10], [2, 20]], [[3, 30], [4, 40], [5, 50]]]

    def test_of_spans_that_meet_lie_in_one_label(self):
        run = [empatica.Span(5, 65, 0, 2), empatica.Span(65, 100, 0, 3), empatica.Span(100, 220.5, 1, 4)]
        starts, labels, lines = empatica.windows_of(run)
        assert starts.tolist() == [0, 30, 120, 150] and labels.tolist() == [0, 0, 1, 1], "60 and 90 hold both labels"
        assert lines == {2, 3, 4}
        assert empatica.windows_of([empatica.Span(0, 59.9, 0, 2)])[0].tolist() == []

    def test_each_subject_is_scaled_by_itself(self):
        x = np.array([[[1.0, 5], [3, 5]], [[10, 7], [30, 9]]], "float32")
        scaled = people.scale_by_subject(x, np.array(["a", "b"]))
        assert scaled.tolist() == [[[-1, 0], [1, 0]], [[-1, -1], [1, 1]]], "a constant channel becomes 0"


class TestSmartwatch:
    def test_reads_the_published_layout(self, tmp_path):
        write_watch(tmp_path, "s01", 1, ["SEATED"] * 100 + ["WALKING"] * 108)
        write_watch(tmp_path, "s01", 2, ["WALKING"] * 104)
        write_watch(tmp_path, "s02", 1, ["TURNING"] * 103, offset=1000)  # shorter than a window
        write_watch(tmp_path, "s03", 1, ["TURNING"] * 156, offset=2000)
        (tmp_path / "DATA" / "subjects_info.csv").write_text("subject_id,age\n")
        with pytest.warns(UserWarning, match=r"1 of 4 executions are shorter than 104 .*\['s02_01_sw.csv'\]"):
            found = sp_sw_har.load(tmp_path)
        assert found.class_names == ["SEATED", "TURNING", "WALKING"] and found.n_classes == 3
        assert found.x.shape == (6, 104, 6) and found.x.dtype == "float32"
        assert found.y.tolist() == [0, 2, 2, 2, 1, 1], "of samples 0-103, 52-155 and 104-207 most are seated, then walk"
        assert found.subjects.tolist() == ["s01"] * 4 + ["s03"] * 2
        np.testing.assert_allclose(found.minutes[:3] * 60 * 104, [52, 104, 156])
        of_one = found.x[found.subjects == "s03"]
        np.testing.assert_allclose(of_one.mean(axis=(0, 1)), 0, atol=1e-5)
        np.testing.assert_allclose(of_one.std(axis=(0, 1)), 1, atol=1e-5)

    def test_a_class_without_a_window_and_a_folder_without_files_are_named(self, tmp_path):
        path = write_watch(tmp_path, "s01", 1, ["TURNING"] + ["SEATED"] * 103)
        with pytest.raises(ValueError, match="s01_01_sw.csv, line 2: .* no window of 'TURNING'"):
            sp_sw_har.load(tmp_path / "DATA")
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"should hold sXX/sXX_YY_sw.csv, .* Received: .*\['s01'\]"):
            sp_sw_har.load(tmp_path)


LABELS = "../Processed_data/Improved_All_Combined_hr_rsp_binary.csv"


class TestWristband:
    def test_reads_stress_predict(self, tmp_path):
        write_stress_predict(tmp_path, {2: [0] * 100 + [1] * 60, 35: [1] * 90})
        write_wristband(tmp_path / "Raw_data" / "S01", 1_644_000_000, 100)  # has no labels
        with pytest.warns(UserWarning, match=r"1 spans hold no window .* lines \[102\]"):
            found = empatica.load_stress_predict(tmp_path)
        assert found.class_names == ["rest", "stress"]
        assert found.subjects.tolist() == ["S02"] * 2 + ["S35"] * 2
        # S02: seconds 0-59 and 30-89 are of rest; 60-119 and 90-149 of both; the rest is too short.
        assert found.y.tolist() == [0, 0, 1, 1]
        assert found.minutes.tolist() == [0.5, 1, 0.5, 1]
        assert found.x.shape == (4, 240, 3) and found.x.dtype == "float32"
        # What drifts is centred in each window: both windows of a signal that rises by itself are the same.
        np.testing.assert_allclose(found.x[0, :, :2], found.x[1, :, :2], atol=1e-5)
        np.testing.assert_allclose(found.x[0, :, 0].mean(), 0, atol=1e-5)
        # The heart rate keeps its level: seconds 10 to 69.75 and 40 to 99.75, at four a second.
        seconds = 10 + np.stack([np.arange(240) / 4, 30 + np.arange(240) / 4])
        expected = (seconds - seconds.mean()) / seconds.std()
        np.testing.assert_allclose(found.x[:2, :, 2], expected, atol=1e-2)

    def test_signals_of_other_rates_are_brought_to_one(self):
        signal = empatica.Signal(start=100.0, rate=0.5, values=np.array([[0.0, 7], [4, 7], [8, 5]]))
        assert signal.end == 104
        assert signal.at(np.array([100, 101, 102.5, 104])).tolist() == [[0, 7], [2, 7], [5, 6.5], [8, 5]]

    def test_no_window_reaches_over_a_gap_between_labels_or_what_a_signal_lacks(self, tmp_path):
        path = write_stress_predict(tmp_path, {2: [0] * 130, 3: [0] * 130})
        table = pd.read_csv(path)
        table[~((table.Participant == 2) & table.index.isin([65]))].to_csv(path, index=False)
        temperature = tmp_path / "Raw_data" / "S03" / "TEMP.csv"
        temperature.write_text("\n".join(temperature.read_text().split("\n")[: 2 + 4 * (10 + 89)]))  # up to second 88
        with pytest.warns(UserWarning, match="do not cover 41 seconds with a label"):
            found = empatica.load_stress_predict(tmp_path)
        assert found.minutes[found.subjects == "S02"].tolist() == [0.5, 1.6], "seconds 0-59 and 66-125"
        assert found.minutes[found.subjects == "S03"].tolist() == [0.5]

    def test_reads_folders_of_ones_own_and_counts_what_is_left_out(self, tmp_path):
        write_wristband(tmp_path / "S2" / "S2_E4_Data", 1_495_437_325, 300)
        write_wristband(tmp_path / "S3" / "S3_E4_Data", 1_500_000_000, 300, level=5)
        write_wristband(tmp_path / "S4", 0, 300)
        lines = ["subject,start,end,label", "S2,20,80,base", "S2,200,260,amusement", "S2,80,140,stress"]
        lines += ["S3,5,100,stress", "S3,100,130,base", "S3,240,400,base"]  # the signals: from 10 to 300
        (tmp_path / "labels.csv").write_text("\n".join(lines))
        with pytest.warns(UserWarning) as record:
            found = empatica.load_folders(tmp_path)
        assert found.class_names == ["amusement", "base", "stress"]
        assert found.subjects.tolist() == ["S2"] * 3 + ["S3"] * 3 and found.name == tmp_path.name
        assert found.y.tolist() == [1, 2, 0, 2, 2, 1]
        np.testing.assert_allclose(found.minutes, [0.5, 1.5, 3.5, 35 / 60, 65 / 60, 265 / 60])
        messages = " ".join(str(one.message) for one in record)
        assert "no labels for 1 recordings: ['S4']" in messages
        assert "do not cover 105 seconds" in messages
        assert "1 spans hold no window of 60 seconds and are left out. They begin in lines [6]" in messages

    @pytest.mark.parametrize(
        ("file", "change", "cause"),
        [
            ("S02/EDA.csv", ("\n2.000000", "\n?"), r"EDA.csv, line 3, .*'\?' is no finite number"),
            ("S02/EDA.csv", ("4.0", "0.0", 1), "EDA.csv, line 2: the rate in Hz should be pos"),
            ("S02/HR.csv", ("\n", " "), "HR.csv should hold a start, a rate and values"),
            ("S02/HR.csv", ("1644", "1600", 1), "line 2: the signals of S02 should cover"),
            ("S02/TEMP.csv", None, r"no file .*S02/TEMP.csv. Found beside it: \['EDA.csv', 'HR.csv'"),
            (LABELS, (",0\n", ",2\n", 1), "line 2: Label should be 0 or 1. Received: 2"),
            (LABELS, ("20012,", "20011,", 1), "line 4: .* Received: 0 seconds"),
        ],
        ids=["question mark", "rate", "short", "another time", "missing", "label", "a second twice"],
    )
    def test_a_damaged_file_is_named_with_line_and_cause(self, tmp_path, file, change, cause):
        write_stress_predict(tmp_path, {2: [0] * 90})
        path = tmp_path / "Raw_data" / file
        path.unlink() if change is None else path.write_text(path.read_text().replace(*change))
        with pytest.raises((ValueError, FileNotFoundError), match=cause):
            empatica.load_stress_predict(tmp_path)

    @pytest.mark.parametrize(
        ("spans", "counts"),
        [
            pytest.param("a,400.87,800.87,stress a,0.87,400.87,rest", [12, 11], id="meet at .87, not in order"),
            pytest.param("a,0,400.004,rest a,400,800,stress", [12, 11], id="rounded"),
            pytest.param("a,0.1,400.1,rest a,500,900,stress", [12, 12], id="apart"),
        ],
    )
    def test_times_with_fractions(self, tmp_path, spans, counts):
        """Windows of spans that meet: from second 0, 30, ..., 330 on, and from 420, ..., 720."""
        write_wristband(tmp_path / "a", 1_544_027_337, 900)
        write_signal(tmp_path / "a" / "HR.csv", 1_544_027_337, 1, np.arange(900))
        (tmp_path / "labels.csv").write_text("subject,start,end,label\n" + spans.replace(" ", "\n"))
        found = empatica.load_folders(tmp_path)
        assert np.bincount(found.y).tolist() == counts

    @pytest.mark.parametrize(
        ("labels", "cause"),
        [
            pytest.param(None, "should hold labels.csv with the columns", id="no labels"),
            pytest.param("S2,0,80,a\nS2,79,90,b", "labels.csv, lines 2 and 3: .* not overlap. .* of S2", id="overlap"),
            pytest.param("S2,10,80,a\nS9,0,80,a", r"labels.csv, line 3: .*S9 should hold EDA.csv once", id="no folder"),
            pytest.param("S2,10,80,a\nS2,80,95,b", "labels.csv, line 3: .* none of 'b'", id="no window"),
            pytest.param("S2,10,80,a\nS2,80,20,a", "labels.csv, line 3: `end` should .* no duration", id="duration"),
            pytest.param("S2,10,80,a\nS2,80,1544027337,a", "labels.csv, line 3: .* not Unix times", id="Unix time"),
        ],
    )
    def test_labels_of_ones_own_are_checked(self, tmp_path, labels, cause):
        write_wristband(tmp_path / "S2", 0, 100)
        if labels is not None:
            (tmp_path / "labels.csv").write_text(f"subject,start,end,label\n{labels}\n")
        with pytest.raises((ValueError, FileNotFoundError), match=cause):
            empatica.load_folders(tmp_path)


def made_up():
    """Twelve windows of each of five subjects, of two classes that take turns, told apart by their sign."""
    y = np.tile([0, 1], 30)
    x = (2 * y - 1)[:, None, None] + 0.5 * np.random.default_rng(0).normal(size=(60, 16, 2))
    subjects, minutes = np.repeat(["s0", "s1", "s2", "s3", "s4"], 12), np.tile(np.arange(12.0), 5)
    return people.People("made_up", x.astype("float32"), y, subjects, minutes, ["rest", "stress"])


class TestFold:
    def test_subjects_are_apart_and_training_windows_fill_all_batches(self, monkeypatch):
        monkeypatch.setattr(new_people, "BATCH_SIZE", 16)
        data = made_up()
        data = data._replace(x=np.arange(60, dtype="float32")[:, None, None])  # a window is its own number
        folds = [new_people.Fold(data, "s1", "conv", 2, seed, balanced=False) for seed in (0, 0, 1)]
        kept = [fold.training[0].ravel().tolist() for fold in folds]
        assert len(set(kept[0])) == len(kept[0]) == 32 and kept[0] == kept[1] != kept[2], "of 36 windows"
        monkeypatch.setattr(new_people, "BATCH_SIZE", 64)  # more than there are windows: all are trained on
        fold = new_people.Fold(data, "s1", "conv", 2, seed=0, balanced=False)
        training, validation, test = ({*x.ravel().tolist()} for x, _ in (fold.training, fold.validation, fold.test))
        assert test == set(range(12, 24)) and training | validation | test == set(range(60))
        assert set(kept[0]) < training and len(training) == 36 and len({row // 12 for row in validation}) == 1

    def test_rare_classes_weigh_more_if_asked_to(self):
        data = made_up()._replace(y=np.where(np.arange(60) % 4 == 0, 1, 0))  # a quarter in every subject
        folds = [new_people.Fold(data, "s0", "conv", 2, seed=0, balanced=balanced) for balanced in (False, True)]
        assert folds[0].class_weight is None and folds[1].class_weight == pytest.approx({0: 2 / 3, 1: 2})

    def test_methods_are_what_they_are_called(self, monkeypatch):
        """Plain is `model.fit`, bit for bit; its best epoch and its average come from the same run."""
        monkeypatch.setattr(new_people, "BATCH_SIZE", 8)
        data = made_up()
        fold = new_people.Fold(data, "s0", "conv", 2, seed=3, balanced=False)
        found = fold.predictions()
        assert tuple(found) == new_people.METHODS
        model = fold.model()
        keras.utils.set_random_seed(3)
        model.fit(*fold.training, batch_size=8, epochs=2, verbose=0)
        np.testing.assert_array_equal(found["plain"], fold.predict(model, fold.test[0]))
        different = {predicted.tobytes() for predicted in found.values()}
        assert len(different) >= 7, "only the best epoch may be the last, or that of the first half"
        *others, _ = model.get_weights()
        bad, good = ([*others, np.array(bias, "float32")] for bias in ([50.0, 0.0], [0.0, 0.0]))
        assert fold.best(model, [bad, good, bad]) is good, "the lowest validation loss"


def test_scores_by_hand():
    predicted = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = new_people.scores(np.array([0, 0, 0, 1]), predicted, 2)
    assert found["accuracy"] == 0.75 and found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.2, 0.6, 0.7]).mean())
    assert json.loads(found["confusion"]) == [[2, 1], [0, 1]] and found["windows"] == 4
    one_class = new_people.scores(np.array([1, 1]), predicted[:2], 2)
    assert one_class["balanced_accuracy"] == 0.5, "a class that a subject lacks does not count"
    assert new_people.scores(np.array([1]), np.array([[np.nan, np.nan]]), 2)["status"] == "diverged"


def test_time_only_uses_only_the_minute():
    data = made_up()
    assert new_people.time_only(data).tolist() == [1.0] * 5, "classes take turns by the minute"
    shuffled = data._replace(minutes=np.zeros(60))
    assert new_people.time_only(shuffled).tolist() == [0.5] * 5


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_take_windows_of_any_length(name):
    for shape in [(104, 6), (16, 1)]:
        model = networks.NETWORKS[name](shape, 5)
        predicted = model(np.random.default_rng(0).normal(size=(2, *shape)).astype("float32"))
        assert predicted.shape == (2, 5) and model.count_params() < 50_000
        assert model.get_layer("representation").output.shape == (None, 32)


@pytest.mark.parametrize(
    ("script", "dataset", "score"),
    [(har, "sp_sw_har", "accuracy"), (affective, "stress_predict", "balanced_accuracy")],
)
def test_scripts_are_resumed_by_fold(tmp_path, capsys, monkeypatch, script, dataset, score):
    trained, data = [], tmp_path / "data"
    write_stress_predict(data, {number: [0] * 90 + [1] * 90 for number in (2, 3, 4)})
    for number in (2, 3, 4):
        write_watch(data, f"s0{number}", 1, ["SEATED"] * 156 + ["WALKING"] * 156, offset=number)

    def predictions(fold):
        trained.append(len(fold.test[1]))
        return {name: np.eye(2)[fold.test[1]] * 0.8 + 0.1 for name in new_people.METHODS}

    monkeypatch.setattr(new_people.Fold, "predictions", predictions)
    call = ["--dataset", dataset, "--data-dir", str(data), "--out", str(tmp_path / "out")]
    assert script.main([*call, "--folds", "1"]) == 0
    assert len(trained) == 1
    path = tmp_path / "out" / f"{dataset}.csv"
    first = pd.read_csv(path)
    first.loc[0, score] = 0.375  # a score of its own, which a repetition of the fold would not give
    first.to_csv(path, index=False)
    capsys.readouterr()
    assert script.main(call) == 0
    assert len(trained) == 3, "the recorded fold is not repeated"
    rows = pd.read_csv(path)
    assert rows.method.tolist() == [*new_people.METHODS] * 3 and rows[score][0] == 0.375
    assert rows.subject.nunique() == 3 and (rows[score][1:] == 1).all()
    printed = capsys.readouterr().out
    assert f"{score} on the subject that was left out, 3 subjects" in printed
    assert ("time only" in printed) == (script is affective)
    # Of .375, 1 and 1: the mean .7917, the deviation .3608.
    assert re.search(r"\nmean +0.7917 +1.0000 [^\n]+\n\+- +0.3608 +0.0000 ", printed) and "3/3" in printed
    assert "    best epoch              ... of the epoch with the lowest validation loss" in printed
    assert (tmp_path / "out" / f"{dataset}-conv.png").read_bytes().startswith(b"\x89PNG")
