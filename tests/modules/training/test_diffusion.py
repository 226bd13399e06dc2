"""Noise, targets and losses against their definitions."""

import pytest
import torch
from diffusers import DDPMScheduler

from src.modules.training.diffusion import diffusion_target, draw_noise, min_snr_weights, per_sample_mse, step_generator


def scheduler(kind: str) -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)


def test_a_sample_draws_the_same_noise_in_any_batch() -> None:
    latents = torch.zeros(3, 4, 8, 8)
    together = draw_noise(latents, 1000, [step_generator(0, 5, 0, row) for row in range(3)])
    alone = draw_noise(latents[:1], 1000, [step_generator(0, 5, 0, 2)])
    assert torch.equal(together[0][2], alone[0][0]) and together[1][2] == alone[1][0]
    assert not torch.equal(together[0][0], together[0][1])


SIGNAL = (1 - torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2).cumprod(0)
"""The share of signal ``a_t`` of a scaled linear schedule."""


def test_targets_are_the_noise_or_the_velocity() -> None:
    """``v = sqrt(a) eps - sqrt(1 - a) x``, and with either target x comes back from ``x_t``."""
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    timesteps = torch.tensor([10, 700])
    alpha = SIGNAL[timesteps].view(-1, 1, 1, 1)
    epsilon = diffusion_target(scheduler("epsilon"), latents, noise, timesteps)
    velocity = diffusion_target(scheduler("v_prediction"), latents, noise, timesteps)
    assert torch.equal(epsilon, noise)
    assert torch.allclose(velocity, alpha.sqrt() * noise - (1 - alpha).sqrt() * latents, atol=1e-5)
    noisy = scheduler("epsilon").add_noise(latents, noise, timesteps)
    assert torch.allclose(noisy, alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, atol=1e-5)
    assert torch.allclose(alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, latents, atol=1e-4)
    with pytest.raises(ValueError, match="'sample'"):
        diffusion_target(scheduler("sample"), latents, noise, timesteps)


def test_min_snr_is_the_published_weight() -> None:
    timesteps = torch.tensor([0, 300, 900])
    snr = SIGNAL[timesteps] / (1 - SIGNAL[timesteps])
    assert torch.allclose(min_snr_weights(scheduler("epsilon"), timesteps, 5.0), snr.clamp(max=5) / snr, rtol=1e-4)
    assert torch.allclose(
        min_snr_weights(scheduler("v_prediction"), timesteps, 5.0), snr.clamp(max=5) / (snr + 1), rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_is_finite_where_the_schedule_ends_in_pure_noise(kind: str) -> None:
    ending = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind, rescale_betas_zero_snr=True)
    weights = min_snr_weights(ending, torch.tensor([0, 500, 999]), 5.0)
    assert weights.isfinite().all() and ending.alphas_cumprod[-1] == 0
    assert weights[-1] == (1 if kind == "epsilon" else 0)


def test_the_mask_says_what_counts() -> None:
    prediction, target = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    target[0, :, 0] = 5
    mask = torch.ones(2, 1, 4, 4)
    mask[0, :, 0] = 0
    assert torch.allclose(per_sample_mse(prediction, target, mask), torch.ones(2))
    assert torch.allclose(per_sample_mse(prediction, target), torch.tensor([7.0, 1.0]))
