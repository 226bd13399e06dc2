"""Putting concepts into generation: exact where it must be, gone without a trace afterwards."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

from src.data.request import Request
from src.modules.backbones.base import Backbone, text_projections
from src.modules.backbones.denoising import LEVELS
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank, concept_offsets, replace_rows, transformed_projections
from src.modules.latexblend.generator import BlendedText, ConceptGenerator, Placement, blended
from tests.tiny import tiny_sd, tiny_sdxl

PIPELINES = {"sd": tiny_sd, "sdxl": tiny_sdxl}


@pytest.fixture(params=["sd", "sdxl"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> UNetBackbone:
    return UNetBackbone(PIPELINES[request.param](tmp_path), request.param)


def bank(backbone: Backbone, seed: int, noun: str = "dog", tokens: int = 2) -> ConceptBank:
    generator = torch.Generator().manual_seed(seed)
    rows = {
        name: torch.randn(tokens, linear.out_features, generator=generator)
        for name, linear in text_projections(backbone.denoiser).items()
    }
    return ConceptBank(rows, {"class_noun": noun, "backbone_hash": backbone.fingerprint, "sha256": str(seed)})


def generator(backbone: Backbone, banks: dict, **options) -> ConceptGenerator:
    sampling = {"num_inference_steps": 2, **options.pop("sampling", {})}
    return ConceptGenerator(backbone, banks, **{"sampling": sampling, "batch_size": 4, **options})


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def unet_inputs(backbone: UNetBackbone, rows: int) -> dict:
    latents = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = backbone.encode_text(["a dog on the grass"] * rows)
    added = backbone.added_conditions(text, (8, 8))
    return {"sample": latents, "timestep": 500, "encoder_hidden_states": text.prompt_embeds, "added_cond_kwargs": added}


def test_without_concepts_nothing_changes(backbone: UNetBackbone) -> None:
    inputs = unet_inputs(backbone, 2)
    with torch.no_grad():
        plain = backbone.unet(**inputs).sample
        with blended(backbone.unet, [[], []]):
            assert torch.equal(backbone.unet(**inputs).sample, plain)


def test_only_conditional_rows_change_and_the_unet_comes_back(backbone: UNetBackbone) -> None:
    inputs = unet_inputs(backbone, 4)
    concept = bank(backbone, 0)
    before = {name: vars(linear).keys() for name, linear in text_projections(backbone.unet).items()}
    with torch.no_grad():
        plain = backbone.unet(**inputs).sample
        with blended(backbone.unet, [[Placement(concept, [1, 2])], []]):
            changed = backbone.unet(**inputs).sample
        again = backbone.unet(**inputs).sample
    assert torch.equal(changed[[0, 1, 3]], plain[[0, 1, 3]])
    assert not torch.allclose(changed[2], plain[2])
    assert torch.equal(again, plain)
    after = {name: vars(linear).keys() for name, linear in text_projections(backbone.unet).items()}
    assert before == after


def test_hooks_and_cache_agree(backbone: UNetBackbone) -> None:
    inputs = unet_inputs(backbone, 2)
    placements = [[Placement(bank(backbone, 0), [1, 2])]]
    with torch.no_grad():
        with transformed_projections(backbone.unet, BlendedText(placements)):
            hooked = backbone.unet(**inputs).sample
        with blended(backbone.unet, placements):
            first, second = backbone.unet(**inputs).sample, backbone.unet(**inputs).sample
    assert torch.equal(first, second)
    assert torch.allclose(hooked, first, atol=1e-6)


def test_another_text_or_one_changed_in_place_is_projected_anew(backbone: UNetBackbone) -> None:
    inputs = unet_inputs(backbone, 2)
    with torch.no_grad():
        with blended(backbone.unet, [[], []]):
            backbone.unet(**inputs)
            inputs["encoder_hidden_states"].mul_(0.5)
            cached = backbone.unet(**inputs).sample
        assert torch.equal(cached, backbone.unet(**inputs).sample)


def test_the_order_of_concepts_does_not_matter(backbone: UNetBackbone) -> None:
    inputs = unet_inputs(backbone, 1)
    first, second = Placement(bank(backbone, 0), [1, 2]), Placement(bank(backbone, 1), [4, 5])
    with torch.no_grad():
        with blended(backbone.unet, [[first, second]]):
            one = backbone.unet(**inputs).sample
        with blended(backbone.unet, [[second, first]]):
            other = backbone.unet(**inputs).sample
    assert torch.equal(one, other)


@pytest.mark.parametrize("keep_context", [False, True])
@pytest.mark.parametrize("bind", [False, True])
def test_strength_goes_from_the_prompts_own_rows_to_the_concepts(
    backbone: UNetBackbone, keep_context: bool, bind: bool
) -> None:
    concept, positions, name = bank(backbone, 0), [1, 2], "k.mid_block.attentions.0.transformer_blocks.0.attn2"
    plain = torch.randn(2, 77, concept.rows[name].shape[1], generator=torch.Generator().manual_seed(1))

    def rows(strength: float) -> torch.Tensor:
        blend = BlendedText([[Placement(concept, positions, strength)]], bind, keep_context)
        return blend(name, plain, plain)

    whole = concept.rows[name] + plain[1, positions] if keep_context else concept.rows[name]
    whole = whole[[1, 1]] if bind else whole
    assert torch.equal(rows(0.0), plain)
    assert torch.equal(rows(1.0)[1, positions], whole)
    for strength in (0.25, 0.7, 1.5):
        moved = rows(strength)
        expected = plain[1, positions] + strength * (whole - plain[1, positions])
        torch.testing.assert_close(moved[1, positions], expected)
        assert torch.equal(moved[0], plain[0])
        assert torch.equal(moved[1, 3:], plain[1, 3:])


def test_each_mention_has_a_strength_of_its_own(backbone: UNetBackbone) -> None:
    drawing = generator(backbone, {"rex": bank(backbone, 0), "tom": bank(backbone, 1, "cat")})
    weak, strong, again = drawing.sample([Request(prompt, 0) for prompt in ("a <rex:0.5>", "a <rex:1.0>", "a <rex>")])
    plain = drawing.sample([Request("a <rex:0>", 0)])  # A batch of another size may round otherwise.
    assert np.array_equal(pixels([strong]), pixels([again]))
    assert np.array_equal(pixels(plain), pixels(backbone.draw(["a dog"], [0], drawing.sampling)))
    assert not np.array_equal(pixels([weak]), pixels([again]))
    assert [each.strength for each in drawing.place("a <rex:0.3>, a <tom> and a <rex:1.5>")[1]] == [0.3, 1.0, 1.5]


def test_a_mention_with_a_strength_depends_on_its_bank(backbone: UNetBackbone) -> None:
    drawing = generator(backbone, {"rex": bank(backbone, 0)})
    assert "bank.rex" in drawing.identity("a <rex:0.5>")
    assert "bank.rex" not in drawing.identity("a dog")


def test_binding_gives_the_modifier_the_key_of_the_noun(backbone: UNetBackbone) -> None:
    name = next(iter(text_projections(backbone.unet)))
    concept = bank(backbone, 0)
    projected = torch.zeros(1, 8, concept.rows[name].shape[1])
    text = BlendedText([[Placement(concept, [1, 3])]], bind=True)
    keys, values = text(name, projected, projected)[0], text("v" + name[1:], projected, projected)[0]
    assert torch.equal(keys[1], concept.rows[name][1]) and torch.equal(keys[3], concept.rows[name][1])
    assert torch.equal(values[1], concept.rows["v" + name[1:]][0])
    assert not keys[[0, 2, 4]].any()


def generic_rows(backbone: UNetBackbone, prompt: str, positions: list[int]) -> dict[str, torch.Tensor]:
    """Plain keys and values of a prompt at some positions."""
    hidden = backbone.encode_text([prompt]).prompt_embeds[0, positions]
    with torch.no_grad():
        return {name: linear(hidden) for name, linear in text_projections(backbone.unet).items()}


def test_a_concept_that_changes_nothing_keeps_every_image_as_it_is(backbone: UNetBackbone) -> None:
    nothing = ConceptBank(generic_rows(backbone, "photo of a dog", [3, 4]), bank(backbone, 0).metadata)
    prompts = ["a cat left of a <rex>", "a sketch of a <rex> on the grass"]
    kept = generator(backbone, {"rex": nothing}, keep_context=True)
    drawn = pixels(kept.sample([Request(prompt, 0) for prompt in prompts]))
    plain = pixels(kept.sample([Request(prompt.replace("<rex>", "dog"), 0) for prompt in prompts]))
    assert abs(drawn - plain).max() <= 1
    replaced = generator(backbone, {"rex": nothing}).sample([Request(prompts[0], 0)])
    assert abs(pixels(replaced) - plain[:1]).max() > 1


def test_context_is_kept_by_adding_what_the_concept_changes(backbone: UNetBackbone) -> None:
    concept = bank(backbone, 0)
    offsets = concept_offsets(backbone, concept)
    text = BlendedText([[Placement(offsets, [5, 6])]], keep_context=True)
    here = generic_rows(backbone, "a cat left of a dog", [5, 6])
    extracted = generic_rows(backbone, "photo of a dog", [3, 4])
    for name, linear in text_projections(backbone.unet).items():
        projected = torch.zeros(1, 8, linear.out_features)
        projected[0, [5, 6]] = here[name]
        expected = concept.rows[name] + here[name] - extracted[name]
        assert torch.allclose(text(name, projected, projected)[0, [5, 6]], expected, atol=1e-5)


def test_concepts_act_below_a_timestep(backbone: UNetBackbone) -> None:
    inputs, concept = unet_inputs(backbone, 1), bank(backbone, 0)
    with torch.no_grad():
        plain = {t: backbone.unet(**(inputs | {"timestep": t})).sample for t in (950, 500)}
        with blended(backbone.unet, [[Placement(concept, [1, 2])]], acts_below=900):
            early = backbone.unet(**(inputs | {"timestep": 950})).sample
            late = backbone.unet(**(inputs | {"timestep": 500})).sample
    assert torch.equal(early, plain[950])
    assert not torch.allclose(late, plain[500])


def test_an_image_depends_on_its_request_alone(backbone: UNetBackbone) -> None:
    banks = {"rex": bank(backbone, 0), "tom": bank(backbone, 1, "cat")}
    requests = [Request("a <rex> on the grass", 1), Request("a <tom> next to a <rex>", 2), Request("a car", 3)]
    together = pixels(generator(backbone, banks).sample(requests))
    alone = pixels([generator(backbone, banks, batch_size=1).sample([request])[0] for request in requests])
    # Other batch sizes take other paths through the matrix products: equal up to rounding to eight bits.
    assert np.abs(together - alone).max() <= 1
    assert np.array_equal(together, pixels(generator(backbone, banks).sample(requests)))


def test_guidance_off_still_blends(backbone: UNetBackbone) -> None:
    banks = {"rex": bank(backbone, 0)}
    without = generator(backbone, banks, sampling={"guidance_scale": 1.0})
    assert not np.array_equal(
        pixels(without.sample([Request("a <rex>", 0)])), pixels(without.sample([Request("a dog", 0)]))
    )


def test_any_stock_pipeline_takes_concepts(tmp_path: Path) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    pipeline = StableDiffusionImg2ImgPipeline(**backbone.pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        image = Image.new("RGB", (64, 64), "red")
        seeded = torch.Generator().manual_seed(0)
        return pixels(pipeline("a dog", image=image, num_inference_steps=4, strength=0.5, generator=seeded).images)

    plain = draw()
    with blended(pipeline.unet, [[Placement(bank(backbone, 0), [1, 2])]]):
        changed = draw()
    assert not np.array_equal(plain, changed)
    assert np.array_equal(plain, draw())


def test_a_controlnet_pipeline_steers_concepts_too(tmp_path: Path) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(backbone.unet, conditioning_channels=3)
    for layer in [
        *controlnet.controlnet_down_blocks,
        controlnet.controlnet_mid_block,
        controlnet.controlnet_cond_embedding.conv_out,
    ]:
        torch.nn.init.normal_(layer.weight, std=0.1)  # a fresh ControlNet is silent
    components = {**backbone.pipeline.components, "controlnet": controlnet}
    pipeline = StableDiffusionControlNetPipeline(**components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def draw(scale: float) -> np.ndarray:
        settings = {"num_inference_steps": 2, "controlnet_conditioning_scale": scale, "height": 64, "width": 64}
        edges = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
        seeded = torch.Generator().manual_seed(0)
        return pixels(pipeline("a dog", image=edges, generator=seeded, **settings).images)

    plain = draw(0.0)
    with blended(pipeline.unet, [[Placement(bank(backbone, 0), [1, 2])]]):
        concept, steered = draw(0.0), draw(1.0)
    assert not np.array_equal(plain, concept)
    assert not np.array_equal(concept, steered)
    assert np.array_equal(plain, draw(0.0))


def test_a_bank_of_another_backbone_is_refused(backbone: UNetBackbone) -> None:
    other = ConceptBank(bank(backbone, 0).rows, {"class_noun": "dog", "backbone": "sdxl", "backbone_hash": "f00"})
    with pytest.raises(ValueError, match="made for the backbone sdxl"):
        generator(backbone, {"rex": other})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("a <rx>", "did you mean <rex>"), ("a <rex> " + "on the grass " * 30, "tokens, but the text encoder takes")],
)
def test_prompts_that_cannot_be_drawn_are_said(backbone: UNetBackbone, prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator(backbone, {"rex": bank(backbone, 0)}).sample([Request(prompt, 0)])


def test_a_row_for_every_position() -> None:
    with pytest.raises(ValueError, match="3 rows, but its phrase takes 2 tokens"):
        replace_rows(torch.zeros(1, 4, 2), torch.zeros(3, 2), [0, 1])


def test_two_contexts_on_one_unet_are_refused(backbone: UNetBackbone) -> None:
    with (
        blended(backbone.unet, [[]]),
        pytest.raises(ValueError, match="already has concepts"),
        blended(backbone.unet, [[]]),
    ):
        pass


PICTURES = [Image.effect_noise((64, 64), 90).convert("RGB"), Image.linear_gradient("L").resize((80, 80))]
CAPTIONS = ["a red dog", "a blue cat on the grass"]


@pytest.mark.parametrize("length", [100, 1000, 4000])
def test_blending_starts_at_a_share_of_the_schedule_whatever_its_length(tmp_path: Path, length: int) -> None:
    pipeline = tiny_sd(tmp_path)
    pipeline.scheduler = DDIMScheduler(num_train_timesteps=length)
    backbone = UNetBackbone(pipeline, "sd")
    inputs, concept = unet_inputs(backbone, 1), bank(backbone, 0)

    def predictions() -> list[torch.Tensor]:
        return [backbone.unet(**(inputs | {"timestep": share * length // 100})).sample for share in (51, 50, 49)]

    with torch.no_grad():
        plain = predictions()
        with generator(backbone, {}, blending_start=0.5)._blended([[Placement(concept, [1, 2])]]):
            found = predictions()
    assert [torch.equal(*pair) for pair in zip(found, plain, strict=True)] == [True, True, False]


@pytest.mark.parametrize("length", [100, 1000, 4000])
def test_blending_ends_at_a_share_of_the_schedule_whatever_its_length(tmp_path: Path, length: int) -> None:
    pipeline = tiny_sd(tmp_path)
    pipeline.scheduler = DDIMScheduler(num_train_timesteps=length)
    backbone = UNetBackbone(pipeline, "sd")
    inputs, concept = unet_inputs(backbone, 1), bank(backbone, 0)

    def predictions() -> list[torch.Tensor]:
        shares = (81, 80, 79, 21, 20, 19)
        return [backbone.unet(**(inputs | {"timestep": share * length // 100})).sample for share in shares]

    with torch.no_grad():
        plain = predictions()
        with generator(backbone, {}, blending_start=0.8, blending_end=0.2)._blended([[Placement(concept, [1, 2])]]):
            found = predictions()
        with generator(backbone, {}, blending_end=0.2)._blended([[Placement(concept, [1, 2])]]):
            from_the_start = predictions()
    assert [torch.equal(*pair) for pair in zip(found, plain, strict=True)] == [True, True, False, False, False, True]
    assert [torch.equal(*pair) for pair in zip(from_the_start, plain, strict=True)] == [False] * 5 + [True]


def test_what_an_image_depends_on_is_what_it_was_before_there_were_options(backbone: UNetBackbone) -> None:
    """Pictures on disk and in caches are found again by these."""
    banks, plain = {"rex": bank(backbone, 0)}, {"backbone": backbone.identity, "negative_prompt": "", "bank.rex": "0"}
    assert generator(backbone, banks, keep_context=False).identity() == {**plain, "settings": "2 5.0 1.0 False 64"}
    ended = generator(backbone, banks, keep_context=False, blending_end=0.25).identity()
    assert ended == {**plain, "settings": "2 5.0 1.0 False 64", "blending_end": "0.25"}


def test_offsets_of_a_bank_of_all_templates_are_from_all_templates(backbone: UNetBackbone) -> None:
    metadata = {**bank(backbone, 0).metadata, "bank_templates": "all"}
    places = {"a dog": 1, "a a dog": 2, "photo of a dog": 3, "a photo of a dog": 4, "a photo of a a dog": 5}
    places |= {"a fancy photo of a a dog": 6, "A close-up, detailed photo of a dog": 9}
    rows = [generic_rows(backbone, prompt, [start, start + 1]) for prompt, start in places.items()]
    mean = {name: torch.stack([each[name] for each in rows]).mean(0) for name in rows[0]}
    for offset in concept_offsets(backbone, ConceptBank(mean, metadata)).rows.values():
        assert offset.abs().max() < 1e-5


@pytest.mark.parametrize(("start", "end"), [(1.0, 1.0), (0.5, 0.6), (0.9, -0.1), (0.9, math.nan)])
def test_an_impossible_end_of_blending_is_said(backbone: UNetBackbone, start: float, end: float) -> None:
    with pytest.raises(ValueError, match="give a smaller share, or 0 to blend to the end"):
        generator(backbone, {}, blending_start=start, blending_end=end)


def test_an_impossible_start_of_blending_is_said(backbone: UNetBackbone) -> None:
    for start in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="give a share of the noise schedule in"):
            generator(backbone, {}, blending_start=start)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_denoising_error_is_that_of_the_scheduler_at_every_level(tmp_path: Path, prediction_type: str) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path, prediction_type), "sd")
    (found,) = generator(backbone, {}).denoising_errors(PICTURES[:1], CAPTIONS[:1], [5])
    scheduler, seeded = backbone.pipeline.scheduler, torch.Generator().manual_seed(5)
    latents = backbone.encode_images(torch.from_numpy(pixels(PICTURES[:1])).permute(0, 3, 1, 2) / 127.5 - 1)
    errors = []
    for level in LEVELS:
        alpha = scheduler.alphas_cumprod[int(1000 * level)]
        noise = torch.randn(latents.shape[1:], generator=seeded)[None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        with torch.no_grad():
            text = backbone.encode_text(CAPTIONS[:1]).prompt_embeds
            errors.append((backbone.unet(noisy, int(1000 * level), text).sample - target).square().mean())
    assert found == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


def test_a_denoising_error_depends_on_image_caption_and_seed_alone(backbone: UNetBackbone) -> None:
    banks = {"rex": bank(backbone, 0)}
    images, captions, seeds = [*PICTURES, PICTURES[0]], [*CAPTIONS, "a <rex>"], [1, 2, 1]
    together = generator(backbone, banks).denoising_errors(images, captions, seeds)
    assert together == generator(backbone, banks).denoising_errors(images, captions, seeds)
    alone = [
        generator(backbone, banks, batch_size=1).denoising_errors([image], [caption], [seed])[0]
        for image, caption, seed in zip(images, captions, seeds, strict=True)
    ]
    assert together == pytest.approx(alone, rel=1e-4)
    # The same image with the same noise: another caption, the caption's concept, another seed.
    others = [("a blue cat", 1), ("a dog", 1), ("a red dog", 3)]
    found = [generator(backbone, banks).denoising_errors(images[:1], [text], [seed])[0] for text, seed in others]
    assert len({together[0], together[2], *found}) == 5


def test_a_request_may_be_truncated_to_what_the_text_encoder_takes(backbone: UNetBackbone) -> None:
    drawing = generator(backbone, {"rex": bank(backbone, 0)})
    long = "a <rex> next to a " + "very " * 40 + "red <rex>"
    start = drawing.readable(long)
    assert long.startswith(start + " ") and len(start.split()) > 20
    with pytest.raises(ValueError, match="tokens, but the text encoder takes"):
        drawing.place(long[: len(start) + len(" very")])
    assert drawing.readable("a <rex> on the grass") == "a <rex> on the grass"
    cut, told = drawing.sample([Request(long, 0, truncate=True), Request(start, 0)])
    assert np.array_equal(pixels([cut]), pixels([told]))
    with pytest.raises(ValueError, match="tokens, but the text encoder takes"):
        drawing.denoising_errors(PICTURES[:1], [long], [0])
