"""Noise, times and targets of flow matching, against the formulas and the sampler that draws with them."""

from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from src.modules.backbones.sana import SanaBackbone
from src.modules.backbones.schedulers import OF_FLOWS, scheduler_like
from src.modules.latexblend.guidance import _NoiseGuidance
from tests.tiny_transformers import tiny_sana

LATENTS = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def backbone(tmp_path: Path) -> SanaBackbone:
    return SanaBackbone(tiny_sana(tmp_path), "sana")


def generators(number: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


def test_noise_is_mixed_along_a_straight_path_and_its_direction_is_the_target(backbone: SanaBackbone) -> None:
    noised = backbone.corrupt(LATENTS, generators())
    sigmas = (noised.timesteps / 1000).view(-1, 1, 1, 1)
    noise = torch.stack([torch.randn(LATENTS.shape[1:], generator=one) for one in generators()])
    assert torch.equal(noised.target, noise - LATENTS)
    assert torch.allclose(noised.noisy_latents, (1 - sigmas) * LATENTS + sigmas * noise)
    # What the sampler makes of a right prediction is the image, at whatever level it starts.
    assert torch.allclose(noised.noisy_latents - sigmas * noised.target, LATENTS, atol=1e-6)


def test_the_draw_of_a_sample_does_not_depend_on_its_batch(backbone: SanaBackbone) -> None:
    both, alone = backbone.corrupt(LATENTS, generators()), backbone.corrupt(LATENTS[2:], generators()[2:])
    assert torch.equal(both.noisy_latents[2:], alone.noisy_latents) and torch.equal(both.timesteps[2:], alone.timesteps)


def test_times_are_logit_normal_and_shifted_as_the_checkpoint_draws(backbone: SanaBackbone) -> None:
    """The median of a logit-normal is 1/2, which a shift of 3 moves to 3/4; none lies outside of the path."""
    many = generators(400)
    times = backbone.corrupt(torch.zeros(400, 4, 1, 1), many).timesteps / 1000
    assert float(times.median()) == pytest.approx(0.75, abs=0.03) and times.min() > 0 and times.max() < 1
    share = times / (3 - 2 * times)
    assert float(torch.logit(share).std()) == pytest.approx(1, abs=0.1)


def test_a_right_prediction_leads_the_sampler_to_the_image(backbone: SanaBackbone) -> None:
    """The target of training is what the checkpoint's own scheduler takes for the model's output."""
    scheduler = DPMSolverMultistepScheduler.from_config(backbone.pipeline.scheduler.config)
    scheduler.set_timesteps(4)
    noise = torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(1))
    latents = noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(noise - LATENTS, timestep, latents).prev_sample
    assert torch.allclose(latents, LATENTS, atol=1e-2)


def test_samplers_that_follow_no_flow_are_refused_and_the_others_draw(backbone: SanaBackbone) -> None:
    own = backbone.pipeline.scheduler
    for name in OF_FLOWS:
        backbone.pipeline.register_modules(scheduler=scheduler_like(own, name))
        drawn = backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 2}))[0]
        assert len(set(drawn.getdata())) > 1
    for name in ("euler", "dpmpp_2m_karras"):
        with pytest.raises(ValueError, match=rf"backbone.scheduler={name} follows no flow; choose one of dpmpp_2m, "):
            scheduler_like(own, name)


@pytest.mark.parametrize("timestep", [1000.0, 750.0, 10.0])
def test_what_guidance_changes_in_the_noise_it_changes_in_the_velocity(backbone: SanaBackbone, timestep: float) -> None:
    """At the same noisy latents, with ``x_0`` solved from them; in noise alone there is nothing to change."""
    factor = _NoiseGuidance._factor(type("Acting", (), {"backbone": backbone})(), timestep)
    sigma, noisy, noise = timestep / 1000, LATENTS[:1], LATENTS[1:2]
    if sigma == 1:
        assert factor == 0
        return

    def velocity(noise: torch.Tensor) -> torch.Tensor:
        return noise - (noisy - sigma * noise) / (1 - sigma)

    assert torch.allclose(velocity(noise + 1) - velocity(noise), torch.tensor(factor), rtol=1e-3)
