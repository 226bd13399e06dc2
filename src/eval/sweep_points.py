"""What the points of a sweep left behind, read back for comparison."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

Row = dict[str, Any]
OVERRIDES = Path(".hydra") / "overrides.yaml"


@dataclass(frozen=True)
class Point:
    """One finished point.

    Attributes:
        folder: Where it left its results.
        label: What it sets that other points set otherwise.
        metrics: Content of its ``metrics.json``; ``compared`` says which rows, factors and scores are compared.
        rows: The images that are compared.
    """

    folder: Path
    label: str
    metrics: dict[str, Any]
    rows: list[Row]

    @property
    def number(self) -> int:
        """Its place in the sweep."""
        return int(self.folder.name)

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

    def values(self, score: str) -> list[float]:
        """One score of every image."""
        return [row[score] for row in self.rows]


def finished(folder: Path, since: int = 0) -> list[Path]:
    """Folders of the points that have finished, in their order.

    Args:
        folder: Holds one folder per point, named by its number.
        since: When the sweep was started, in nanoseconds since the epoch. What a point left before belongs to an
            earlier start, which may have had other encoders, banks or points.
    """
    return [job for job in _jobs(folder, since) if _written_since(job / "metrics.json", since)]


def read_points(folder: Path, since: int = 0) -> tuple[list[Point], dict[str, str]]:
    """Finished points in their order, and by label what became of each other one; arguments as of ``finished``.

    Raises:
        ValueError: If no point has finished, or two of them drew other prompts or seeds.
    """
    jobs, done = _jobs(folder, since), finished(folder, since)
    labels = _labels({path: yaml.safe_load((path / OVERRIDES).read_text()) for path in jobs})
    failures = {labels[path]: _failure(path) for path in jobs if path not in done}
    points = [_read(path, labels[path]) for path in done]
    if not points:
        raise ValueError(f"no point of the sweep in {folder} has finished; the files error.txt there say why")
    for point in points[1:]:
        if _places(point) != _places(points[0]):
            raise ValueError(f"{point.label} and {points[0].label} drew other prompts or seeds and cannot be paired")
    return points, failures


def _jobs(folder: Path, since: int) -> list[Path]:
    """Points that this start of the sweep has begun; Hydra writes the overrides of each before it runs."""
    numbered = sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    return [path for path in numbered if _written_since(path / OVERRIDES, since)]


def _written_since(path: Path, since: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns >= since


def _failure(path: Path) -> str:
    return (path / "error.txt").read_text().strip() if (path / "error.txt").exists() else "has not finished"


def _labels(settings: Mapping[Path, list[str]]) -> dict[Path, str]:
    """What each point sets and not all of them set."""
    common = set.intersection(*map(set, settings.values())) if len(settings) > 1 else set()
    return {
        path: ", ".join(one.lstrip("+") for one in told if one not in common and "sweep=" not in one) or path.name
        for path, told in settings.items()
    }


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
