"""The images that LaTexBlend learns from: class images drawn by the backbone, and latents of views, both kept."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.data.files import whole_file
from src.data.images import load_image
from src.data.pictures import save_png_atomic
from src.data.subject import View
from src.modules.backbones.base import Backbone

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
    key = f"{backbone.name} {backbone.cross_attention_hash} {class_noun} {resolution} {STEPS} {GUIDANCE_SCALE}"
    folder = Path(cache_dir) / "class_images" / hashlib.sha256(key.encode()).hexdigest()[:16]
    paths = [folder / f"{seed:04d}.png" for seed in range(number)]
    missing = [seed for seed, path in enumerate(paths) if not path.exists()]
    for start in track(range(0, len(missing), BATCH), "drawing class images", disable=not missing, transient=True):
        seeds = missing[start : start + BATCH]
        for seed, image in zip(seeds, _draw(backbone, class_noun, seeds, resolution), strict=True):
            save_png_atomic(image, paths[seed], {"prompt": f"a photo of a {class_noun}", "seed": str(seed)})
    return [load_image(path) for path in paths]


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


def _key(backbone: Backbone, views: Sequence[View]) -> str:
    digest = hashlib.sha256(f"{backbone.vae.dtype} {backbone.vae.config.scaling_factor}".encode())
    for parameter in backbone.vae.parameters():
        digest.update(parameter.detach().cpu().float().numpy().tobytes())
    for view in views:
        digest.update(view.pixels.tobytes())
    return digest.hexdigest()[:32]
