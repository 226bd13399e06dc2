"""Reads the look of an object by fitting: among all looks of the world, the one whose picture is nearest.

The world's program draws a picture from a look, and so a look can be found from a picture. For each pattern and marking
it is known which pixel has which paint. The error of every paint is then a sum over its own pixels, so that all colours
of all patterns and markings are compared for the price of a few sums.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample

from src.data.world.render import DARK, LIGHT, paint_shares, shading
from src.data.world.vocabulary import COLORS, MARKINGS, PATTERNS, Look

FIT = 1
"""Counts changes of this file that change answers."""
GRID, COARSE_GRID = 40, 20
"""Points across the window in which an individual is compared, and those that find a first place for it."""
COARSE = ((0.84, 0.92, 1.0, 1.09, 1.19), (-0.16, -0.08, 0.0, 0.08, 0.16))
FINE = ((0.96, 1.0, 1.04), (-0.04, 0.0, 0.04))
"""Sizes, as factors, and shifts, in half sizes, that are tried around a first guess and then around the best."""
KEPT = 3
"""Windows that the coarse search hands on."""


@dataclass(frozen=True)
class Window:
    """Where an individual may stand: its centre and half its size as shares of the image, and which way it faces."""

    x: float
    y: float
    half: float
    flip: bool

    def around(self, sizes: tuple[float, ...], shifts: tuple[float, ...]) -> list["Window"]:
        """Windows of other sizes and places."""
        return [
            Window(self.x + right * self.half, self.y + down * self.half, self.half * size, self.flip)
            for size, right, down in product(sizes, shifts, shifts)
        ]


def fitted_look(image: Image.Image, background: Image.Image, noun: str, box: tuple[int, int, int, int]) -> Look:
    """Find the look of an object.

    The background counts: what a window leaves out, or covers although nothing is there, costs as a wrong paint does.

    Args:
        image: A photo of the world.
        background: The empty scene behind it.
        noun: What the object is.
        box: Left, top, right and bottom of what differs from the background, in pixels: a first guess of its place.
    """
    seen, empty = (_tensor(one) for one in (image, background))
    plain = _layouts(noun, marked=False)
    first = [window for guess in _guesses(noun, box, image.width) for window in guess.around(*COARSE)]
    costs = _cost(seen, empty, first, plain, COARSE_GRID)[0].amin(1)
    best = [first[at] for at in costs.topk(KEPT, largest=False).indices.tolist()]
    finer = [window for guess in best for window in guess.around(*FINE)]
    costs = _cost(seen, empty, finer, plain)[0].amin(1)
    best = [finer[at] for at in costs.topk(KEPT, largest=False).indices.tolist()]
    layouts = _layouts(noun, marked=True)
    costs, _ = _cost(seen, empty, best, layouts)
    window, layout = divmod(int(costs.argmin()), len(layouts))
    # At edges paints mix. They tell where things are, and the pixels between them which colours they have.
    _, colors = _cost(seen, empty, [best[window]], [layouts[layout]], sharpness=2)
    main, accent, marking = (list(COLORS)[at] for at in colors[0, 0].tolist())
    return replace(layouts[layout], color=main, accent=accent, marking_color=marking)


def _cost(
    seen: Tensor, empty: Tensor, windows: list[Window], layouts: list[Look], points: int = GRID, sharpness: int = 1
) -> tuple[Tensor, Tensor]:
    """Compare windows with layouts in their best colours.

    Args:
        seen: The picture ``(3, H, W)``, from 0 to 1.
        empty: The empty scene behind it.
        windows: Where the individual may stand.
        layouts: Patterns and markings.
        points: Points across a window.
        sharpness: Power of a paint's share of a pixel by which the pixel counts.

    Returns:
        Squared error beyond that of the empty scene, ``(windows, layouts)``, and the indices of main, second and
        marking colour, ``(windows, layouts, 3)``.
    """
    shown, behind = (_cut(one, windows, points) for one in (seen, empty))
    shade = torch.from_numpy(shading(points)).float()[:, None].expand(points, points).reshape(-1)
    paints = torch.tensor([*COLORS.values(), DARK, LIGHT], dtype=torch.float32) / 255
    # |seen - paint|^2 - |seen - empty|^2, without the term that both have.
    away = paints.square().sum(1)[:, None] * shade.square() - 2 * (paints @ shown) * shade
    gain = away - (behind * (behind - 2 * shown)).sum(1)[:, None]
    shares = torch.stack([_shares(each, points) for each in layouts]) ** sharpness
    # Windows, layouts, areas (main, second, marking, dark, light), paints.
    sums = torch.einsum("wkp,lap->wlak", gain, shares)
    number = len(COLORS)
    main, accent, marking = (sums[:, :, area, :number] for area in range(3))
    fixed = sums[:, :, 3, number] + sums[:, :, 4, number + 1]
    total = main[..., :, None, None] + accent[..., None, :, None] + marking[..., None, None, :] + _different(number)
    least, index = total.flatten(2).min(-1)
    colors = torch.stack([index // number**2, index // number % number, index % number], -1)
    # Of a point, in shares of the image.
    size = torch.tensor([2 * window.half / points for window in windows], dtype=torch.float32).square()[:, None]
    return (least + fixed) * size, colors


@lru_cache
def _different(number: int) -> Tensor:
    """Infinite where two of three colours are one."""
    a, b, c = torch.meshgrid(*[torch.arange(number)] * 3, indexing="ij")
    return torch.zeros(number, number, number).masked_fill((a == b) | (a == c) | (b == c), torch.inf)


def _cut(image: Tensor, windows: list[Window], points: int) -> Tensor:
    """Pixels of windows, mirrored where they face the other way, ``(windows, 3, points)``."""
    steps = (torch.arange(points) + 0.5) / points * 2 - 1
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    told = [(one.x, one.y, -one.half if one.flip else one.half, one.half) for one in windows]
    x, y, wide, high = torch.tensor(told, dtype=torch.float32)[:, :, None, None].unbind(1)
    grid = 2 * torch.stack([x + wide * columns, y + high * rows], -1) - 1
    batch = image[None].expand(len(windows), *image.shape)
    return grid_sample(batch, grid, "bilinear", "border", align_corners=False).flatten(2)


@lru_cache
def _layouts(noun: str, marked: bool) -> list[Look]:
    """All patterns, without or with every marking; the colours do not matter."""
    first, second, third = list(COLORS)[:3]
    markings = (None, *MARKINGS) if marked else (None,)
    return [Look(noun, first, second, pattern, marking, third) for pattern, marking in product(PATTERNS, markings)]


@lru_cache(maxsize=512)
def _shares(look: Look, points: int) -> Tensor:
    """Shares of paints at the points of a window, ``(areas, points^2)``."""
    return torch.from_numpy(paint_shares(look, points)).flatten(1)


@lru_cache
def _extent(noun: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a noun in its window, from -1 to 1."""
    covered = paint_shares(_layouts(noun, marked=False)[0], 64).sum(0) > 0.5
    rows, columns = (np.flatnonzero(covered.any(axis)) for axis in (1, 0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return tuple(float(at) / 32 - 1 for at in (left, top, right, bottom))  # type: ignore[return-value]  # four


def _guesses(noun: str, box: tuple[int, int, int, int], side: int) -> list[Window]:
    """Windows in which the noun fills a box, facing either way."""
    left, top, right, bottom = _extent(noun)
    wide, high = (box[2] - box[0]) / side, (box[3] - box[1]) / side
    half = (wide / (right - left) + high / (bottom - top)) / 2
    x, y = (box[0] + box[2]) / 2 / side, (box[1] + box[3]) / 2 / side
    lean, drop = (left + right) / 2 * half, (top + bottom) / 2 * half
    return [Window(x - lean, y - drop, half, False), Window(x + lean, y - drop, half, True)]


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).permute(2, 0, 1) / 255
