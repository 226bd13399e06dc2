"""What every protocol shares: its items are checked, drawn, scored, summarised and written in one way."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from PIL import Image, ImageOps
from torch import Tensor

from src.data.files import write_text
from src.data.images import Picture, as_image, load_image
from src.data.request import Generator, Request
from src.eval.draw import draw_timed, manifest_lines
from src.eval.grid import READABLE, Grid
from src.eval.profile import Profile
from src.eval.results.results import Row, Table, per_group, provenance, write_results, write_rows
from src.eval.statistics.bootstrap import Interval, bootstrap_mean

Target = TypeVar("Target")
"""What images of a protocol are held against, such as a concept or a style."""


@dataclass(frozen=True)
class Item(Generic[Target]):
    """One image that a protocol asks for.

    Attributes:
        request: What a generator is to draw.
        row: What its line of ``per_image.csv`` starts with, such as concept, arm, prompt and seed.
        target: What the image is held against.
    """

    request: Request
    row: Row
    target: Target


@dataclass(frozen=True)
class Frame(Generic[Target]):
    """The images of a protocol, or some of them, and what is known of them so far.

    Attributes:
        items: What was asked for.
        paths: Where each image is.
        rows: The lines of ``per_image.csv``, once the images are scored.
        summary: What ``Protocol.summarise`` made of the rows.
    """

    items: Sequence[Item[Target]]
    paths: Sequence[Path]
    rows: list[Row] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def targets(self) -> list[Target]:
        """What the images are held against, one per image."""
        return [item.target for item in self.items]

    @property
    def places(self) -> list[Row]:
        """The start of each image's line: what its item says, and its file."""
        return [item.row | {"file": path.name} for item, path in zip(self.items, self.paths, strict=True)]

    def images(self) -> Iterator[Image.Image]:
        """Read the images one after the other; encoders take ``paths``."""
        return map(load_image, self.paths)

    def part(self, **values: Any) -> "Frame[Target]":
        """The images whose lines have these values; without their scores."""
        kept = [at for at, item in enumerate(self.items) if all(item.row[key] == of for key, of in values.items())]
        return Frame([self.items[at] for at in kept], [self.paths[at] for at in kept])

    def parts(self, column: str) -> list["Frame[Target]"]:
        """The images of each value of a column; without a column, all of them in one part."""
        if not column:
            return [self]
        return [self.part(**{column: value}) for value in dict.fromkeys(item.row[column] for item in self.items)]


def scored_rows(
    places: Sequence[Row], scores: Mapping[str, Tensor | Sequence[float] | None], names: Collection[str]
) -> list[Row]:
    """Lines of ``per_image.csv``: places with their scores.

    Args:
        places: The start of each line.
        scores: By name, one number per place; None, or no entry, where a score does not apply.
        names: The columns.
    """

    def cell(name: str, at: int) -> float | str:
        values = scores.get(name)
        return "" if values is None else float(values[at])

    return [place | {name: cell(name, at) for name in names} for at, place in enumerate(places)]


def as_json(node: Any) -> Any:
    """Intervals as plain numbers, at any depth of nested mappings."""
    if isinstance(node, Interval):
        return node.as_dict()
    return {key: as_json(value) for key, value in node.items()} if isinstance(node, Mapping) else node


