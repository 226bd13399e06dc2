"""The points of a sweep side by side: paired differences from the first, in numbers and in text."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from src.data.files import save_png, write_text
from src.eval.profile import same_profile_or_raise
from src.eval.results.results import Row, Table, provenance, write_rows
from src.eval.scores.harmonics import harmonic_of_means, harmonics_per_image, min_max_harmonic, z_scored_harmonic
from src.eval.statistics.bootstrap import Interval, bootstrap_mean, bootstrap_statistic
from src.eval.statistics.paired import Comparison, adjust, compare, paired_difference, paired_statistic
from src.eval.statistics.verdict import verdict
from src.eval.sweeps.page import comparison_figure, comparison_page, curves_figure
from src.eval.sweeps.points import Point, read_points

HARMONIC = "harmonic"
Published = Sequence[Mapping[str, float]]


def means_table(points: Sequence[Point], means: Mapping[str, Mapping[str, Interval]]) -> Table:
    """One line per point."""
    scores = list(means[points[0].label])
    rows = [[label, *(str(by[score]) for score in scores)] for label, by in means.items()]
    number = f"{len(points[0].rows)} images{_of_trainings(points[0])} each"
    title = f"Means [95% interval], {number}, profile {points[0].metrics['profile']}"
    return Table(title, ["", *scores], rows)


def difference_table(
    points: Sequence[Point],
    differences: Mapping[str, Comparison],
    harmonics: Mapping[str, Interval],
    published: Published,
) -> Table:
    """One line per point and score: the difference from the first point, and whether the published sign shows."""
    columns = ["", "score", "difference [95%]", "p (Holm)", "effect size", "won", "published", "its sign"]
    rows, num_seeds = [], len(points[0].training_seeds)
    theirs = published_differences(points, published)
    for point in points[1:]:
        for score in point.scores:
            found = differences[f"{point.label} {score}"]
            size = f"{found.effect_size:+.2f}" if math.isfinite(found.effect_size) else ""
            p = "" if _too_few(num_seeds) else f"{found.adjusted_p:.4f}"
            tested = [p, size, f"{found.wins.won} of {found.wins.num}"]
            sign = _published_sign(found.interval, theirs[point.label].get(score))
            rows.append([point.label, score, str(found.interval), *tested, *sign])
        if point.label in harmonics:
            sign = _published_sign(harmonics[point.label], theirs[point.label].get(HARMONIC))
            rows.append([point.label, HARMONIC, str(harmonics[point.label]), "", "", "", *sign])
    why = f"; {num_seeds} training seeds are too few for a test" if _too_few(num_seeds) else ""
    return Table(f"Differences from {points[0].label}, same prompts and seeds{why}", columns, rows)


def pairs_table(points: Sequence[Point], published: Published, seed: int) -> Table:
    """Any point against any other but the first: one line per pair, with what is published of it and its sign."""
    scores = [*points[0].scores, *([HARMONIC] if points[0].pair else [])]
    rows = []
    for ours, other in [(ours, other) for at, ours in enumerate(points) for other in points[1:at]]:
        theirs = published_differences([other, ours], published)[ours.label]
        cells = [_difference(ours, other, score, theirs.get(score), seed) for score in scores]
        rows.append([f"{ours.label}, less {other.label}", *cells])
    return Table("Differences of the other pairs [95% interval]; published, its sign", ["", *scores], rows)


def _difference(ours: Point, other: Point, score: str, theirs: float | None, seed: int) -> str:
    if score == HARMONIC:
        found = harmonic_difference(ours, other, seed)
    else:
        found = paired_difference(ours.values(score), other.values(score), ours.groups, seed)
    return "; ".join([str(found), *([] if theirs is None else [", ".join(_published_sign(found, theirs))])])


def curves(points: Sequence[Point], seed: int) -> Image.Image | None:
    """Means of each point against the kind of image, where kinds are numbers, such as of concepts; else None."""
    parts = {point.label: point.parts() for point in points}
    kinds = list(parts[points[0].label])
    if len(kinds) < 2 or not all(kind.isdecimal() for kind in kinds):
        return None
    means = {
        label: {
            score: [bootstrap_mean(of[kind].values(score), of[kind].groups, seed) for kind in kinds]
            for score in points[0].scores
        }
        for label, of in parts.items()
    }
    return curves_figure(points[0].metrics["compared"]["by"], [int(kind) for kind in kinds], means)


def parts_tables(points: Sequence[Point], seed: int) -> list[Table]:
    """Means and differences from the first point, kind of image by kind; none where there are no kinds."""
    scores, parts = points[0].scores, {point.label: point.parts() for point in points}
    kinds, columns = list(parts[points[0].label]), ["", "", *scores]
    first = parts[points[0].label]

    def means(point: Point) -> list[str]:
        return [str(bootstrap_mean(point.values(score), point.groups, seed)) for score in scores]

    def differences(point: Point, baseline: Point) -> list[str]:
        found = [compare(point.values(score), baseline.values(score), point.groups, seed) for score in scores]
        return [str(one.interval) for one in found]

    each = [[kind, label, *means(of[kind])] for kind in kinds for label, of in parts.items()]
    others = [(kind, point.label) for kind in kinds for point in points[1:]]
    paired = [[kind, label, *differences(parts[label][kind], first[kind])] for kind, label in others]
    titled = {"Means of each kind [95% interval]": each, f"Differences from {points[0].label}, of each kind": paired}
    return [Table(title, columns, rows) for title, rows in titled.items() if rows]


def harmonics_table(points: Sequence[Point], means: Mapping[str, Mapping[str, Interval]], seed: int) -> Table:
    """Every way to put the two scores into one number, one line per point; the last two depend on all the points."""
    first, second = points[0].pair
    columns = ["", "of the means", "mean per image", "of min-max means (ours)", "of z-scored means (ours)"]
    arms = [torch.tensor([by[score].mean for by in means.values()]) for score in (first, second)]
    min_max, z_scored = (_across(variant, *arms) for variant in (min_max_harmonic, z_scored_harmonic))
    rows = []
    for index, point in enumerate(points):
        per_image = harmonics_per_image(point.values(first), point.values(second))
        interval = bootstrap_mean(per_image, point.groups, seed)
        rows.append([point.label, str(means[point.label][HARMONIC]), str(interval), min_max[index], z_scored[index]])
    return Table(f"Harmonics of {first} and {second}", columns, rows)


def _of_trainings(point: Point) -> str:
    return f" of {len(point.training_seeds)} trainings" if point.training_seeds else ""


def _too_few(num_seeds: int) -> bool:
    """Whether flipping the signs of whole trainings, in two to the power of their number ways, can find nothing."""
    return num_seeds > 1 and 2.0 ** (1 - num_seeds) > 0.05


def _across(variant: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> list[str]:
    """One cell per point; none where the points are equal in a score, as a lone point is with itself."""
    if any(len(set(scores.tolist())) < 2 for scores in (first, second)):
        return [""] * len(first)
    return [f"{value:.3f}" for value in variant(first, second).tolist()]


def _published_sign(found: Interval, theirs: float | None) -> list[str]:
    """The published difference and what the interval says of its sign; nothing where nothing is published."""
    return ["", ""] if theirs is None else [f"{theirs:+.3f}", verdict(found, theirs)]


def published_differences(points: Sequence[Point], published: Published) -> dict[str, dict[str, float]]:
    """Of each point but the first, by score: the published mean less that of the first point."""
    # By their places in the sweep: points between them may have failed.
    theirs = {point.label: published[point.number] if point.number < len(published) else {} for point in points}
    first = theirs.pop(points[0].label)
    # Published means have a few digits, and so have their differences.
    return {
        label: {score: round(mean - first[score], 6) for score, mean in means.items() if score in first}
        for label, means in theirs.items()
    }


def per_image(points: Sequence[Point]) -> list[Row]:
    """A row per point and image, enough to compute every interval again: the point, its place and its scores."""
    return [
        {
            "arm": point.label,
            **{key: row[key] for key in point.keys},
            **{score: _short(row[score]) for score in point.scores},
        }
        for point in points
        for row in point.rows
    ]


def _short(score: float) -> float:
    """Two digits more than any table prints: a table of all images stays small."""
    return round(score, 5)


def compare_points(
    sweep_dir: str | Path,
    title: str | None = None,
    published: Published | None = None,
    seed: int = 0,
    since: int = 0,
) -> dict[str, dict[str, Interval]]:
    """Compare the finished points of a sweep with its first one, image by image.

    Points that differ in their training seed alone are one arm, paired with the others seed by seed.

    Writes ``table.md``, ``figure.png``, ``curves.png`` where images are of numbered kinds, ``report.html``, and
    ``comparison.json`` with ``comparison.csv``, a row per image, into ``sweep_dir``.

    Args:
        sweep_dir: Holds one folder per point, named by its number, with ``metrics.json`` and ``per_image.csv``.
        title: The heading of the page; by default the sweep's name.
        published: By point, published means of its scores.
        seed: Seeds the bootstrap and the permutations.
        since: When the sweep was started, as of ``finished``.

    Returns:
        By arm, the mean of each score.

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
    if len(points) > 2:
        tables.append(pairs_table(points, published or [], seed))
    tables += parts_tables(points, seed)
    if points[0].pair:
        tables.append(harmonics_table(points, means, seed))
    figure = comparison_figure(list(means), list(means.values()), points[0].frontiers)
    save_png(figure, folder / "figure.png")
    if (drawn := curves(points, seed)) is not None:
        save_png(drawn, folder / "curves.png")
    comparison_page(folder, title, points, tables, figure, failures).write(folder / "report.html")
    failed = "".join(f"\nFailed: {label}: {sentence}\n" for label, sentence in failures.items())
    write_text(folder / "table.md", f"## {title}\n\n" + "\n".join(table.markdown() for table in tables) + failed)
    record = {
        "title": title,
        "profile": points[0].metrics["profile"],
        "baseline": points[0].label,
        "training_seeds": points[0].training_seeds,
        "compared": points[0].metrics["compared"],
        "seed": seed,
        "published": published_differences(points, published or []),
        "means": {label: {score: found.as_dict() for score, found in by.items()} for label, by in means.items()},
        "differences": {name: found.as_dict() for name, found in differences.items()},
        "harmonic_differences": {label: found.as_dict() for label, found in harmonics.items()},
        "failed": failures,
        **provenance(),
    }
    write_rows(per_image(points), folder / "comparison")
    # Last: where comparison.json is, everything is.
    write_text(folder / "comparison.json", json.dumps(record, indent=2) + "\n")
    return means


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
