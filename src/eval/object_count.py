"""How many objects an image of the world shows: no model, only what differs from its background."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from src.eval.empty_scenes import behind, differs

SMALLEST = 40
"""Pixels of an object; of four in a row, 95% have about twice as many, and a crumb of a drawing has fewer."""


def count_objects(images: Sequence[Image.Image]) -> list[int]:
    """Connected patches of each image that are not its background; objects that touch count as one.

    Args:
        images: Of the world's size, 64 x 64.
    """
    found = np.stack([differs(image, scene) for image, scene in zip(images, behind(images), strict=True)])
    return [_number(one) for one in _patches(_opened(torch.from_numpy(found)[:, None].float()))]


def _opened(mask: Tensor) -> Tensor:
    """Without what is thinner than three pixels."""
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
