"""What a results file holds: means and differences with their intervals, and the rows from which they come."""

import csv
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from src.eval.scores.harmonics import harmonic_of_means
from src.eval.statistics.bootstrap import Interval, bootstrap_mean, bootstrap_statistic
from src.eval.statistics.paired import paired_difference, paired_statistic
from src.eval.sweeps.comparison import HARMONIC

SHARES_OF, MEASURED = "concept", "measured"
"""Of whom a suite's shares are (the gap closed); the one arm of a file of measures such as ``world_quality``."""


class Study:
    """``NAME.json``, a ``comparison.json`` or a ``metrics.json``, with its rows beside it in ``NAME.csv``.

    Args:
        path: The JSON file.
        kind: Of a comparison whose images are of several kinds (``compared.by``), the one that counts; None for all.

    Raises:
        ValueError: If there is no such file.
    """

    def __init__(self, path: Path, kind: str | None = None) -> None:
        if not path.exists():
            raise ValueError(f"{path} is missing; a sweep leaves it as comparison.json, an evaluation as metrics.json")
        self.path, self.kind = path, kind
        self.record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.means = _means(self.record)

    @property
    def baseline(self) -> str:
        """The arm that others are held against; the control, where it is no sweep."""
        return self.record.get("baseline", "control")

    @property
    def scores(self) -> list[str]:
        """What is compared."""
        return list(self.means[self.baseline])

    def mean(self, arm: str, score: str) -> Interval | None:
        """None where the arm has no such score.

        Raises:
            ValueError: If there is no such arm.
        """
        if arm not in self.means:
            raise ValueError(f"{self.path} has no arm {arm!r}; it has {', '.join(self.means)}")
        return self.means[arm].get(score) if self.kind is None else self.from_rows(arm, score)

    def difference(self, arm: str, against: str, score: str) -> Interval:
        """Of two arms on the same places: as the file has it, or from its rows.

        Raises:
            ValueError: If neither has it.
        """
        if against == self.baseline and self.kind is None:
            if (found := self.record.get("differences", {}).get(f"{arm} {score}")) is not None:
                return _interval(found["interval"])
            if score == HARMONIC and arm in self.record.get("harmonic_differences", {}):
                return _interval(self.record["harmonic_differences"][arm])
        return self.from_rows(arm, score, against)

    def published(self, arm: str, score: str, against: str) -> float | None:
        """The published difference of two arms, None where nothing is published of one of them."""
        known = {self.baseline: {score: 0.0}, **self.record.get("published", {})}
        ours, theirs = (known.get(one, {}).get(score) for one in (arm, against))
        return None if ours is None or theirs is None else round(ours - theirs, 6)

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """One per arm and image."""
        path = self.path.with_suffix(".csv")
        if not path.exists():
            raise ValueError(f"{path} is missing, and {self.path.name} alone does not hold this difference")
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        return [row for row in found if self.kind in (None, row.get(self.record["compared"].get("by", "")))]

    def from_rows(self, arm: str, score: str, against: str | None = None, other: "Study | None" = None) -> Interval:
        """A mean, or a difference from another arm, computed anew.

        Args:
            arm: Whose score it is.
            score: The score.
            against: The arm from which it differs; None for the mean.
            other: The same file with the kind of image of ``against``, where that is another; both kinds have the same
                places then, such as one concept and five in the same prompts.

        Raises:
            ValueError: If there are no such rows, or they have other places.
        """
        compared, seed = self.record["compared"], self.record.get("seed", 0)
        factors = compared["factors"]
        scores = compared["harmonic"] if score == HARMONIC else [score]
        places = self._places(arm)
        groups = [[row[factor] for row in places.values()] for factor in factors]
        ours = {name: [float(row[name]) for row in places.values()] for name in scores}
        if against is None:
            if score == HARMONIC:
                return bootstrap_statistic(ours, harmonic_of_means, groups, seed)
            return bootstrap_mean(ours[score], groups, seed)
        others = (other or self)._places(against)
        if set(others) != set(places):
            raise ValueError(f"{arm} and {against} of {self.path} have other places and cannot be paired")
        theirs = {name: [float(others[place][name]) for place in places] for name in scores}
        if score == HARMONIC:
            return paired_statistic(ours, theirs, harmonic_of_means, groups, seed)
        return paired_difference(ours[score], theirs[score], groups, seed)

    def _places(self, arm: str) -> dict[tuple[str, ...], dict[str, str]]:
        compared = self.record["compared"]
        kind = [compared["by"]] if self.kind is None and "by" in compared else []
        keys = (*kind, *compared["factors"], "seed")
        found = {tuple(row[key] for key in keys): row for row in self.rows if row["arm"] == arm}
        if not found:
            raise ValueError(f"no row of {self.path.with_suffix('.csv')} is of the arm {arm!r}")
        return found


def _means(record: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    """By arm and score, whatever wrote the file."""
    if "means" in record:
        return {arm: _intervals(scores) for arm, scores in record["means"].items()}
    if "overall" not in record:
        ends = {name: record.get(f"{name}_interval") for name in record}
        return {MEASURED: {name: Interval(record[name], *at) for name, at in ends.items() if at}}
    overall = record["overall"]
    means = {arm: _intervals(scores) for arm, scores in overall.items() if "mean" not in scores}
    means.setdefault(SHARES_OF, {}).update(_intervals(overall))
    return means


def _intervals(scores: Mapping[str, Any]) -> dict[str, Interval]:
    """Those that are intervals; a number alone is one without ends."""
    numbers = {name: Interval(found, math.nan, math.nan) for name, found in scores.items() if isinstance(found, float)}
    return numbers | {name: _interval(found) for name, found in scores.items() if _is_interval(found)}


def _is_interval(found: Any) -> bool:
    return isinstance(found, dict) and {"mean", "low", "high"} <= set(found) and found["mean"] is not None


def _interval(found: Mapping[str, float]) -> Interval:
    return Interval(found["mean"], found["low"], found["high"])
