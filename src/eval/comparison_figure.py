"""A sweep as a picture: every score by point with its interval, and frontiers between two of them."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from src.eval.statistics import Interval

INK, SOFT = "#2f6fde", "#9aa2ad"


def comparison_figure(
    labels: Sequence[str], means: Sequence[Mapping[str, Interval]], frontiers: Sequence[tuple[str, str]] = ()
) -> Image.Image:
    """One panel per score, points from top to bottom; then one score against another, pair by pair.

    Args:
        labels: Of the points, the baseline first.
        means: By point, the interval of each score.
        frontiers: The scores across and up in the last panels.
    """
    scores = list(means[0])
    panels = len(scores) + len(frontiers)
    # A Figure of its own: pyplot keeps global state and picks a display.
    figure = Figure(figsize=(1.5 + 2.6 * panels, 1.2 + 0.45 * max(len(labels), 3)), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for index, (panel, score) in enumerate(zip(axes, scores, strict=False)):
        _forest(panel, [by[score] for by in means], score)
        panel.set_yticks(range(len(labels)), labels if index == 0 else [""] * len(labels))
    for panel, frontier in zip(axes[len(scores) :], frontiers, strict=True):
        _frontier(panel, labels, means, *frontier)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return Image.open(buffer).convert("RGB")


def _forest(axes: Axes, intervals: Sequence[Interval], score: str) -> None:
    for row, interval in enumerate(intervals):
        color = SOFT if row == 0 else INK
        axes.plot([interval.low, interval.high], [row, row], color=color, linewidth=2)
        axes.plot(interval.mean, row, "o", color=color)
    axes.axvline(intervals[0].mean, color=SOFT, linewidth=0.8, linestyle=":")
    axes.set(title=score, ylim=(len(intervals) - 0.5, -0.5))
    _plain(axes)


def _frontier(axes: Axes, labels: Sequence[str], means: Sequence[Any], across: str, up: str) -> None:
    x, y = [by[across].mean for by in means], [by[up].mean for by in means]
    if in_order(labels):
        axes.plot(x, y, "-", color=SOFT, linewidth=0.8)
    for row, (at_x, at_y) in enumerate(zip(x, y, strict=True)):
        axes.plot(at_x, at_y, "o", color=SOFT if row == 0 else INK)
        axes.annotate(str(row + 1), (at_x, at_y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(title="frontier", xlabel=across, ylabel=up)
    _plain(axes)


def in_order(labels: Sequence[str]) -> bool:
    """Whether the points are rising or falling values of one key, such as ``alpha``: only those have an order."""
    keys, values = zip(*(label.rpartition("=")[::2] for label in labels), strict=True)
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return False
    return len(set(keys)) == 1 and numbers in (sorted(numbers), sorted(numbers, reverse=True))


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
