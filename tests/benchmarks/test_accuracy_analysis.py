"""The statistics of the accuracy benchmark: comparisons, tables of methods, the summary of all regimes."""

import numpy as np
import pandas as pd
import pytest

import analysis
import summary

pytestmark = pytest.mark.once  # trains by every method of others, too


def test_holm_and_equality_within_half_a_point():
    np.testing.assert_allclose(analysis.holm([0.01, 0.04, 0.03, 0.5]), [0.04, 0.09, 0.09, 0.5])
    # t = (mean + margin) / (deviation / sqrt(n)) = (0 + .005) / (.001 / sqrt(3)) = 8.66 on both sides, 2 degrees.
    assert analysis.equal_within(np.array([-0.001, 0.0, 0.001]), 0.005) == pytest.approx(0.0065, abs=1e-4)
    assert analysis.equal_within(np.array([0.009, 0.01, 0.011]), 0.005) > 0.99


def frame(*rows, columns="dataset seed method accuracy"):
    return pd.DataFrame(rows, columns=columns.split())


def test_methods_with_fewer_seeds_are_compared_on_those_seeds():
    rows = frame(
        *((dataset, seed, method) for dataset in "ab" for seed in (0, 1) for method in ("plain", "self")),
        # The second seed of this one was run on one of the two sets only.
        *[("a", 0, "R-Drop"), ("b", 0, "R-Drop"), ("a", 1, "R-Drop")],
        columns="dataset seed method",
    )
    (all_seeds, most), (one_seed, rest) = analysis.by_seeds(rows)
    assert all_seeds == (0, 1) and set(most.method) == {"plain", "self"} and len(most) == 8
    assert one_seed == (0,) and set(rest.method) == {"plain", "self", "R-Drop"} and len(rest) == 6


def test_comparison_of_paired_means():
    means = {"a": (0.5, 0.6), "b": (0.7, 0.7), "c": (0.8, 0.9)}
    methods = enumerate(("plain", "ours"))
    rows = frame(*((d, s, name, means[d][n] + s / 100) for n, name in methods for d in means for s in (0, 1)))
    table = analysis.means_by_unit(rows, "accuracy")
    np.testing.assert_allclose(table.loc["a", ["plain", "ours"]], [0.505, 0.605])
    found = analysis.compare(rows, "ours", "plain")
    assert found["difference"] == pytest.approx(0.2 / 3)
    # The standard error is that of (.1, 0, .1): sqrt(1/300) / sqrt(3) = 1/30; t(0.975, 2) = 4.3027.
    assert found["+-"] == pytest.approx(4.3027 / 30, rel=1e-4)
    assert (found["better"], found["equal"], found["worse"], found["seeds"]) == (2, 1, 0, 2)


def test_comparison_is_over_seeds_that_both_have_on_every_set():
    rows = frame(
        *[("a", 0, "plain", 0.5), ("a", 1, "plain", 0.9), ("a", 0, "ours", 0.6), ("a", 1, "ours", 0.1)],
        *[("b", 0, "plain", 0.4), ("b", 1, "plain", 0.8), ("b", 0, "ours", 0.6), ("a", 0, "theirs", 0.5)],
    )
    found = analysis.compare(rows, "ours", "plain")
    assert found["difference"] == pytest.approx(0.15)
    assert (found["better"], found["worse"], found["seeds"]) == (2, 0, 1)
    with pytest.raises(SystemExit, match="no seed was run on every data set with both 'theirs' and 'plain'"):
        analysis.comparisons(rows, [("ours", "plain"), ("theirs", "plain")])
    assert set(analysis.means_by_unit(rows, "accuracy").columns) == {"plain", "ours"}, "theirs was not run on b"


