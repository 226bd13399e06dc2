"""Measure how well a model denoises given images under given texts, with noise that depends only on seeds."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from src.data.finite import check_finite
from src.data.images import fitted
from src.modules.backbones.base import Backbone, Text
from src.modules.training.diffusion import per_sample_mse

LEVELS = (0.125, 0.375, 0.625, 0.875)
"""Timesteps at which errors are measured, as shares of the noise schedule: the middle of each quarter."""


@torch.no_grad()
def denoising_errors(
    backbone: Backbone, images: Sequence[Image.Image], text: Text, seeds: Sequence[int], resolution: int
) -> list[float]:
    """Compute the mean squared error of the predicted noise or velocity, averaged over ``LEVELS``, in float32.

    An image gets the same noise for the same seed, so that the errors of two texts, or of two models of one backbone,
    can be paired. A method must be installed in the denoiser beforehand.

    Args:
        backbone: Gives autoencoder, denoiser and noise schedule.
        images: Images of any size.
        text: Encoded prompts, one row per image.
        seeds: Seed of each image's noise.
        resolution: Side of the square that images are fitted to.

    Returns:
        The error of each image, which does not depend on the rest of the batch beyond rounding.

    Raises:
        ValueError: If one is not finite.
    """
    latents = backbone.encode_images(fitted(images, resolution, resolution)).to(backbone.device)  # (B, C, h, w)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    text = replace(text, prompt_embeds=text.prompt_embeds.to(backbone.device, backbone.dtype))
    num_timesteps = backbone.noise_scheduler.config.num_train_timesteps
    errors = []
    for level in LEVELS:
        timesteps = torch.full((len(seeds),), int(level * num_timesteps), device=backbone.device)
        noise = torch.stack([torch.randn(latents.shape[1:], generator=one) for one in generators]).to(latents)
        noised = backbone.noised(latents, noise, timesteps)
        errors.append(per_sample_mse(backbone.denoise(noised, text), noised.target))
    found = torch.stack(errors).mean(0)
    check_finite(found, "the denoising errors")
    return found.tolist()
