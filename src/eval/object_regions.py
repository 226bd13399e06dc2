"""The objects of a scene one by one, each shown as the probe has learnt to see: alone, and not too small."""

import numpy as np
from PIL import Image

from src.data.world.caption_tests import CaptionTest
from src.eval.empty_scenes import behind
from src.eval.pair_protocol import BOTTOM, TOP

SIDE = 64
"""Pixels of the world's images; others are reduced to it."""
ROW = 0.6
"""Height of the centres of objects that stand side by side."""
SEEN = 0.58
"""Height at which the probe has seen the centre of its one object."""
WINDOWS = {2: 0.7, 3: 0.55, 4: 0.45}
"""By number of objects, share of the image's side that is enlarged to a whole image: renders are read best then."""

Box = tuple[float, ...]
"""Left, top, right, bottom as shares of the image."""


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
        image: Of the world's size, 64 x 64.
    """
    if len(test.looks) == 1:
        return [image]
    (scene,) = behind([image])
    return [_alone(image, scene, region, test) for region in regions(test)]


def _alone(image: Image.Image, scene: Image.Image, region: Box, test: CaptionTest) -> Image.Image:
    left, top, right, bottom = (round(share * SIDE) for share in region)
    shown = scene.copy()
    shown.paste(image.crop((left, top, right, bottom)), (left, top))
    # A window may reach beyond the image, whose borders go on there.
    pixels = np.pad(np.asarray(shown), ((SIDE, SIDE), (SIDE, SIDE), (0, 0)), mode="edge")
    window = WINDOWS[len(test.looks)]
    x = 1 + (region[0] + region[2]) / 2 - window / 2
    y = 1 + ((region[1] + region[3]) / 2 if test.stacked else ROW) - window * SEEN
    box = (x * SIDE, y * SIDE, (x + window) * SIDE, (y + window) * SIDE)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
