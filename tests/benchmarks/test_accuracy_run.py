"""The rows of the accuracy benchmark: their scores, and that a run resumes."""

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

import analysis
import data
import experiments
import methods
import run

pytestmark = pytest.mark.once  # trains by every method of others, too

PREDICTIONS = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]])
LABELS = np.array([0, 1, 1, 0])


def scored(test, **options):
    return run.scores(experiments.Outcome("plain", test, test, seconds=2.0, steps=10, **options), LABELS, LABELS)


def test_scores():
    row = scored(PREDICTIONS)
    assert row["accuracy"] == row["validation_accuracy"] == 0.75
    assert row["nll"] == pytest.approx(log_loss(LABELS, PREDICTIONS))
    # (.1^2 + .6^2 + .2^2 + .45^2) * 2 / 4
    assert row["brier"] == pytest.approx(0.30625)
    # Bins of a fifteenth: .9, .8 and .55 are right and .6 is not, each alone in its bin.
    assert row["ece"] == pytest.approx((0.1 + 0.2 + 0.45 + 0.6) / 4)
    assert row["nll_calibrated"] <= row["nll"] + 1e-6 and row["status"] == "finished"
    diverged = scored(np.full_like(PREDICTIONS, np.nan))
    assert (diverged["status"], diverged["accuracy"]) == ("diverged", 0.0)


def test_votes_have_no_likelihood():
    row = scored(np.array([[1.0, 0.0], [0.6, 0.4], [0.4, 0.6], [0.0, 1.0]]), has_likelihood=False)
    assert row["accuracy"] == row["validation_accuracy"] == 0.5
    assert "nll" not in row and "temperature" not in row


def test_best_temperature_softens_overconfident_outputs():
    """Right in 3 of 4 with one confidence: the best is 3/4, so the logit log(p / (1 - p)) is divided to log(3)."""
    p = np.tile([0.99, 0.01], (4, 1))
    temperature = run.best_temperature(p, np.array([0, 0, 0, 1]))
    assert temperature == pytest.approx(np.log(99) / np.log(3), rel=1e-3)
    np.testing.assert_allclose(run.tempered(p, temperature)[0], [0.75, 0.25], rtol=1e-3)


def test_a_failing_run_does_not_stop_the_others(monkeypatch):
    def broken(experiment):
        raise RuntimeError("no memory")

    outcome = experiments.Outcome("plain", PREDICTIONS, PREDICTIONS, 1.0, 1)
    monkeypatch.setitem(methods.TRAININGS, "self", (broken, ("self",)))
    monkeypatch.setitem(methods.TRAININGS, "plain", (lambda experiment: [outcome], ("plain",)))
    part = (PREDICTIONS, LABELS)
    monkeypatch.setattr(data, "load", lambda *_: data.Task("small", part, part, part, None, 2))
    options = dict(data_dir=None, regime="all labels", network="conv", schedule="constant", n_epochs=2)
    rows, failures = run.work("small", 0, ["self", "plain"], options)
    assert [row["method"] for row in rows] == ["plain"]
    assert failures == ["self FAILED: RuntimeError('no memory')"]


def test_only_missing_rows_are_run(tmp_path):
    options = ["--datasets", "digits", "--trainings", "self", "paper", "--seeds", "2", "--epochs", "4"]
    arguments = run.parse(options)
    known = dict(network="conv", schedule="constant", regime="all labels", method=["self", "self, averaged", "paper"])
    known |= dict(n_epochs=4, backend=keras.backend.backend(), dataset="digits", seed=0)
    table = pd.DataFrame(known)
    table["nll"] = [3.9550361902623515e-10, 1 / 3, 0.1 + 0.2]
    path = tmp_path / "table.csv"
    run.write(table, path)
    assert run.read(path).nll.tolist() == table.nll.tolist(), "to the last digit"
    found = list(run.pending(run.read(path), arguments))
    assert found == [("digits", 0, ["paper"]), ("digits", 1, ["self", "paper"])]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_script_and_analysis(tmp_path, capsys):
    path = tmp_path / "accuracy.csv"
    call = ["--datasets", "digits", "ItalyPowerDemand", "--trainings", "plain", "self", "--seeds", "2", "--epochs", "2"]
    assert run.main([*call, "--out", str(path)]) == 0
    assert capsys.readouterr().out.count(", seed 1: ") == 2
    assert run.main([*call, "--out", str(path)]) == 0
    assert capsys.readouterr().out == "", "nothing is run again"
    rows = pd.read_csv(path)
    assert len(rows) == 2 * 2 * 7 and rows.accuracy.between(0, 1).all()
    analysis.main([str(path), "--out", str(tmp_path / "plots")])
    printed = capsys.readouterr().out
    assert "### conv, constant learning rate, all labels, 2 epochs, " in printed
    assert "| self, averaged | plain, averaged | " in printed
    other = tmp_path / "cosine.csv"
    other.write_text(path.read_text().replace(",constant,", ",cosine,"))
    across = ["--across", "schedule", "--compare", "SWA, cosine", "self, constant"]
    analysis.main([str(path), str(other), *across])
    printed = capsys.readouterr().out
    assert "### conv, any learning rate, all labels, 2 epochs, " in printed
    assert "| SWA, cosine | self, constant | " in printed and "| self, averaged, " not in printed.split("equal p")[1]
    plot = tmp_path / "plots" / f"conv-constant-all-labels-2-{keras.backend.backend()}.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
