"""The recorded path of denoising against loops that are written out here, and a scheduler that is as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from src.data.request import Request
from src.data.trajectory import Trajectory
from src.eval.scores.deviation import stepwise_deviation, trajectory_deviation
from src.modules.backbones.sd3 import SD3Backbone
from src.modules.backbones.trajectory import traced
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.latexblend.guidance import BlendingGuidance
from tests.modules.latexblend.test_blending import bank
from tests.modules.latexblend.test_joint_attention import bank as joint_bank
from tests.tiny import tiny_sd, tiny_sd3, tiny_sdxl

STEPS, SCALE = 4, 3.0
SAMPLING = {"num_inference_steps": STEPS, "guidance_scale": SCALE}
PLAIN, WITH = Request("a dog on the grass", 5), Request("a <rex> on the grass", 5)
REQUESTS = [PLAIN, Request("a cat at night", 6), Request("a bird", 5)]


@pytest.fixture(params=["sd", "sdxl"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> UNetBackbone:
    return UNetBackbone({"sd": tiny_sd, "sdxl": tiny_sdxl}[request.param](tmp_path), request.param)


@pytest.fixture
def generator(backbone: UNetBackbone) -> ConceptGenerator:
    return ConceptGenerator(backbone, {"rex": bank(backbone, 0)}, SAMPLING, batch_size=2)


def guided(backbone: UNetBackbone, prompt: str, latents: Tensor, timestep: Tensor) -> Tensor:
    """Both halves of guidance in a call each."""
    scheduler, size = backbone.pipeline.scheduler, latents.shape[-2:]
    given = scheduler.scale_model_input(latents, timestep)
    found = []
    for text in (backbone.encode_text([""]), backbone.encode_text([prompt])):
        states, added = text.prompt_embeds, backbone.added_conditions(text, tuple(size))
        if not found and backbone.is_sdxl:
            states = torch.zeros_like(states)
            added = added | {"text_embeds": torch.zeros_like(added["text_embeds"])}
        found.append(backbone.unet(given, timestep, states, added_cond_kwargs=added).sample)
    return found[0] + SCALE * (found[1] - found[0])


@torch.no_grad()
def by_hand(backbone: UNetBackbone, request: Request) -> tuple[Tensor, Tensor]:
    """Latents ``(T + 1, 1, C, h, w)`` and guided noise ``(T, 1, C, h, w)`` of a plain prompt."""
    scheduler, side = backbone.pipeline.scheduler, backbone.denoiser.config.sample_size
    scheduler.set_timesteps(STEPS)
    first = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(request.seed))
    latents, noise = [first * scheduler.init_noise_sigma], []
    for timestep in scheduler.timesteps:
        noise.append(guided(backbone, request.prompt, latents[-1], timestep))
        latents.append(scheduler.step(noise[-1], timestep, latents[-1]).prev_sample)
    return torch.stack(latents), torch.stack(noise)


def test_every_step_of_every_image_is_that_of_a_loop(backbone: UNetBackbone, generator: ConceptGenerator) -> None:
    found = generator.trajectory(REQUESTS)
    assert found.latents.shape[:2] == (STEPS + 1, 3) and found.noise.shape[:2] == (STEPS, 3)
    for at, request in enumerate(REQUESTS):
        latents, noise = by_hand(backbone, request)
        torch.testing.assert_close(found.latents[:, at], latents[:, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.noise[:, at], noise[:, 0], rtol=1e-3, atol=1e-4)


def test_the_plain_model_held_on_its_own_path_deviates_by_nothing_at_all(generator: ConceptGenerator) -> None:
    plain = generator.trajectory(REQUESTS)
    assert stepwise_deviation(generator.trajectory(REQUESTS, plain).noise, plain.noise).tolist() == [0.0] * 3
    assert trajectory_deviation(generator.trajectory(REQUESTS).latents, plain.latents).tolist() == [0.0] * 3


def test_concepts_predict_on_the_plain_models_latents(backbone: UNetBackbone, generator: ConceptGenerator) -> None:
    plain, own = generator.trajectory([PLAIN]), generator.trajectory([WITH])
    held = generator.trajectory([WITH], plain)
    assert torch.equal(held.latents, plain.latents) and not torch.equal(own.latents[-1], plain.latents[-1])
    assert torch.equal(own.latents[0], plain.latents[0]) and torch.equal(own.noise[0], held.noise[0])
    # What the concept predicts at the plain latents, step by step.
    scheduler = backbone.pipeline.scheduler
    for index, timestep in enumerate(scheduler.timesteps):
        scheduler.set_timesteps(STEPS)
        with generator._blended([generator.place(WITH.prompt)[1]]), torch.no_grad():
            text = backbone.encode_text([PLAIN.prompt])
            given = scheduler.scale_model_input(plain.latents[index], timestep)
            added = backbone.added_conditions(text, tuple(given.shape[-2:]))
            conditional = backbone.unet(
                given, timestep, encoder_hidden_states=text.prompt_embeds, added_cond_kwargs=added
            ).sample
        with torch.no_grad():
            stock = backbone.unet(
                given, timestep, encoder_hidden_states=text.prompt_embeds, added_cond_kwargs=added
            ).sample
        expected = plain.noise[index] + SCALE * (conditional - stock)
        torch.testing.assert_close(held.noise[index], expected, rtol=1e-3, atol=1e-4)


def test_batches_are_put_in_the_order_of_requests(generator: ConceptGenerator) -> None:
    plain = generator.trajectory(REQUESTS)
    turned = generator.trajectory(REQUESTS[::-1], plain.part([2, 1, 0]))
    torch.testing.assert_close(turned.latents, plain.latents[:, [2, 1, 0]])
    torch.testing.assert_close(turned.noise, plain.noise[:, [2, 1, 0]], rtol=1e-3, atol=1e-4)
    parts = [plain.part([2, 0]), plain.part([1])]
    assert torch.equal(Trajectory.joined(parts, [2, 0, 1]).noise, plain.noise)


def test_the_scheduler_is_as_it_was_and_so_are_the_pictures(
    backbone: UNetBackbone, generator: ConceptGenerator
) -> None:
    before = np.asarray(generator.sample([WITH])[0])
    generator.trajectory([WITH], generator.trajectory([PLAIN]))
    assert "step" not in vars(backbone.pipeline.scheduler)
    with pytest.raises(RuntimeError, match="in the middle"), traced(backbone.pipeline):
        raise RuntimeError("in the middle")
    assert "step" not in vars(backbone.pipeline.scheduler)
    assert (np.asarray(generator.sample([WITH])[0]) == before).all()


def test_of_two_calls_the_second_is_kept(backbone: UNetBackbone, generator: ConceptGenerator) -> None:
    """As of OMG, which draws a layout first."""
    plain = generator.trajectory([PLAIN])
    with traced(backbone.pipeline, plain) as steps:
        generator.sample([Request("a cat", 1)])
        generator.sample([WITH])
    assert len(steps) == STEPS
    assert torch.equal(torch.stack([after for *_, after in steps]), plain.latents[1:])


def test_guidance_that_moves_latents_is_seen_on_the_way(backbone: UNetBackbone) -> None:
    guiding = ConceptGenerator(
        backbone, {"rex": bank(backbone, 0)}, SAMPLING, blending_guidance=BlendingGuidance(num_steps=1, step_size=0.5)
    )
    without = ConceptGenerator(backbone, {"rex": bank(backbone, 0)}, SAMPLING)
    ours, theirs = guiding.trajectory([WITH]), without.trajectory([WITH])
    assert torch.equal(ours.latents[0], theirs.latents[0])
    size = float(theirs.latents[1].norm())
    assert float((ours.latents[1] - theirs.latents[1]).norm()) == pytest.approx(0.5 * size, rel=1e-3)


@torch.no_grad()
def test_velocities_of_joint_attention_are_those_of_a_loop_along_the_plain_path(tmp_path: Path) -> None:
    backbone = SD3Backbone(tiny_sd3(tmp_path), "sd3")
    generator = ConceptGenerator(backbone, {"rex": joint_bank(backbone, 0)}, SAMPLING)
    plain = generator.trajectory([PLAIN])
    assert trajectory_deviation(generator.trajectory([PLAIN]).latents, plain.latents).tolist() == [0.0]
    held = generator.trajectory([WITH], plain)
    assert torch.equal(held.latents, plain.latents)
    assert float(stepwise_deviation(held.noise, plain.noise)) > 0
    # Of flow matching: z at the next noise level is z + (sigma_next - sigma) v.
    sigmas = backbone.pipeline.scheduler.sigmas
    for index in range(STEPS):
        expected = plain.latents[index] + (sigmas[index + 1] - sigmas[index]) * plain.noise[index]
        torch.testing.assert_close(plain.latents[index + 1], expected)
        texts = [backbone.encode_text([prompt]) for prompt in ("", PLAIN.prompt)]
        timestep = sigmas[index][None] * 1000
        zero, conditional = (
            backbone.denoiser(
                plain.latents[index], each.prompt_embeds, each.pooled_prompt_embeds, timestep, return_dict=False
            )[0]
            for each in texts
        )
        expected = zero + SCALE * (conditional - zero)
        torch.testing.assert_close(plain.noise[index], expected, rtol=1e-3, atol=1e-4)
