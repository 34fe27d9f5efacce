"""The table of the comparison on new people: means, differences and tests by hand or by SciPy."""

import pathlib
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import new_people  # noqa: E402

METHODS = {
    "plain": [0.50, 0.60, 0.70, 0.80, 0.55, 0.65],
    "best epoch": [0.50, 0.60, 0.70, 0.80, 0.55, 0.65],
    "averaged": [0.55, 0.66, 0.77, 0.88, 0.64, 0.75],
    "wrap(model)": [0.61, 0.62, 0.73, 0.84, 0.60, 0.71],
    "first half": [0.40, 0.50, 0.60, 0.70, 0.45, 0.55],
    "paper": [0.41, 0.50, 0.60, 0.70, 0.45, 0.55],
    "continued": [0.41, 0.51, 0.58, 0.74, 0.40, 0.61],
    "paper, averaged": [0.50, 0.50, 0.50, 0.50, 0.50, 0.50],
    "continued, averaged": [0.50, 0.50, 0.50, 0.50, 0.50, 0.50],
}


def rows(dataset="sp_sw_har"):
    frame = pd.DataFrame(
        {"method": method, "subject": f"s{number:02d}", "accuracy": accuracy, "balanced_accuracy": accuracy / 2}
        for method, accuracies in METHODS.items()
        for number, accuracy in enumerate(accuracies)
    )
    section = {"dataset": dataset, "network": "conv", "epochs": 20, "backend": "jax", "seed": 0}
    return frame.assign(**section, nll=0.5, status="finished")


def test_difference_interval_and_p_over_subjects():
    table = new_people.compare(rows()).set_index(["method", "control"])
    found = table.loc[("wrap(model)", "plain")]
    gain = np.array([0.11, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert found.difference == pytest.approx(gain.mean()) and found["median"] == pytest.approx(0.045)
    interval = stats.t.interval(0.95, 5, loc=gain.mean(), scale=stats.sem(gain))
    assert found["+-"] == pytest.approx(interval[1] - gain.mean())
    assert found.p == pytest.approx(2 / 2**6), "all six subjects gain: two of the 64 patterns of signs"
    assert found[["better", "equal", "worse"]].tolist() == [6, 0, 0]
    none = table.loc[("paper, averaged", "continued, averaged")]
    assert none.p == 1 and none[["better", "equal", "worse"]].tolist() == [0, 6, 0]


def test_p_is_corrected_by_holm_over_the_declared_comparisons():
    table = new_people.compare(rows())
    assert list(zip(table.method, table.control, strict=True)) == new_people.COMPARISONS
    least = table.p.min()
    assert table["p (Holm)"].min() == pytest.approx(min(1, 7 * least))
    assert (table["p (Holm)"] >= table.p).all() and (table["p (Holm)"] <= 1).all()


def test_a_run_that_diverged_counts_with_score_0():
    frame = rows()
    frame.loc[(frame.method == "wrap(model)") & (frame.subject == "s00"), "status"] = "diverged"
    table = new_people.compare(frame).set_index(["method", "control"])
    assert table.loc[("wrap(model)", "plain")].difference == pytest.approx((-0.5 + 0.2) / 6)
    assert new_people.means(frame).diverged.to_dict()["wrap(model)"] == 1


def test_prints_a_section_for_each_data_set(tmp_path, capsys):
    paths = []
    for name in ("sp_sw_har", "stress_predict"):
        paths.append(tmp_path / f"{name}.csv")
        rows(name).to_csv(paths[-1], index=False)
    new_people.main([str(path) for path in paths])
    printed = capsys.readouterr().out
    assert "### sp_sw_har, conv, 20 epochs, jax: 6 subjects, seeds 0" in printed
    assert "| averaged | 0.7083 | 0.3542 | 0.5000 | 0.5500 | 0.8800 | 0 |" in printed
    accuracy, balanced = printed.split("### stress_predict")  # half of the accuracy
    assert "| wrap(model) | plain | +0.0517 |" in accuracy
    assert "Differences of balanced_accuracy:" in balanced and "| wrap(model) | plain | +0.0258 |" in balanced
