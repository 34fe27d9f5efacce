"""Makes the tables and plots of the accuracy benchmark, from the CSV files of run.py alone.

    python benchmarks/accuracy/analysis.py results/accuracy.csv
    python benchmarks/accuracy/analysis.py benchmarks/results/accuracy/*.csv --out benchmarks/results/accuracy
    python benchmarks/accuracy/analysis.py table.csv --compare paper continued --compare paper "paper, uniform"
    python benchmarks/accuracy/analysis.py table.csv --across schedule --compare "self, constant" "plain, cosine"

Prints one section for each network, schedule, regime, budget and backend: a table of all methods, then the comparisons
that protocol.md declares. The unit is the data set (its mean over seeds); where there is one data set only, the seed.
Intervals are Student's, p-values of Wilcoxon's signed-rank test, corrected by Holm over the comparisons of the section.
"equal p" is that of two one-sided t-tests: below .05 the two are equal within half a point (uncorrected, not declared).

Methods that were run with fewer seeds stand in a table of their own, beside those of the others for the same seeds.

The cost of training is told twice, over that of "plain": "steps" are how many were taken; "cost" is processor time, of
several data sets with the first seed alone, as later ones may come from another machine.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from keras_ssd.plotting import method_styles
from run import KEY, OPTIONS, SECTION, read

SCORES = ["nll", "nll_calibrated", "ece", "brier"]  # of probabilities; the lower, the better
APART = ("digits",)  # images: not among the sets over which means and tests are taken

# As protocol.md declares them: a method, and what it is measured against.
COMPARISONS = [
    ("self, averaged", "plain"),
    ("self, averaged", "plain, best epoch"),
    ("self, averaged", "plain, averaged"),
    ("self, averaged", "self, uniform, averaged"),
    ("ema, averaged", "plain, averaged"),
    ("ema, averaged", "ema, uniform, averaged"),
    ("self", "plain"),
    ("paper", "stopped early"),
    ("paper", "continued"),
    ("paper", "paper, uniform"),
    ("paper", "deterministic features"),
    ("paper", "paper, deterministic"),
    ("paper, averaged", "continued, averaged"),
    ("plain, averaged", "plain"),
    ("unlabelled, averaged", "plain, averaged"),
    ("unlabelled, averaged", "labelled only, averaged"),
    ("unlabelled, averaged", "continued, averaged"),
    ("unlabelled, averaged", "unlabelled, uniform, averaged"),
    ("unlabelled, averaged", "unlabelled, deterministic, averaged"),
    ("ema, unlabelled, averaged", "plain, averaged"),
    ("noise, averaged", "plain, averaged"),
    ("noise, averaged", "noise, uniform, averaged"),
    ("noise, averaged", "noise, deterministic, averaged"),
]


def means_by_unit(rows, score):
    """`(units, methods)`: the mean of each data set over its seeds, or, of a single data set, every seed."""
    rows = rows[rows.groupby("method").dataset.transform("nunique") == rows.dataset.nunique()]
    index = "dataset" if rows.dataset.nunique() > 1 else "seed"
    return rows.pivot_table(index=index, columns="method", values=score, sort=False)


def complete(rows):
    """The rows of those seeds that a method was run with on every data set."""
    n_sets = rows.groupby(["method", "seed"]).dataset.transform("nunique")
    return rows[n_sets == rows.dataset.nunique()]


def compare(rows, method, control):
    """Difference, half its 95 % interval, p, and on how many units it is above, equal, below.

    Over the seeds that both were run with on every data set; `None` if there are none.
    """
    both = complete(rows)
    both = both[both.method.isin([method, control])]
    both = both[both.groupby("seed").method.transform("nunique") == 2]
    if both.empty:
        return None
    n_seeds = both.seed.nunique()
    both = means_by_unit(both, "accuracy")
    gain = (both[method] - both[control]).round(9)
    figures, signs = paired(gain)
    found = {"method": method, "control": control, **figures, "equal p": equal_within(gain, 0.005)}
    return found | signs | {"seeds": n_seeds}


def paired(gain):
    """Figures and counts of signs of the differences of all units; p is that of Wilcoxon's signed-rank test."""
    spread = stats.sem(gain) * stats.t.ppf(0.975, len(gain) - 1) if len(gain) > 1 else np.nan
    p = stats.wilcoxon(gain, zero_method="zsplit").pvalue if (gain != 0).any() else 1.0
    signs = {"better": (gain > 0).sum(), "equal": (gain == 0).sum(), "worse": (gain < 0).sum()}
    return {"difference": gain.mean(), "+-": spread, "median": gain.median(), "p": p}, signs


def equal_within(gain, margin):
    """p of the two one-sided t-tests for a mean that lies within the margin on both sides of 0."""
    return max(
        stats.ttest_1samp(gain, -margin, alternative="greater").pvalue,
        stats.ttest_1samp(gain, margin, alternative="less").pvalue,
    )


