"""From scores per image to intervals and tables: control, concept, ceiling, and what lies between."""

from collections.abc import Iterable, Sequence
from typing import Any

from src.eval.results import Table
from src.eval.statistics import Interval, bootstrap_mean, bootstrap_ratio

ARMS = ("control", "concept", "ceiling")
SCORES = ("clip_t", "clip_i", "dino")
GUARDS = ("diversity", "copied")
"""What a high DINO may be bought with: samples of a prompt that are all alike, pictures that repeat a reference."""

Row = dict[str, Any]
"""One image: concept, arm, prompt, seed and its scores; an empty text where a score does not apply."""


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Intervals per arm and score, the share of the DINO gap closed and the relative change of CLIP-T.

    Images are clustered by prompt and, where there are several, by concept, both crossed; references by concept. In the
    gap the ceiling is taken as known.
    """
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    result: dict[str, Any] = {}
    for arm, members in by_arm.items():
        factors = ("concept",) if arm == "ceiling" else ("prompt", "concept")
        groups = [[row[factor] for row in members] for factor in factors]
        scores = [score for score in (*SCORES, *GUARDS) if members[0][score] != ""]
        result[arm] = {score: bootstrap_mean([row[score] for row in members], groups, seed) for score in scores}
    control, concept = by_arm["control"], by_arm["concept"]
    groups = [[row[factor] for row in concept] for factor in ("prompt", "concept")]
    ceilings = {name: _mean(row["dino"] for row in by_arm["ceiling"] if row["concept"] == name) for name in groups[1]}
    gained = [ours["dino"] - theirs["dino"] for ours, theirs in zip(concept, control, strict=True)]
    gap = [ceilings[row["concept"]] - row["dino"] for row in control]
    result["dino_gap_closed"] = bootstrap_ratio(gained, gap, groups, seed)
    change = [ours["clip_t"] - theirs["clip_t"] for ours, theirs in zip(concept, control, strict=True)]
    result["clip_t_change"] = bootstrap_ratio(change, [row["clip_t"] for row in control], groups, seed)
    return result


def as_json(summary: dict[str, Any]) -> dict[str, Any]:
    """Intervals as plain numbers, at any depth."""
    return {k: v.as_dict() if isinstance(v, Interval) else as_json(v) for k, v in summary.items()}


def overall_table(summary: dict[str, Any], profile: str, number: int) -> Table:
    """Control, concept and ceiling over all concepts."""
    rows = [[arm, *(str(summary[arm].get(score, "")) for score in (*SCORES, *GUARDS))] for arm in ARMS]
    rows.append(["DINO gap closed", "", "", str(summary["dino_gap_closed"]), "", ""])
    rows.append(["CLIP-T change", str(summary["clip_t_change"]), "", "", "", ""])
    title = f"{number} concept{'s' if number > 1 else ''}, mean [95% interval], profile {profile}"
    return Table(title, ["", *SCORES, *GUARDS], rows)


def concept_table(each: dict[str, dict[str, Any]], profile: str) -> Table:
    """One line per concept."""
    columns = ["concept", *(f"dino {arm}" for arm in ARMS), "gap closed", "clip_t control", "clip_t concept"]
    rows = [
        [
            name,
            *(f"{summary[arm]['dino'].mean:.3f}" for arm in ARMS),
            str(summary["dino_gap_closed"]),
            *(f"{summary[arm]['clip_t'].mean:.3f}" for arm in ARMS[:2]),
        ]
        for name, summary in each.items()
    ]
    return Table(f"Each concept, profile {profile}", columns, rows)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
