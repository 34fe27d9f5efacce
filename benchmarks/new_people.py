"""Prints the comparison of methods on people that were left out, as new_people.md declares it.

    python benchmarks/new_people.py benchmarks/results/new_people/*.csv

The rows are those of examples/har.py and examples/affective.py. For each data set: the mean over subjects of every
method, then the declared comparisons with Student's 95 % interval and p of Wilcoxon's signed-rank test over subjects,
corrected by Holm over the comparisons of the data set.
"""

import argparse
import pathlib
import sys

import pandas as pd

sys.path.insert(0, str(pathlib.Path(__file__).parent / "accuracy"))
from analysis import holm, markdown, paired  # noqa: E402

SECTION = ["dataset", "network", "epochs", "backend"]
SCORES = {"stress_predict": "balanced_accuracy"}  # of the others: accuracy
COMPARISONS = [
    ("wrap(model)", "plain"),
    ("wrap(model)", "best epoch"),
    ("wrap(model)", "averaged"),
    ("averaged", "plain"),
    ("paper", "first half"),
    ("paper", "continued"),
    ("paper, averaged", "continued, averaged"),
]


def means(rows):
    """The mean over subjects of each method, and the least and greatest of a subject."""
    columns = rows.groupby("method", sort=False)
    scores = ["accuracy", "balanced_accuracy", "nll"]
    by_subject = rows.groupby(["method", "subject"], sort=False)[scores].mean()
    table = by_subject.groupby("method", sort=False).mean()
    score = SCORES.get(rows.dataset.iloc[0], "accuracy")
    table["worst subject"] = by_subject[score].groupby("method", sort=False).min()
    table["best subject"] = by_subject[score].groupby("method", sort=False).max()
    table["diverged"] = columns.status.apply(lambda status: (status == "diverged").sum())
    return table


def compare(rows):
    """The declared comparisons over subjects, each the mean of its seeds; a run that diverged counts with score 0."""
    score = SCORES.get(rows.dataset.iloc[0], "accuracy")
    scored = rows[score].where(rows.status == "finished", 0.0)
    by_subject = rows.assign(score=scored).pivot_table(index="subject", columns="method", values="score")
    found = []
    for method, control in COMPARISONS:
        figures, signs = paired((by_subject[method] - by_subject[control]).round(9))
        found.append({"method": method, "control": control, **figures, **signs})
    table = pd.DataFrame(found)
    table.insert(6, "p (Holm)", holm(table.p))
    return table


def report(rows):
    """One section in Markdown."""
    name, network, epochs, backend = (rows[column].iloc[0] for column in SECTION)
    score = SCORES.get(name, "accuracy")
    title = f"### {name}, {network}, {epochs} epochs, {backend}: {rows.subject.nunique()} subjects, seeds "
    lines = [title + ", ".join(map(str, sorted(rows.seed.unique()))), ""]
    formats = dict.fromkeys(["accuracy", "balanced_accuracy", "nll", "worst subject", "best subject"], "{:.4f}")
    lines += [markdown(means(rows), {**formats, "diverged": "{:.0f}"}), "", f"Differences of {score}:", ""]
    formats = dict.fromkeys(["difference", "median"], "{:+.4f}") | dict.fromkeys(["+-", "p", "p (Holm)"], "{:.4f}")
    return "\n".join([*lines, markdown(compare(rows).set_index("method"), formats)])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=pathlib.Path, help="CSV files of the examples")
    arguments = parser.parse_args(argv)
    rows = pd.concat([pd.read_csv(path, dtype={"subject": str}) for path in arguments.tables])
    for _, section in rows.groupby(SECTION, sort=False):
        print(report(section) + "\n")


if __name__ == "__main__":
    main()
