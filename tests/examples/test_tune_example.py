"""The search example: its rows, the whole script on a tiny archive, and chief and workers as processes."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import pandas as pd
import pytest

import tune

pytestmark = [
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
]


def test_every_training_row_is_trained_on_or_validated_on():
    dataset, training, validation = tune.load("basic_motions", None, seed=0)
    assert sorted([*training, *validation]) == list(range(len(dataset.x_train)))
    assert len(training) > len(validation) > 0


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.filterwarnings("ignore:This figure includes Axes")
def test_the_whole_script(slope_archive, tmp_path, capsys):
    argv = ["--dataset", "Slope", "--data-dir", str(slope_archive), "--trials", "3", "--epochs", "1"]
    assert tune.main([*argv, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Slope: 3 trials" in printed
    assert re.search(r"plain \(trial 0\): accuracy [01]\.\d", printed)
    (folder,) = tmp_path.glob("Slope-random-*")
    assert set(pd.read_csv(folder / "ranking.csv").distill) == {False, True}
    assert (folder / "search.png").stat().st_size > 5000
    assert isinstance(keras.models.load_model(folder / "best.keras"), keras.Model)


@pytest.mark.slow
@pytest.mark.once
def test_search_continues_after_a_worker_is_killed(slope_archive, tmp_path):
    out = tmp_path / "out"
    argv = ["--dataset", "Slope", "--data-dir", str(slope_archive), "--trials", "3", "--epochs", "2", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(tune.__file__).parents[1])}
    command = [sys.executable, tune.__file__, *argv, "--out", str(out)]
    lines, killed = [], False
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, env=environment, **streams) as process:
        for line in process.stdout:
            lines.append(line)
            # Once: it is started again.
            if not killed and (found := re.match(r"tuner0: process (\d+)", line)):
                # In the midst of the search, when it has a trial of its own.
                while '"tuner0"' not in "".join(path.read_text() for path in out.glob("*/oracle.json")):
                    assert process.poll() is None
                    time.sleep(0.2)
                os.kill(int(found[1]), signal.SIGKILL)
                killed = True
    assert process.returncode == 0, "".join(lines)
    printed = "".join(lines)
    assert printed.count("tuner0: process") == 2, "killed, and started again"
    assert "Slope: 3 trials" in printed
    assert "test split, used once" in printed
