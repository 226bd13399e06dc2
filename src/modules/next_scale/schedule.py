"""Scale schedules of next-scale prediction: which grids an image of a given shape is drawn on, coarse to fine."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

Grid = tuple[int, int]
"""Rows and columns of cells."""

logger = logging.getLogger(__name__)

TALL: dict[str, str] = {
    "1.000": "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    "1.250": "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    "1.333": "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    "1.500": "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    "1.750": "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    "2.000": "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    "2.500": "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    "3.000": "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}
"""Infinity's grids, rows x columns, by height / width; wide images have them transposed."""
INFINITY_PREFIXES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""Name of a pixel budget to the number of grids, from the coarsest on, that draw an image of that size."""


def infinity_grids() -> dict[str, list[Grid]]:
    """Return Infinity's grids by aspect ratio: 15 keys, height / width as text with three decimals."""
    tall = {ratio: [_grid(text) for text in line.split()] for ratio, line in TALL.items()}
    wide = {
        f"{math.floor(1000 / float(ratio)) / 1000:.3f}": [(columns, rows) for rows, columns in grids]
        for ratio, grids in tall.items()
    }
    return {**wide, **tall}


def _grid(text: str) -> Grid:
    rows, columns = text.split("x")
    return int(rows), int(columns)


@dataclass(frozen=True)
class ScaleSchedule:
    """The grids of one image.

    Attributes:
        grids: Rows and columns of each scale, coarse to fine.
        position_grid: Last grid of the longest schedule of this aspect ratio. Rotary positions are measured on it,
            whatever the size of the image.
    """

    grids: tuple[Grid, ...]
    position_grid: Grid

    @property
    def lengths(self) -> list[int]:
        """Number of cells of each scale."""
        return [rows * columns for rows, columns in self.grids]

    @property
    def starts(self) -> list[int]:
        """Where each scale starts in the sequence of all cells; the last entry is the length of the sequence."""
        return [0, *accumulate(self.lengths)]


class ScaleSchedules:
    """All schedules of one model, by aspect ratio and pixel budget.

    Args:
        grids: Height / width as text to the longest list of grids of that ratio.
        prefixes: Name of a pixel budget to how many of the grids an image of that size takes.

    Raises:
        ValueError: If a list of grids is shorter than a prefix, or is not ordered from coarse to fine.
    """

    def __init__(self, grids: Mapping[str, Sequence[Sequence[int]]], prefixes: Mapping[str, int]) -> None:
        self.grids = {ratio: tuple((rows, columns) for rows, columns in each) for ratio, each in grids.items()}
        self.prefixes = dict(prefixes)
        for ratio, each in self.grids.items():
            if len(each) < max(self.prefixes.values()):
                raise ValueError(f"the schedule {ratio} has {len(each)} grids; the longest prefix is {self.prefixes}")
            if any(before[0] > after[0] or before[1] > after[1] for before, after in zip(each, each[1:], strict=False)):
                raise ValueError(f"the grids of schedule {ratio} do not grow: {each}; order them from coarse to fine")

    def schedule(self, ratio: str, budget: str) -> ScaleSchedule:
        """Look up one schedule by the names of its ratio and its pixel budget.

        Raises:
            ValueError: If there is no such name.
        """
        for name, known in ((ratio, self.grids), (budget, self.prefixes)):
            if name not in known:
                raise ValueError(f"no scale schedule is called {name!r}; choose one of {', '.join(known)}")
        return ScaleSchedule(self.grids[ratio][: self.prefixes[budget]], self.grids[ratio][-1])

    def nearest(self, height: int, width: int, cell: int) -> ScaleSchedule:
        """Choose the nearest aspect ratio, then the nearest area; warn if that is another size than was asked for.

        Args:
            height: Wanted height in pixels.
            width: Wanted width in pixels.
            cell: Side of a cell in pixels.
        """
        ratio = min(self.grids, key=lambda name: abs(float(name) - height / width))
        schedules = [self.schedule(ratio, budget) for budget in self.prefixes]
        wanted = math.log(height * width / cell**2)
        chosen = min(schedules, key=lambda each: abs(math.log(each.lengths[-1]) - wanted))
        rows, columns = chosen.grids[-1]
        if (rows * cell, columns * cell) != (height, width):
            logger.warning(
                "drawing %d x %d pixels (height x width): of the model's sizes the nearest to %d x %d",
                rows * cell, columns * cell, height, width,
            )  # fmt: skip
        return chosen
