"""What a folder of runs holds to look at: trainings, drawn pictures, evaluations and sweeps, as series of pictures.

Each is read by what the rest of the program reads it with: grids of samples, notes in pictures, rows of results, and
points of sweeps.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from src.data.notes import read_note
from src.eval.grid import read_captions
from src.eval.sweeps.points import OVERRIDES, Point, read_arms, read_points

KINDS = ("train", "generate", "eval", "sweep")
"""First folders below the root, by what makes them."""
COVER = 4
"""Pictures that stand for a run."""
SAMPLES = "samples/step-*.png"
_STRENGTH = re.compile(r"(<[A-Za-z][\w-]*)\s*:[^<>]*>")
_CAPTION = re.compile(r"(.*) \| seed (\d+)", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """One picture of a series.

    Attributes:
        prompt: What was asked for.
        seed: Seed of its noise, as text.
        of: What else tells it from other pictures of the series: its concept, pair or style; empty without one.
        path: The file.
        index: Its place, where the file is a grid; None where it is the picture itself.
        scores: By name.
    """

    prompt: str
    seed: str
    of: str
    path: Path
    index: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str, str]:
        """What the same picture of another series has in common with it: how strongly a concept is meant may differ."""
        return self.of, _STRENGTH.sub(r"\1>", self.prompt), self.seed


@dataclass(frozen=True)
class Series:
    """Pictures that were drawn alike: a step of a training, an arm of an evaluation, a point of a sweep.

    Attributes:
        label: What it is called within its run.
        read: Reads the pictures, in their order.
        step: How far a training was; None for others.
    """

    label: str
    read: Callable[[], Iterator[Cell]]
    step: int | None = None

    @cached_property
    def cells(self) -> list[Cell]:
        """Its pictures, read once.

        Raises:
            ValueError: If what holds them is damaged.
        """
        return list(self.read())

    def first(self, number: int) -> list[Cell]:
        """The first of its pictures; the others are not read. Errors as of ``cells``."""
        return list(islice(self.read(), number))


@dataclass(frozen=True)
class Run:
    """One folder of a run.

    Attributes:
        path: The folder.
        kind: One of ``KINDS``.
        name: What it is called.
        date: When it was started, as its folder says; the hash of a sweep's command.
        made: When it was last written to, in seconds since the epoch.
        settings: What was typed to start it.
        series: Its pictures; of a training, step by step.
        trouble: Why there are no pictures; empty if there are some.
    """

    path: Path
    kind: str
    name: str
    date: str
    made: float
    settings: Sequence[str]
    series: Sequence[Series]
    trouble: str = ""

    @property
    def cover(self) -> list[Cell]:
        """A few pictures that show what it is: of its last step, its arm under test, or of point after point.

        Raises:
            ValueError: If what holds them is damaged.
        """
        if self.kind == "sweep":
            return [one.cells[0] for one in self.series[:COVER] if one.cells]
        if self.kind == "generate":
            return self.series[0].first(COVER) if self.series else []
        return self.series[-1 if self.kind == "train" else 0].cells[-COVER:] if self.series else []

    def references(self, of: Sequence[str]) -> list[Cell]:
        """What pictures are held against: the photos of a training, or what an evaluation shows beside them.

        Args:
            of: Concepts, pairs or styles, as cells name them.

        Raises:
            ValueError: If what holds them is damaged.
        """
        if self.kind == "train":
            return [cell for path in self.path.glob("samples/references.png") for cell in _cells_of_grid(path)]
        captions = {f"{said}{one}" for one in of for said in ("reference of ", "reference ")}
        grids = [*sorted(self.path.glob("grid*.png")), *sorted(self.path.glob("0/grid*.png"))]
        return [cell for path in grids for cell in _cells_of_grid(path) if cell.prompt in captions]


def run_folders(root: Path) -> Iterator[Path]:
    """Folders of all runs, as the entry points name them: ``root/KIND/NAME/DATE``."""
    for kind in KINDS:
        yield from (path for path in sorted(root.glob(f"{kind}/*/*")) if path.is_dir())


def changed(folder: Path) -> float:
    """When a run was last written to, in seconds since the epoch; some of what it writes lies below its folder."""
    below = ("samples", "images", "metrics.json", "comparison.json")
    found = (path.stat().st_mtime for path in (folder, *(folder / name for name in below)) if path.exists())
    return max(found, default=0.0)


def read_run(folder: Path) -> Run:
    """Read what a folder of a run holds; what is damaged is told and not raised."""
    kind, name, date = folder.parts[-3:]
    reader = {"train": _of_training, "generate": _of_pictures, "eval": _of_evaluation, "sweep": _of_sweep}[kind]
    try:
        series, trouble = reader(folder), ""
    except (ValueError, KeyError, TypeError, OSError) as error:
        series, trouble = [], str(error)
    return Run(folder, kind, name, date, changed(folder), _settings(folder), series, trouble)


def _settings(folder: Path) -> list[str]:
    """What was typed; of a sweep, what its first point was given."""
    for path in (folder / OVERRIDES, folder / "0" / OVERRIDES):
        try:
            told = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        return [str(one) for one in told] if isinstance(told, list) else []
    return []


def _of_training(folder: Path) -> list[Series]:
    return [_step(path) for path in sorted(folder.glob(SAMPLES)) if path.stem.removeprefix("step-").isdecimal()]


def _step(path: Path) -> Series:
    step = int(path.stem.removeprefix("step-"))
    return Series(f"step {step}", lambda: _cells_of_grid(path), step)


def _cells_of_grid(path: Path) -> Iterator[Cell]:
    for index, caption in enumerate(read_captions(path)):
        found = _CAPTION.fullmatch(caption)
        yield Cell(found[1] if found else caption, found[2] if found else "", "", path, index)


def _of_pictures(folder: Path) -> list[Series]:
    return [Series("pictures", lambda: _noted(folder))] if any(folder.glob("*.png")) else []


def _noted(folder: Path) -> Iterator[Cell]:
    """Pictures that say how they were drawn; the grid of all of them does not."""
    for path in sorted(folder.glob("*.png"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        try:
            note = read_note(str(path))
        except ValueError:
            continue
        yield Cell(note.prompt, str(note.seed), " ".join(note.style.values()), path)


def _of_evaluation(folder: Path) -> list[Series]:
    """Arms that were drawn: references and renders, which some protocols score beside them, are none."""
    drawn = (point for point in read_arms(folder) if any(row.get("file") for row in point.rows))
    return [_of_point(point, folder / "images") for point in drawn]


def _of_sweep(folder: Path) -> list[Series]:
    return [_of_point(point, folder / "images") for point in read_points(folder)[0]]


def _of_point(point: Point, images: Path) -> Series:
    return Series(point.label, lambda: (_of_row(row, point, images) for row in point.rows))


def _of_row(row: Mapping[str, Any], point: Point, images: Path) -> Cell:
    others = [str(row[key]) for key in point.keys if key not in ("prompt", "seed")]
    scores = {name: float(row[name]) for name in point.scores if isinstance(row.get(name), int | float)}
    return Cell(str(row["prompt"]), str(row["seed"]), ", ".join(others), images / str(row["file"]), None, scores)
