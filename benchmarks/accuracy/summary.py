"""Prints one table of all regimes in which accuracy was measured and draws the differences, from the stored rows alone.

    python benchmarks/accuracy/summary.py                                  # the table
    python benchmarks/accuracy/summary.py --plot benchmarks/results/accuracy/summary.png

A line of the table is a regime: means of accuracy over its units, and differences in points with Student's 95 %
intervals over the seeds that both methods have on every set. A unit is a data set (its mean over seeds); where there is
one data set only, a seed; of new people, a subject. p-values, corrected as the protocol declares, are analysis.py's.
"""

import argparse
import pathlib
import sys
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

import analysis
from run import read

RESULTS = pathlib.Path(__file__).parents[1] / "results"
# Methods as the examples call them that leave subjects out.
OF_EXAMPLES = {"best epoch": "plain, best epoch", "averaged": "plain, averaged", "wrap(model)": "self, averaged"}


class Regime(NamedTuple):
    """Where the rows of a regime are, and what the columns of the table mean in it.

    Attributes:
        name: as the table has it.
        files: below the folder of results, one or several.
        rows: what they have in common, by column.
        wrap: the method of the column `wrap`.
        paper: that of the column `paper`.
        control: the warm start's, trained on without teachers.
        score: the column of the rows that is told.
    """

    name: str
    files: str | tuple[str, ...]
    rows: dict = {}
    wrap: str = "self, averaged"
    paper: str = "paper"
    control: str = "continued"
    score: str = "accuracy"


REGIMES = [
    Regime("all labels", "accuracy/all_labels_jax.csv"),
    Regime("all labels, a fresh seed", "accuracy/fresh/conv_jax.csv"),
    Regime("cosine decay", "accuracy/cosine_jax.csv"),
    Regime("10,000 steps", ("accuracy/long/constant_jax.csv", "accuracy/long/constant_longer_jax.csv")),
    Regime("10,000 steps, short series", "accuracy/long/constant_jax.csv"),
    Regime("10,000 steps, cosine decay", ("accuracy/long/cosine_jax.csv", "accuracy/long/cosine_longer_jax.csv")),
    Regime("no BatchNormalization", "accuracy/keras_average/unnormalised_jax.csv"),
    *(
        Regime(f"new people, {name}", f"new_people/{file}.csv", {"network": network}, score=score)
        for name, file, network, score in (
            ("activity", "sp_sw_har", "conv", "accuracy"),
            ("stress", "stress_predict", "conv", "balanced_accuracy"),
        )
    ),
    *(
        Regime(f"{name}{suffix}", files, {"network": network}, wrap)
        for name, network in (("residual network", "resnet"), ("transformer", "transformer"))
        for suffix, files, wrap in (
            ("", ("accuracy/networks_jax.csv", "accuracy/thinned/thinned_jax.csv"), "thinned {}, averaged"),
            (", whole batches", "accuracy/networks_jax.csv", "self, averaged"),
        )
    ),
    Regime(
        "FCN, noise in the teachers only",
        "accuracy/published/fcn_half_jax.csv",
        wrap="self, dropout behind the blocks, averaged",
        paper="paper, dropout before the head",
    ),
    *(
        Regime(
            f"{name}, noise in the teachers only",
            f"accuracy/published/{network}_half_jax.csv",
            wrap="self, dropout before the head, averaged",
        )
        for name, network in (("ResNet", "resnet_published"), ("InceptionTime", "inception_time"))
    ),
    Regime("images", "accuracy/images/images_tensorflow.csv"),
    Regime("four of ten labels wrong", "accuracy/wrong_labels_jax.csv", wrap="noise, averaged"),
    *(
        Regime(
            f"{name} of the labels",
            "accuracy/few_labels_jax.csv",
            {"regime": f"labels {fraction}"},
            wrap="unlabelled, averaged",
            control="continued, averaged",
        )
        for name, fraction in (("a tenth", 0.1), ("two percent", 0.02))
    ),
    *(
        Regime(
            f"UCI HAR, {name} of the labels",
            "accuracy/uci_har/few_labels_jax.csv",
            {"regime": f"labels {fraction}"},
            wrap="unlabelled, averaged",
            control="continued, averaged",
        )
        for name, fraction in (("a tenth", 0.1), ("two percent", 0.02))
    ),
    Regime(
        "a tenth of the labels, taught by five",
        "accuracy/taught/taught_jax.csv",
        wrap="taught by five, averaged",
        control="continued, averaged",
    ),
    Regime("frozen teachers without guidance", "accuracy/frozen/frozen_jax.csv", paper="paper, uniform"),
]

