"""The affective computing example: its reader on hand-written files in the published layout, its folds, its network."""

import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest

import affective
import keras_ssd

COLUMNS = ["time", "gsr", "ecg", "emg_trapezius", "emg_corrugator", "emg_zygomaticus"]
SUBJECTS = ["071309_w_21", "071313_m_41", "120614_w_61"]


def write(folder, subject, level, number, gsr):
    table = pd.DataFrame(0.0, index=range(len(gsr)), columns=COLUMNS)
    table["time"] = np.arange(len(gsr)) * 1953  # microseconds
    table["gsr"], table["ecg"] = gsr, -np.asarray(gsr, dtype=float)
    path = folder / "biosignals_filtered" / subject / f"{subject}-{level}-{number:03d}_bio.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", index=False)
    return path


@pytest.fixture
def biovid(tmp_path):
    """Three subjects, four recordings of BL1 (falling), PA1 and PA4 (rising) each, of 64 steps."""
    generator = np.random.default_rng(0)
    for subject in SUBJECTS:
        for level, slope in [("BL1", -1), ("PA1", 0), ("PA4", 1)]:
            for number in range(4):
                write(tmp_path, subject, level, number, slope * np.arange(64) / 32 + generator.normal(size=64))
    return tmp_path


class TestReader:
    def test_reads_the_published_layout(self, tmp_path):
        for number, subject in enumerate(SUBJECTS):
            write(tmp_path, subject, "BL1", 81, [number, 1.5, 2])
            write(tmp_path, subject, "PA3", 5, [9, 9, 9])
            path = write(tmp_path, subject, "PA4", 7, [number, 4.5, 5])
            path.write_text(path.read_text() + "\n\n")  # blank lines at the end hold no values
        dataset = affective.load(tmp_path, ["BL1", "PA4"], "gsr")
        expected = [[[number, 1.5, 2], [number, 4.5, 5]] for number in range(3)]
        np.testing.assert_array_equal(dataset.x[..., 0], np.concatenate(expected))
        assert dataset.x.shape == (6, 3, 1) and dataset.x.dtype == "float32"
        assert dataset.y.tolist() == [0, 1, 0, 1, 0, 1]
        assert dataset.subjects.tolist() == [subject for subject in SUBJECTS for _ in range(2)]
        other = affective.load(tmp_path / "biosignals_filtered", ["PA4", "PA3"], "ecg")
        assert other.x[:2, :, 0].tolist() == [[-9, -9, -9], [0, -4.5, -5]]
        assert other.y.tolist() == [1, 0, 1, 0, 1, 0]

    def test_says_what_is_missing(self, biovid):
        with pytest.raises(FileNotFoundError, match=r"with the levels \['BL1', 'PB4'\].* Received: .*, with \['BL1'\]"):
            affective.load(biovid, ["BL1", "PB4"], "gsr")
        columns = r"_bio.csv should have the columns \['eda'\]. Received: \['time', 'gsr', 'ecg', 'emg_trap"
        with pytest.raises(ValueError, match=columns):
            affective.load(biovid, ["BL1", "PA4"], "eda")

    @pytest.mark.parametrize(
        ("change", "cause"),
        [
            pytest.param(lambda text: text.replace("2.5", ""), "line 4, column 'gsr': a value is missing", id="empty"),
            pytest.param(lambda text: text.replace("2.5", "nan"), "line 4, column 'gsr': 'nan' is no finite", id="NaN"),
            pytest.param(lambda text: text.replace("2.5", "-inf"), "line 4, .* '-inf' is no finite", id="infinite"),
            pytest.param(lambda text: text.replace("2.5", "2,5"), "line 4, .* '2,5' is no finite", id="decimal comma"),
            pytest.param(
                lambda text: text.replace("\t", ","), r"columns \['gsr'\]. Received: \['time,gsr", id="commas"
            ),
            pytest.param(lambda text: text.encode("utf-16"), "cannot be read: .*utf-8", id="UTF-16"),
            pytest.param(lambda text: "", "cannot be read: No columns", id="empty file"),
            pytest.param(lambda text: text.replace("3.5", "3.5\t" * 9), "cannot be read: .*line 5", id="many cells"),
        ],
    )
    def test_a_damaged_recording_is_named_with_line_and_cause(self, biovid, change, cause):
        path = write(biovid, SUBJECTS[1], "BL1", 3, [0.5, 1.5, 2.5, 3.5])
        changed = change(path.read_text())
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        with pytest.raises(ValueError, match=rf"{SUBJECTS[1]}-BL1-003_bio.csv.*{cause}"):
            affective.load(biovid, ["BL1", "PA4"], "gsr")

    def test_recordings_of_another_length_and_too_few_subjects_are_named(self, biovid):
        path = write(biovid, SUBJECTS[1], "PA4", 2, np.zeros(60))
        with pytest.raises(ValueError, match=rf"most are, 64. Received: 60 in .*{path.name}"):
            affective.load(biovid, ["BL1", "PA4"], "gsr")
        shutil.rmtree(path.parent)
        with pytest.raises(ValueError, match="should hold 3 subjects"):
            affective.load(biovid, ["BL1", "PA4"], "gsr")


