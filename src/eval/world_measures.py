"""What WorldQuality counts: one number per image, so that every mean gets an interval."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from src.data.world.dataset import to_pixel_values
from src.data.world.linear_code import LinearCode

BATCH = 32
PEAK = 2.0


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size to ``(N, 3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(to_pixel_values(np.stack([np.asarray(image.convert("RGB")) for image in images])))


def psnr(restored: Tensor, pixel_values: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each image in decibel; values in [-1, 1], so the peak is 2."""
    error = (restored.clamp(-1, 1) - pixel_values).square().flatten(1).mean(1)
    return (10 * torch.log10(PEAK**2 / error)).tolist()


@torch.inference_mode()
def autoencoder_psnr(folder: str | Path, pixel_values: Tensor) -> list[float]:
    """PSNR of each image through the mode of a diffusers ``AutoencoderKL``'s posterior."""
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True).float().eval()
    restored = [vae.decode(vae.encode(batch).latent_dist.mode()).sample for batch in pixel_values.split(BATCH)]
    return psnr(torch.cat(restored), pixel_values)


def linear_psnr(path: str | Path, pixel_values: Tensor) -> list[float]:
    """PSNR of each image through the linear code of the same latent size."""
    code = LinearCode.load(path)
    return psnr(torch.from_numpy(code.decode(code.encode(pixel_values.numpy()))), pixel_values)


def retrieval_hits(images: Tensor, texts: Tensor, captions: Sequence[str], group: int) -> list[bool]:
    """Whether the nearest caption of each image, within its group, reads like its own.

    Args:
        images: Unit embeddings ``(N, D)``.
        texts: Unit embeddings of ``captions``.
        captions: One per image.
        group: Size of the consecutive groups that an image searches.

    Raises:
        ValueError: If the images do not fill their groups: chance would differ between them.
    """
    if len(images) % group:
        raise ValueError(f"{len(images)} images do not make groups of {group}")
    hits = []
    for start in range(0, len(images), group):
        nearest = (images[start : start + group] @ texts[start : start + group].T).argmax(1)
        hits += [captions[start + int(at)] == captions[start + index] for index, at in enumerate(nearest)]
    return hits


def reidentification_hits(embeddings: Tensor) -> list[bool]:
    """Whether each query's nearest gallery image shows the same individual.

    Args:
        embeddings: ``(subjects, views, D)``; the first view of each subject is the gallery, the others are queries.

    Returns:
        One answer per query, subject by subject.
    """
    unit = normalize(embeddings.float(), dim=-1)
    nearest = (unit[:, 1:] @ unit[:, 0].T).argmax(-1)
    return (nearest == torch.arange(len(unit))[:, None]).flatten().tolist()
