"""How well a model denoises given images under given texts: a loss whose noise comes from seeds alone."""

from collections.abc import Sequence

import torch
from PIL import Image

from src.modules.backbone import Conditioning, DiffusionBackbone
from src.modules.diffusion import diffusion_target, per_sample_mse
from src.modules.image_input import fitted

LEVELS = (0.125, 0.375, 0.625, 0.875)
"""Shares of the noise schedule: the middle of each quarter."""


@torch.no_grad()
def denoising_errors(
    backbone: DiffusionBackbone,
    images: Sequence[Image.Image],
    text: Conditioning,
    seeds: Sequence[int],
    resolution: int,
) -> list[float]:
    """Mean squared error of what the UNet predicts, noise or velocity as its scheduler says, averaged over ``LEVELS``.

    The noise of an image is its seed's, so that the errors of two texts, or of two models of one backbone, can be
    paired. What a method puts into the UNet has to be there already. Errors are taken in float32.

    Args:
        backbone: Its autoencoder, UNet and noise schedule.
        images: Of any size.
        text: One row per image.
        seeds: One per image.
        resolution: Side of the square that images are fitted to.

    Returns:
        One error per image; it does not depend on the rest of the batch beyond rounding.
    """
    scheduler, unet, device = backbone.noise_scheduler, backbone.unet, backbone.device
    latents = backbone.encode_images(fitted(images, resolution, resolution)).to(device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    prompt_embeds = text.prompt_embeds.to(device, backbone.dtype)
    added = backbone.added_conditions(text.pooled_prompt_embeds, resolution)
    errors = []
    for level in LEVELS:
        timesteps = torch.full((len(seeds),), int(level * scheduler.config.num_train_timesteps), device=device)
        noise = torch.stack([torch.randn(latents.shape[1:], generator=one) for one in generators]).to(latents)
        noisy_latents = scheduler.add_noise(latents, noise, timesteps).to(backbone.dtype)
        prediction = unet(noisy_latents, timesteps, prompt_embeds, added_cond_kwargs=added).sample
        errors.append(per_sample_mse(prediction, diffusion_target(scheduler, latents, noise, timesteps)))
    return torch.stack(errors).mean(0).tolist()