class TestNetwork:
    def test_has_the_shapes_of_the_published_network_and_standardises(self):
        x = np.array([[[1.0], [3.0]], [[5.0], [7.0]]], "float32").repeat(1408, axis=1)
        model = affective.pain_attn_net(x, 2)
        assert model.output_shape == (None, 2)
        concatenated = next(one for one in model.layers if isinstance(one, keras.layers.Concatenate))
        assert concatenated.output.shape == (None, 75, 192), "three scales of 75 steps and 64 features"
        assert model.layers[-2].output.shape == (None, 75 * 30), "the representation"
        standardised = keras.ops.convert_to_numpy(model.layers[1](x))[:, ::1408, 0]
        np.testing.assert_allclose(standardised, np.array([[-3, -1], [1, 3]]) / 5**0.5, rtol=1e-5)

    @pytest.mark.slow
    def test_its_teachers_differ(self):
        x = np.random.default_rng(0).normal(size=(2, 64, 1)).astype("float32")
        ssd = keras_ssd.wrap(affective.pain_attn_net(x, 2), **{**keras_ssd.PAPER, "num_teachers": 3})
        _, teachers, _ = ssd.teacher_representations(x)
        assert teachers.shape == (2, 3, 2250)
        assert teachers.std(axis=1).mean() > 1e-3


@pytest.mark.slow
@pytest.mark.once
def test_script_trains_the_network(biovid, tmp_path, capsys):
    call = ["--data-dir", str(biovid), "--folds", "1", "--epochs", "1", "--num-teachers", "2", "--out", str(tmp_path)]
    assert affective.main(call) == 0
    assert "BL1 against PA4, self, 1 subjects left out" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.jsonl")
    assert [json.loads(line)["arm"] for line in path.read_text().splitlines()] == ["plain", "averaged", "self-2"]


@pytest.mark.slow
@pytest.mark.once
def test_script_keeps_subjects_apart_and_averages_over_them(biovid, tmp_path, capsys, monkeypatch):
    folds = []

    def compare(build, training, validation, test, settings, seeds, **options):
        folds.append([sorted(part[0].ravel().tolist()) for part in (test, training, validation)])
        assert test[1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        costs = {"epochs": 1, "steps": 1, "seconds_per_step": 0.1, "seconds": 1.0, "status": "finished"}
        known = {"control": "", "seed": 0, "fold": None, "scored_on": "test_data"}
        scores = {"plain": 0.5, "averaged": 0.7}
        return keras_ssd.Comparison([{"arm": a, **known, "accuracy": scores[a], **costs} for a in scores])

    monkeypatch.setattr(keras_ssd, "compare", compare)
    dataset = affective.load(biovid, ["BL1", "PA4"], "gsr")
    dataset = dataset._replace(x=np.arange(24.0)[:, None, None])  # a recording is its own number
    monkeypatch.setattr(affective, "load", lambda *_: dataset)
    assert affective.main(["--data-dir", str(biovid), "--out", str(tmp_path / "out")]) == 0
    of_subjects = [[*range(0, 8)], [*range(8, 16)], [*range(16, 24)]]
    assert [test for test, *_ in folds] == of_subjects and [sorted(fold) for fold in folds] == [of_subjects] * 3
    printed = capsys.readouterr().out
    assert "3 subjects left out in turn" in printed and "+0.2000 ± 0.0000" in printed
    assert (tmp_path / "out" / "BL1-PA4-self.png").read_bytes().startswith(b"\x89PNG")
