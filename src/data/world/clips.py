"""Short clips of training individuals: frames that show one individual while everything else changes."""

from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.order import Draw, StepBatchSampler, share_of
from src.data.ranges import BatchSize, Count, Number, Seed
from src.data.world.datamodules import to_pixel_values
from src.data.world.families import MEMBERS
from src.data.world.render import render
from src.data.world.rendered import rendered
from src.data.world.scenes import FRAMES, family_scene

VALIDATION_FAMILIES = 1000
"""First held-out family of validation during training; measurements use those from 0 on."""
QUERIES = 4
"""Photos of each held-out individual that validation looks for among its family."""
FAMILY_FRAMES = len(MEMBERS) * FRAMES


class FramePairs(Dataset):
    """Two frames of one clip as the views of self-supervised training, without the name of the individual.

    An item is a family: a clip of an individual and one of each of its edits, see ``families``. So each batch holds
    pairs of clips that share colours, shape, pattern and marking but for one.

    Args:
        images: Frames, uint8 ``(families * members * FRAMES, H, W, 3)``.
        same_frame: Whether to return one frame twice instead (plain single-image self-supervision).
        seed: Seed of the choice of frames.
    """

    def __init__(self, images: np.ndarray, same_frame: bool = False, seed: int = 0) -> None:
        self.images, self.same_frame, self.seed = images, same_frame, seed

    def __len__(self) -> int:
        """Number of families."""
        return len(self.images) // FAMILY_FRAMES

    def __getitems__(self, draws: list[Draw]) -> dict[str, Tensor]:
        """Return ``first`` and ``second`` frames, each ``(B * members, 3, H, W)``, and the step."""
        rng = np.random.default_rng([self.seed, draws[0].step, draws[0].position])
        clips = np.concatenate([draw.index * len(MEMBERS) + np.arange(len(MEMBERS)) for draw in draws])
        chosen = np.stack([rng.choice(FRAMES, 2, replace=False) for _ in clips])
        if self.same_frame:
            chosen[:, 1] = chosen[:, 0]
        rows = clips[:, None] * FRAMES + chosen
        first, second = (torch.from_numpy(to_pixel_values(self.images[rows[:, view]])) for view in (0, 1))
        return {"first": first, "second": second, "step": torch.tensor(draws[0].step)}


class FramePairsData(L.LightningDataModule):
    """Families of clips for self-supervised training, and photos of held-out families for validation.

    Args:
        cache_dir: Folder for rendered frames.
        batch_size: Families per step and rank, with a pair of frames of each member.
        num_train: Number of families.
        num_val: Number of held-out families.
        same_frame: Whether to return one frame twice, see ``FramePairs``.
        seed: Seed of the data order.
    """

    incidental: ClassVar[tuple[str, ...]] = ("cache_dir", "num_val")

    def __init__(
        self,
        cache_dir: str,
        batch_size: BatchSize,
        num_train: Count,
        num_val: Number,
        same_frame: bool = False,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.cache_dir, self.batch_size, self.num_train, self.num_val = cache_dir, batch_size, num_train, num_val
        self.same_frame, self.seed = same_frame, seed

    def prepare_data(self) -> None:
        """Render the frames once, on one process."""
        rendered(self.cache_dir, "families", 0, self.num_train * FAMILY_FRAMES)

    def setup(self, stage: str) -> None:
        """Map the frames to memory, and render the held-out families."""
        images = rendered(self.cache_dir, "families", 0, self.num_train * FAMILY_FRAMES)
        self.train = FramePairs(images, self.same_frame, self.seed)
        self.val = family_photos(range(VALIDATION_FAMILIES, VALIDATION_FAMILIES + self.num_val), QUERIES)

    def train_dataloader(self) -> DataLoader:
        """Load batches from the trainer's current step on."""
        sampler = StepBatchSampler(len(self.train), **share_of(self.trainer, self.batch_size, self.seed))
        return DataLoader(self.train, batch_sampler=sampler, collate_fn=_same)

    def val_dataloader(self) -> DataLoader:
        """Load one batch with every photo of every family, ``(families, members + queries, 3, H, W)``."""
        return DataLoader([torch.from_numpy(self.val)], batch_size=None)  # type: ignore[arg-type]  # a list will do


def family_photos(families: range, queries: int, size: int = 64) -> np.ndarray:
    """Render photos as ``member_cosines`` compares them, ``(families, members + queries, 3, H, W)`` in [-1, 1]."""
    photos = range(len(MEMBERS) + queries)
    images = [np.asarray(render(family_scene(index, photo), size)) for index in families for photo in photos]
    return to_pixel_values(np.stack(images)).reshape(len(families), len(photos), 3, size, size)


def _same(batch: Any) -> Any:
    return batch
