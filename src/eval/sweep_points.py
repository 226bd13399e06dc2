"""What the points of a sweep left behind, read back for comparison."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from src.eval.sweep_arms import Arm, failures, whole_arms

Row = dict[str, Any]
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
        """Columns that say which place an image has: factors, then seed."""
        return [*self.metrics["compared"]["factors"], "seed"]

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
    metrics = json.loads((path / "metrics.json").read_text())
    if "compared" not in metrics:
        raise ValueError(f"the protocol {metrics.get('protocol')} says nothing about single images to compare")
    wanted = metrics["compared"]["rows"].items()
    rows = pq.read_table(path / "per_image.parquet").to_pylist()
    rows = [row for row in rows if all(row[key] == value for key, value in wanted)]
    return Point(path, label, metrics, rows)


def _places(point: Point) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in point.keys) for row in point.rows]
