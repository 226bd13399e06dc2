"""How rows of ``protocol=concept`` are put together: intervals of each arm, the gap that is closed, and tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from src.eval.results.results import Row, Table
from src.eval.statistics.bootstrap import bootstrap_mean, bootstrap_ratio

ARMS = ("control", "concept", "ceiling")
RENDERS = "renders"
ANSWERED = "answered"
"""Share of what a vision-language model was asked that it would answer by a number."""
RIGHT, ALL = "right_", "right_all"
"""Before the names of what a judge reads; all of it."""


def summarise(rows: Sequence[Row], seed: int, scores: Sequence[str]) -> dict[str, Any]:
    """Intervals per arm and score, the share of the DINO gap closed and the relative change of CLIP-T.

    Images are clustered by prompt and, where there are several, by concept, both crossed; references by concept. In the
    gap the ceiling is taken as known; without a ceiling there is no gap.

    Args:
        rows: The images of any number of concepts, and their references.
        seed: Seeds the bootstrap.
        scores: Columns; an empty cell is left out.
    """
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in (*ARMS, RENDERS)}
    result: dict[str, Any] = {}
    for arm, members in by_arm.items():
        factors = ("concept",) if arm == "ceiling" else ("prompt", "concept")
        for score in scores:
            scored = [row for row in members if row[score] != ""]
            groups = [[row[factor] for row in scored] for factor in factors]
            if scored:
                result.setdefault(arm, {})[score] = bootstrap_mean([row[score] for row in scored], groups, seed)
    control, concept = by_arm["control"], by_arm["concept"]
    groups = [[row[factor] for row in concept] for factor in ("prompt", "concept")]
    if by_arm["ceiling"]:
        names = dict.fromkeys(row["concept"] for row in concept)
        ceilings = {name: _mean(row["dino"] for row in by_arm["ceiling"] if row["concept"] == name) for name in names}
        gained = [ours["dino"] - theirs["dino"] for ours, theirs in zip(concept, control, strict=True)]
        gap = [ceilings[row["concept"]] - row["dino"] for row in control]
        result["dino_gap_closed"] = bootstrap_ratio(gained, gap, groups, seed)
    change = [ours["clip_t"] - theirs["clip_t"] for ours, theirs in zip(concept, control, strict=True)]
    result["clip_t_change"] = bootstrap_ratio(change, [row["clip_t"] for row in control], groups, seed)
    return result


def overall_table(summary: Mapping[str, Any], profile: str, number: int, columns: Sequence[str]) -> Table:
    """Control, concept and, where there are, ceiling and renders over all concepts."""
    rows = arm_rows(summary, columns)
    shares = {"DINO gap closed": ("dino", "dino_gap_closed"), "CLIP-T change": ("clip_t", "clip_t_change")}
    for label, (at, key) in shares.items():
        if key in summary:
            rows.append([label, *(str(summary[key]) if score == at else "" for score in columns)])
    title = f"{number} concept{'s' if number > 1 else ''}, mean [95% interval], profile {profile}"
    return Table(title, ["", *columns], rows)


def arm_rows(summary: Mapping[str, Any], columns: Sequence[str]) -> list[list[str]]:
    """A line per arm: its name, and its interval of each score."""
    arms = [arm for arm in (*ARMS, RENDERS) if arm in summary]
    return [[arm, *(str(summary[arm].get(score, "")) for score in columns)] for arm in arms]


def look_table(summary: Mapping[str, Any], profile: str) -> Table:
    """Attributes that the judge reads as those of the subject: control, concept, references and renders."""
    columns = [score for score in summary["concept"] if score.startswith(RIGHT)]
    title = f"Share of images whose attributes are read as the subject's, [95% interval], profile {profile}"
    names = [score.removeprefix(RIGHT).replace("_", " ") for score in columns]
    return Table(title, ["", *names], arm_rows(summary, columns))


def rating_table(each: Mapping[str, Mapping[str, Any]], columns: Sequence[str], profile: str) -> Table:
    """What a vision-language model says of control and concept: a line per category and arm, and those of all.

    Args:
        each: Summaries by category, and that of all.
        columns: The ratings, and the share of answers that are a number.
        profile: The profile's name.
    """
    rows = [[name, *line] for name, summary in each.items() for line in arm_rows(summary, columns) if any(line[1:])]
    missing = 1 - min(each["all"][arm][ANSWERED].mean for arm in ARMS[:2])
    said = f"; {missing:.1%} of its answers would not have been a number" if missing else ""
    title = f"Ratings from 0 to 4 by the vision-language model, mean [95% interval], profile {profile}{said}"
    return Table(title, ["", "", *(name.replace("_", " ") for name in columns)], rows)


def each_table(what: str, each: Mapping[str, Mapping[str, Any]], profile: str) -> Table:
    """One line per concept, or per category of concepts."""
    arms = [arm for arm in ARMS if all(arm in summary for summary in each.values())]
    closed = ["gap closed"] if "ceiling" in arms else []
    columns = [what, *(f"dino {arm}" for arm in arms), *closed, "clip_t control", "clip_t concept"]
    rows = [
        [
            name,
            *(f"{summary[arm]['dino'].mean:.3f}" for arm in arms),
            *(str(summary["dino_gap_closed"]) for _ in closed),
            *(f"{summary[arm]['clip_t'].mean:.3f}" for arm in ARMS[:2]),
        ]
        for name, summary in each.items()
    ]
    return Table(f"Each {what}, profile {profile}", columns, rows)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
