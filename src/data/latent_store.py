"""Latents on disk, one file per image, under the hash of what they were made from."""

import hashlib
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.data.aspect_buckets import Size
from src.data.whole_file import whole_file


def digest(encoded: bytes, bucket: Size) -> str:
    """Hex name of an image file's content as cut to a bucket."""
    return hashlib.sha256(b"%dx%d:" % bucket + encoded).hexdigest()


class LatentStore:
    """Latents by digest, in half precision; several processes may read and write at once.

    Args:
        folder: Made when something is written.
        key: What the encoder is, such as a hash of its weights and precision: nothing needs to be cleared by hand.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        self.folder = Path(folder) / key

    def read(self, name: str) -> Tensor | None:
        """Latents ``(C, h, w)``, or None if there are none to read."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            return load_file(path)["latents"]
        except (SafetensorError, KeyError):
            logging.getLogger(__name__).warning("%s is damaged; the image is encoded again", path)
            return None

    def write(self, name: str, latents: Tensor) -> None:
        """Keep latents ``(C, h, w)``."""
        with whole_file(self._path(name)) as partial:
            save_file({"latents": latents.to("cpu", torch.float16).contiguous()}, partial)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"
