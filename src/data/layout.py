"""Where concepts stand in an image: boxes, or masks that are painted."""

import difflib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from src.data.images import load_image

Box = tuple[float, ...]
"""Left, top, right and bottom, as shares of width and height."""
Region = Box | str
"""A box, or the path of an image that is white where the concept stands and black elsewhere."""
Layout = tuple[tuple[str, Region], ...]
"""Concepts and their regions, in the order of their names; regions may overlap."""


def read_layout(given: Mapping[str, Any], names: Collection[str]) -> Layout:
    """Check what a command says of regions: ``[x0, y0, x1, y1]`` or the path of a mask for each concept.

    Args:
        given: Name of a concept to its region.
        names: Concepts that there are.

    Raises:
        ValueError: If a concept is unknown, a box leaves the image or is empty, or a mask cannot be read or is black.
    """
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            known = f"did you mean layout.{near[0]}?" if near else f"the concepts given are: {_listed(names)}"
            raise ValueError(f"layout.{name} names no concept; {known}")
    return tuple((name, _region(name, given[name])) for name in sorted(given))


def _listed(names: Collection[str]) -> str:
    return ", ".join(names) or "none, add bank.NAME=PATH"


def _region(name: str, given: Any) -> Region:
    if isinstance(given, str):
        _mask(given)
        return given
    numbers = [each for each in given if isinstance(each, int | float) and not isinstance(each, bool)]
    if len(numbers) != 4 or len(given) != 4:
        raise ValueError(
            f"layout.{name} is {list(given)}; give [x0,y0,x1,y1] as shares of width and height, or the path of a mask"
        )
    left, top, right, bottom = box = tuple(float(each) for each in numbers)
    if not all(0 <= each <= 1 for each in box):
        raise ValueError(f"layout.{name} is {list(given)}, which leaves the image; give shares from 0 to 1")
    if right <= left or bottom <= top:
        raise ValueError(
            f"layout.{name} is {list(given)}, which is no box: in [x0,y0,x1,y1], x1 is above x0 and y1 above y0"
        )
    return box


@lru_cache(maxsize=256)
def covered(region: Region, rows: int, columns: int) -> Tensor:
    """Return the share of each cell of a grid that a region covers, ``(rows, columns)`` in [0, 1]."""
    if isinstance(region, str):
        return F.adaptive_avg_pool2d(_mask(region)[None], (rows, columns))[0]
    left, top, right, bottom = region
    return _overlap(top, bottom, rows)[:, None] * _overlap(left, right, columns)


def _overlap(start: float, stop: float, number: int) -> Tensor:
    """Share of each of ``number`` equal parts of [0, 1] that an interval covers."""
    edges = torch.arange(number + 1) / number
    return (edges[1:].clamp(max=stop) - edges[:-1].clamp(min=start)).clamp(min=0) * number


@lru_cache(maxsize=64)
def _mask(path: str) -> Tensor:
    """Read a mask, ``(H, W)`` of zeros and ones.

    Raises:
        ValueError: If there is no such image, or nothing of it is white.
    """
    mask = torch.from_numpy(np.array(load_image(path, min_side=1).convert("L")) > 127).float()
    if not mask.any():
        raise ValueError(f"the mask {path} has no white pixel; paint white where the concept should stand")
    return mask


def layout_key(layout: Layout) -> str:
    """Identify a layout by its numbers and by what its masks show, wherever their files lie."""
    return " ".join(f"{name}={_told(region)}" for name, region in layout)


def _told(region: Region) -> str:
    if isinstance(region, str):
        mask = _mask(region)
        return hashlib.sha256(f"{tuple(mask.shape)}".encode() + mask.bool().numpy().tobytes()).hexdigest()[:16]
    return str(list(region))


def bounding_box(region: Region) -> Box:
    """Return the box itself, or the smallest one around the white part of a mask."""
    if not isinstance(region, str):
        return region
    white = _mask(region)
    rows, columns = (white.amax(axis).nonzero().flatten().tolist() for axis in (1, 0))
    height, width = white.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def regions_of(layout: Layout, names: Sequence[str]) -> list[Region | None]:
    """Return the region of each mention of a prompt; None where the layout leaves a concept free."""
    placed = dict(layout)
    return [placed.get(name) for name in names]
