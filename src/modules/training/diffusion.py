"""Noising, targets and per-sample losses of a latent diffusion model; schedulers are diffusers'."""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from PIL import Image
from torch import Tensor

from src.data.images import fitted
from src.modules.backbones.unet import Conditioning, DiffusionBackbone


def step_generator(seed: int, step: int, rank: int = 0, stream: int = 0) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments (``stream`` separates uses within one step)."""
    mixed = ((seed * 1_000_003 + step) * 4_099 + rank) * 61 + stream
    return torch.Generator().manual_seed(mixed % (2**63 - 1))


def draw_noise(latents: Tensor, num_train_timesteps: int, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Draw noise and timesteps, one generator per sample, so that a sample's draw does not depend on its batch.

    Returns:
        ``noise`` like ``latents``, and ``timesteps`` of shape ``(B,)`` in ``[0, num_train_timesteps)``.
    """
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
    timesteps = torch.cat([torch.randint(0, num_train_timesteps, (1,), generator=g) for g in generators])
    return noise.to(latents), timesteps.to(latents.device)


def diffusion_target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network must predict: the noise or the velocity, as the scheduler's ``prediction_type`` says.

    Raises:
        ValueError: If the prediction type is neither ``epsilon`` nor ``v_prediction``.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"prediction_type is {kind!r}; only 'epsilon' and 'v_prediction' can be trained")


def min_snr_weights(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Loss weights of Hang et al., 2023 (arXiv 2303.09556), shape ``(B,)``, for the scheduler's prediction type."""
    snr = compute_snr(scheduler, timesteps)
    clipped = snr.clamp(max=gamma)
    return clipped / snr if scheduler.config.prediction_type == "epsilon" else clipped / (snr + 1)


def per_sample_mse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, shape ``(B,)``; with a mask ``(B, 1, h, w)``, of the elements it keeps."""
    error = (prediction.float() - target.float()) ** 2
    if mask is None:
        return error.flatten(1).mean(1)
    mask = mask.expand_as(error)
    return (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


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
