"""One image of a batch, as far as it is needed: decoded only if its latents are not stored."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.data.aspect_buckets import Size, fitted, size_ids
from src.data.images import decode_image, image_size
from src.data.latent_store import LatentStore, digest


@dataclass(frozen=True)
class LoadedImage:
    """An image file that is known to be readable.

    Attributes:
        name: What a sentence to the user calls it.
        encoded: The file.
        bucket: Width and height to cut it to.
        digest: Its name in the store.
        latents: From the store, or None.
        pixels: uint8 ``(H, W, 3)``, or None if there are latents.
    """

    name: str
    encoded: bytes
    bucket: Size
    digest: str
    latents: Tensor | None
    pixels: np.ndarray | None


def load(encoded: bytes, name: str, bucket: Size, store: LatentStore | None) -> LoadedImage:
    """Look an image up in the store, or decode it.

    Raises:
        ValueError: If it cannot be decoded.
    """
    key = digest(encoded, bucket)
    latents = store.read(key) if store else None
    pixels = _pixels(encoded, name, bucket) if latents is None else None
    return LoadedImage(name, encoded, bucket, key, latents, pixels)


def image_batch(images: Sequence[LoadedImage]) -> dict[str, Any]:
    """Images of one bucket: ``latents`` if all are stored, else ``pixels`` and ``digests``; and ``size_ids``."""
    sizes = [image_size(io.BytesIO(image.encoded), image.name) for image in images]
    batch: dict[str, Any] = {
        "size_ids": torch.tensor([size_ids(size, image.bucket) for size, image in zip(sizes, images, strict=True)])
    }
    stored = [image.latents for image in images if image.latents is not None]
    if len(stored) == len(images):
        return {**batch, "latents": torch.stack(stored).float()}
    # The encoder takes whole batches: what the store has is decoded with the rest.
    pixels = [
        _pixels(image.encoded, image.name, image.bucket) if image.pixels is None else image.pixels for image in images
    ]
    return {**batch, "pixels": torch.from_numpy(np.stack(pixels)), "digests": [image.digest for image in images]}


def _pixels(encoded: bytes, name: str, bucket: Size) -> np.ndarray:
    return fitted(decode_image(io.BytesIO(encoded), name), bucket)
