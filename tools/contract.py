"""Run tests/test_contract.py and tell, for each feature of Keras and backend, whether it works with a wrapped model.

    KERAS_BACKEND=jax python tools/contract.py

replaces the rows of that backend in docs/results/contract.csv and writes the table docs/contract.md. Further
arguments are pytest's: `-k clip` replaces a few.
"""

import csv
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results" / "contract.csv"
TABLE = DOCS / "contract.md"
KEY = ("feature", "backend", "teacher")
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
HEAD = """# What works as with a plain Keras model

Written by `python tools/contract.py`, run on each backend, from the outcome of `tests/test_contract.py`. "yes" means:
for every kind of teacher (`"self"`, `"snapshot"`, `"ema"`, another model), and with `kd_weight=0`, where what is
trained is equal to the plain model bit for bit. Versions: {versions}.

"""


class Collector:
    """A pytest plugin that keeps the outcome of each cell."""

    def __init__(self):
        self.rows = []

    def pytest_runtest_logreport(self, report):
        cell = dict(report.user_properties)
        if "feature" not in cell or (report.when != "call" and report.passed):
            return
        outcome = "yes" if report.passed else "no"
        if report.skipped:
            outcome = "not tested: " + str(report.longrepr[2]).removeprefix("Skipped: ")
        elif cell.get("refused"):
            outcome = "as Keras: refused (" + cell["refused"] + ")"
        self.rows.append((cell["feature"], cell["teacher"], outcome))


def read():
    """The rows of the stored outcome."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def cells_of(rows):
    """The backends, and feature -> a text for each; where the kinds of teacher disagree, it lists them."""
    backends = [name for name in BACKENDS if any(row["backend"] == name for row in rows)]
    kinds = list(dict.fromkeys(row["teacher"] for row in rows))
    cells = {}
    for row in rows:
        by_backend = cells.setdefault(row["feature"], {})
        by_backend.setdefault(row["backend"], {}).setdefault(row["outcome"], []).append(row["teacher"])
    texts = {}
    for feature, of_feature in cells.items():
        texts[feature] = []
        for name in backends:
            outcomes = dict(of_feature.get(name, {}))
            missing = [kind for kind in kinds if not any(kind in run for run in outcomes.values())]
            if missing:
                outcomes["not run"] = missing
            if len(outcomes) == 1:
                texts[feature].append(next(iter(outcomes)))
            else:
                parts = (f"{outcome} ({', '.join(kinds)})" for outcome, kinds in outcomes.items())
                texts[feature].append("; ".join(parts))
    return backends, texts


def _table(head, backends, lines):
    head, *rows = (
        "| " + " | ".join(text.replace("|", "\\|") for text in line) + " |\n"
        for line in [(head, *(BACKENDS[name] for name in backends)), *lines]
    )
    return head + "|---" * (len(backends) + 1) + "|\n" + "".join(rows)


def render(rows):
    """The table in Markdown."""
    backends, texts = cells_of(rows)
    versions = ", ".join(f"{BACKENDS[b]} {next(r['versions'] for r in rows if r['backend'] == b)}" for b in backends)
    return HEAD.format(versions=versions) + _table("feature", backends, [(f, *cells) for f, cells in texts.items()])


def _versions(backend):
    import importlib.metadata

    return f"{importlib.metadata.version(backend)} with Keras {importlib.metadata.version('keras')}"


def main():
    import keras
    import pytest

    collector = Collector()
    test = str(ROOT / "tests" / "test_contract.py")
    options = ["-q", "-m", "", "--compiled", "-p", "no:cacheprovider", *sys.argv[1:]]
    status = pytest.main([test + "::test_feature", *options], plugins=[collector])
    backend = keras.backend.backend()
    new = [
        {"feature": feature, "backend": backend, "teacher": teacher, "outcome": outcome, "versions": _versions(backend)}
        for feature, teacher, outcome in collector.rows
    ]
    sys.path.insert(0, str(ROOT / "tests"))
    from test_contract import FEATURES, KINDS

    order = list(FEATURES), list(BACKENDS), KINDS
    cells = {tuple(row[name] for name in KEY): row for row in read() + new}
    cells = {key: row for key, row in cells.items() if key[0] in FEATURES and key[2] in KINDS}
    rows = [cells[key] for key in sorted(cells, key=lambda key: [o.index(k) for o, k in zip(order, key, strict=True)])]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["feature", "backend", "teacher", "outcome", "versions"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    TABLE.write_text(render(rows))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
