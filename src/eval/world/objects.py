"""The objects that an image of the world shows: behind them the empty scene, how many they are, and each one alone."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from src.data.layout import Box
from src.data.world.caption_tests import CaptionTest
from src.data.world.render import render
from src.data.world.scenes import Scene
from src.data.world.vocabulary import BACKGROUNDS
from src.eval.protocols.layout import BOTTOM, TOP

DIFFERENT = 25
"""Of 255, in one channel at least: more than an autoencoder's rounding, less than any object."""


def behind(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Of each image the empty scene, a photo, that it differs from in the fewest pixels.

    Args:
        images: Images of the world, 64 x 64 pixels.
    """
    scenes = list(_empty_scenes())
    return [min(scenes, key=lambda scene: int(differs(image, scene).sum())) for image in images]


def differs(image: Image.Image, background: Image.Image) -> np.ndarray:
    """Where an image is not its background, bool ``(H, W)``."""
    return np.abs(np.asarray(image, np.int16) - np.asarray(background, np.int16)).max(-1) > DIFFERENT


@cache
def _empty_scenes() -> tuple[Image.Image, ...]:
    return tuple(render(Scene((), background, "photo", "")) for background in BACKGROUNDS)


SMALLEST = 40
"""Pixels of an object; of four in a row, 95% have about twice as many, and a crumb of a drawing has fewer."""


def count_objects(images: Sequence[Image.Image]) -> list[int]:
    """Connected patches of each image that are not its background; objects that touch count as one.

    Args:
        images: Images of the world, 64 x 64 pixels.
    """
    found = np.stack([differs(image, scene) for image, scene in zip(images, behind(images), strict=True)])
    return [_number(one) for one in _patches(opened(torch.from_numpy(found)[:, None].float()))]


def opened(mask: Tensor) -> Tensor:
    """A mask ``(N, 1, H, W)`` without what is thinner than three pixels."""
    return max_pool2d(-max_pool2d(-mask, 3, 1, 1), 3, 1, 1)


def _patches(mask: Tensor) -> Tensor:
    """A mask ``(N, 1, H, W)`` with a number of its own in every connected patch, diagonals included."""
    numbers = mask * torch.arange(1, mask[0].numel() + 1).view_as(mask[:1])
    while not torch.equal(spread := max_pool2d(numbers, 3, 1, 1) * mask, numbers):
        numbers = spread
    return numbers


def _number(patches: Tensor) -> int:
    values, sizes = patches.unique(return_counts=True)
    return int((sizes[values > 0] >= SMALLEST).sum())


SIDE = 64
"""Pixels of the world's images; others are reduced to it."""
ROW = 0.6
"""Height of the centres of objects that stand side by side."""
SEEN = 0.58
"""Height at which the probe has seen the centre of its one object."""
WINDOWS = {2: 0.7, 3: 0.55, 4: 0.45}
"""By number of objects, share of the image's side that is enlarged to a whole image: renders are read best then."""


def regions(test: CaptionTest) -> list[Box]:
    """Halves, thirds or fourths of the image in the order of ``test.looks``: generous, for models place freely."""
    if test.stacked:
        return [TOP, BOTTOM]
    number = len(test.looks)
    return [(at / number, 0.0, (at + 1) / number, 1.0) for at in range(number)]


def native(image: Image.Image) -> Image.Image:
    """As large as the world's images."""
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


def object_images(test: CaptionTest, image: Image.Image) -> list[Image.Image]:
    """One image per region: what it shows on the empty scene, enlarged; a single object's image is left as it is.

    Args:
        test: Says how the objects stand.
        image: An image of the world, 64 x 64 pixels.
    """
    if len(test.looks) == 1:
        return [image]
    (scene,) = behind([image])
    return [_alone(image, scene, region, test) for region in regions(test)]


def _alone(image: Image.Image, scene: Image.Image, region: Box, test: CaptionTest) -> Image.Image:
    left, top, right, bottom = (round(share * SIDE) for share in region)
    shown = scene.copy()
    shown.paste(image.crop((left, top, right, bottom)), (left, top))
    y = (region[1] + region[3]) / 2 if test.stacked else ROW
    return enlarged(shown, (region[0] + region[2]) / 2, y, WINDOWS[len(test.looks)])


def enlarged(image: Image.Image, x: float, y: float, window: float) -> Image.Image:
    """Enlarge a part of an image, and put a place where the probe has seen its one object.

    Args:
        image: An image of the world, 64 x 64 pixels.
        x: The place as a share of the image.
        y: The same, from the top.
        window: Share of the image's side that is enlarged to a whole image, at most 1.
    """
    # A window may reach beyond the image, whose borders go on there.
    pixels = np.pad(np.asarray(image), ((SIDE, SIDE), (SIDE, SIDE), (0, 0)), mode="edge")
    left, top = 1 + x - window / 2, 1 + y - window * SEEN
    box = (left * SIDE, top * SIDE, (left + window) * SIDE, (top + window) * SIDE)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