def holm(p):
    """Holm's correction: p-values, corrected for how many there are."""
    order = np.argsort(p)
    scaled = np.maximum.accumulate(np.asarray(p)[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(scaled, 1.0)
    return corrected


def comparisons(rows, pairs=None):
    """Compares pairs of a method and its control, with p-values that are corrected for how many there are.

    Without `pairs`, all that protocol.md declares and for which there are rows.
    """
    found = []
    for pair in pairs or COMPARISONS:
        one = compare(rows, *pair)
        if one is not None:
            found.append(one)
        elif pairs:  # left out silently, it would make the correction of the others too small
            both, there = " and ".join(map(repr, pair)), sorted(set(rows.method))
            raise SystemExit(f"--compare: no seed was run on every data set with both {both}. There are {there}")
    if not found:
        return pd.DataFrame()
    result = pd.DataFrame(found)
    result.insert(6, "p (Holm)", holm(result.p))
    return result


def methods(rows):
    """One row for each method: means over the units, mean rank, spread between seeds, cost of training over plain's."""
    accuracy = means_by_unit(rows, "accuracy")
    table = pd.DataFrame({"accuracy": accuracy.mean(), "rank": accuracy.round(9).rank(axis=1, ascending=False).mean()})
    for score in SCORES:
        table[score] = means_by_unit(rows, score).mean()
    if rows.dataset.nunique() > 1 and rows.seed.nunique() > 1:
        table["between seeds"] = rows.groupby(["method", "dataset"]).accuracy.std().groupby("method").mean()
    if "plain" in set(rows.method):
        steps = means_by_unit(rows, "steps")
        table["steps"] = steps.div(steps["plain"], axis=0).mean()
        timed = rows[rows.seed == rows.seed.min()] if rows.dataset.nunique() > 1 else rows
        seconds = means_by_unit(timed, "seconds")
        table["cost"] = seconds.div(seconds["plain"], axis=0).median()
    table["diverged"] = (rows.status != "finished").groupby(rows.method).sum()
    # A run that diverged counts as wrong, but has no likelihood: the others' mean would flatter its method.
    table.loc[table.diverged > 0, SCORES] = np.nan
    return table.sort_values("accuracy", ascending=False)


def markdown(table, formats):
    """A table in Markdown, its index first."""
    lines = ["| " + " | ".join(map(str, [table.index.name or "", *table.columns])) + " |"]
    lines.append("|" + "---|" * (len(table.columns) + 1))
    for name, row in table.iterrows():
        cells = [formats.get(column, "{}").format(value) for column, value in row.items()]
        lines.append("| " + " | ".join([str(name), *cells]) + " |")
    return "\n".join(lines)


def groups(rows):
    """The mean accuracy in each group of data sets: a method that gains on the mean must not lose in one of them."""
    group = rows.dataset.where(rows.dataset.isin(["uci_har", *APART]), "UCR")
    by_set = rows.groupby([group.rename("group"), "method", "dataset"]).accuracy.mean()
    return by_set.groupby(["method", "group"]).mean().unstack()


def by_seeds(rows):
    """`(seeds, rows)` for each set of seeds that methods were run with, of all methods that were run with these.

    A seed counts if the method was run with it on every data set.
    """
    seeds = {method: tuple(sorted(set(of_one))) for method, of_one in complete(rows).groupby("method").seed}
    for one in sorted(set(seeds.values()), key=len, reverse=True):
        there = [method for method, known in seeds.items() if set(one) <= set(known)]
        yield one, rows[rows.seed.isin(one) & rows.method.isin(there)]


def scored(everything):
    """The table of methods of a section, and how to print its columns; sets that stand apart have a column only."""
    rows = everything[~everything.dataset.isin(APART)]
    table = methods(rows if len(rows) else everything)
    table.index.name = "method"
    formats = dict.fromkeys(["accuracy", *SCORES, "between seeds"], "{:.4f}")
    formats |= {"rank": "{:.2f}", "steps": "{:.2f}", "cost": "{:.2f}", "diverged": "{:.0f}"}
    if everything.dataset.nunique() > 1:
        of_groups = groups(everything)
        table = table.join(of_groups)
        formats |= dict.fromkeys(of_groups.columns, "{:.4f}")
    return markdown(table, formats)


def report(rows, title, pairs=None):
    """One section, in Markdown."""
    everything, rows = rows, rows[~rows.dataset.isin(APART)]
    rows = rows if len(rows) else everything
    lines = [f"### {title}", "", f"{rows.dataset.nunique()} data sets."]
    for seeds, part in by_seeds(everything):
        lines += ["", f"Seeds {', '.join(map(str, seeds))}:", "", scored(part)]
    found = comparisons(rows, pairs)
    if len(found):
        found = found.set_index("method")
        for name in ("difference", "median"):
            found[name] = [f"{value:+.4f}" for value in found[name]]
        lines += ["", markdown(found, dict.fromkeys(["+-", "p", "p (Holm)", "equal p"], "{:.4f}"))]
    return "\n".join(lines)


def plot(rows, path):
    """Ranks, the default against its control, accuracy against cost, reliability; of methods with all seeds."""
    from aeon.visualisation import plot_critical_difference

    _, rows = next(by_seeds(rows))
    there = set(rows.method)
    shown = [name for name in SHOWN if name in there]
    rows = rows[rows.method.isin(shown) & ~rows.dataset.isin(APART)]
    table = means_by_unit(rows, "accuracy")
    if len(table) > 2 and len(table.columns) > 2:
        figure, _ = plot_critical_difference(table.dropna().to_numpy(), list(table.columns), correction="holm")
        figure.savefig(path.with_name(path.name + "-ranks.png"), dpi=100, bbox_inches="tight")
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    scatter, cost, reliability = figure.subplots(1, 3)
    method, control = "self, averaged", "plain, averaged"
    if {method, control, "plain"} <= set(table.columns):
        for other, style in method_styles(("plain", control)).items():
            scatter.scatter(table[other], table[method], s=18, color=style["color"], label=f"against {other}")
        scatter.plot([0.2, 1], [0.2, 1], "k", linewidth=0.7)
        scatter.set(xlabel="accuracy of the other", ylabel=f"accuracy of {method}", title="a point for each data set")
        scatter.legend()
    summary = methods(rows)
    if "cost" in summary:
        cost.scatter(summary.cost, summary.accuracy, s=18)
        cost.set(xlabel="training, times plain", ylabel="mean accuracy", title="accuracy against cost")
        middle, half = (summary.accuracy.max() + summary.accuracy.min()) / 2, np.ptp(summary.accuracy) / 2
        half = 1.1 * max(half, 0.01)  # differences below a point should look small
        cost.set_ylim(middle - half, middle + half)
        if summary.cost.max() > 2 * summary.cost.min():
            cost.set_xscale("log", base=2)
            cost.xaxis.set_major_formatter("{x:g}")
        label_beside(cost, summary)
    for name, style in method_styles(one for one in RELIABILITY if one in shown).items():
        bins = np.sum([json.loads(text) for text in rows[rows.method == name].reliability.dropna()], axis=0)
        bins = bins[bins[:, 0] > 0]
        reliability.plot(bins[:, 1] / bins[:, 0], bins[:, 2] / bins[:, 0], marker="o", ms=3, label=name, **style)
    reliability.plot([0, 1], [0, 1], "k", linewidth=0.7)
    reliability.set(xlabel="confidence", ylabel="accuracy", title="reliability, all test rows")
    reliability.legend(fontsize=8)
    figure.savefig(path.with_name(path.name + ".png"), dpi=100)
    print(f"plots: {path}*.png")


def label_beside(axes, table):
    """Names on the right in the order of accuracy, each with a line to its point: many points lie close together."""
    ordered = table.sort_values("accuracy")
    for height, (name, row) in zip(np.linspace(0.02, 0.98, len(ordered)), ordered.iterrows(), strict=True):
        axes.annotate(
            name,
            (row.cost, row.accuracy),
            (1.06, height),
            textcoords="axes fraction",
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "0.6"},
        )


# What is plotted: all that is compared, and what is worth seeing beside it.
SHOWN = list(dict.fromkeys([name for pair in COMPARISONS for name in pair] + [
    "SWA", "continued", "deterministic logits", "R-Drop", "uniform soup", "greedy soup", "ensemble of 5",
]))  # fmt: skip
RELIABILITY = ["plain", "plain, averaged", "self, averaged", "paper"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=pathlib.Path, help="CSV files of run.py")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the plots; default: no plots")
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        metavar=("METHOD", "CONTROL"),
        help="may be repeated; default: what protocol.md declares for all",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all that are there")
    parser.add_argument(
        "--across",
        choices=OPTIONS,
        help="compare methods across the values of this column, too; the value is put behind the name of a method",
    )
    arguments = parser.parse_args(argv)
    rows = pd.concat([read(path) for path in arguments.tables], ignore_index=True)
    if arguments.seeds is not None:
        rows = rows[rows.seed.isin(arguments.seeds)]
    rows = rows.drop_duplicates([*KEY, "method"], keep="last")
    if arguments.across is not None:
        values = rows[arguments.across].astype(str)
        rows = rows.assign(method=rows.method + ", " + values, **{arguments.across: "any"})
    for key, section in rows.groupby(SECTION, sort=False):
        title = "{}, {} learning rate, {}, {} epochs, {}".format(*key)
        print(report(section, title, arguments.compare) + "\n")
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            plot(section, arguments.out / "-".join(map(str, key)).replace(" ", "-"))


if __name__ == "__main__":
    sys.exit(main())
