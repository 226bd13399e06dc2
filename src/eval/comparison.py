"""The points of a sweep side by side: paired differences from the first, in numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data.pictures import save_png_atomic
from src.data.whole_file import write_text
from src.eval.comparison_figure import comparison_figure
from src.eval.comparison_page import comparison_page
from src.eval.paired import Comparison, adjust, compare, paired_statistic
from src.eval.profile import same_profile_or_raise
from src.eval.results import Table, provenance
from src.eval.statistics import Interval, bootstrap_mean, bootstrap_statistic
from src.eval.sweep_points import Point, read_points

HARMONIC = "harmonic"
Published = Sequence[Mapping[str, float]]


def compare_points(
    sweep_dir: str | Path, title: str | None = None, published: Published | None = None, seed: int = 0
) -> None:
    """Compare the finished points of a sweep with its first one, image by image.

    Writes ``table.md``, ``figure.png``, ``report.html`` and ``comparison.json`` into ``sweep_dir``.

    Args:
        sweep_dir: Holds one folder per point, named by its number, with ``metrics.json`` and ``per_image.csv``.
        title: Of the page; the name of the sweep by default.
        published: By point, published means of its scores.
        seed: Of the bootstrap and the permutations.

    Raises:
        ValueError: If no point has finished, or points differ in profile or in what they drew.
    """
    folder = Path(sweep_dir)
    points, failures = read_points(folder)
    same_profile_or_raise([point.metrics for point in points])
    title = title or folder.parent.name
    means = {point.label: point_means(point, seed) for point in points}
    differences = point_differences(points, seed)
    harmonics = {point.label: harmonic_difference(point, points[0], seed) for point in points[1:] if _pair(point)}
    tables = [means_table(points, means), difference_table(points, differences, harmonics, published or [])]
    text, image = points[0].scores[0], points[0].scores[-1]
    figure = comparison_figure(list(means), list(means.values()), (text, image) if text != image else None)
    save_png_atomic(figure, folder / "figure.png")
    comparison_page(folder, title, points, tables, figure, failures).write(folder / "report.html")
    failed = "".join(f"\nFailed: {label}: {sentence}\n" for label, sentence in failures.items())
    write_text(folder / "table.md", f"## {title}\n\n" + "\n".join(table.markdown() for table in tables) + failed)
    record = {
        "title": title,
        "profile": points[0].metrics["profile"],
        "baseline": points[0].label,
        "means": {label: {score: found.as_dict() for score, found in by.items()} for label, by in means.items()},
        "differences": {name: found.as_dict() for name, found in differences.items()},
        "harmonic_differences": {label: found.as_dict() for label, found in harmonics.items()},
        "failed": failures,
        **provenance(),
    }
    # Last: where comparison.json is, everything is.
    write_text(folder / "comparison.json", json.dumps(record, indent=2) + "\n")


def point_means(point: Point, seed: int) -> dict[str, Interval]:
    """Mean and interval of every score; of the harmonic mean of two of them, where the protocol names two."""
    means = {score: bootstrap_mean(point.values(score), point.groups, seed) for score in point.scores}
    if pair := _pair(point):
        columns = {score: point.values(score) for score in pair}
        means[HARMONIC] = bootstrap_statistic(columns, _harmonic_of_means, point.groups, seed)
    return means


def point_differences(points: Sequence[Point], seed: int) -> dict[str, Comparison]:
    """``<label> <score>`` to the comparison with the first point; p-values adjusted over all of them together."""
    first = points[0]
    return adjust(
        {
            f"{point.label} {score}": compare(point.values(score), first.values(score), first.groups, seed)
            for point in points[1:]
            for score in first.scores
        }
    )


def harmonic_difference(point: Point, first: Point, seed: int) -> Interval:
    """Of the harmonic of the two means, inside each replicate."""
    ours, baseline = ({score: of.values(score) for score in _pair(first)} for of in (point, first))
    return paired_statistic(ours, baseline, _harmonic_of_means, first.groups, seed)


def means_table(points: Sequence[Point], means: Mapping[str, Mapping[str, Interval]]) -> Table:
    """One line per point."""
    scores = list(means[points[0].label])
    rows = [[label, *(str(by[score]) for score in scores)] for label, by in means.items()]
    title = f"Means [95% interval], {len(points[0].rows)} images each, profile {points[0].metrics['profile']}"
    return Table(title, ["", *scores], rows)


def difference_table(
    points: Sequence[Point],
    differences: Mapping[str, Comparison],
    harmonics: Mapping[str, Interval],
    published: Published,
) -> Table:
    """One line per point and score: the difference from the first point, and whether the published sign shows."""
    columns = ["", "score", "difference [95%]", "p (Holm)", "effect size", "won", "published", "its sign"]
    rows = []
    for number, point in enumerate(points[1:], start=1):
        for score in point.scores:
            found = differences[f"{point.label} {score}"]
            tested = [f"{found.adjusted_p:.4f}", f"{found.effect_size:+.2f}", f"{found.wins.won} of {found.wins.num}"]
            sign = _published_sign(found.interval, score, number, published)
            rows.append([point.label, score, str(found.interval), *tested, *sign])
        if point.label in harmonics:
            sign = _published_sign(harmonics[point.label], HARMONIC, number, published)
            rows.append([point.label, HARMONIC, str(harmonics[point.label]), "", "", "", *sign])
    return Table(f"Differences from {points[0].label}, same prompts and seeds", columns, rows)


def _published_sign(found: Interval, score: str, number: int, published: Published) -> list[str]:
    """The published difference and what the interval says of its sign; nothing where nothing is published."""
    if len(published) <= number or score not in published[number] or score not in published[0]:
        return ["", ""]
    theirs = published[number][score] - published[0][score]
    if found.low <= 0 <= found.high:
        return [f"{theirs:+.3f}", "undecided"]
    return [f"{theirs:+.3f}", "shown" if (found.mean > 0) == (theirs > 0) else "opposite"]


def _pair(point: Point) -> list[str]:
    """The text and the image score of which the protocol wants the harmonic mean; empty if it names none."""
    return point.metrics["compared"].get(HARMONIC, [])


def _harmonic_of_means(means: Mapping[str, np.ndarray]) -> Any:
    first, second = means.values()
    return 2 * first * second / (first + second)
