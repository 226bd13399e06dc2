"""Images that reach the training as latents: encoded once by a function that is passed in, then read from disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from src.data.latent_store import LatentStore

Encode = Callable[[Tensor], Tensor]
"""Images ``(B, 3, H, W)`` in [-1, 1] to latents ``(B, C, h, w)``."""


class EncodedData(L.LightningDataModule):
    """Turns the images of each batch into latents, once ``encode_with`` has said how.

    A batch of images holds ``pixels``, uint8 ``(B, H, W, 3)``, and ``digests``, its images' names in the store; a batch
    that was found in the store holds ``latents`` instead. What the training gets always holds ``latents``, rounded to
    half precision whether they were stored or not, so that a full store changes nothing but the time.

    Args:
        cache_dir: Where latents are kept; None to encode every batch anew.
    """

    def __init__(self, cache_dir: str | None, **loading: Any) -> None:
        super().__init__(**loading)
        self.cache_dir = cache_dir
        self.encode: Encode | None = None
        self.store: LatentStore | None = None

    def encode_with(self, encode: Encode, key: str) -> None:
        """Say how images become latents; to be called before the loaders are asked for.

        Args:
            encode: The autoencoder's encoder, scaling included.
            key: A name for its weights and precision, fit for a folder.
        """
        self.encode = encode
        self.store = LatentStore(Path(self.cache_dir) / "latents", key) if self.cache_dir else None

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Encode what the store did not have, and keep it."""
        if "pixels" not in batch or self.encode is None:
            return batch
        rest = {name: value for name, value in batch.items() if name not in ("pixels", "digests")}
        return {**rest, "latents": self._encoded(batch["pixels"], batch["digests"])}

    def _encoded(self, pixels: Tensor, digests: list[str]) -> Tensor:
        assert self.encode is not None
        latents = self.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(torch.float16)
        if self.store is not None:
            for name, each in zip(digests, latents, strict=True):
                self.store.write(name, each)
        return latents.float()
