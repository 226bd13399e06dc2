"""Latents of images, encoded once: kept on disk under the hash of what they were made from."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.data.concept import View
from src.data.whole_file import whole_file
from src.modules.backbone import DiffusionBackbone


def encoded_views(backbone: DiffusionBackbone, views: Sequence[View], cache_dir: str | Path) -> tuple[Tensor, Tensor]:
    """Latents ``(N, C, h, w)`` and masks ``(N, 1, h, w)`` of views, on the CPU.

    The key covers pixels, autoencoder and precision, so nothing ever needs to be cleared by hand.
    """
    masks = torch.from_numpy(np.stack([view.mask for view in views]))[:, None]
    path = Path(cache_dir) / "latents" / f"{_key(backbone, views)}.safetensors"
    if path.exists():
        return load_file(path)["latents"], masks
    chunks = []
    for start in track(range(0, len(views), 8), "encoding views", transient=True):
        pixels = np.stack([view.pixels for view in views[start : start + 8]])
        pixel_values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        chunks.append(backbone.encode_images(pixel_values).cpu())
    latents = torch.cat(chunks).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        save_file({"latents": latents}, partial)
    return latents, masks


def _key(backbone: DiffusionBackbone, views: Sequence[View]) -> str:
    digest = hashlib.sha256(f"{backbone.vae.dtype} {backbone.vae.config.scaling_factor}".encode())
    for parameter in backbone.vae.parameters():
        digest.update(parameter.detach().cpu().float().numpy().tobytes())
    for view in views:
        digest.update(view.pixels.tobytes())
    return digest.hexdigest()[:32]
