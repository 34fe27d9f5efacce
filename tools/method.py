"""Draws the figure of the method: `python tools/method.py` writes docs/method.png."""

import pathlib

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

BLUE, ORANGE, GREEN, GREY = "#4c72b0", "#dd8452", "#55a868", "#8c8c8c"


def box(axes, x, y, width, height, text, color, **options):
    patch = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", lw=1.5)
    # Mixed with white, not transparent: boxes lie on top of each other.
    patch.set(edgecolor=color, facecolor=[0.87 + 0.13 * channel for channel in to_rgb(color)], **options)
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10, zorder=3)


def arrow(axes, start, end, color, text="", **options):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.5, **options})
    if text:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1
        axes.text(*middle, text, ha="center", fontsize=9, color=color)


def main():
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 12.4), ylim=(0, 4.3))
    axes.axis("off")
    box(axes, 0.1, 2.9, 1.0, 0.9, "batch", GREY)
    box(axes, 1.8, 2.9, 2.0, 0.9, "layers before the\nfirst dropout (once)", BLUE)
    box(axes, 4.6, 2.9, 1.8, 0.9, "rest of the\nstudent", BLUE)
    for shift in (0.3, 0.15):
        box(axes, 4.6 + shift, 0.9 - shift, 1.8, 0.9, "", ORANGE)
    box(axes, 4.6, 0.9, 1.8, 0.9, "the same rest,\nN times, dropout on", ORANGE)
    box(axes, 7.6, 0.9, 2.0, 0.9, "weights: softmax\nof similarity,\npercentile filter", ORANGE)
    box(axes, 10.4, 0.9, 1.8, 0.9, "target: weighted\nmean of the\nteachers", ORANGE)
    box(axes, 10.4, 2.9, 1.8, 0.9, "task loss +\nkd_weight · distance\nto the target", GREEN)
    arrow(axes, (1.15, 3.35), (1.75, 3.35), GREY)
    arrow(axes, (3.85, 3.35), (4.55, 3.35), BLUE)
    arrow(axes, (2.8, 2.85), (4.55, 1.35), ORANGE, connectionstyle="angle,angleA=-90,angleB=180,rad=8")
    axes.text(2.75, 1.0, "no gradient", ha="center", fontsize=9, color=ORANGE)
    arrow(axes, (6.45, 3.35), (10.35, 3.35), BLUE, "student: prediction and representation")
    arrow(axes, (8.6, 3.3), (8.6, 1.85), BLUE)
    axes.text(8.7, 2.5, "guides", fontsize=9, color=BLUE)
    arrow(axes, (6.8, 1.35), (7.55, 1.35), ORANGE)
    arrow(axes, (9.65, 1.35), (10.35, 1.35), ORANGE)
    arrow(axes, (11.3, 1.85), (11.3, 2.85), ORANGE)
    axes.text(0.1, 0.15, "after training: the student alone, unchanged in architecture, size and latency", fontsize=9)
    figure.savefig(pathlib.Path(__file__).parents[1] / "docs" / "method.png", dpi=110)


if __name__ == "__main__":
    main()
