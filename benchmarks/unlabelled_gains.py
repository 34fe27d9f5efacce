"""What augmentation and distillation gain on UCI HAR: rows of an earlier form of examples/unlabelled.py.

    cd benchmarks; python unlabelled_gains.py results/examples/unlabelled.csv results/examples/unlabelled_augmented.csv

Prints, for each share of labels, differences of test accuracy over the same seeds: mean, half of Student's 95 %
interval, p of Wilcoxon's signed-rank test (not corrected), and with how many seeds the first is better, equal, worse.
"""

import pathlib
import sys

import pandas as pd

sys.path.insert(0, str(pathlib.Path(__file__).parent / "accuracy"))

import analysis

PAIRS = [
    ("plain, averaged, augmented", "plain, averaged"),
    ("distilled, all windows, augmented", "plain, averaged"),
    ("distilled, all windows, augmented", "plain, averaged, augmented"),
    ("distilled, all windows, augmented", "distilled, labelled, augmented"),
]


def main(without, augmented):
    rows = pd.read_csv(augmented)
    rows = pd.concat([pd.read_csv(without), rows.assign(method=rows.method + ", augmented")])
    for fraction, of_fraction in rows.groupby("label_fraction"):
        table = pd.DataFrame([analysis.compare(of_fraction, *pair) for pair in PAIRS])
        print(f"{fraction:.0%} labels\n{table.to_string(index=False, float_format='{:.4f}'.format)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