# Columns of accuracy, and of differences: (heading, method, control), by the attributes of a regime.
METHODS = {"`model.fit`": "plain", "best epoch": "plain, best epoch", "averaged": "plain, averaged"}
OURS = {"`wrap`": "wrap", "paper": "paper", "continued": "control"}
DIFFERENCES = [
    ("`wrap` - `model.fit`", "wrap", "plain"),
    ("`wrap` - best epoch", "wrap", "plain, best epoch"),
    ("`wrap` - averaged", "wrap", "plain, averaged"),
    ("paper - continued", "paper", "control"),
]
# Okabe and Ito's colours, which colour-blind people tell apart, and markers for who prints in grey.
MARKS = [("#0072B2", "o"), ("#E69F00", "s"), ("#CC79A7", "D"), ("#009E73", "^")]


def rows_of(regime, folder):
    """The rows of a regime without the sets that stand apart, or `None` if it was not run."""
    files = [regime.files] if isinstance(regime.files, str) else regime.files
    paths = [folder / file for file in files]
    if not all(path.exists() for path in paths):
        return None
    rows = pd.concat([read(path) for path in paths], ignore_index=True)
    for column, value in regime.rows.items():
        rows = rows[rows[column] == value]
    if "subject" in rows:
        rows = rows.assign(dataset=rows.subject, method=rows.method.replace(OF_EXAMPLES))
    rows = rows.assign(accuracy=rows[regime.score])
    apart = rows.dataset.isin(analysis.APART)
    return rows if apart.all() else rows[~apart]


def differences(regime, rows):
    """What `analysis.compare` finds for each column of differences; `None` where the rows lack a method."""
    methods = regime._asdict()
    pairs = [(methods.get(method, method), methods.get(control, control)) for _, method, control in DIFFERENCES]
    return [analysis.compare(rows, *pair) for pair in pairs]


def accuracies(regime, rows):
    """Mean accuracy by column over the seeds with which a method was run on every set, and how many if not all."""
    methods = METHODS | {column: getattr(regime, attribute) for column, attribute in OURS.items()}
    complete = analysis.complete(rows)
    n_seeds = complete.seed.nunique()
    cells = {}
    for column, method in methods.items():
        of_method = complete[complete.method == method]
        if of_method.empty:
            cells[column] = ""
            continue
        mean = of_method.groupby("dataset").accuracy.mean().mean()
        few = of_method.seed.nunique()
        cells[column] = f"{mean:.3f}".lstrip("0") + ("" if few == n_seeds else f" (seeds: {few})")
    return cells


def summary(folder):
    """`(table, found)`: the table of all regimes that were run, and for each its `differences`."""
    lines, found = {}, {}
    for regime in REGIMES:
        rows = rows_of(regime, folder)
        if rows is None:
            continue
        found[regime.name] = differences(regime, rows)
        n_sets, n_seeds = rows.dataset.nunique(), analysis.complete(rows).seed.nunique()
        line = {"units x seeds": f"{n_sets} x {n_seeds}", **accuracies(regime, rows)}
        for (column, *_), difference in zip(DIFFERENCES, found[regime.name], strict=True):
            line[column] = points(difference) if difference else ""
        lines[regime.name] = line
    table = pd.DataFrame.from_dict(lines, orient="index")
    table.index.name = "regime"
    return table, found


def points(difference):
    return f"{100 * difference['difference']:+.1f} ± {100 * difference['+-']:.1f}"


def forest(found, path):
    """Draws the differences of every regime that has any, one below the other, with their intervals."""
    found = {name: of_regime for name, of_regime in found.items() if any(of_regime)}
    figure = Figure(figsize=(9, 1.2 + 0.62 * len(found)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.axvspan(-0.5, 0.5, color="0.92", zorder=0, label="within half a point")
    axes.axvline(0, color="0.3", linewidth=0.8)
    for number, (heading, *_) in enumerate(DIFFERENCES):
        color, marker = MARKS[number]
        there = [(row, of[number]) for row, of in enumerate(found.values()) if of[number]]
        axes.errorbar(
            [100 * difference["difference"] for _, difference in there],
            [row + 0.18 * (number - 1.5) for row, _ in there],
            xerr=[100 * difference["+-"] for _, difference in there],
            fmt=marker,
            color=color,
            markersize=5,
            linewidth=1.4,
            label=heading.replace("`", ""),
        )
    axes.set_yticks(range(len(found)), found)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set(xlabel="difference of test accuracy in points, 95 % interval; to the right the first is better")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)
    print(f"plot: {path}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the rows; default: the stored")
    parser.add_argument("--plot", type=pathlib.Path, help="file for the picture; default: none")
    arguments = parser.parse_args(argv)
    table, found = summary(arguments.results)
    print(analysis.markdown(table, {}))
    if arguments.plot is not None:
        forest(found, arguments.plot)


if __name__ == "__main__":
    sys.exit(main())
