"""Attribute scenes with their ground truth as class indices: what the probe is trained on."""

from typing import Any

import numpy as np
import torch

from src.data.step_sampling import Draw
from src.data.world.datamodules import Scenes, WorldData
from src.data.world.scenes import Scene, attribute_scene
from src.data.world.vocabulary import BACKGROUNDS, COLORS, NOUNS, PATTERNS

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "object": NOUNS,
    "color": tuple(COLORS),
    "pattern": PATTERNS,
    "background": tuple(BACKGROUNDS),
}
"""What an attribute scene's caption says, and the words it chooses from."""


def attribute_words(scene: Scene) -> dict[str, str]:
    """The scene's word for each of ``ATTRIBUTES``; only the first object counts."""
    look = scene.objects[0].look
    return {"object": look.noun, "color": look.color, "pattern": look.pattern, "background": scene.background}


def attribute_labels(scene: Scene) -> list[int]:
    """Index of the scene's word for each of ``ATTRIBUTES``."""
    return [ATTRIBUTES[name].index(word) for name, word in attribute_words(scene).items()]


class AttributeScenes(Scenes):
    """Like ``Scenes`` of kind "attributes"; batches also hold ``labels``, ``(B, 4)``."""

    def __init__(self, images: np.ndarray, first: int) -> None:
        super().__init__(images, first, "attributes")
        self.labels = torch.tensor([attribute_labels(attribute_scene(first + i)) for i in range(len(images))])

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        """One whole batch."""
        return {**super().__getitems__(draws), "labels": self.labels[[draw.index for draw in draws]]}


class AttributeData(WorldData):
    """Attribute scenes for training the probe.

    Args:
        cache_dir: Where rendered images are kept.
        batch_size: Per rank.
        num_train: Training scenes.
        num_val: Validation scenes.
        seed: Of the data order.
    """

    def __init__(self, cache_dir: str, batch_size: int, num_train: int, num_val: int, seed: int = 0) -> None:
        super().__init__(cache_dir, batch_size, num_train, num_val, kind="attributes", seed=seed)

    def _scenes(self, first: int, number: int, crop: int | None) -> AttributeScenes:
        return AttributeScenes(self._images(first, number), first)
