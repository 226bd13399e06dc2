"""Seg-Mix of MuDI (arXiv 2404.05243): subjects cut out of their photos, put on one canvas side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.images import MASKS, find_images, load_image

WHITE = (255, 255, 255)
LARGEST, SMALLEST = 0.6, 0.3
"""Longer side of a cut-out, as a share of the canvas."""
TRIES = 50
"""Places that are tried before cut-outs shrink."""
SHRINK = 0.9


def cut_outs(folder: str | Path) -> list[Image.Image]:
    """Cut the subject out of each photo of a folder, by its mask: RGBA, cropped to what the mask shows.

    Raises:
        ValueError: If a photo has no mask, or a mask has another size or no white pixel.
    """
    return [_cut_out(path, path.parent / MASKS) for path in find_images(folder)]


def _cut_out(path: Path, masks: Path) -> Image.Image:
    beside = masks / f"{path.stem}.png"
    if not beside.is_file():
        raise ValueError(
            f"{path} has no mask, by which its subject is cut out; paint one, white where the subject stands, "
            f"and save it as {beside}"
        )
    photo = load_image(path)
    mask = load_image(beside, min_side=1).convert("L").point(lambda level: 255 if level > 127 else 0)
    if mask.size != photo.size:
        raise ValueError(f"the mask {beside} is {mask.size}, but its photo is {photo.size}; give both the same size")
    box = mask.getbbox()
    if box is None:
        raise ValueError(f"the mask {beside} has no white pixel; paint white where the subject stands")
    photo.putalpha(mask)
    return photo.crop(box)


def places(shapes: Sequence[tuple[int, int]], size: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Draw a place for each of some boxes, so that none overlaps another: left, top, right, bottom in pixels.

    The longer side of each is a random share of the canvas from ``SMALLEST`` to ``LARGEST``; where no places are found,
    all shrink.

    Args:
        shapes: Width and height of each box, of which only the ratio counts.
        size: Side of the canvas in pixels.
        rng: Draws scales and places.
    """
    scale = 1.0
    while True:
        for _ in range(TRIES):
            found: list[tuple[int, int, int, int]] = []
            for width, height in shapes:
                longer = scale * size * rng.uniform(SMALLEST, LARGEST) / max(width, height)
                across, down = max(1, round(width * longer)), max(1, round(height * longer))
                x, y = int(rng.integers(0, size - across + 1)), int(rng.integers(0, size - down + 1))
                found.append((x, y, x + across, y + down))
            if not any(_overlap(one, other) for at, one in enumerate(found) for other in found[:at]):
                return found
        scale *= SHRINK


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def mixed(
    cut: Sequence[Image.Image], size: int, rng: np.random.Generator, ordered: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Put cut-outs on a white canvas, none over another, each mirrored with probability 1/2.

    Args:
        cut: RGBA, as of ``cut_outs``.
        size: Side of the canvas in pixels.
        rng: Draws scales, places and mirrors.
        ordered: Whether they stand from left to right in the given order.

    Returns:
        The canvas, uint8 ``(size, size, 3)``, and where subjects stand on it, float32 ``(size, size)`` in [0, 1].
    """
    canvas, shown = Image.new("RGB", (size, size), WHITE), Image.new("L", (size, size), 0)
    found = places([one.size for one in cut], size, rng)
    for one, (left, top, right, bottom) in zip(cut, sorted(found) if ordered else found, strict=True):
        turned = one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else one
        pasted = turned.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        canvas.paste(pasted, (left, top), pasted.getchannel("A"))
        shown.paste(pasted.getchannel("A"), (left, top))
    return np.asarray(canvas), np.asarray(shown, dtype=np.float32) / 255
