"""Load the images of a batch, which are decoded only if their latents are not stored yet."""

import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.captions.buckets import Size, fitted, size_ids
from src.data.captions.sources import CaptionSource
from src.data.images import decode_image, image_size
from src.data.order import Draw
from src.data.store import TensorStore


def latents_key(encoded: bytes, bucket: Size) -> str:
    """Return the key in the store for the latents of an image file that is cropped to a bucket."""
    # The first word is how images are read: with another one, stored latents would be of other colours.
    digest = hashlib.sha256(b"sRGB %dx%d:" % bucket + encoded).hexdigest()
    return f"{digest[:2]}/{digest}"


@dataclass(frozen=True)
class LoadedImage:
    """An image file that is known to be readable.

    Attributes:
        name: Name of the image in messages.
        encoded: Content of the file.
        bucket: Width and height to crop it to.
        key: Key of its latents in the store.
        latents: Latents from the store, float16 ``(C, h, w)``, or None.
        pixels: Pixels, uint8 ``(H, W, 3)``, or None if there are latents.
    """

    name: str
    encoded: bytes
    bucket: Size
    key: str
    latents: Tensor | None
    pixels: np.ndarray | None


def load(encoded: bytes, name: str, bucket: Size, store: TensorStore | None) -> LoadedImage:
    """Look an image up in the store, or decode it.

    Raises:
        ValueError: If it cannot be decoded.
    """
    key = latents_key(encoded, bucket)
    latents = store.read(key) if store else None
    pixels = _pixels(encoded, name, bucket) if latents is None else None
    return LoadedImage(name, encoded, bucket, key, latents, pixels)


def image_batch(images: Sequence[LoadedImage]) -> dict[str, Any]:
    """Batch images of one bucket: ``size_ids``, and ``latents`` if all are stored, else ``pixels`` and ``keys``."""
    sizes = [image_size(io.BytesIO(image.encoded), image.name) for image in images]
    batch: dict[str, Any] = {
        "size_ids": torch.tensor([size_ids(size, image.bucket) for size, image in zip(sizes, images, strict=True)])
    }
    stored = [image.latents for image in images if image.latents is not None]
    if len(stored) == len(images):
        return {**batch, "latents": torch.stack(stored).float()}
    # The encoder takes whole batches, so images whose latents are stored are decoded with the rest.
    pixels = [
        _pixels(image.encoded, image.name, image.bucket) if image.pixels is None else image.pixels for image in images
    ]
    return {**batch, "pixels": torch.from_numpy(np.stack(pixels)), "keys": [image.key for image in images]}


def _pixels(encoded: bytes, name: str, bucket: Size) -> np.ndarray:
    return fitted(decode_image(io.BytesIO(encoded), name), bucket)


LEAVE_OUT = "remove them, or leave them out with data.skip_unreadable=true"
logger = logging.getLogger(__name__)


class CaptionedItems(Dataset):
    """A part of a source as a dataset; draws give images by their number in the source.

    Args:
        source: Images and captions.
        bucket_of: Number of each image of this part to its bucket.
        skip_unreadable: Whether the next image of the bucket replaces one that cannot be decoded.
    """

    def __init__(self, source: CaptionSource, bucket_of: dict[int, Size], skip_unreadable: bool = False) -> None:
        self.source, self.bucket_of, self.skip_unreadable = source, bucket_of, skip_unreadable
        shapes = sorted(set(bucket_of.values()))
        self.buckets = [[index for index in bucket_of if bucket_of[index] == shape] for shape in shapes]
        self.store: TensorStore | None = None
        self.skipped: set[int] = set()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.bucket_of)

    @property
    def captions(self) -> list[str]:
        """The caption of each image."""
        return [self.source.captions[index] for index in self.bucket_of]

    def in_order(self, batch_size: int) -> list[list[Draw]]:
        """List every image once, in batches of one bucket; an image's position is its place among all."""
        place = {index: at for at, index in enumerate(i for bucket in self.buckets for i in bucket)}
        starts = [(bucket, start) for bucket in self.buckets for start in range(0, len(bucket), batch_size)]
        return [[Draw(i, 0, place[i]) for i in bucket[start : start + batch_size]] for bucket, start in starts]

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        """Load one whole batch; see ``image_batch``."""
        loaded = [self._load(draw.index) for draw in draws]
        return {
            "caption": [self.source.captions[index] for index, _ in loaded],
            "step": torch.tensor(draws[0].step),
            "position": torch.tensor([draw.position for draw in draws]),
            **image_batch([image for _, image in loaded]),
        }

    def _load(self, index: int) -> tuple[int, LoadedImage]:
        """Load an image, or the next one that can be read, and return its number with it."""
        while index in self.skipped:
            index = self._next(index)
        with self.source.open(index) as file:
            encoded = file.read()
        try:
            return index, load(encoded, self.source.name(index), self.bucket_of[index], self.store)
        except ValueError as error:
            self._skip(index, error)
            return self._load(index)

    def _skip(self, index: int, error: ValueError) -> None:
        if not self.skip_unreadable:
            raise ValueError(f"{error}; {LEAVE_OUT}") from error
        self.skipped.add(index)
        logger.warning("%s; left out, number %d of this process", error, len(self.skipped))
        if self.skipped >= set(self._bucket(index)):
            raise ValueError(f"none of the {len(self._bucket(index))} images of one shape can be read") from error

    def _next(self, index: int) -> int:
        bucket = self._bucket(index)
        return bucket[(bucket.index(index) + 1) % len(bucket)]

    def _bucket(self, index: int) -> list[int]:
        return next(bucket for bucket in self.buckets if index in bucket)