class Protocol(ABC, Generic[Target]):
    """A test of generators: what is drawn, what an image is worth, and how the numbers are put together.

    A protocol has to say its ``name``, ``title``, ``scores``, ``items`` and ``score``. The other methods can be left:
    by default the mean of each score has an interval over prompts, in one table, and a sweep compares all images.

    Args:
        profile: Encoders and rules of the scores; its name stands with every number.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Seeds the first image of each prompt, and the bootstrap.

    Attributes:
        name: What ``metrics.json`` calls the protocol.
        title: The heading of ``report.html``.
        scored_by: A column; images with equal values are scored together. Without one, all images are.
        grouped_by: Columns; ``per_<column>.csv`` holds the mean scores of each arm and value.
        rated: Whether a vision-language model, where the profile has one, rates the images.
        settings: Names of arguments, kept as attributes, that ``metrics.json`` repeats.
        seconds: By arm, the seconds of each image that a run drew; None if it found them all.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    scored_by: ClassVar[str] = ""
    grouped_by: ClassVar[Sequence[str]] = ()
    rated: ClassVar[bool] = False
    settings: ClassVar[Sequence[str]] = ()

    def __init__(self, profile: Profile, images_dir: str, seed: int = 0) -> None:
        self.profile, self.images_dir, self.seed = profile, Path(images_dir), seed
        self.seconds: dict[str, float | None] = {}

    @property
    @abstractmethod
    def scores(self) -> Collection[str]:
        """Names of the scores: columns of ``per_image.csv``."""

    @abstractmethod
    def items(self, concepts: Sequence[Any]) -> list[Item[Target]]:
        """Everything to draw, in the order in which it is drawn."""

    @abstractmethod
    def score(self, frame: Frame[Target], generator: Generator) -> list[Row]:
        """Score images; ``scored_rows`` makes the lines."""

    def requests(self, concepts: Sequence[Any] = ()) -> list[Request]:
        """What a generator is asked for, item by item."""
        return [item.request for item in self.items(concepts)]

    def check(self, concepts: Sequence[Any]) -> None:
        """Refuse what could not be scored, before anything is trained or drawn for it.

        Raises:
            ValueError: If the weights of an encoder are missing, or whatever else a protocol needs; or if the profile
                has a vision-language model that the protocol would not ask.
        """
        if self.profile.vlm is not None:
            if not self.rated:
                raise ValueError(f"protocol={self.name} asks no vision-language model; leave metrics.vlm out")
            self.profile.vlm.check()
        self.profile.identity()

    def references(self, concepts: Sequence[Any]) -> dict[str, Image.Image]:
        """A picture to look at beside the images, by what a row calls its concept or style."""
        return {concept.name: as_image(concept.references[0]) for concept in concepts}

    def draw(self, generator: Generator, requests: Sequence[Request]) -> list[Path]:
        """Draw what is missing; return where each image is."""
        paths, self.seconds["drawn"] = draw_timed(generator, requests, self.images_dir)
        return paths

    def summarise(self, frame: Frame[Target]) -> dict[str, Any]:
        """What tables and metrics are made from; by default the interval of each score, clustered by prompt."""
        groups = [[row["prompt"] for row in frame.rows]]
        return {name: bootstrap_mean([row[name] for row in frame.rows], groups, self.seed) for name in self.scores}

    def metrics(self, frame: Frame[Target]) -> dict[str, Any]:
        """What ``metrics.json`` says of the numbers; intervals may stand at any depth."""
        return {"overall": frame.summary}

    def compared(self, frame: Frame[Target]) -> dict[str, Any]:
        """What a sweep compares, see ``src.eval.sweeps.points``; empty if it can compare nothing."""
        return {"rows": {}, "factors": ["prompt"], "scores": list(self.scores)}

    def tables(self, frame: Frame[Target]) -> list[Table]:
        """What ``table.md`` holds."""
        title = f"{len(frame.rows)} images, mean [95%], profile {self.profile.name}"
        return [Table(title, ["", *self.scores], [["drawn", *(str(frame.summary[name]) for name in self.scores)]])]

    def grids(self, frame: Frame[Target]) -> dict[str, Grid]:
        """Pictures by file stem; by default up to 32 of the images, evenly."""
        step = max(1, len(frame.items) // 32)
        shown = range(0, min(len(frame.items), step * 32), step)
        return {
            "grid": self.grid([frame.paths[at] for at in shown], 8, [self.caption(frame.items[at]) for at in shown])
        }

    def caption(self, item: Item[Target]) -> str:
        """What stands below an image of the default grid."""
        return item.request.prompt

    def grid(self, pictures: Sequence[Picture], columns: int, captions: Sequence[str] = ()) -> Grid:
        """Lay images out in rows, large ones at most ``READABLE`` pixels wide and high."""
        images = [as_image(one) for one in pictures]
        cells = [one if max(one.size) <= READABLE else ImageOps.contain(one, (READABLE, READABLE)) for one in images]
        return Grid(cells, columns, captions)

    def identity(self, generator: Generator) -> dict[str, Any]:
        """What the numbers depend on: the generator, the encoders and the profile's rules."""
        return {"generator": generator.identity(), **self.profile.identity()}

    def run(self, generator: Generator, concepts: Sequence[Any], run_dir: str | Path) -> dict[str, Any]:
        """Draw, score, and write ``metrics.json``, tables, ``images.jsonl``, ``report.html`` and grids.

        Args:
            generator: What is tested.
            concepts: The concepts under test; protocols of captions or styles have none.
            run_dir: The run folder.

        Returns:
            What ``metrics.json`` holds.

        Raises:
            ValueError: As ``check``, or if the generator refuses a request; nothing was drawn then.
        """
        self.check(concepts)
        items = self.items(concepts)
        requests = [item.request for item in items]
        paths = self.draw(generator, requests)
        write_text(Path(run_dir) / "images.jsonl", manifest_lines(requests, paths))
        drawn = Frame(items, paths)
        rows = [row for part in drawn.parts(self.scored_by) for row in self.score(part, generator)]
        scored = replace(drawn, rows=rows)
        frame = replace(scored, summary=self.summarise(scored))
        compared = self.compared(frame)
        metrics = {"protocol": self.name} | {name: getattr(self, name) for name in self.settings}
        metrics |= {"seed": self.seed, **as_json(self.metrics(frame))}
        metrics |= {"compared": compared} if compared else {}
        metrics |= {"seconds_per_image": self.seconds, **self.identity(generator), **provenance()}
        for column in [column for column in self.grouped_by if column in rows[0]]:
            write_rows(per_group(rows, ("arm", column), self.scores), Path(run_dir) / f"per_{column}")
        tables = [*self.tables(frame), *self._time_tables()]
        write_results(run_dir, self.title, metrics, tables, rows, self.grids(frame))
        return metrics

    def _time_tables(self) -> list[Table]:
        """None where every image was there already."""
        lines = [[arm, f"{seconds:.3f}"] for arm, seconds in self.seconds.items() if seconds is not None]
        return [Table("Time of what this run drew", ["", "seconds an image"], lines, of_machine=True)] if lines else []
