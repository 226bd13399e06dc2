"""Images with captions for training, from any numbered source: bucketed, encoded, resumable."""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.progress import track
from torch import Tensor

from src.data.captions.buckets import Size, aspect_buckets, nearest_bucket
from src.data.captions.items import LEAVE_OUT, CaptionedItems
from src.data.captions.sources import CaptionSource
from src.data.images import image_size
from src.data.order import BucketBatchSampler, Draw, SteppedData, share_of
from src.data.ranges import BatchSize, Number, Ratio, Seed, Side, Workers
from src.data.store import TensorStore

Encode = Callable[[Tensor], Tensor]
"""Encodes images ``(B, 3, H, W)`` in [-1, 1] to latents ``(B, C, h, w)``."""


class EncodedData(L.LightningDataModule):
    """Turns the images of each batch into latents, with the encoder that ``encode_with`` sets.

    A loaded batch holds ``pixels``, uint8 ``(B, H, W, 3)``, and ``keys`` of its latents in the store, or ``latents`` if
    all were stored. The training always gets ``latents``, rounded to half precision even if they were not stored, so
    that the store saves time and changes nothing else.

    Args:
        cache_dir: Folder for latents; None to encode every batch anew.
    """

    def __init__(self, cache_dir: str | None, **loading: Any) -> None:
        super().__init__(**loading)
        self.cache_dir = cache_dir
        self.encode: Encode | None = None
        self.store: TensorStore | None = None

    def encode_with(self, encode: Encode, key: str) -> None:
        """Set how images become latents; must be called before the loaders are made.

        Args:
            encode: The autoencoder's encoder, with its scaling.
            key: Name of its weights and precision, used as a folder.
        """
        self.encode = encode
        self.store = TensorStore(Path(self.cache_dir) / "latents" / key, "latents") if self.cache_dir else None

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Encode and store the images of a batch that the store lacked."""
        if "pixels" not in batch or self.encode is None:
            return batch
        rest = {name: value for name, value in batch.items() if name not in ("pixels", "keys")}
        return {**rest, "latents": self._encoded(batch["pixels"], batch["keys"])}

    def _encoded(self, pixels: Tensor, keys: list[str]) -> Tensor:
        assert self.encode is not None
        images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        # One by one: what is encoded together rounds differently, and a training must not see what was stored.
        latents = torch.cat([self.encode(image[None]) for image in images]).to(torch.float16).contiguous()
        if self.store is not None:
            for key, each in zip(keys, latents, strict=True):
                self.store.write(key, each)
        return latents.float()


logger = logging.getLogger(__name__)
READERS = 16
"""Number of threads that read the headers of all images, which waits for the disk, not for the processor."""


class CaptionedImages(EncodedData, SteppedData):
    """Images with captions, as latents in batches of one shape.

    The constructor reads every header, so that a missing caption or a damaged file is reported before a model is
    loaded. The order of the data is a function of (seed, step, rank), so a resumed training goes on exactly. Images are
    never mirrored, because captions may say left and right.

    Args:
        source: Source of images and captions.
        resolution: Side of the square bucket in pixels; the others have about its area.
        batch_size: Images per step and rank.
        num_val: Number of images kept out of training for the validation loss, always the same.
        max_ratio: Largest ratio of the longer to the shorter side of a bucket; 1 crops every image to a square.
        bucket_step: Difference between the sides of neighbouring buckets in pixels.
        cache_dir: Folder for latents; None to encode every batch anew.
        skip_unreadable: Whether to leave out images that cannot be read, after naming them, instead of stopping.
        num_workers: Number of processes that read and crop images.
        seed: Seed of the order.

    Raises:
        ValueError: If images cannot be read, none is left to train on, or resolution and step do not go together.
    """

    incidental: ClassVar[tuple[str, ...]] = ("cache_dir", "num_workers")

    train: CaptionedItems
    val: CaptionedItems

    def __init__(
        self,
        source: CaptionSource,
        resolution: Side = 512,
        batch_size: BatchSize = 1,
        num_val: Number = 0,
        max_ratio: Ratio = 1.0,
        bucket_step: Side = 64,
        cache_dir: str | None = None,
        skip_unreadable: bool = False,
        num_workers: Workers = 0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(cache_dir, batch_size=batch_size, seed=seed, num_workers=num_workers)
        buckets = aspect_buckets(resolution, max_ratio, bucket_step)
        sizes = _readable_sizes(source, skip_unreadable)
        if len(sizes) <= num_val:
            raise ValueError(f"{len(sizes)} readable images cannot spare data.num_val={num_val}; give a smaller number")
        order = np.random.default_rng(0).permutation(list(sizes)).tolist()
        self.train, self.val = (
            CaptionedItems(source, {i: nearest_bucket(sizes[i], buckets) for i in sorted(part)}, skip_unreadable)
            for part in (order[num_val:], order[:num_val])
        )

    @property
    def captions(self) -> list[str]:
        """All captions of training and validation, for learners that encode text ahead."""
        return sorted({*self.train.captions, *self.val.captions})

    def encode_with(self, encode: Encode, key: str) -> None:
        """Set how images become latents; see ``EncodedData``."""
        super().encode_with(encode, key)
        self.train.store = self.val.store = self.store

    def encode_ahead(self) -> None:
        """Fill the store, each rank with its share; afterwards no batch needs the encoder.

        Raises:
            ValueError: If there is no folder for latents.
        """
        if self.store is None:
            raise ValueError("latents are encoded ahead into a folder: set data.cache_dir")
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        batches = [(items, draws) for items in (self.train, self.val) for draws in items.in_order(self.batch_size)]
        for items, draws in track(batches[rank::ranks], "encoding images", transient=True):
            self.on_after_batch_transfer(items.__getitems__(draws), 0)
        self.trainer.strategy.barrier()

    def train_batches(self) -> Iterable[list[Draw]]:
        """Return the draws of the remaining steps, each batch from one bucket."""
        global_batch = self.batch_size * self.trainer.world_size
        small = [bucket for bucket in self.train.buckets if len(bucket) < global_batch]
        if small and len(self.train.buckets) > 1:
            rank_zero_warn(
                f"{len(small)} of {len(self.train.buckets)} image shapes have fewer images than a batch, so that their "
                "batches repeat some; data.max_ratio=1 puts all images into one shape"
            )
        return BucketBatchSampler(self.train.buckets, **share_of(self.trainer, self.batch_size, self.seed))

    def val_batches(self) -> Iterable[list[Draw]]:
        """Return the validation images, bucket by bucket."""
        return self.val.in_order(self.batch_size)


def _readable_sizes(source: CaptionSource, skip_unreadable: bool) -> dict[int, Size]:
    """Map numbers to width and height; images with a damaged header are named, and left out only on request."""

    def look(index: int) -> Size | str:
        try:
            with source.open(index) as file:
                return image_size(file, source.name(index))
        except (ValueError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(READERS) as pool:
        seen = list(track(pool.map(look, range(len(source))), "reading headers", len(source), transient=True))
    broken = [size for size in seen if isinstance(size, str)]
    if broken:
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        found = f"{len(broken)} of {len(source)} images cannot be used: {'; '.join(broken[:3])}{more}"
        if not skip_unreadable:
            raise ValueError(f"{found}; {LEAVE_OUT}")
        logger.warning("%s; they are left out", found)
    return {index: size for index, size in enumerate(seen) if not isinstance(size, str)}
