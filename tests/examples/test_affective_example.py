"""The affective computing example: its reader on hand-written files in the published layout, its network, its folds."""

import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest

import affective
import keras_ssd
from _support import comparison, networks

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

    def test_says_what_is_missing_or_of_another_length(self, biovid):
        with pytest.raises(FileNotFoundError, match=r"with the levels \['BL1', 'PB4'\].* Received: .*, with \['BL1'\]"):
            affective.load(biovid, ["BL1", "PB4"], "gsr")
        columns = r"_bio.csv should have the columns \['eda'\]. Received: \['time', 'gsr', 'ecg', 'emg_trap"
        with pytest.raises(ValueError, match=columns):
            affective.load(biovid, ["BL1", "PA4"], "eda")
        path = write(biovid, SUBJECTS[1], "PA4", 2, np.zeros(60))
        with pytest.raises(ValueError, match=rf"most are, 64. Received: 60 in .*{path.name}"):
            affective.load(biovid, ["BL1", "PA4"], "gsr")
        shutil.rmtree(path.parent)
        with pytest.raises(ValueError, match="should hold 3 subjects"):
            affective.load(biovid, ["BL1", "PA4"], "gsr")


def test_the_network_has_the_shapes_of_the_published_one_standardises_and_learns_from_its_noise():
    x = np.array([[[1.0], [3.0]], [[5.0], [7.0]]], "float32").repeat(1408, axis=1)
    model = affective.pain_attn_net(x, 2)
    assert model.output_shape == (None, 2)
    concatenated = next(one for one in model.layers if isinstance(one, keras.layers.Concatenate))
    assert concatenated.output.shape == (None, 75, 192), "three scales of 75 steps and 64 features"
    assert model.layers[-2].output.shape == (None, 75 * 30), "the representation"
    standardised = keras.ops.convert_to_numpy(model.layers[1](x))[:, ::1408, 0]
    np.testing.assert_allclose(standardised, np.array([[-3, -1], [1, 3]]) / 5**0.5, rtol=1e-5)
    ssd = keras_ssd.wrap(comparison.compiled(model), **{**keras_ssd.PAPER, "num_teachers": 2, "percentile": 0})
    assert ssd.train_on_batch(x, np.array([0, 1]), return_dict=True)["kd_loss"] > 1e-3
    assert ssd.teacher_representations(x)[1].std(axis=1).mean() > 1e-3, "its teachers differ"


@pytest.mark.slow
@pytest.mark.once
def test_script_keeps_subjects_apart_and_averages_over_them(biovid, tmp_path, capsys, monkeypatch):
    folds, compare = [], keras_ssd.compare

    def noted(build, training, validation, test, *others, **options):
        folds.append([sorted(part[0].ravel().tolist()) for part in (test, training, validation)])
        assert test[1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        return compare(build, training, validation, test, *others, **options)

    monkeypatch.setattr(keras_ssd, "compare", noted)
    monkeypatch.setattr(affective, "pain_attn_net", lambda x, n_classes: networks.conv(x.shape[1:], n_classes))
    dataset = affective.load(biovid, ["BL1", "PA4"], "gsr")
    dataset = dataset._replace(x=np.arange(24.0)[:, None, None])  # a recording is its own number
    monkeypatch.setattr(affective, "load", lambda *_: dataset)
    call = ["--data-dir", str(biovid), "--epochs", "1", "--num-teachers", "2", "--out", str(tmp_path / "out")]
    assert affective.main(call) == 0
    of_subjects = [[*range(0, 8)], [*range(8, 16)], [*range(16, 24)]]
    assert [test for test, *_ in folds] == of_subjects and [sorted(fold) for fold in folds] == [of_subjects] * 3
    assert "BL1 against PA4, self, 3 subjects left out in turn" in capsys.readouterr().out
    files = [path.read_text().splitlines() for path in (tmp_path / "out").glob("*.jsonl")]
    assert [[json.loads(line)["arm"] for line in lines] for lines in files] == [["plain", "averaged", "self-2"]] * 3
    assert (tmp_path / "out" / "BL1-PA4-self-2.png").read_bytes().startswith(b"\x89PNG")
