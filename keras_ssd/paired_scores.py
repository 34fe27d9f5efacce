"""`Comparison`: the scores of several arms, paired by seed or fold, as a table, a sentence and a plot."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_ssd import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COSTS = ("seconds_per_step", "seconds", "epochs")
_CAUTION = {
    "seed": "seeds, so they say nothing about other data, and few seeds show only large differences",
    "fold": "folds, which share training rows",
    "subject": "subjects, whose folds share training rows",
}


class Comparison:
    """The result of `compare`. It prints itself: a table of all scores, and a sentence on what they show.

    Args:
        rows: one dict for each run. Rows of several comparisons can be joined, with keys put in front or behind.
        unit: the key whose values are the units of all intervals. Defaults to `None`: `"fold"`, else `"seed"`.

    Attributes:
        rows: one dict for each run: `arm`, `seed`, `fold`, its scores (losses last), `epochs`, `steps`, `seconds` of
            `fit`, `seconds_per_step` (the median, without validation), and `status`: finished or diverged.
        arms, units, metrics: the names of the arms, of the units and of the scores.
        pairs: pairs of an arm and what it is compared with: plain, and its control; only the control if the arm goes on
            from the plain one. `difference` takes any two arms.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], unit: str | None = None) -> None:
        self.rows = [dict(row) for row in rows]
        self.unit = unit or ("seed" if self.rows[0]["fold"] is None else "fold")
        self.arms, self.units = (list(dict.fromkeys(row[name] for row in self.rows)) for name in ("arm", self.unit))
        names = list(self.rows[0])
        self.metrics = names[names.index("scored_on") + 1 : names.index("epochs")]
        controls = {row["arm"]: row["control"] for row in self.rows}
        runs = {arm: {(r[self.unit], r["seed"], r["fold"]) for r in self.rows if r["arm"] == arm} for arm in self.arms}
        if lacking := [arm for arm in self.arms if runs[arm] != set().union(*runs.values())]:
            raise ValueError(
                f"Each arm should have a row for each {self.unit}, seed and fold. Rows are missing of {lacking}."
            )
        # Arms that go on from the plain one, and their controls, have taken more steps than it.
        continued = {control for control in controls.values() if (control or "").partition(",")[0] == "continued"}
        longer = {a for a in self.arms if a in continued or controls[a] in continued}
        others = {a: dict.fromkeys(["plain"] * (a not in longer) + [controls[a]]) for a in self.arms}
        self.pairs = [(a, b) for a in self.arms for b in others[a] if b and a != b]

    def values(self, arm: str, name: str) -> np.ndarray:
        """Return a score or a cost of an arm: the mean of each unit."""
        rows = [row for row in self.rows if row["arm"] == arm]
        return np.array([np.mean([row[name] for row in rows if row[self.unit] == unit]) for unit in self.units])

    def difference(self, arm: str, other: str, metric: str | None = None) -> tuple[float, float]:
        """Return the mean paired difference, and half of its 95 % interval by Student's t (NaN with a single unit)."""
        import scipy.stats

        gain = (self.values(arm, metric or self.metrics[0]) - self.values(other, metric or self.metrics[0])).round(12)
        n = len(gain)
        half = scipy.stats.t.ppf(0.975, n - 1) * gain.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
        return float(gain.mean()), float(half)

    def summary(self) -> str:
        """Return one sentence: what the first score shows, and what it cannot show."""
        parts, equal, n, where = [], [], len(self.units), self.rows[0]["scored_on"]
        for arm, other in self.pairs:
            mean, half = self.difference(arm, other)
            if math.isnan(mean):
                parts.append(f"{arm} and {other} cannot be compared: a score is not a number")
            elif half == 0 and mean:
                parts.append(f"{arm} minus {other} is {mean:+.4f} with every {self.unit}, which gives no interval")
            elif abs(mean) > half:
                parts.append(f"{arm} is {'higher' if mean > 0 else 'lower'} than {other} ({mean:+.4f} ± {half:.4f})")
            else:
                equal.append(f"{arm} and {other}")
        parts += ["no difference was shown" + (" between " + ", ".join(equal)) * bool(parts)] * bool(equal)
        caution = f"the intervals are over {n} {_CAUTION.get(self.unit, f'units ({self.unit})')}"
        parts.append(caution if n > 1 else f"a single {self.unit} has no interval and cannot show a difference")
        parts += ["scores are too good if epochs or options were chosen on these rows"] * (where == "validation_data")
        diverged = [row for row in self.rows if row["status"] == "diverged"]
        places = dict.fromkeys((self.unit, "seed"))
        lost = [f"{row['arm']} ({', '.join(f'{name} {row[name]}' for name in places)})" for row in diverged]
        parts += ["diverged: " + ", ".join(lost)] * bool(lost)
        return f"{self.metrics[0]} on {where}: {'; '.join(parts)}."

    def __repr__(self) -> str:
        others = list(dict.fromkeys(other for _, other in self.pairs))
        scores = [["score", "arm", "mean", "+-", *(f"minus {other}" for other in others)]]
        for name, arm in ((name, arm) for name in self.metrics for arm in self.arms):
            values = self.values(arm, name)
            spread = f"{values.std(ddof=1):.4f}" if len(values) > 1 else ""
            pairs = [(arm, other) if (arm, other) in self.pairs else () for other in others]
            gains = ["{:+.4f} ± {:.4f}".format(*self.difference(*pair, name)) if pair else "" for pair in pairs]
            scores.append([name, arm, f"{values.mean():.4f}", spread, *(gain.removesuffix(" ± nan") for gain in gains)])
        costs = [["arm", *(name.replace("_", " ") for name in _COSTS)]]
        costs += [[arm, *(f"{self.values(arm, name).mean():.3g}" for name in _COSTS)] for arm in self.arms]
        return "\n".join([aligned(scores), "", aligned(costs), "", self.summary()])

    def plot(self, metric: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draw the differences of a score, by default the first: each unit, the mean, its 95 % interval."""
        ax, metric, styles = plotting._axes(ax), metric or self.metrics[0], plotting.method_styles(self.arms)
        for place, (arm, other) in enumerate(self.pairs):
            gains = self.values(arm, metric) - self.values(other, metric)
            ax.plot(gains, [place] * len(self.units), "o", alpha=0.6, color=styles[arm]["color"])
            mean, half = self.difference(arm, other, metric)
            ax.errorbar(mean, place, xerr=np.nan_to_num(half), fmt="kD", capsize=4)
        ax.axvline(0, color="gray", linewidth=0.8)
        ax.set_yticks(range(len(self.pairs)), [f"{arm} minus {other}" for arm, other in self.pairs])
        ax.set_ylim(len(self.pairs) - 0.5, -0.5)
        ax.set(xlabel=f"difference of {metric}: each {self.unit}, mean and 95 % interval")
        return ax


def aligned(cells: list[list[str]]) -> str:
    """Return the rows of a table as text, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
