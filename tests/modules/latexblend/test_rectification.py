"""Attention rectification and layouts: formulas by hand, each image on its own, and nothing where it is off."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from src.data.layout import covered
from src.data.request import Request
from src.modules.backbones.pixart import PixArtBackbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.attention import recorded_attention
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.latexblend.guidance import BlendingGuidance, layout_loss
from src.modules.latexblend.rectification import Rectification, rectified, token_weights
from src.modules.latexblend.segments import matched, segmented
from tests.modules.latexblend.test_blending import PIPELINES, bank, generator, pixels, unet_inputs
from tests.tiny import tiny_pixart, tiny_sd

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
PAIR = "a <rex> next to a <mittens>"
BOXES = (("mittens", RIGHT), ("rex", LEFT))


@pytest.fixture(params=["sd", "sdxl"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> UNetBackbone:
    return UNetBackbone(PIPELINES[request.param](tmp_path), request.param)


def drawn(backbone, requests: list[Request], **options) -> np.ndarray:
    banks = {"rex": bank(backbone, 0), "mittens": bank(backbone, 1, "cat"), "tom": bank(backbone, 2, "bird")}
    return pixels(generator(backbone, banks, **{"sampling": {"num_inference_steps": 5}, **options}).sample(requests))


def test_scores_are_raised_and_lowered_by_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, factor = torch.randn(2, 3, 4, 5, generator=generator), torch.tensor([0.3, 0.9])
    own, others = torch.rand(2, 4, 5, generator=generator), torch.rand(2, 4, 5, generator=generator)
    read = torch.tensor([[True] * 5, [True, True, True, False, False]])
    found, whole = rectified(scores, own, others, factor, read), rectified(scores, own, others, factor)
    for row, head, cell, token in np.ndindex(2, 3, 4, 5):
        every = scores[row, head, cell]
        for result, counted in ((found, every[read[row]]), (whole, every)):
            raised = every[token] + factor[row] * own[row, cell, token] * (counted.max() - every[token])
            lowered = raised - factor[row] * others[row, cell, token] * (raised - counted.min())
            assert float(result[row, head, cell, token]) == pytest.approx(float(lowered), abs=1e-5)


def test_each_concept_is_raised_in_its_own_part_and_lowered_in_those_of_all_others() -> None:
    """With three concepts no part of another one counts as one's own; the reference code's does."""
    shares = [torch.tensor(each) for each in ([1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0.5])]
    own, others = token_weights([[1, 2], [4, 5], [6, 7]], shares, 8)
    assert own[:, 1].tolist() == own[:, 2].tolist() == [0.75, 0, 0, 0]
    assert own[:, 6].tolist() == pytest.approx([0, 0, 0.625, 0.3125])
    assert others[:, 5].tolist() == pytest.approx([0.375, 0, 0.375, 0.1875])
    assert others[:, 2].tolist() == pytest.approx([0, 0.375, 0.375, 0.1875])
    assert not own[:, [0, 3]].any() and not others[:, [0, 3]].any()


def test_where_parts_overlap_a_concept_is_at_home() -> None:
    shares = [torch.tensor([1.0, 1, 0, 0]), torch.tensor([0, 1.0, 1, 0]), None]
    own, others = token_weights([[1], [2], [3]], shares, 4)
    assert own[:, 1].tolist() == [0.5, 0.5, 0, 0] and others[:, 1].tolist() == [0, 0, 0.75, 0]
    assert not own[:, 3].any() and not others[:, 3].any()


def test_with_a_layout_a_concept_is_lowered_everywhere_outside_of_its_region() -> None:
    shares = [torch.tensor([1.0, 0.5, 0, 0]), torch.tensor([0, 0, 1.0, 0])]
    own, others = token_weights([[1], [2]], shares, 3, outside=True)
    assert own[:, 1].tolist() == [0.625, 0.3125, 0, 0]
    assert others[:, 1].tolist() == [0, 0.1875, 0.375, 0.375] and others[:, 2].tolist() == [0.25, 0.25, 0, 0.25]


def blocks(cells: int, groups: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention of cells that attend to their own group and, a little, to all; and the groups."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(cells) % groups
    attention = (group[:, None] == group).float() + 0.05 * torch.rand(cells, cells, generator=generator)
    return attention / attention.sum(1, keepdim=True), group


@pytest.mark.parametrize(("cells", "groups"), [(16, 2), (60, 5), (144, 8)])
def test_segments_are_cells_that_attend_to_each_other(cells: int, groups: int) -> None:
    attention, group = blocks(cells, groups)
    found = segmented(attention, groups)
    assert torch.equal(found[:, None] == found, group[:, None] == group)
    assert torch.equal(found, segmented(attention, groups)), "the same attention is cut in the same way"


def test_a_segment_whose_cells_are_attended_to_little_is_one_all_the_same() -> None:
    """Without the degrees, the leading eigenvectors are those of the strongest segment alone."""
    group = torch.tensor([0] * 12 + [1] * 6 + [2] * 4)
    noise = torch.rand(22, 22, generator=torch.Generator().manual_seed(0))
    attention = ((group[:, None] == group) * torch.tensor([20.0, 2.0, 0.5])[group][:, None] + 0.01) * (0.5 + noise)
    found = segmented(attention, 3)
    assert torch.equal(found[:, None] == found, group[:, None] == group)


def test_each_concept_gets_a_segment_and_the_surest_chooses_first() -> None:
    segments = torch.tensor([0, 0, 1, 1, 2])
    maps = torch.tensor([[0.9, 0.9, 0.7, 0.7, 0], [1.0, 1.0, 0.2, 0, 0.3], [0.6, 0.5, 0, 0.1, 0.0]])
    expected = [[0, 0, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert matched(segments, maps).tolist() == expected
    assert matched(torch.zeros(5), maps).sum(1).tolist() == [5, 0, 0], "fewer segments than concepts"


def test_attention_in_the_layers_is_that_of_the_rectified_scores(tmp_path: Path) -> None:
    """Against attention that is written out, with boxes, in a guided batch of two prompts."""
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    phrases, regions = [[[2, 3], [6, 7]], []], [[LEFT, None], []]
    inputs, level = unet_inputs(backbone, 4) | {"timestep": 800}, 0.8

    class ByHand(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            if encoder_hidden_states is None:
                return super().__call__(attn, hidden_states)
            query, key, value = (
                each.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for each in (
                    attn.to_q(hidden_states),
                    attn.to_k(encoder_hidden_states),
                    attn.to_v(encoder_hidden_states),
                )
            )
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            side = round(scores.shape[2] ** 0.5)
            change = min(1.0, 1.5 * level**5) * 0.5  # one half of the image is its region, one half is not
            for cell in range(side * side):
                is_left = cell % side < side // 2
                every = scores[2, :, cell].clone()
                for token in (2, 3):
                    end = every.amax(-1) if is_left else every.amin(-1)
                    scores[2, :, cell, token] += change * (end - every[:, token])
            found = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
            return attn.to_out[0](found)

    with torch.no_grad():
        plain = backbone.unet(**inputs).sample
        with Rectification(1.5).acting(backbone, phrases, regions):
            positional = {name: value for name, value in inputs.items() if name != "sample"}
            found = backbone.unet(inputs["sample"], **positional).sample
        again = backbone.unet(**inputs).sample
        backbone.unet.set_attn_processor(ByHand())
        expected = backbone.unet(**inputs).sample
    assert torch.equal(plain, again), "the UNet is what it was"
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[2], plain[2], atol=1e-4) and torch.allclose(
        found[[0, 1, 3]], plain[[0, 1, 3]], atol=1e-5
    )


def test_rectification_that_is_off_changes_nothing(backbone: UNetBackbone) -> None:
    requests = [Request(PAIR, 0), Request("a dog", 1)]
    plain = drawn(backbone, requests)
    for off in (None, {}, {"strength": 0}, Rectification(), {"start": 0.5}):
        assert np.array_equal(drawn(backbone, requests, rectification=off), plain)
    boxed = [Request(PAIR, 0, layout=BOXES), requests[1]]
    assert np.array_equal(drawn(backbone, boxed, rectification={"strength": 0}), plain)
    assert not np.array_equal(drawn(backbone, boxed)[0], plain[0]), "a layout acts where nothing is said"
    found = drawn(backbone, requests, rectification={"strength": 2})
    assert not np.array_equal(found[0], plain[0]) and abs(found[1] - plain[1]).max() <= 1


def test_what_an_image_depends_on_names_what_was_asked_for(backbone: UNetBackbone) -> None:
    plain = generator(backbone, {}).identity()
    assert generator(backbone, {}, rectification={}).identity() == plain
    bound = generator(backbone, {}, rectification={"bind": True}).identity()
    assert bound == {**plain, "settings": plain["settings"].replace("False", "True")}
    found = generator(backbone, {}, rectification={"strength": 2, "start": 0.8}).identity()
    assert found == {**plain, "rectification": "Rectification(strength=2, start=0.8, num_segments=8)"}


@pytest.mark.parametrize("sides", [(64, 64), (64, 96), (72, 40)])
def test_prompts_of_a_batch_keep_their_own_segments_at_any_size(tmp_path: Path, sides: tuple[int, int]) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    banks = {"rex": bank(backbone, 0), "mittens": bank(backbone, 1, "cat"), "tom": bank(backbone, 2, "bird")}
    drawing = generator(backbone, banks, rectification={"strength": 2})
    requests = [
        Request(PAIR, 0),
        Request("a <tom>", 1),
        Request("a <tom> and a <rex> and a <mittens>", 2),
        Request("a cup", 3),
    ]
    batch = [drawing.prepare(request) for request in requests]

    def latents(members: list) -> torch.Tensor:
        phrases = [[placement.positions for placement in one.concepts] for one in members]
        text = backbone.encode_text([one.plain for one in members]).prompt_embeds
        noise = [
            torch.randn(4, sides[0] // 8, sides[1] // 8, generator=torch.Generator().manual_seed(one.seed))
            for one in members
        ]
        acting = drawing.rectification.acting(backbone, phrases, [one.regions for one in members])
        with torch.no_grad(), drawing._blended([one.concepts for one in members]), acting:
            for timestep in (900, 800, 700):
                found = backbone.unet(torch.stack(noise), timestep, encoder_hidden_states=text).sample
        return found

    together = latents(batch)
    for at, one in enumerate(batch):
        assert torch.allclose(together[at], latents([one])[0], atol=1e-4), requests[at].prompt


def test_segments_are_found_below_a_share_of_the_schedule_and_act_from_the_next_step_on(tmp_path: Path) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    inputs = unet_inputs(backbone, 1)
    text = inputs["encoder_hidden_states"]

    def predictions() -> list[torch.Tensor]:
        return [backbone.unet(inputs["sample"], t, encoder_hidden_states=text).sample for t in (900, 850, 849, 800)]

    with torch.no_grad():
        plain = predictions()
        with Rectification(2.0, start=0.85).acting(backbone, [[[2, 3], [6, 7]]], [[None, None]]):
            found = predictions()
    assert [torch.equal(*pair) for pair in zip(found, plain, strict=True)] == [True, True, True, False]


def test_padding_that_a_transformer_masks_stays_unread(tmp_path: Path) -> None:
    """Whatever stands in the rows of the padding, the picture is the same; without a layout it is another one."""
    pixart = PixArtBackbone(tiny_pixart(tmp_path), "pixart")
    generator = torch.Generator().manual_seed(0)
    noise, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 12, 16, generator=generator)
    mask = torch.tensor([[1] * 9 + [0] * 3])
    state = {"timestep": torch.tensor([800]), "encoder_attention_mask": mask}

    def predicted(text: torch.Tensor, strength: float) -> torch.Tensor:
        acting = Rectification(strength).acting(pixart, [[[2, 3], [6, 7]]], [[LEFT, RIGHT]])
        with torch.no_grad(), acting:
            found: torch.Tensor = pixart.denoiser(noise, encoder_hidden_states=text, **state).sample
        return found

    found = predicted(text, 1.5)
    assert not torch.allclose(found, predicted(text, 0), atol=1e-4)
    text[:, 9:] = 50 * torch.randn(1, 3, 16, generator=generator)
    assert torch.allclose(found, predicted(text, 1.5), atol=1e-6)


def test_guidance_leads_attention_into_the_boxes(backbone: UNetBackbone) -> None:
    """A step of latents lowers the share of attention outside; Eq. 15's form changes the noise."""
    inputs, phrases = unet_inputs(backbone, 1), [[[2, 3], [6, 7]]]
    state = {"latents": inputs["sample"], "prompt_embeds": inputs["encoder_hidden_states"]}
    if backbone.is_sdxl:
        added = inputs["added_cond_kwargs"]
        state |= {"add_text_embeds": added["text_embeds"], "add_time_ids": added["time_ids"]}
    pipeline = backbone.pipeline
    pipeline.scheduler.set_timesteps(4)
    timestep = pipeline.scheduler.timesteps[1]
    pipeline.scheduler.scale_model_input(state["latents"], timestep)

    def outside(latents: torch.Tensor) -> float:
        scaled = pipeline.scheduler.scale_model_input(latents, timestep)
        with torch.no_grad(), recorded_attention(backbone.unet) as maps:
            backbone.unet(**(inputs | {"sample": scaled, "timestep": timestep}))
        losses = []
        for each in maps.values():
            side = round(each.shape[1] ** 0.5)
            left = (torch.arange(side) < side // 2).float().repeat(side)
            for token, part in ((2, left), (3, left), (6, 1 - left), (7, 1 - left)):
                column = each[0, :, token]
                losses.append(0.5 * float((column * (1 - part)).sum() / column.sum()) ** 2)
        return sum(losses) / len(maps)

    after = BlendingGuidance(1, 0.02).arguments(pipeline, phrases, [[LEFT, RIGHT]])["callback_on_step_end"]
    moved = after(pipeline, 0, pipeline.scheduler.timesteps[0], dict(state))["latents"]
    assert outside(moved) < outside(state["latents"])
    with torch.no_grad(), recorded_attention(backbone.unet) as maps:
        backbone.unet(
            **(
                inputs
                | {"timestep": timestep, "sample": pipeline.scheduler.scale_model_input(state["latents"], timestep)}
            )
        )
    sizes = [(8, 8) if each.shape[1] == 64 else (4, 4) for each in maps.values()]
    found = [
        layout_loss(each[0], size, phrases[0], [LEFT, RIGHT]) for each, size in zip(maps.values(), sizes, strict=True)
    ]
    assert float(torch.stack(found).mean()) == pytest.approx(outside(state["latents"]), rel=1e-4)


def test_the_loss_of_a_layout_is_the_square_of_the_share_outside() -> None:
    attention = torch.zeros(16, 3)
    attention[:, 1] = 0.1  # everywhere
    attention[5, 2] = 0.7  # second row, second column
    both = float(layout_loss(attention, (4, 4), [[1, 2]], [(0.0, 0.0, 0.25, 1.0)]))
    assert both == pytest.approx((0.75**2 + 1) / 2)
    assert float(layout_loss(attention, (4, 4), [[2]], [(0.25, 0.25, 0.5, 0.5)])) == pytest.approx(0)
    assert covered((0.25, 0.25, 0.5, 0.5), 4, 4).flatten()[5] == 1


@pytest.mark.parametrize("form", ["latent", "noise"])
def test_guidance_with_boxes_draws_each_image_on_its_own(backbone: UNetBackbone, form: str) -> None:
    guidance = BlendingGuidance(2, 0.1, form=form)
    options = {"blending_guidance": guidance, "rectification": {"strength": 0}}
    requests = [Request(PAIR, 0, layout=BOXES), Request(PAIR, 0), Request("a <tom>", 1, layout=(("tom", LEFT),))]
    together = drawn(backbone, requests, **options)
    assert not np.array_equal(together[0], together[1])
    for at, request in enumerate(requests):
        assert abs(drawn(backbone, [request], **options)[0] - together[at]).max() <= 2


def test_a_method_that_places_nothing_refuses_a_layout(tmp_path: Path) -> None:
    class Elsewhere(ConceptGenerator):
        takes_layouts = False

    drawing = Elsewhere(UNetBackbone(tiny_sd(tmp_path), "sd"), {})
    drawing.check([Request("a dog", 0)])
    with pytest.raises(ValueError, match="this method places no concepts: leave layout out"):
        drawing.check([Request("a dog", 0, layout=BOXES)])


@pytest.mark.parametrize("settings", [{"strength": -1}, {"start": 0}, {"num_segments": 0}, {"strength": float("nan")}])
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="give a strength of at least 0, a start in"):
        Rectification(**settings)


def test_a_layout_rectifies_and_guides_at_once(tmp_path: Path) -> None:
    backbone = UNetBackbone(PIPELINES["sd"](tmp_path), "sd")
    asked, guidance = [Request(PAIR, 0, layout=BOXES)], BlendingGuidance(2, 0.1)
    off = {"strength": 0}
    both = drawn(backbone, asked, blending_guidance=guidance)
    for one in (
        drawn(backbone, asked, blending_guidance=guidance, rectification=off),
        drawn(backbone, asked),
        drawn(backbone, asked, rectification=off),
    ):
        assert (both != one).any()
