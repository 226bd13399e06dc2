"""Blending guidance: it lowers its loss, image by image, and leaves everything else alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor

from src.data.request import Request
from src.modules.backbones.pixart import PixArtBackbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.attention import recorded_attention
from src.modules.latexblend.guidance import BlendingGuidance, separation_loss
from tests.modules.latexblend.test_blending import PIPELINES, bank, generator, pixels, unet_inputs
from tests.tiny import tiny_pixart, tiny_sd

GUIDED = BlendingGuidance(num_steps=3, step_size=0.2)
PAIR = "a <rex> next to a <mittens>"


@pytest.fixture(params=["sd", "sdxl"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> UNetBackbone:
    return UNetBackbone(PIPELINES[request.param](tmp_path), request.param)


def drawn(backbone: UNetBackbone, prompts: list[str], **options) -> np.ndarray:
    banks = {"rex": bank(backbone, 0), "mittens": bank(backbone, 1, "cat")}
    settings = {"sampling": {"num_inference_steps": 4}, "blending_guidance": GUIDED} | options
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
    return pixels(generator(backbone, banks, **settings).sample(requests))


def test_recorded_attention_is_what_the_layer_attends_to(backbone: UNetBackbone) -> None:
    seen: dict[str, torch.Tensor] = {}

    class Watched(AttnProcessor):
        def __call__(self, attn, *args, **kwargs):
            original = attn.get_attention_scores
            attn.get_attention_scores = lambda *scores: seen.setdefault(attn, original(*scores))
            return super().__call__(attn, *args, **kwargs)

    backbone.unet.set_attn_processor(Watched())
    with torch.no_grad(), recorded_attention(backbone.unet) as maps:
        backbone.unet(**unet_inputs(backbone, 2))
    layers = {name: module for name, module in backbone.unet.named_modules() if name.endswith("attn2")}
    assert maps and maps.keys() == layers.keys()
    for name, layer in layers.items():
        assert torch.allclose(maps[name], seen[layer].unflatten(0, (2, layer.heads)).mean(1), atol=1e-6)
        assert not layer.to_q._forward_hooks and not layer.to_k._forward_hooks


def test_the_loss_is_least_where_each_concept_has_a_place_of_its_own() -> None:
    def attention(*places: int) -> torch.Tensor:
        """16 cells, 5 tokens; token ``n + 1`` is attended to from one cell only, the first token from everywhere."""
        shares = torch.zeros(16, 5)
        shares[list(places), range(1, len(places) + 1)] = 0.5
        shares[:, 0] = 1 - shares.sum(1)
        return shares

    phrases = [[1, 2], [3, 4]]
    apart, scattered = attention(0, 0, 15, 15), attention(0, 5, 15, 10)
    together = attention(0, 0, 0, 0) / 2
    apart_loss, scattered_loss, together_loss = (
        float(separation_loss(each, (4, 4), phrases)) for each in (apart, scattered, together)
    )
    assert apart_loss < together_loss == pytest.approx(0, abs=1e-4) and apart_loss < scattered_loss
    swapped = float(separation_loss(apart, (4, 4), phrases[::-1]))
    assert swapped == pytest.approx(apart_loss, rel=1e-5)
    alone = float(separation_loss(scattered, (4, 4), phrases[:1]))
    assert alone > 0 == pytest.approx(float(separation_loss(apart, (4, 4), phrases[:1])), abs=1e-4)


def test_the_loss_is_a_few_lines_of_numpy() -> None:
    """Eq. 13 to 15 on a map of 16 x 16 cells, with nouns of one and of two tokens."""
    attention = torch.rand(256, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    phrases = [[1, 2, 3], [5, 7], [8, 6]]

    def share(token: int) -> np.ndarray:
        pooled = attention[:, token].double().numpy().reshape(8, 2, 8, 2).mean((1, 3)).ravel()
        return np.exp(100 * pooled) / np.exp(100 * pooled).sum()

    def distance(one: int, other: int) -> float:
        p, q = share(one), share(other)
        return float(((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 2)

    gathered = sum(max(distance(first, token) for token in noun) for first, *noun in phrases)
    parted = sum(
        np.mean([max(distance(one, other) for one in first) for other in second])
        for first in phrases
        for second in phrases
        if first is not second
    )
    assert float(separation_loss(attention, (16, 16), phrases)) == pytest.approx(gathered - parted, rel=1e-4)
    of_layers = separation_loss(torch.stack([attention.flip(0), attention]), (16, 16), phrases)
    assert float(of_layers[1]) == pytest.approx(gathered - parted, rel=1e-4) and of_layers.shape == (2,)


def test_a_step_has_its_share_of_the_length_of_the_latents(backbone: UNetBackbone) -> None:
    inputs, pipeline = unet_inputs(backbone, 2), backbone.pipeline
    state = {"latents": 3 * inputs["sample"][:1], "prompt_embeds": inputs["encoder_hidden_states"]}
    if backbone.is_sdxl:
        added = inputs["added_cond_kwargs"]
        state |= {"add_text_embeds": added["text_embeds"], "add_time_ids": added["time_ids"]}
    pipeline.scheduler.set_timesteps(4)
    pipeline.scheduler.scale_model_input(state["latents"], pipeline.scheduler.timesteps[1])
    after = BlendingGuidance(1, 0.02).arguments(pipeline, [[[2, 3], [6, 7]]])["callback_on_step_end"]

    def moved(**changes: torch.Tensor) -> torch.Tensor:
        return after(pipeline, 0, pipeline.scheduler.timesteps[0], state | changes)["latents"]

    assert float((moved() - state["latents"]).norm() / state["latents"].norm()) == pytest.approx(0.02, rel=1e-4)
    # The first half of the rows of a guided batch is unconditional.
    text = state["prompt_embeds"].clone()
    text[0] = torch.randn(text[0].shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(moved(prompt_embeds=text), moved())
    assert not torch.equal(moved(prompt_embeds=text.flip(0)), moved())


def test_without_guided_steps_or_concepts_no_image_changes(backbone: UNetBackbone) -> None:
    plain = drawn(backbone, [PAIR, "a dog"], blending_guidance=None)
    assert np.array_equal(drawn(backbone, [PAIR, "a dog"], blending_guidance=BlendingGuidance()), plain)
    guided = drawn(backbone, [PAIR, "a dog"])
    assert not np.array_equal(guided[0], plain[0])
    assert np.array_equal(guided[1], plain[1])


def test_an_image_does_not_depend_on_its_batch(backbone: UNetBackbone) -> None:
    prompts = [PAIR, "a <rex>", PAIR]
    together, alone = drawn(backbone, prompts), drawn(backbone, prompts, batch_size=1)
    assert abs(together - alone).max() <= 2


def test_a_step_lowers_the_loss(backbone: UNetBackbone) -> None:
    phrases = [[[2, 3], [6, 7]]]
    inputs = unet_inputs(backbone, 1)
    state = {"latents": inputs["sample"], "prompt_embeds": inputs["encoder_hidden_states"]}
    if backbone.is_sdxl:
        added = inputs["added_cond_kwargs"]
        state |= {"add_text_embeds": added["text_embeds"], "add_time_ids": added["time_ids"]}
    pipeline = backbone.pipeline
    pipeline.scheduler.set_timesteps(4)
    # Euler's samplers know the step that they are at; DDIM's are told.
    pipeline.scheduler.scale_model_input(state["latents"], pipeline.scheduler.timesteps[1])

    def loss(latents: torch.Tensor) -> float:
        scaled = pipeline.scheduler.scale_model_input(latents, pipeline.scheduler.timesteps[1])
        inputs.update(sample=scaled, timestep=pipeline.scheduler.timesteps[1])
        with torch.no_grad(), recorded_attention(backbone.unet) as maps:
            backbone.unet(**inputs)
        sizes = [(8, 8) if each.shape[1] == 64 else (4, 4) for each in maps.values()]
        each = [separation_loss(one[0], size, phrases[0]) for one, size in zip(maps.values(), sizes, strict=True)]
        return float(torch.stack(each).mean())

    after = BlendingGuidance(1, 0.02).arguments(pipeline, phrases)["callback_on_step_end"]
    moved = after(pipeline, 0, pipeline.scheduler.timesteps[0], dict(state))["latents"]
    assert loss(moved) < loss(state["latents"])
    assert after(pipeline, 1, pipeline.scheduler.timesteps[1], dict(state)) == {}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_noise_changes_by_the_weighted_gradient_whatever_is_predicted(
    tmp_path: Path, prediction_type: str, rows: int
) -> None:
    """Eq. 15 in float64: the change of the noise along a direction, against differences of the loss."""
    backbone, phrases = UNetBackbone(tiny_sd(tmp_path, prediction_type), "sd"), [[[2, 3], [6, 7]]]
    unet = backbone.unet.double()
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(rows, 4, 8, 8, generator=generator).double()
    text = backbone.encode_text(["a dog on the grass", "a cat and a dog"][:rows]).prompt_embeds.double()
    signal = float(backbone.pipeline.scheduler.alphas_cumprod[700])

    def noise() -> torch.Tensor:
        with torch.no_grad():
            (found,) = unet(noisy, 700, encoder_hidden_states=text, return_dict=False)
        if prediction_type == "epsilon":
            return found
        if prediction_type == "sample":
            return (noisy - signal**0.5 * found) / (1 - signal) ** 0.5
        return signal**0.5 * found + (1 - signal) ** 0.5 * noisy

    def loss(latents: torch.Tensor) -> float:
        with torch.no_grad(), recorded_attention(unet) as maps:
            unet(latents, 700, encoder_hidden_states=text[-1:])
        each = [separation_loss(one[0], (8, 8) if one.shape[1] == 64 else (4, 4), phrases[0]) for one in maps.values()]
        return float(torch.stack(each).mean())

    plain = noise()
    with BlendingGuidance(1, form="noise", weight=0.7).acting(backbone, phrases) as arguments:
        change = noise() - plain
        assert arguments == {} and torch.equal(noise()[0] - plain[0], change[0]), "a second call at one timestep"
    assert torch.allclose(change[0], change[-1]), "whatever the guidance scale, the combination has it once"
    direction = torch.randn(1, 4, 8, 8, generator=generator).double()
    slope = (loss(noisy[-1:] + 0.01 * direction) - loss(noisy[-1:] - 0.01 * direction)) / 0.02
    assert float((change[-1:] * direction).sum()) == pytest.approx(0.7 * slope, rel=2e-3)
    assert torch.equal(noise(), plain)


def test_noise_is_guided_in_the_first_steps_but_not_where_there_is_no_signal(tmp_path: Path) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path, "v_prediction"), "sd")
    backbone.noise_scheduler.alphas_cumprod[999] = 0
    inputs = unet_inputs(backbone, 1)
    sample, text = inputs["sample"], inputs["encoder_hidden_states"]
    with torch.no_grad():
        plain = [backbone.unet(sample, t, encoder_hidden_states=text).sample for t in (999, 900.5, 700)]
        with BlendingGuidance(2, form="noise").acting(backbone, [[[2, 3], [6, 7]]]):
            guided = [backbone.unet(sample, t, encoder_hidden_states=text).sample for t in (999, 900.5, 700)]
    assert [torch.equal(*pair) for pair in zip(guided, plain, strict=True)] == [True, False, True]


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler]
)
def test_every_scheduler_draws_with_guided_noise(backbone: UNetBackbone, scheduler: type) -> None:
    backbone.pipeline.scheduler = scheduler.from_config(backbone.pipeline.scheduler.config)
    guidance = BlendingGuidance(2, form="noise", weight=0.05)
    plain = drawn(backbone, [PAIR, "a dog"], blending_guidance=None)
    guided = drawn(backbone, [PAIR, "a dog"], blending_guidance=guidance)
    assert not np.array_equal(guided[0], plain[0])
    assert np.array_equal(guided[1], plain[1])
    alone = drawn(backbone, [PAIR], blending_guidance=guidance)
    assert abs(alone[0] - guided[0]).max() <= 2


def test_any_pipeline_can_have_its_noise_guided(tmp_path: Path) -> None:
    pixart = PixArtBackbone(tiny_pixart(tmp_path), "pixart")
    rex = bank(pixart, 0)
    request = [Request("a <rex>", 0)]
    settings = {"sampling": {"num_inference_steps": 3}}
    plain = pixels(generator(pixart, {"rex": rex}, **settings).sample(request))
    noise = BlendingGuidance(2, form="noise")
    assert not np.array_equal(
        pixels(generator(pixart, {"rex": rex}, blending_guidance=noise, **settings).sample(request)), plain
    )


@pytest.mark.parametrize("settings", [{"form": "both"}, {"weight": 0.0}, {"weight": math.inf}])
def test_a_form_or_weight_that_is_none_is_said(settings: dict) -> None:
    with pytest.raises(ValueError, match="give latent or noise, and a weight above zero"):
        BlendingGuidance(1, **settings)


@pytest.mark.parametrize(("num_steps", "step_size"), [(-1, 0.1), (5, 0.0), (5, 1.5)])
def test_settings_out_of_range_are_refused(num_steps: int, step_size: float) -> None:
    with pytest.raises(ValueError, match="give 0 or more steps, and a step size in"):
        BlendingGuidance(num_steps, step_size)


def test_guidance_is_part_of_what_an_image_depends_on(backbone: UNetBackbone) -> None:
    banks = {"rex": bank(backbone, 0)}
    plain = generator(backbone, banks).identity()
    assert generator(backbone, banks, blending_guidance=BlendingGuidance()).identity() == plain
    guided = generator(backbone, banks, blending_guidance=GUIDED).identity()
    # As it was before there was another form.
    assert guided == {**plain, "blending_guidance": "BlendingGuidance(num_steps=3, step_size=0.2)"}
    noise = {"num_steps": 3, "form": "noise", "weight": 0.5}
    told = generator(backbone, banks, blending_guidance=noise).identity()
    assert told == {**plain, "blending_guidance": "noise(3, 0.5)"}


def test_a_pipeline_that_cannot_be_guided_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    pixart = PixArtBackbone(tiny_pixart(tmp_path), "pixart")
    with pytest.raises(
        ValueError, match="PixArtSigmaPipeline cannot be guided.*or give method.blending_guidance.form=noise"
    ):
        generator(pixart, {}, blending_guidance=GUIDED)
    generator(pixart, {}, blending_guidance={"num_steps": 0})
