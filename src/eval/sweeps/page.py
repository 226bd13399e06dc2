"""A sweep as a picture and as one page: figure, tables, prompts by points, worst cases, disagreements."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from src.data.images import decode_image, load_image
from src.eval.grid import Grid, read_grid
from src.eval.results.report import Report
from src.eval.results.results import Table, add_grids, disagreements, provenance, worst
from src.eval.statistics.bootstrap import Interval
from src.eval.sweeps.points import Point

INK, SOFT = "#2f6fde", "#9aa2ad"
PANELS = 4
"""In a line of a figure: more could not be read on a page."""


# A dollar sign in a label is a dollar sign, not the start of a formula.
@rc_context({"text.parse_math": False})
def comparison_figure(
    labels: Sequence[str], means: Sequence[Mapping[str, Interval]], frontiers: Sequence[tuple[str, str]] = ()
) -> Image.Image:
    """One panel per score, points from top to bottom; then one score against another, pair by pair; four in a line.

    Args:
        labels: What each point is called, the baseline first.
        means: By point, the interval of each score.
        frontiers: The scores across and up in the last panels.
    """
    scores = list(means[0])
    panels = len(scores) + len(frontiers)
    # A Figure of its own: pyplot keeps global state and picks a display.
    across, lines = min(panels, PANELS), -(-panels // PANELS)
    figure = Figure(figsize=(1.5 + 2.6 * across, lines * (1.2 + 0.45 * max(len(labels), 3))), layout="constrained")
    axes = figure.subplots(lines, across, squeeze=False).flat
    for index, (panel, score) in enumerate(zip(axes, scores, strict=False)):
        _forest(panel, [by[score] for by in means], score)
        panel.set_yticks(range(len(labels)), labels if index % across == 0 else [""] * len(labels))
    for panel, frontier in zip(axes[len(scores) :], frontiers, strict=False):
        _frontier(panel, labels, means, *frontier)
    for panel in axes[panels:]:
        panel.remove()
    return _picture(figure)


@rc_context({"text.parse_math": False})
def curves_figure(
    by: str, numbers: Sequence[int], means: Mapping[str, Mapping[str, Sequence[Interval]]]
) -> Image.Image:
    """One panel per score: a line per point, over the numbers that tell kinds of images apart.

    Args:
        by: What the numbers are of.
        numbers: Across, K of them.
        means: By point and score, the interval at each number, K of them; the baseline first.
    """
    scores = list(next(iter(means.values())))
    figure = Figure(figsize=(1 + 3 * len(scores), 3.4 + 0.16 * len(means)), layout="constrained")
    axes = figure.subplots(1, len(scores), squeeze=False)[0]
    for panel, score in zip(axes, scores, strict=True):
        for at, (label, of) in enumerate(means.items()):
            # Side by side, so that intervals can be told apart.
            across = [number + 0.05 * (at - (len(means) - 1) / 2) for number in numbers]
            ends = [[one.mean - one.low for one in of[score]], [one.high - one.mean for one in of[score]]]
            panel.errorbar(across, [one.mean for one in of[score]], ends, marker="o", linewidth=1, label=label)
        panel.set(title=score, xlabel=by, xticks=numbers)
        _plain(panel)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return _picture(figure)


def _picture(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return decode_image(buffer, "figure")


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


GRIDS, SHOWN, LISTED = 3, 10, 8


def comparison_page(
    folder: Path,
    title: str,
    points: Sequence[Point],
    tables: Sequence[Table],
    figure: Image.Image,
    failures: Mapping[str, str],
) -> Report:
    """Put the page together; images come from ``folder/images``."""
    report = Report(title)
    told = "a line per point, numbered as in the frontier; the same seed in every column"
    add_grids(report, {f"{name}: {told}": grid for name, grid in prompt_grids(folder / "images", points).items()})
    if found := sorted(points[0].folder.glob("grid_*.png"))[:GRIDS]:
        with report.folded(f"More of {points[0].label}, beside its references"):
            for path in found:
                report.add_grid(read_grid(path), path.stem.removeprefix("grid_"))
    report.add_text("points are numbered from top to bottom in the frontier", "Means with 95% intervals")
    report.add_plots({"means": figure})
    for table in tables:
        report.add_table(table.columns, table.rows, table.title)
    for label, sentence in failures.items():
        report.add_text(sentence, f"Failed: {label}")
    text, image = points[0].scores[0], points[0].scores[-1]
    columns = [*points[0].keys, *points[0].scores]
    with report.folded(f"Lowest {image} of each point"):
        for point in points:
            _add_rows(report, worst(point.rows, image, LISTED), columns, point.label)
    pairs = {
        point.label: disagreements(points[0].rows, point.rows, point.keys, text, image, LISTED) for point in points[1:]
    }
    if any(pairs.values()):
        with report.folded(f"Where {text} rises and {image} falls"):
            for label, rows in pairs.items():
                _add_rows(report, rows, list(rows[0]) if rows else [], label)
    report.add_config({key: points[0].metrics[key] for key in ("profile", "encoders", "rules")}, "Profile")
    report.add_config(provenance(), "Provenance")
    return report


def prompt_grids(images: Path, points: Sequence[Point]) -> dict[str, Grid]:
    """Points by prompts, of the first members of the last factor, with the first image of each prompt."""
    first = points[0]
    factor = first.keys[-2]
    grids = {}
    for member in list(dict.fromkeys(row[factor] for row in first.rows))[:GRIDS]:
        at = _shown([(index, row["prompt"]) for index, row in enumerate(first.rows) if row[factor] == member])
        shown = [(point.rows[index], number) for number, point in enumerate(points, 1) for index in at]
        cells = [load_image(images / row["file"], min_side=1) for row, _ in shown]
        captions = [f"{number}. {row['prompt']}" for row, number in shown]
        grids[f"{factor} {member}"] = Grid(cells, len(at), captions)
    return grids


def _shown(prompts: Sequence[tuple[int, str]]) -> list[int]:
    """The first place of each prompt, evenly over the prompts."""
    places: dict[str, int] = {}
    for place, prompt in prompts:
        places.setdefault(prompt, place)
    return list(places.values())[:: -(-len(places) // SHOWN)]


def _add_rows(report: Report, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], heading: str) -> None:
    if rows:
        report.add_table(columns, [[_cell(row[column]) for column in columns] for row in rows], heading)


def _cell(value: Any) -> str:
    """Three digits for what is a fraction."""
    try:
        return f"{float(value):.3f}" if "." in str(value) else str(value)
    except ValueError:
        return str(value)
