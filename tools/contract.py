"""Run tests/test_contract.py and tell, for each feature of Keras and backend, whether it works with a wrapped model.

    KERAS_BACKEND=jax python tools/contract.py

replaces the rows of that backend in docs/results/contract.csv and writes the table docs/contract.md. Further
arguments are pytest's: `-k clip` replaces a few.
"""

import csv
import importlib.metadata
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results" / "contract.csv"
TABLE = DOCS / "contract.md"
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
HEAD = """# What works as with a plain Keras model

Written by `python tools/contract.py`, run on each backend, from the outcome of `tests/test_contract.py`. "yes" means:
for every kind of teacher (`"self"`, `"snapshot"`, `"ema"`, another model), and with `kd_weight=0`, where what is
trained is equal to the plain model bit for bit. Versions: {versions}.

"""


# What this tool and `models_table.py` share.
def outcome_of(report, works, fails):
    """The outcome of a test in a word, or why it was skipped."""
    if report.skipped:
        return "not tested: " + str(report.longrepr[2]).removeprefix("Skipped: ")
    return works if report.passed else fails


def read(path=RESULTS):
    """The rows of the stored outcome."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path, order, new):
    """Replace the rows that `new` has the key of, and store all: `order` holds the values of each column of the key.

    Rows of other values are dropped. Versions are added to what is new.
    """
    cells = {tuple(row[name] for name in order): row for row in read(path)}
    for row in new:
        version = f"{importlib.metadata.version(row['backend'])} with Keras {importlib.metadata.version('keras')}"
        cells[tuple(row[name] for name in order)] = {**row, "versions": version}
    kept = [key for key in cells if all(part in known for part, known in zip(key, order.values(), strict=True))]
    places = [{value: place for place, value in enumerate(known)} for known in order.values()]
    rows = [cells[key] for key in sorted(kept, key=lambda key: [p[k] for p, k in zip(places, key, strict=True)])]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*order, "outcome", "versions"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def versions(rows):
    found = {row["backend"]: row["versions"] for row in reversed(rows)}
    return ", ".join(f"{BACKENDS[name]} {found[name]}" for name in BACKENDS if name in found)


def markdown(title, backends, lines):
    """A table whose columns are a title and backends."""
    rows = [(title, *(BACKENDS[name] for name in backends)), ("---",) * (len(backends) + 1), *lines]
    return "".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |\n" for row in rows)


class Collector:
    """A pytest plugin that keeps the outcome of each cell."""

    def __init__(self):
        self.rows = []

    def pytest_runtest_logreport(self, report):
        cell = dict(report.user_properties)
        if "feature" not in cell or (report.when != "call" and report.passed):
            return
        refused = cell.get("refused")
        outcome = f"as Keras: refused ({refused})" if refused else outcome_of(report, works="yes", fails="no")
        self.rows.append({"feature": cell["feature"], "teacher": cell["teacher"], "outcome": outcome})


def render(rows):
    """The table in Markdown; where the kinds of teacher disagree, a cell lists them."""
    backends = [name for name in BACKENDS if any(row["backend"] == name for row in rows)]
    kinds = list(dict.fromkeys(row["teacher"] for row in rows))
    outcomes = {(row["feature"], row["backend"], row["teacher"]): row["outcome"] for row in rows}

    def cell(feature, backend):
        by_outcome = {}
        for kind in kinds:
            by_outcome.setdefault(outcomes.get((feature, backend, kind), "not run"), []).append(kind)
        if len(by_outcome) == 1:
            return next(iter(by_outcome))
        return "; ".join(f"{outcome} ({', '.join(of)})" for outcome, of in by_outcome.items())

    features = dict.fromkeys(row["feature"] for row in rows)
    lines = [(feature, *(cell(feature, backend) for backend in backends)) for feature in features]
    return HEAD.format(versions=versions(rows)) + markdown("feature", backends, lines)


def main():
    import keras
    import pytest

    collector = Collector()
    test = str(ROOT / "tests" / "test_contract.py")
    options = ["-q", "-m", "", "--compiled", "-p", "no:cacheprovider", *sys.argv[1:]]
    status = pytest.main([test + "::test_feature", *options], plugins=[collector])
    sys.path.insert(0, str(ROOT / "tests"))
    from test_contract import FEATURES, KINDS

    new = [{**row, "backend": keras.backend.backend()} for row in collector.rows]
    rows = write(RESULTS, {"feature": list(FEATURES), "backend": list(BACKENDS), "teacher": KINDS}, new)
    TABLE.write_text(render(rows))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
