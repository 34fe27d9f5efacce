"""Draws the figure of the method: `python tools/method.py` writes docs/method.png."""

import pathlib

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

# Of Okabe and Ito, distinct for colour-blind readers, too; the boxes say the same in words.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#595959"


def box(axes, x, y, width, height, text, color, **options):
    patch = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", lw=1.5)
    # Mixed with white, not transparent: boxes lie on top of each other.
    patch.set(edgecolor=color, facecolor=[0.87 + 0.13 * channel for channel in to_rgb(color)], **options)
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=12, zorder=3)


def arrow(axes, start, end, color, text="", **options):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.5, **options})
    if text:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1
        axes.text(*middle, text, ha="center", fontsize=11, color=color)


def main():
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 12.6), ylim=(0, 4.0))
    axes.axis("off")
    box(axes, 0.1, 2.9, 1.0, 0.9, "batch", GREY)
    box(axes, 1.6, 2.9, 2.3, 0.9, "layers before the\nfirst dropout (once)", BLUE)
    box(axes, 4.5, 2.9, 2.2, 0.9, "rest of the\nstudent", BLUE)
    for shift in (0.3, 0.15):
        box(axes, 4.5 + shift, 0.9 - shift, 2.2, 0.9, "", ORANGE)
    box(axes, 4.5, 0.9, 2.2, 0.9, "the same rest,\nN times, dropout on", ORANGE)
    box(axes, 7.55, 0.9, 2.0, 0.9, "weights: softmax\nof similarity,\npercentile filter", ORANGE)
    box(axes, 10.15, 0.9, 2.3, 0.9, "target: weighted\nmean of the\nteachers", ORANGE)
    box(axes, 10.15, 2.9, 2.3, 0.9, "task loss +\nkd_weight · distance\nto the target", GREEN)
    arrow(axes, (1.15, 3.35), (1.55, 3.35), GREY)
    arrow(axes, (3.95, 3.35), (4.45, 3.35), BLUE)
    arrow(axes, (2.8, 2.85), (4.45, 1.35), ORANGE, connectionstyle="angle,angleA=-90,angleB=180,rad=8")
    axes.text(2.75, 1.0, "no gradient", ha="center", fontsize=11, color=ORANGE)
    arrow(axes, (6.75, 3.35), (10.1, 3.35), BLUE, "prediction, representation")
    arrow(axes, (8.6, 3.3), (8.6, 1.85), BLUE)
    axes.text(8.7, 2.5, "guides", fontsize=11, color=BLUE)
    arrow(axes, (7.05, 1.35), (7.5, 1.35), ORANGE)
    arrow(axes, (9.6, 1.35), (10.1, 1.35), ORANGE)
    arrow(axes, (11.3, 1.85), (11.3, 2.85), ORANGE)
    axes.text(0.1, 0.15, "after training: the student alone, unchanged in architecture, size and latency", fontsize=11)
    figure.savefig(pathlib.Path(__file__).parents[1] / "docs" / "method.png", dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
