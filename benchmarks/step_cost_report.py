"""Prints tables of what a distilled step costs, from the rows that step_cost.py left for each backend.

    python benchmarks/step_cost_report.py

What misses its target is bold.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pandas as pd

from cases import CASES

sys.path.insert(0, str(pathlib.Path(__file__).parent / "accuracy"))
from analysis import markdown  # noqa: E402

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
FIRST_STEP, MEMORY = 2.0, 1.3  # the targets that are the same for all networks


def cell(rows, column, target=None):
    """The one value of `rows` in a column, bold above its target; empty where there is none."""
    if rows.empty:
        return ""
    row = rows.iloc[0]
    limit = row.target if target is None else target
    text = f"{row[column]:.2f}"
    return f"**{text}**" if round(row[column], 2) > limit else text


def table(rows, keys, column, target=None, describe=()):
    """One line for each combination of `keys`, one column for each backend."""
    lines = []
    for values, group in rows.groupby(keys, sort=False):
        known = {name: group[name].dropna() for name in describe}
        described = {name: "" if seen.empty else f"{seen.iloc[0]:.3g}" for name, seen in known.items()}
        cells = {title: cell(group[group.backend == name], column, target) for name, title in BACKENDS.items()}
        lines.append(dict(zip(keys, values, strict=True)) | described | cells)
    print(markdown(pd.DataFrame(lines).set_index(keys[0]), {}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results")
    parser.add_argument("--suffix", default="_quick", help="of the files; empty for runs without --quick")
    arguments = parser.parse_args()
    paths = [arguments.results / f"step_cost_{backend}{arguments.suffix}.csv" for backend in BACKENDS]
    rows = pd.concat([pd.read_csv(path) for path in paths if path.exists()], ignore_index=True)
    rows = rows[rows.variant != "plain"].rename(columns={"num_teachers": "N"})
    rows["network"] = rows.case.map({name: case.title for name, case in CASES.items()})
    of = {name: group for name, group in rows.groupby("experiment")}
    print("Time of a step over that of a plain one\n")
    table(of["table"], ["network", "variant", "N"], "ratio", describe=("fraction", "floor"))
    print(f"First step (compiling), processor time over that of the plain model; target {FIRST_STEP:g}\n")
    own = of["table"][of["table"].target.notna() & (of["table"].backend != "torch")]
    table(own, ["network", "variant"], "first_step_cpu_ratio", FIRST_STEP)
    print(f"Peak memory over that of the plain model; target {MEMORY:g}\n")
    table(of["memory"], ["network", "N"], "memory_ratio", MEMORY)
    print("The number of teachers, batch 64\n")
    table(of["teachers"], ["network", "N"], "ratio", describe=("fraction", "floor"))
    print("The batch\n")
    table(of["batch"], ["network", "batch"], "ratio", describe=("fraction", "floor"))
    if "train_on_batch" in of:
        print("`train_on_batch` of 60 layers of 16 units\n")
        table(of["train_on_batch"], ["variant", "batch"], "ratio", float("inf"))


if __name__ == "__main__":
    main()
