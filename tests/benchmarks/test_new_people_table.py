"""The table of the comparison on new people: what is paired, corrected and printed."""

import numpy as np
import pandas as pd
import pytest

import new_people

SCORES = [0.50, 0.60, 0.70, 0.80, 0.55, 0.65]
BETTER = {"averaged": [0.05, 0.06, 0.07, 0.08, 0.09, 0.10], "wrap(model)": [0.11, 0.02, 0.03, 0.04, 0.05, 0.06]}
METHODS = dict.fromkeys([name for pair in new_people.COMPARISONS for name in pair])


def rows(dataset="sp_sw_har"):
    frame = pd.DataFrame(
        {"method": method, "subject": f"s{number:02d}", "accuracy": accuracy, "balanced_accuracy": accuracy / 2}
        for method in METHODS
        for number, accuracy in enumerate(np.array(SCORES) + BETTER.get(method, 0))
    )
    section = {"dataset": dataset, "network": "conv", "epochs": 20, "backend": "jax", "seed": 0}
    return frame.assign(**section, nll=0.5, status="finished")


def test_subjects_are_paired_and_p_is_corrected_by_holm_over_the_declared_comparisons():
    table = new_people.compare(rows())
    assert list(zip(table.method, table.control, strict=True)) == new_people.COMPARISONS
    table = table.set_index(["method", "control"])
    found = table.loc[("wrap(model)", "plain")]
    assert found.difference == pytest.approx(0.31 / 6) and found["median"] == pytest.approx(0.045)
    assert found.p == pytest.approx(2 / 2**6), "all six subjects gain: two of the 64 patterns of signs"
    assert found["p (Holm)"] == pytest.approx(7 * 2 / 2**6)
    assert found[["better", "equal", "worse"]].tolist() == [6, 0, 0]
    none = table.loc[("paper, averaged", "continued, averaged")]
    assert none.p == none["p (Holm)"] == 1 and none[["better", "equal", "worse"]].tolist() == [0, 6, 0]


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