def test_table_of_methods_in_which_one_diverged_once():
    rows = frame(
        *[("a", 0, "plain", 0.1 + 0.2, 10, 2.0), ("a", 0, "ours", 0.3, 10, 3.0), ("a", 0, "theirs", 0.2, 35, 8.0)],
        *[("b", 0, "plain", 0.5, 20, 4.0), ("b", 0, "ours", 0.7, 20, 4.0), ("b", 0, "theirs", 0.6, 50, 8.0)],
        # Another seed may come from another machine: its seconds do not count.
        *[("a", 1, "plain", 0.3, 10, 99.0), ("a", 1, "ours", 0.3, 10, 1.0), ("a", 1, "theirs", 0.2, 35, 1.0)],
        *[("b", 1, "plain", 0.5, 20, 99.0), ("b", 1, "ours", 0.7, 20, 1.0), ("b", 1, "theirs", 0.6, 50, 1.0)],
        columns="dataset seed method accuracy steps seconds",
    ).assign(nll=0.5, nll_calibrated=0.4, ece=0.1, brier=0.2, status="finished")
    rows.loc[rows.index[-1], ["nll", "status"]] = np.nan, "diverged"
    table = analysis.methods(rows)
    assert list(table.index) == ["ours", "plain", "theirs"]
    # On "a" the first two are equal but for float noise: ranks 1.5, 1.5 and 3; on "b" 1, 3 and 2.
    assert table["rank"].tolist() == [1.25, 2.25, 2.5]
    assert table["steps"].tolist() == [1.0, 1.0, 3.0], "means of 3.5 and 2.5"
    assert table["cost"].tolist() == [1.25, 1.0, 3.0], "medians of 1.5 and 1, of 4 and 2"
    assert table.diverged.tolist() == [0, 0, 1]
    assert table.nll.tolist() == pytest.approx([0.5, 0.5, np.nan], nan_ok=True), "a run that diverged has no likelihood"


def test_summary_of_a_regime(tmp_path, monkeypatch):
    """Two sets and two seeds, the averaged one with the first only; of two people a balanced score counts."""
    accuracies = {
        "plain": {"a": (0.5, 0.6), "b": (0.7, 0.8), "digits": (0.1, 0.1)},
        "self, averaged": {"a": (0.6, 0.7), "b": (0.7, 0.8)},
        "plain, averaged": {"a": (0.6,), "b": (0.9,)},
    }
    rows = [
        (network, dataset, seed, method, accuracy * (network == "conv"))
        for network in ("conv", "resnet")
        for method, of_sets in accuracies.items()
        for dataset, of_seeds in of_sets.items()
        for seed, accuracy in enumerate(of_seeds)
    ]
    frame(*rows, columns="network dataset seed method accuracy").to_csv(tmp_path / "rows.csv", index=False)
    people = [("plain", 0, 0.5), ("plain", 1, 0.7), ("wrap(model)", 0, 0.6), ("wrap(model)", 1, 0.7)]
    people = frame(*people, columns="method subject balanced_accuracy").assign(dataset="stress", seed=0, accuracy=0.0)
    people.to_csv(tmp_path / "stress.csv")
    regimes = [summary.Regime("one", "rows.csv", {"network": "conv"}), summary.Regime("not run", "nowhere.csv")]
    regimes.append(summary.Regime("people", "stress.csv", score="balanced_accuracy"))
    monkeypatch.setattr(summary, "REGIMES", regimes)
    table, found = summary.summary(tmp_path)
    assert list(table.index) == list(found) == ["one", "people"]
    line = table.loc["one"]
    assert line["units x seeds"] == "2 x 2", "digits stand apart"
    assert line["`model.fit`"] == ".650" and line["`wrap`"] == ".700" and line["averaged"] == ".750 (seeds: 1)"
    assert line["best epoch"] == line["paper"] == line["continued"] == line["paper - continued"] == ""
    # .1 and 0: the standard error is .05, t(0.975, 1) = 12.706.
    assert line["`wrap` - `model.fit`"] == "+5.0 ± 63.5"
    # The first seed of both: 0 and -.2.
    assert line["`wrap` - averaged"] == "-10.0 ± 127.1"
    line = table.loc["people"]
    assert (line["units x seeds"], line["`model.fit`"], line["`wrap`"]) == ("2 x 1", ".600", ".650")
    assert line["`wrap` - `model.fit`"] == "+5.0 ± 63.5"
    summary.forest(found, tmp_path / "forest.png")
    assert (tmp_path / "forest.png").read_bytes().startswith(b"\x89PNG")


def test_the_stored_rows_can_be_summarised(capsys, monkeypatch):
    """One regime of each kind: of one file, of two, of a part of them, by subjects; the files of all are there."""
    files = [[one.files] if isinstance(one.files, str) else one.files for one in summary.REGIMES]
    assert all((summary.RESULTS / file).exists() for of_regime in files for file in of_regime)
    names = ["all labels", "10,000 steps", "residual network", "new people, stress", "two percent of the labels"]
    monkeypatch.setattr(summary, "REGIMES", [one for one in summary.REGIMES if one.name in names])
    summary.main([])
    printed = capsys.readouterr().out
    assert all(f"\n| {name} | " in printed for name in names)
    assert "| all labels | 25 x 3 | .829 | .846 | .860 | .862 | " in printed
    assert "| +3.3 ± 1.8 | +1.6 ± 0.9 | +0.2 ± 0.3 | +0.1 ± 1.7 |" in printed
