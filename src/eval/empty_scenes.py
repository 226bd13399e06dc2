"""The world's backgrounds without any object, and which of them stands behind a drawing."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from src.data.world.render import render
from src.data.world.scenes import Scene
from src.data.world.vocabulary import BACKGROUNDS

DIFFERENT = 25
"""Of 255, in one channel at least: more than an autoencoder's rounding, less than any object."""


def behind(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Of each image the empty scene, a photo, that it differs from in the fewest pixels.

    Args:
        images: Of the world's size, 64 x 64.
    """
    scenes = list(_empty_scenes())
    return [min(scenes, key=lambda scene: int(differs(image, scene).sum())) for image in images]


def differs(image: Image.Image, background: Image.Image) -> np.ndarray:
    """Where an image is not its background, bool ``(H, W)``."""
    return np.abs(np.asarray(image, np.int16) - np.asarray(background, np.int16)).max(-1) > DIFFERENT


@cache
def _empty_scenes() -> tuple[Image.Image, ...]:
    return tuple(render(Scene((), background, "photo", "")) for background in BACKGROUNDS)
