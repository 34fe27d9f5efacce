"""What the scripts of the examples say about options that they cannot follow."""

import keras
import pytest

import affective
import deploy
import distributed
import har
import ucr
import unlabelled

STRESS = ["--dataset", "stress_predict", "--data-dir", "x"]


@pytest.mark.parametrize(
    ("script", "options", "complaint"),
    [
        (ucr, ["--paper", "--num-teachers", "4"], "--paper fixes the number"),
        (ucr, ["--dataset", "all"], "needs --data-dir"),
        (ucr, ["--set", "percentile"], "--set takes OPTION=VALUE. Received: ['percentile']"),
        (har, ["--label-fraction", "0"], "--label-fraction should lie in (0, 1]"),
        (unlabelled, ["--label-fraction", "1.5"], "--label-fraction should lie in (0, 1]"),
        (har, ["--dataset", "sp_sw_har"], "--dataset sp_sw_har needs --data-dir"),
        (har, ["--dataset", "sp_sw_har", "--data-dir", "x", "--paper"], "unrecognized arguments: --paper"),
        (affective, [*STRESS, "--epochs", "1"], "--epochs should be 2"),
        (deploy, ["--windows", "mine.npz"], "--windows needs --model"),
        (deploy, ["--model", "x/student.keras", "--out", "x"], "--out should be another folder"),
        (distributed, ["--epochs", "1"], "--epochs should be at least 2"),
        (distributed, ["--devices", "3"], "should divide the batch of 16"),
        *[(distributed, ["--hosts", "2"], "--hosts is for JAX")] * (keras.backend.backend() != "jax"),
    ],
)
def test_options_that_exclude_each_other_or_out_of_range_are_refused(script, options, complaint, capsys):
    with pytest.raises(SystemExit):
        script.parse(options)
    assert complaint in capsys.readouterr().err
