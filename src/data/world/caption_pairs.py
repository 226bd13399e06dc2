"""Scenes with two captions each: the one the grammar drew, and the longest one that is true."""

from typing import Any

import numpy as np

from src.data.step_sampling import Draw
from src.data.world.datamodules import Scenes, WorldData
from src.data.world.scenes import full_caption, sample_scene


class CaptionPairs(Scenes):
    """Like ``Scenes`` of kind "scenes"; batches also hold ``full_caption``."""

    def __init__(self, images: np.ndarray, first: int) -> None:
        # Not super().__init__(): it would draw every scene a second time for its caption.
        self.images, self.first, self.kind = images, first, "scenes"
        self.latents, self.crop, self.seed = None, None, 0
        scenes = [sample_scene(first + index) for index in range(len(images))]
        self.captions = [scene.caption for scene in scenes]
        self.full_captions = [full_caption(scene) for scene in scenes]

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        """One whole batch."""
        full_captions = [self.full_captions[draw.index] for draw in draws]
        return {**super().__getitems__(draws), "full_caption": full_captions}


class CaptionPairsData(WorldData):
    """World scenes for contrastive training: images with both captions.

    Args:
        cache_dir: Where rendered images are kept; the same files as ``WorldData``'s.
        batch_size: Per rank.
        num_train: Training scenes.
        num_val: Validation scenes.
        seed: Of the data order.
    """

    def __init__(self, cache_dir: str, batch_size: int, num_train: int, num_val: int, seed: int = 0) -> None:
        super().__init__(cache_dir, batch_size, num_train, num_val, seed=seed)

    def _scenes(self, first: int, number: int, crop: int | None) -> CaptionPairs:
        return CaptionPairs(self._images(first, number), first)
