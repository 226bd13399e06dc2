"""The images that LaTexBlend learns from: class images drawn by the backbone, and latents of views, both kept."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from src.data.store import ImageStore, TensorStore
from src.data.subject import View
from src.modules.backbones.base import Backbone
from src.modules.backbones.fingerprint import autoencoder_hash

STEPS, GUIDANCE_SCALE, BATCH = 25, 5.0, 8


def class_images(
    backbone: Backbone, class_noun: str, number: int, resolution: int, cache_dir: str | Path
) -> list[Image.Image]:
    """Draw "a photo of a <noun>" with seeds 0, 1, ...; images that are already there are read instead.

    Raises:
        ValueError: If ``number`` is not positive.
    """
    if number < 1:
        raise ValueError(f"data.num_class_images is {number}; give at least 1, or method.prior_loss_weight=0")
    key = f"{backbone.name} {backbone.fingerprint} {class_noun} {resolution} {STEPS} {GUIDANCE_SCALE}"
    folder = Path(cache_dir) / "class_images" / hashlib.sha256(key.encode()).hexdigest()[:16]
    store = ImageStore(folder)
    images = {seed: store.read(f"{seed:04d}") for seed in range(number)}
    missing = [seed for seed, image in images.items() if image is None]
    for start in track(range(0, len(missing), BATCH), "drawing class images", disable=not missing, transient=True):
        seeds = missing[start : start + BATCH]
        for seed, image in zip(seeds, _draw(backbone, class_noun, seeds, resolution), strict=True):
            image.info = {"prompt": f"a photo of a {class_noun}", "seed": str(seed)}
            store.write(f"{seed:04d}", image)
            images[seed] = image
    return [image for image in images.values() if image is not None]


def _draw(backbone: Backbone, class_noun: str, seeds: list[int], resolution: int) -> list[Image.Image]:
    return backbone.pipeline(
        [f"a photo of a {class_noun}"] * len(seeds),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        height=resolution,
        width=resolution,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **backbone.call,
    ).images


def encoded_views(backbone: Backbone, views: Sequence[View], cache_dir: str | Path) -> tuple[Tensor, Tensor]:
    """Latents ``(N, C, h, w)`` and masks ``(N, 1, h, w)`` of views, on the CPU.

    The key covers pixels, autoencoder and precision, so nothing ever needs to be cleared by hand.
    """
    masks = torch.from_numpy(np.stack([view.mask for view in views]))[:, None]
    key = autoencoder_hash(backbone.vae)
    for view in views:
        key.update(view.pixels.tobytes())
    store = TensorStore(Path(cache_dir) / "latents", "latents")
    return store.get(key.hexdigest()[:32], lambda: _encode(backbone, views)), masks


def _encode(backbone: Backbone, views: Sequence[View]) -> Tensor:
    chunks = []
    for start in track(range(0, len(views), 8), "encoding views", transient=True):
        pixels = np.stack([view.pixels for view in views[start : start + 8]])
        pixel_values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        chunks.append(backbone.encode_images(pixel_values).cpu())
    # As they are read from a file: another order in memory is rounded otherwise in training.
    return torch.cat(chunks).contiguous()
