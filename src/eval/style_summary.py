"""From scores per image to intervals and tables: the control without the reference, the style, and the change."""

from collections.abc import Mapping, Sequence
from typing import Any

from src.eval.harmonics import harmonic_of_means, harmonics_per_image
from src.eval.paired import paired_difference, paired_statistic
from src.eval.results import Table
from src.eval.statistics import bootstrap_mean, bootstrap_statistic
from src.eval.style_scores import GUARDS, PAIRED, SCORES

ARMS = ("control", "style")
FACTORS = ("prompt", "style")
HARMONICS = ("harmonic", "mean_of_harmonics")

Row = dict[str, Any]
"""One image: style, arm, prompt, seed and its scores; an empty text where a score does not apply."""


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Intervals per arm and score, and the change from control to style, image by image.

    Images are clustered by prompt and by style, both crossed. ``harmonic`` is that of the two means, inside each
    replicate; ``mean_of_harmonics`` takes it image by image.
    """
    control, style = ([row for row in rows if row["arm"] == arm] for arm in ARMS)
    groups, ours, theirs = _groups(style), _pair(style), _pair(control)
    change: dict[str, Any] = {score: paired_difference(ours[score], theirs[score], groups, seed) for score in SCORES}
    change["harmonic"] = paired_statistic(ours, theirs, harmonic_of_means, groups, seed)
    ours_each, theirs_each = (harmonics_per_image(*pair.values()) for pair in (ours, theirs))
    change["mean_of_harmonics"] = paired_difference(ours_each, theirs_each, groups, seed)
    return {"control": _intervals(control, seed), "style": _intervals(style, seed), "change": change}


def overall_table(summary: Mapping[str, Any], profile: str, num_styles: int) -> Table:
    """The scores that papers report, over all styles."""
    columns = (*SCORES, *HARMONICS)
    rows = [[arm, *(str(summary[arm][score]) for score in columns)] for arm in (*ARMS, "change")]
    return Table(f"{num_styles} styles, mean [95% interval], profile {profile}", ["", *columns], rows)


def guards_table(summary: Mapping[str, Any], profile: str) -> Table:
    """What a high S_img may be bought with."""
    columns = [guard for guard in (*PAIRED, *GUARDS) if guard in summary["style"]]
    rows = [[arm, *(str(summary[arm].get(guard, "")) for guard in columns)] for arm in ARMS]
    return Table(f"Leakage, copies, diversity, profile {profile}", ["", *columns], rows)


def style_table(each: Mapping[str, Mapping[str, Any]], profile: str) -> Table:
    """One line per style."""
    guards = ("leakage", "copied")
    columns = ["style", *(f"{score} {arm}" for score in SCORES for arm in ARMS), "harmonic", *guards]
    rows = [
        [
            name,
            *(f"{summary[arm][score].mean:.3f}" for score in SCORES for arm in ARMS),
            str(summary["style"]["harmonic"]),
            *(str(summary["style"].get(guard, "")) for guard in guards),
        ]
        for name, summary in each.items()
    ]
    return Table(f"Each style, profile {profile}", columns, rows)


def _intervals(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for score in (*SCORES, *PAIRED, *GUARDS):
        # A style that is words alone has no score against an image.
        scored = [row for row in rows if row[score] != ""]
        if scored:
            found[score] = bootstrap_mean([row[score] for row in scored], _groups(scored), seed)
    pair, groups = _pair(rows), _groups(rows)
    found["harmonic"] = bootstrap_statistic(pair, harmonic_of_means, groups, seed)
    found["mean_of_harmonics"] = bootstrap_mean(harmonics_per_image(*pair.values()), groups, seed)
    return found


def _pair(rows: Sequence[Row]) -> dict[str, list[float]]:
    return {score: [row[score] for row in rows] for score in SCORES}


def _groups(rows: Sequence[Row]) -> list[list[Any]]:
    return [[row[factor] for row in rows] for factor in FACTORS]
