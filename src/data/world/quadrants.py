"""Four quadrants: the smallest task that a bag of words cannot solve.

A caption lists four different colours; the 8 x 8 image shows them in reading order. Token embeddings carry no order, so
a model that paints the quadrants right has used the context of each word.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.order import Draw, SteppedData
from src.data.ranges import Count
from src.data.texts import Text, copied, draw_words
from src.data.world import vocabulary

COLORS = ("red", "green", "blue", "yellow", "white", "black")
NUM_VAL = 60
SIDE = 8
_RGB = torch.tensor([vocabulary.COLORS[color] for color in COLORS]) / 127.5 - 1


def split() -> tuple[list[str], list[str]]:
    """Split all 360 captions into 300 to train on and 60 held out, always the same."""
    captions = [f"{' '.join(colors)}." for colors in permutations(COLORS, 4)]
    order = np.random.default_rng(0).permutation(len(captions))
    return [captions[i] for i in order[NUM_VAL:]], [captions[i] for i in order[:NUM_VAL]]


def colors_of(caption: str) -> tuple[str, ...]:
    """Return the colours that a caption lists, in reading order.

    Raises:
        ValueError: If it does not list four known colours.
    """
    colors = tuple(caption.removesuffix(".").split())
    if len(colors) != 4 or not set(colors) <= set(COLORS):
        raise ValueError(f"{caption!r} does not list four of the colours {', '.join(COLORS)}")
    return colors


def paint(captions: Sequence[str], side: int = SIDE) -> Tensor:
    """Paint the image of each caption, ``(B, 3, side, side)`` in [-1, 1]; ``side`` is even."""
    indices = torch.tensor([[COLORS.index(color) for color in colors_of(caption)] for caption in captions])
    quadrants = _RGB[indices].reshape(-1, 2, 2, 3).permute(0, 3, 1, 2)
    return quadrants.repeat_interleave(side // 2, 2).repeat_interleave(side // 2, 3)


def read(pixel_values: Tensor) -> list[tuple[str, ...]]:
    """Read from images ``(B, 3, side, side)`` the colour nearest to the mean of each quadrant, in reading order."""
    half = pixel_values.shape[-1] // 2
    means = torch.nn.functional.avg_pool2d(pixel_values.float().cpu(), half).flatten(2).transpose(1, 2)
    nearest = torch.cdist(means, _RGB.expand(len(means), -1, -1)).argmin(-1)
    return [tuple(COLORS[index] for index in row) for row in nearest.tolist()]


def quadrant_text(seed: int) -> Text:
    """Make a text for the task's language model: two to six colours, and the same again."""
    return copied(draw_words(COLORS, 2, 6, np.random.default_rng([seed, 8])))


class Quadrants(Dataset):
    """Captions and their images, which take the place of latents: the UNet of this task works on pixels."""

    def __init__(self, captions: list[str], side: int = SIDE) -> None:
        self.captions, self.images = captions, paint(captions, side)

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.captions)

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        """Return one whole batch."""
        return {
            "caption": [self.captions[draw.index] for draw in draws],
            "latents": self.images[[draw.index for draw in draws]],
            "step": torch.tensor(draws[0].step),
            "position": torch.tensor([draw.position for draw in draws]),
        }


class QuadrantData(SteppedData):
    """Loads training and validation batches of the task.

    Args:
        batch_size: Captions per step and rank.
        seed: Seed of the order.
        num_captions: Captions that are trained on, the first of the 300; None for all.
        side: Side of the images, even.
    """

    def __init__(
        self, batch_size: int = 32, seed: int = 0, num_captions: Count | None = None, side: Count = SIDE
    ) -> None:
        super().__init__(batch_size, seed)
        train, held_out = split()
        self.train, self.val = Quadrants(train[:num_captions], side), Quadrants(held_out, side)
