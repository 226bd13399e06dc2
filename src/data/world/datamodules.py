"""What the world's models are trained on: images, captions and linear codes of rendered scenes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.step_sampling import Draw, StepBatchSampler, batches_of
from src.data.world.dataset import SAMPLERS, VALIDATION_START, rendered, to_pixel_values
from src.data.world.linear_code import LinearCode

FIT_IMAGES = 20_000


class Scenes(Dataset):
    """Scenes by seed: ``pixel_values``, ``caption``, ``latents`` of the linear code, as a batch of stacked tensors.

    Args:
        images: uint8 ``(N, H, W, 3)``.
        first: Seed of the first scene.
        kind: Key of ``SAMPLERS``; the captions come from it.
        latents: Codes of the images ``(N, C, h, w)``, or None.
        crop: Side of random crops, or None for whole images.
        seed: Of the crops.
    """

    def __init__(
        self,
        images: np.ndarray,
        first: int,
        kind: str = "scenes",
        latents: np.ndarray | None = None,
        crop: int | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.first, self.kind, self.latents = images, first, kind, latents
        self.crop, self.seed = crop, seed
        self.captions = [SAMPLERS[kind](first + index).caption for index in range(len(images))]

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.images)

    def __getitems__(self, draws: list[Draw]) -> dict[str, Tensor | list[str]]:
        """One whole batch at a time: gathering rows beats stacking items."""
        indices = [draw.index for draw in draws]
        step, position = draws[0].step, draws[0].position
        batch: dict[str, Tensor | list[str]] = {
            "caption": [self.captions[i] for i in indices],
            "step": torch.tensor(step),
            "position": torch.tensor([draw.position for draw in draws]),
        }
        if self.latents is not None and self.crop is None:
            batch["latents"] = torch.from_numpy(self.latents[indices].astype(np.float32))
            return batch
        pixel_values = to_pixel_values(np.stack([self.images[i] for i in indices]))
        if self.crop is not None:
            pixel_values = self._crops(pixel_values, np.random.default_rng([self.seed, step, position]))
        batch["pixel_values"] = torch.from_numpy(pixel_values)
        return batch

    def _crops(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # On the 8-pixel grid, so that a crop's code is a crop of the code.
        places = rng.integers(0, (images.shape[-1] - self.crop) // 8 + 1, (len(images), 2)) * 8
        crops = [im[:, y : y + self.crop, x : x + self.crop] for im, (y, x) in zip(images, places, strict=True)]
        return np.ascontiguousarray(np.stack(crops))


class WorldData(L.LightningDataModule):
    """Rendered scenes for pretraining the world.

    Args:
        cache_dir: Where rendered images are kept.
        batch_size: Per rank.
        num_train: Training scenes, seeds 0 and up.
        num_val: Validation scenes, seeds ``VALIDATION_START`` and up.
        code_path: The linear code, fitted and written on first use; None if images are wanted instead of latents.
        latent_channels: Size of the code.
        latents: Whether batches hold the code instead of the image.
        crop: Side of random training crops.
        kind: Key of ``SAMPLERS``.
        seed: Of the data order.
    """

    def __init__(
        self,
        cache_dir: str,
        batch_size: int,
        num_train: int = 100_000,
        num_val: int = 1000,
        code_path: str | None = None,
        latent_channels: int = 24,
        latents: bool = False,
        crop: int | None = None,
        kind: str = "scenes",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.cache_dir, self.batch_size, self.kind, self.seed = cache_dir, batch_size, kind, seed
        self.num_train, self.num_val = num_train, num_val
        self.code_path, self.latent_channels, self.latents, self.crop = code_path, latent_channels, latents, crop

    def prepare_data(self) -> None:
        """Render once, on one process."""
        images = self._images(0, self.num_train)
        self._images(VALIDATION_START, self.num_val)
        if self.code_path and not Path(self.code_path).exists():
            Path(self.code_path).parent.mkdir(parents=True, exist_ok=True)
            code = LinearCode.fit(to_pixel_values(images[: min(FIT_IMAGES, self.num_train)]), self.latent_channels)
            rank_zero_only(code.save)(self.code_path)

    def setup(self, stage: str) -> None:
        """Map the arrays; compute the latents if they are wanted."""
        self.train = self._scenes(0, self.num_train, self.crop)
        self.val = self._scenes(VALIDATION_START, self.num_val, None)

    def train_dataloader(self) -> DataLoader:
        """Batches from the trainer's current step on."""
        trainer = self.trainer
        num_batches, first_batch = batches_of(trainer)
        sampler = StepBatchSampler(
            len(self.train),
            self.batch_size,
            num_batches,
            self.seed,
            first_batch,
            trainer.global_rank,
            trainer.world_size,
        )
        return DataLoader(self.train, batch_sampler=sampler, collate_fn=_same)

    def val_dataloader(self) -> DataLoader:
        """The validation scenes in order."""
        draws = [Draw(index, 0, index) for index in range(len(self.val))]
        batches = [draws[start : start + self.batch_size] for start in range(0, len(draws), self.batch_size)]
        return DataLoader(self.val, batch_sampler=batches, collate_fn=_same)

    def _images(self, first: int, number: int) -> np.ndarray:
        return rendered(self.cache_dir, self.kind, first, number)

    def _scenes(self, first: int, number: int, crop: int | None) -> Scenes:
        images = self._images(first, number)
        latents = None
        if self.latents:
            assert self.code_path is not None
            latents = _encode_all(LinearCode.load(self.code_path).encode, images)
        return Scenes(images, first, self.kind, latents, crop, self.seed)


def _encode_all(encode: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    chunks = [encode(to_pixel_values(images[i : i + 1000])).astype(np.float16) for i in range(0, len(images), 1000)]
    return np.concatenate(chunks)


def _same(batch: Any) -> Any:
    return batch
