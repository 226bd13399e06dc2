"""The points of a sweep side by side: paired differences from the first, in numbers."""

import json
from collections.abc import Sequence
from pathlib import Path

from src.data.pictures import save_png_atomic
from src.data.whole_file import write_text
from src.eval.comparison_figure import comparison_figure
from src.eval.comparison_page import comparison_page
from src.eval.comparison_tables import (
    HARMONIC,
    Published,
    difference_table,
    harmonics_table,
    means_table,
    parts_tables,
)
from src.eval.harmonics import harmonic_of_means
from src.eval.paired import Comparison, adjust, compare, paired_statistic
from src.eval.profile import same_profile_or_raise
from src.eval.results import provenance
from src.eval.statistics import Interval, bootstrap_mean, bootstrap_statistic
from src.eval.sweep_points import Point, read_points


def compare_points(
    sweep_dir: str | Path,
    title: str | None = None,
    published: Published | None = None,
    seed: int = 0,
    since: int = 0,
) -> None:
    """Compare the finished points of a sweep with its first one, image by image.

    Points that differ in their training seed alone are one arm, paired with the others seed by seed.

    Writes ``table.md``, ``figure.png``, ``report.html`` and ``comparison.json`` into ``sweep_dir``.

    Args:
        sweep_dir: Holds one folder per point, named by its number, with ``metrics.json`` and ``per_image.csv``.
        title: Of the page; the name of the sweep by default.
        published: By point, published means of its scores.
        seed: Of the bootstrap and the permutations.
        since: When the sweep was started, as of ``finished``.

    Raises:
        ValueError: If no point has finished, or points differ in profile or in what they drew.
    """
    folder = Path(sweep_dir)
    points, failures = read_points(folder, since)
    same_profile_or_raise([point.metrics for point in points])
    title = title or folder.parent.name
    means = {point.label: point_means(point, seed) for point in points}
    differences = point_differences(points, seed)
    harmonics = {point.label: harmonic_difference(point, points[0], seed) for point in points[1:] if point.pair}
    tables = [means_table(points, means), difference_table(points, differences, harmonics, published or [])]
    tables += parts_tables(points, seed)
    if points[0].pair:
        tables.append(harmonics_table(points, means, seed))
    figure = comparison_figure(list(means), list(means.values()), points[0].frontiers)
    save_png_atomic(figure, folder / "figure.png")
    comparison_page(folder, title, points, tables, figure, failures).write(folder / "report.html")
    failed = "".join(f"\nFailed: {label}: {sentence}\n" for label, sentence in failures.items())
    write_text(folder / "table.md", f"## {title}\n\n" + "\n".join(table.markdown() for table in tables) + failed)
    record = {
        "title": title,
        "profile": points[0].metrics["profile"],
        "baseline": points[0].label,
        "training_seeds": points[0].training_seeds,
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
    if point.pair:
        columns = {score: point.values(score) for score in point.pair}
        means[HARMONIC] = bootstrap_statistic(columns, harmonic_of_means, point.groups, seed)
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
    ours, baseline = ({score: of.values(score) for score in first.pair} for of in (point, first))
    return paired_statistic(ours, baseline, harmonic_of_means, first.groups, seed)
