"""The points of a sweep: which have finished, what they left, and which differ in their training seed alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from src.data.schema import read_json
from src.eval.results.results import Row, read_rows

Arm = dict[int, Path]
"""The folder of the point of each training seed; 0 where none is set."""
OVERRIDES = Path(".hydra") / "overrides.yaml"


def finished(folder: Path, since: int = 0) -> list[Path]:
    """Folders of the points that have finished, in their order.

    Args:
        folder: Holds one folder per point, named by its number.
        since: When the sweep was started, in nanoseconds since the epoch. What a point left before belongs to an
            earlier start, which may have had other encoders, banks or points.
    """
    return [job for job in _jobs(folder, since) if _written_since(job / "metrics.json", since)]


def whole_arms(folder: Path, since: int = 0) -> dict[str, Arm]:
    """By label, the points that can be compared; arguments as of ``finished``.

    A label says what a point sets and not all points set, but for the training seed. An arm is whole when the points of
    all training seeds have finished: the mean over other seeds than its neighbours' could not be paired with theirs.
    """
    arms, done = _arms(folder, since), set(finished(folder, since))
    seeds = _training_seeds(arms)
    return {label: arm for label, arm in arms.items() if set(arm) == seeds and done.issuperset(arm.values())}


def failures(folder: Path, since: int = 0) -> dict[str, str]:
    """By label, what became of each arm that is not whole; arguments as of ``finished``."""
    arms, done = _arms(folder, since), set(finished(folder, since))
    seeds = sorted(_training_seeds(arms))
    found = {}
    for label, arm in arms.items():
        told = {seed: _failure(arm.get(seed)) for seed in seeds if arm.get(seed) not in done}
        if told:
            each = [f"training seed {seed}: {sentence}" for seed, sentence in told.items()]
            found[label] = "; ".join(each if len(seeds) > 1 else told.values())
    return found


def _jobs(folder: Path, since: int) -> list[Path]:
    """Points that this start of the sweep has begun; Hydra writes the overrides of each before it runs."""
    numbered = sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    return [path for path in numbered if _written_since(path / OVERRIDES, since)]


def _written_since(path: Path, since: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns >= since


def _failure(job: Path | None) -> str:
    error = job / "error.txt" if job else None
    return error.read_text(encoding="utf-8").strip() if error and error.exists() else "has not finished"


def _arms(folder: Path, since: int) -> dict[str, Arm]:
    arms: dict[tuple[str, ...], Arm] = {}
    for job in _jobs(folder, since):
        told = [one.lstrip("+") for one in yaml.safe_load((job / OVERRIDES).read_text(encoding="utf-8"))]
        # The last one counts, for Hydra too.
        seeds = [int(one.partition("=")[2]) for one in told if one.startswith("training.seed=")]
        settings = tuple(one for one in told if not one.startswith(("sweep=", "training.seed=")))
        arms.setdefault(settings, {})[seeds[-1] if seeds else 0] = job
    common = set.intersection(*map(set, arms)) if len(arms) > 1 else set()
    return {
        ", ".join(one for one in settings if one not in common) or next(iter(arm.values())).name: arm
        for settings, arm in arms.items()
    }


def _training_seeds(arms: Mapping[str, Arm]) -> set[int]:
    return {seed for arm in arms.values() for seed in arm}


TRAINING_SEED = "training_seed"


@dataclass(frozen=True)
class Point:
    """One finished point, or several that differ in their training seed alone.

    Attributes:
        folder: Where it left its results; of several, the first one.
        label: What it sets that other points set otherwise.
        metrics: Content of its ``metrics.json``; ``compared`` says which rows, factors and scores are compared.
        rows: The images that are compared; of several points with the column and factor ``training_seed``.
    """

    folder: Path
    label: str
    metrics: dict[str, Any]
    rows: list[Row]

    @property
    def number(self) -> int:
        """Its place in the sweep; of several points, whose seeds vary fastest, the place among such."""
        return int(self.folder.name) // max(len(self.training_seeds), 1)

    @property
    def scores(self) -> list[str]:
        """Names of the scores that are compared."""
        return self.metrics["compared"]["scores"]

    @property
    def pair(self) -> list[str]:
        """The text and the image score of which the protocol wants the harmonic mean; empty if it names none."""
        return self.metrics["compared"].get("harmonic", [])

    @property
    def frontiers(self) -> list[tuple[str, str]]:
        """Pairs of scores that are plotted against each other: those that the protocol names, or first and last."""
        ends = [(self.scores[0], self.scores[-1])] if len(self.scores) > 1 else []
        return [(across, up) for across, up in self.metrics["compared"].get("frontiers", ends)]

    @property
    def keys(self) -> list[str]:
        """Columns that say which place an image has: its kind, where there are kinds, then factors, then seed."""
        compared = self.metrics["compared"]
        return [*([compared["by"]] if "by" in compared else []), *compared["factors"], "seed"]

    @property
    def groups(self) -> list[list[Any]]:
        """Labels of every image, factor by factor."""
        return [[row[factor] for row in self.rows] for factor in self.metrics["compared"]["factors"]]

    @property
    def training_seeds(self) -> list[int]:
        """Of its points; empty for one point."""
        return sorted({row[TRAINING_SEED] for row in self.rows if TRAINING_SEED in row})

    def parts(self) -> dict[str, "Point"]:
        """The images of each kind alone, where the protocol names a column that tells kinds apart."""
        column = self.metrics["compared"].get("by")
        kinds = dict.fromkeys(row[column] for row in self.rows) if column else {}
        return {kind: replace(self, rows=[row for row in self.rows if row[column] == kind]) for kind in kinds}

    def values(self, score: str) -> list[float]:
        """One score of every image."""
        return [row[score] for row in self.rows]


def read_points(folder: Path, since: int = 0) -> tuple[list[Point], dict[str, str]]:
    """Finished points in their order, and by label what became of each other one; arguments as of ``finished``.

    Raises:
        ValueError: If no point has finished, or two of them drew other prompts or seeds.
    """
    points = [_pooled(arm, label) for label, arm in whole_arms(folder, since).items()]
    if not points:
        raise ValueError(f"no point of the sweep in {folder} has finished; the files error.txt there say why")
    for point in points[1:]:
        if _places(point) != _places(points[0]):
            raise ValueError(f"{point.label} and {points[0].label} drew other prompts or seeds and cannot be paired")
    return points, failures(folder, since)


def _pooled(arm: Arm, label: str) -> Point:
    """The points of an arm as one."""
    points = {seed: _read(folder, label) for seed, folder in sorted(arm.items())}
    first = next(iter(points.values()))
    if len(points) == 1:
        return first
    rows = [{TRAINING_SEED: seed, **row} for seed, point in points.items() for row in point.rows]
    compared = first.metrics["compared"]
    metrics = first.metrics | {"compared": compared | {"factors": [*compared["factors"], TRAINING_SEED]}}
    return Point(first.folder, label, metrics, rows)


def _read(path: Path, label: str) -> Point:
    metrics = _metrics(path)
    wanted = metrics["compared"]["rows"].items()
    rows = read_rows(path / "per_image")
    rows = [row for row in rows if all(row[key] == value for key, value in wanted)]
    return Point(path, label, metrics, rows)


def _metrics(path: Path) -> dict[str, Any]:
    metrics = read_json(path / "metrics.json", "the scores of a point")
    if not isinstance(metrics, dict) or not isinstance(metrics.get("compared"), dict):
        raise ValueError(f"{path / 'metrics.json'} says nothing about single images to compare")
    return metrics


def read_arms(path: Path) -> list[Point]:
    """Every arm of one evaluation, that which sweeps compare first; its control, and what else it scored, after that.

    Args:
        path: The folder of the evaluation, or of one point of a sweep.

    Raises:
        ValueError: If it has not finished, or scored no single images.
    """
    metrics, arms = _metrics(path), dict[str, list[Row]]()
    for row in read_rows(path / "per_image"):
        arms.setdefault(str(row.get("arm", "drawn")), []).append(row)
    wanted = metrics["compared"]["rows"].get("arm")
    ordered = sorted(arms, key=lambda arm: arm != wanted)
    return [Point(path, arm, metrics, arms[arm]) for arm in ordered]


def _places(point: Point) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in point.keys) for row in point.rows]
