"""Training data of the world's models: rendered scenes, their captions, linear codes and attributes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.order import Draw, StepBatchSampler, share_of
from src.data.ranges import BatchSize, Count, Number, Seed, Side
from src.data.world.linear_code import LinearCode
from src.data.world.rendered import SAMPLERS, rendered
from src.data.world.scenes import (
    Scene,
    attribute_scene,
    every_style_scene,
    full_caption,
)
from src.data.world.vocabulary import BACKGROUNDS, COLORS, NOUNS, PATTERNS

VALIDATION_START = 10_000_000
"""First scene seed that no training set reaches; validation scenes count up from here."""


def to_pixel_values(images: np.ndarray) -> np.ndarray:
    """Turn uint8 images ``(B, H, W, 3)`` into float32 ``(B, 3, H, W)`` in [-1, 1]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1.0


FIT_IMAGES = 20_000


class Scenes(Dataset):
    """Scenes by seed, in batches with ``caption`` and ``pixel_values``, or ``latents`` of the linear code.

    Args:
        images: Rendered scenes, uint8 ``(N, H, W, 3)``.
        first: Seed of the first scene.
        kind: Key of ``SAMPLERS``; the captions come from it.
        latents: Codes of the images ``(N, C, h, w)``, or None.
        crop: Side of random crops, or None for whole images.
        seed: Seed of the crops.
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
        """Return one whole batch, because gathering rows is faster than stacking items."""
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
        # Crops lie on the 8-pixel grid, so that a crop's code is a crop of the code.
        places = rng.integers(0, (images.shape[-1] - self.crop) // 8 + 1, (len(images), 2)) * 8
        crops = [im[:, y : y + self.crop, x : x + self.crop] for im, (y, x) in zip(images, places, strict=True)]
        return np.ascontiguousarray(np.stack(crops))


class WorldData(L.LightningDataModule):
    """Rendered scenes for pretraining the world.

    Args:
        cache_dir: Folder for rendered images.
        batch_size: Scenes per step and rank.
        num_train: Number of training scenes, seeds 0 and up.
        num_val: Number of validation scenes, seeds ``VALIDATION_START`` and up.
        code_path: File of the linear code, fitted and written on first use; None for no code.
        latent_channels: Channels of the code.
        latents: Whether batches hold the code instead of the image.
        crop: Side of random training crops; None for whole images.
        kind: Key of ``SAMPLERS``.
        seed: Seed of the data order.
    """

    incidental: ClassVar[tuple[str, ...]] = ("cache_dir", "num_val")

    def __init__(
        self,
        cache_dir: str,
        batch_size: BatchSize,
        num_train: Count = 100_000,
        num_val: Number = 1000,
        code_path: str | None = None,
        latent_channels: Count = 24,
        latents: bool = False,
        crop: Side | None = None,
        kind: str = "scenes",
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.cache_dir, self.batch_size, self.kind, self.seed = cache_dir, batch_size, kind, seed
        self.num_train, self.num_val = num_train, num_val
        self.code_path, self.latent_channels, self.latents, self.crop = code_path, latent_channels, latents, crop

    def prepare_data(self) -> None:
        """Render the scenes and fit the code once, on one process."""
        images = self._images(0, self.num_train)
        self._images(VALIDATION_START, self.num_val)
        if self.code_path and not Path(self.code_path).exists():
            Path(self.code_path).parent.mkdir(parents=True, exist_ok=True)
            code = LinearCode.fit(to_pixel_values(images[: min(FIT_IMAGES, self.num_train)]), self.latent_channels)
            rank_zero_only(code.save)(self.code_path)

    def setup(self, stage: str) -> None:
        """Map the images to memory, and compute the latents if batches hold them."""
        self.train = self._scenes(0, self.num_train, self.crop)
        self.val = self._scenes(VALIDATION_START, self.num_val, None)

    def train_dataloader(self) -> DataLoader:
        """Load batches from the trainer's current step on."""
        sampler = StepBatchSampler(len(self.train), **share_of(self.trainer, self.batch_size, self.seed))
        return DataLoader(self.train, batch_sampler=sampler, collate_fn=_same)

    def val_dataloader(self) -> DataLoader:
        """Load the validation scenes in order."""
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


class CaptionPairs(Scenes):
    """Like ``Scenes`` of kind "every_style"; batches also hold ``full_caption``."""

    def __init__(self, images: np.ndarray, first: int) -> None:
        # super().__init__() would draw every scene a second time for its caption.
        self.images, self.first, self.kind = images, first, "every_style"
        self.latents, self.crop, self.seed = None, None, 0
        scenes = [every_style_scene(first + index) for index in range(len(images))]
        self.captions = [scene.caption for scene in scenes]
        self.full_captions = [full_caption(scene) for scene in scenes]

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        """Return one whole batch."""
        full_captions = [self.full_captions[draw.index] for draw in draws]
        return {**super().__getitems__(draws), "full_caption": full_captions}


class CaptionPairsData(WorldData):
    """World scenes in every style for contrastive training: images with both captions.

    Args:
        cache_dir: Folder for rendered images.
        batch_size: Scenes per step and rank.
        num_train: Number of training scenes.
        num_val: Number of validation scenes.
        seed: Seed of the data order.
    """

    def __init__(
        self, cache_dir: str, batch_size: BatchSize, num_train: Count, num_val: Number, seed: Seed = 0
    ) -> None:
        super().__init__(cache_dir, batch_size, num_train, num_val, kind="every_style", seed=seed)

    def _scenes(self, first: int, number: int, crop: int | None) -> CaptionPairs:
        return CaptionPairs(self._images(first, number), first)


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "object": NOUNS,
    "color": tuple(COLORS),
    "pattern": PATTERNS,
    "background": tuple(BACKGROUNDS),
}
"""The attributes that captions of attribute scenes name, and the words that they choose from."""


def attribute_words(scene: Scene) -> dict[str, str]:
    """Return the scene's word for each of ``ATTRIBUTES``; only the first object counts."""
    look = scene.objects[0].look
    return {"object": look.noun, "color": look.color, "pattern": look.pattern, "background": scene.background}


def attribute_labels(scene: Scene) -> list[int]:
    """Return the index of the scene's word for each of ``ATTRIBUTES``."""
    return [ATTRIBUTES[name].index(word) for name, word in attribute_words(scene).items()]


class AttributeScenes(Scenes):
    """Like ``Scenes`` of kind "attributes"; batches also hold ``labels``, ``(B, 4)``."""

    def __init__(self, images: np.ndarray, first: int) -> None:
        super().__init__(images, first, "attributes")
        self.labels = torch.tensor([attribute_labels(attribute_scene(first + i)) for i in range(len(images))])

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        """Return one whole batch."""
        return {**super().__getitems__(draws), "labels": self.labels[[draw.index for draw in draws]]}


class AttributeData(WorldData):
    """Attribute scenes for training the probe.

    Args:
        cache_dir: Folder for rendered images.
        batch_size: Scenes per step and rank.
        num_train: Number of training scenes.
        num_val: Number of validation scenes.
        seed: Seed of the data order.
    """

    def __init__(
        self, cache_dir: str, batch_size: BatchSize, num_train: Count, num_val: Number, seed: Seed = 0
    ) -> None:
        super().__init__(cache_dir, batch_size, num_train, num_val, kind="attributes", seed=seed)

    def _scenes(self, first: int, number: int, crop: int | None) -> AttributeScenes:
        return AttributeScenes(self._images(first, number), first)
