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
from src.data.world.render import render
from src.data.world.rendered import rendered
from src.data.world.scenes import FRAMES, subject_scene

VALIDATION_SUBJECTS = 1000
"""First held-out subject of validation during training; measurements use those from 0 on."""


class FramePairs(Dataset):
    """Two frames of one clip as the views of self-supervised training, without the name of the individual.

    Args:
        images: Frames, uint8 ``(clips * FRAMES, H, W, 3)``.
        same_frame: Whether to return one frame twice instead (plain single-image self-supervision).
        seed: Seed of the choice of frames.
    """

    def __init__(self, images: np.ndarray, same_frame: bool = False, seed: int = 0) -> None:
        self.images, self.same_frame, self.seed = images, same_frame, seed

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.images) // FRAMES

    def __getitems__(self, draws: list[Draw]) -> dict[str, Tensor]:
        """Return ``first`` and ``second`` frames, each ``(B, 3, H, W)``, and the step."""
        rng = np.random.default_rng([self.seed, draws[0].step, draws[0].position])
        chosen = np.stack([rng.choice(FRAMES, 2, replace=False) for _ in draws])
        if self.same_frame:
            chosen[:, 1] = chosen[:, 0]
        rows = np.array([draw.index for draw in draws])[:, None] * FRAMES + chosen
        first, second = (torch.from_numpy(to_pixel_values(self.images[rows[:, view]])) for view in (0, 1))
        return {"first": first, "second": second, "step": torch.tensor(draws[0].step)}


class FramePairsData(L.LightningDataModule):
    """Clips for self-supervised training, and views of held-out subjects for validation.

    Args:
        cache_dir: Folder for rendered frames.
        batch_size: Pairs per step and rank.
        num_train: Number of clips.
        num_val: Number of held-out subjects, with four views each.
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
        rendered(self.cache_dir, "frames", 0, self.num_train * FRAMES)

    def setup(self, stage: str) -> None:
        """Map the frames to memory, and render the held-out subjects."""
        images = rendered(self.cache_dir, "frames", 0, self.num_train * FRAMES)
        self.train = FramePairs(images, self.same_frame, self.seed)
        self.val = subject_views(range(VALIDATION_SUBJECTS, VALIDATION_SUBJECTS + self.num_val), 4)

    def train_dataloader(self) -> DataLoader:
        """Load batches from the trainer's current step on."""
        sampler = StepBatchSampler(len(self.train), **share_of(self.trainer, self.batch_size, self.seed))
        return DataLoader(self.train, batch_sampler=sampler, collate_fn=_same)

    def val_dataloader(self) -> DataLoader:
        """Load one batch with every view of every subject, ``(subjects, views, 3, H, W)``."""
        return DataLoader([torch.from_numpy(self.val)], batch_size=None)  # type: ignore[arg-type]  # a list will do


def subject_views(subjects: range, views: int, size: int = 64) -> np.ndarray:
    """Render held-out subjects, ``(subjects, views, 3, H, W)`` in [-1, 1]; the first view is the gallery."""
    rows = [[np.asarray(render(subject_scene(i, view), size)) for view in range(views)] for i in subjects]
    images = np.stack([image for row in rows for image in row])
    return to_pixel_values(images).reshape(len(rows), views, 3, size, size)


def _same(batch: Any) -> Any:
    return batch
