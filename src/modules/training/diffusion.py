"""Noising, targets and per-sample losses of a latent diffusion model; schedulers are diffusers'."""

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from torch import Tensor


def step_generator(seed: int, step: int, rank: int = 0, stream: int = 0) -> torch.Generator:
    """Make a CPU generator that depends only on its arguments; ``stream`` separates uses within one step."""
    mixed = ((seed * 1_000_003 + step) * 4_099 + rank) * 61 + stream
    return torch.Generator().manual_seed(mixed % (2**63 - 1))


def draw_noise(latents: Tensor, num_train_timesteps: int, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Draw noise and timesteps, one generator per sample, so that a sample's draw does not depend on its batch.

    Returns:
        Noise of the shape of ``latents``, and timesteps of shape ``(B,)`` in ``[0, num_train_timesteps)``.
    """
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
    timesteps = torch.cat([torch.randint(0, num_train_timesteps, (1,), generator=g) for g in generators])
    return noise.to(latents), timesteps.to(latents.device)


def draw_flow(latents: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Draw noise and times of a flow, logit-normal (Esser et al., arXiv 2403.03206), one generator per sample.

    Returns:
        Noise of the shape of ``latents``, and times of shape ``(B,)`` in (0, 1).
    """
    noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
    drawn = [compute_density_for_timestep_sampling("logit_normal", 1, 0.0, 1.0, generator=g) for g in generators]
    return noise.to(latents), torch.cat(drawn).to(latents)


def diffusion_target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Compute what the network must predict: noise or velocity, as the scheduler's ``prediction_type`` says.

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
    """Compute the min-SNR loss weights of Hang et al., 2023 (arXiv 2303.09556) for the prediction type, ``(B,)``.

    ``min(SNR, gamma) / SNR`` is 1 wherever SNR is small, also at the last step of a schedule that ends in pure noise.
    """
    snr = compute_snr(scheduler, timesteps)
    if scheduler.config.prediction_type == "epsilon":
        return gamma / snr.clamp(min=gamma)
    return snr.clamp(max=gamma) / (snr + 1)


def per_sample_mse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, ``(B,)``; with a mask ``(B, 1, h, w)``, over the elements that it keeps."""
    error = (prediction.float() - target.float()) ** 2
    if mask is None:
        return error.flatten(1).mean(1)
    mask = mask.expand_as(error)
    return (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
