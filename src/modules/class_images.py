"""Other members of a class, drawn by the backbone itself, for prior preservation; kept and reused."""

import hashlib
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track

from src.data.images import load_image
from src.data.pictures import save_png_atomic
from src.modules.backbone import DiffusionBackbone

STEPS, GUIDANCE_SCALE, BATCH = 25, 5.0, 8


def class_images(
    backbone: DiffusionBackbone, class_noun: str, number: int, resolution: int, cache_dir: str | Path
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


def _draw(backbone: DiffusionBackbone, class_noun: str, seeds: list[int], resolution: int) -> list[Image.Image]:
    return backbone.pipeline(
        [f"a photo of a {class_noun}"] * len(seeds),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        height=resolution,
        width=resolution,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images
