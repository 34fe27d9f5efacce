"""The search example: its reader of HAR, the whole script on a tiny archive, and chief and workers as processes."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import pytest

import tune

pytestmark = [
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
]


@pytest.fixture
def archive(tmp_path):
    """Tiny: two classes, 20 series of 8 steps in each split."""
    folder = tmp_path / "data" / "UCRArchive_2018" / "Tiny"
    folder.mkdir(parents=True)
    series = np.random.default_rng(0).normal(size=(20, 8)) + np.linspace(0, 3, 8) * np.tile([[-1], [1]], (10, 1))
    labels = np.tile([[1], [2]], (10, 1))
    for split in ("TRAIN", "TEST"):
        np.savetxt(folder / f"Tiny_{split}.tsv", np.hstack([labels, series]), delimiter="\t")
    return folder.parent


def write_har(folder):
    rows = {"train": 6, "test": 2}
    for split, n_rows in rows.items():
        signals = folder / split / "Inertial Signals"
        signals.mkdir(parents=True)
        for number, name in enumerate(("body_acc_x", "body_acc_y")):
            np.savetxt(signals / f"{name}_{split}.txt", np.arange(n_rows * 4).reshape(n_rows, 4) + 100 * number)
        np.savetxt(folder / split / f"y_{split}.txt", np.arange(n_rows) % 3 + 1, fmt="%d")
        np.savetxt(folder / split / f"subject_{split}.txt", np.arange(n_rows) // 2 + 1, fmt="%d")


class TestHar:
    def test_reads_the_published_layout(self, tmp_path):
        write_har(tmp_path / tune.HAR)
        dataset, subjects = tune.read_har(tmp_path)
        assert dataset.x_train.shape == (6, 4, 2)
        assert dataset.x_train[1].tolist() == [[4, 104], [5, 105], [6, 106], [7, 107]]
        assert dataset.y_train.tolist() == [0, 1, 2, 0, 1, 2]
        assert (dataset.x_test.shape, dataset.n_classes) == ((2, 4, 2), 3)
        assert subjects.tolist() == [1, 1, 2, 2, 3, 3]

    def test_holds_out_whole_subjects(self, tmp_path):
        write_har(tmp_path)
        _, training, validation = tune.load("HAR", tmp_path, seed=0)
        assert sorted([*training, *validation]) == list(range(6))
        assert len(validation) == 2
        assert validation[0] // 2 == validation[1] // 2

    def test_says_what_is_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="UCI HAR Dataset"):
            tune.read_har(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This figure includes Axes")
def test_the_whole_script(archive, tmp_path, capsys):
    argv = ["--dataset", "Tiny", "--data-dir", str(archive), "--trials", "2", "--epochs", "1", "--out", str(tmp_path)]
    assert tune.main(argv) == 0
    printed = capsys.readouterr().out
    assert "Tiny: 2 trials" in printed
    assert re.search(r"plain \(trial 0\): accuracy [01]\.\d", printed)
    (folder,) = tmp_path.glob("Tiny-random-*")
    assert sorted(pd.read_csv(folder / "ranking.csv").distill) == [False, True]
    assert (folder / "search.png").stat().st_size > 5000
    assert isinstance(keras.models.load_model(folder / "best.keras"), keras.Model)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="three processes that compile take minutes on two cores; see PyTorch"
)
@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["as planned", "a worker is killed"])
def test_a_chief_and_two_workers(killed, archive, tmp_path):
    out = tmp_path / "out"
    argv = ["--dataset", "Tiny", "--data-dir", str(archive), "--trials", "6", "--epochs", "5", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(tune.__file__).parents[1])}
    command = [sys.executable, tune.__file__, *argv, "--out", str(out)]
    lines = []
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, env=environment, **streams) as process:
        for line in process.stdout:
            lines.append(line)
            if killed and (found := re.match(r"tuner1: process (\d+)", line)):
                # In the midst of the search, when it has a trial of its own.
                while '"tuner1"' not in "".join(path.read_text() for path in out.glob("*/oracle.json")):
                    assert process.poll() is None
                    time.sleep(0.2)
                os.kill(int(found[1]), signal.SIGKILL)
                killed = False
    assert process.returncode == 0, "".join(lines)
    printed = "".join(lines)
    assert "Tiny: 6 trials" in printed
    assert "test split, used once" in printed
