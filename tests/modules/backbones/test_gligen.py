"""Boxes of a layout reach a GLIGEN UNet as the stock pipeline gives them, while concepts blend as ever."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionGLIGENPipeline, UNet2DConditionModel
from PIL import Image

from src.data.layout import bounding_box
from src.data.request import Request
from src.modules.backbones.base import Backbone
from src.modules.backbones.gligen import MOST, Grounded, grounded
from src.modules.backbones.unet import UNetBackbone
from src.modules.generator import pictures
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import ConceptGenerator, Placement, blended
from tests.tiny import UNET, tiny_sd

SETTINGS = {"num_inference_steps": 8, "guidance_scale": 4.0}
LEFT, RIGHT = (0.0, 0.2, 0.5, 0.9), (0.5, 0.1, 1.0, 0.8)
PROMPT = "a dog next to a cat on the grass"


@pytest.fixture
def pipeline(tmp_path: Path) -> StableDiffusionGLIGENPipeline:
    parts = tiny_sd(tmp_path)
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**UNET, cross_attention_dim=16, attention_type="gated")
    for name, weights in unet.named_parameters():  # At their start the gates are shut, and empty places are zeros.
        if "alpha_" in name or "null_" in name:
            torch.nn.init.normal_(weights)
    found = StableDiffusionGLIGENPipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, unet, parts.scheduler, None, None, False
    )
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def backbone(pipeline: StableDiffusionGLIGENPipeline) -> Backbone:
    return UNetBackbone(pipeline, "gligen")


def stock(pipeline, objects: Sequence[Grounded], seed: int = 0, prompt: str = PROMPT, **changed) -> np.ndarray:
    """What the stock pipeline draws; it takes one layout for all prompts of a call."""
    drawn = pipeline(
        [prompt],
        negative_prompt=[""],
        gligen_phrases=[one.phrase for one in objects],
        gligen_boxes=[list(one.box) for one in objects],
        generator=[torch.Generator().manual_seed(seed)],
        output_type="np",
        **SETTINGS | changed,
    )
    return np.asarray(pictures(drawn.images)[0], np.int16)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


OBJECTS = [Grounded("dog", LEFT), Grounded("red cat", RIGHT)]


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_boxes_without_concepts_are_the_stock_pipelines_bit_for_bit(pipeline, backbone, scale):
    settings = backbone.settled({**SETTINGS, "guidance_scale": scale})
    with grounded(backbone, [OBJECTS]):
        (image,) = backbone.draw([PROMPT], [0], settings)
    expected = stock(pipeline, OBJECTS, guidance_scale=scale)
    assert np.array_equal(pixels(image), expected)
    assert not np.array_equal(
        expected, stock(pipeline, OBJECTS, guidance_scale=scale, gligen_scheduled_sampling_beta=0)
    )
    assert not np.array_equal(expected, stock(pipeline, OBJECTS[:1], guidance_scale=scale))
    for module in pipeline.unet.modules():
        assert not module._forward_pre_hooks


def test_without_boxes_it_is_the_stock_pipeline_with_its_gated_layers_off(pipeline, backbone):
    (image,) = backbone.draw([PROMPT], [0], backbone.settled(SETTINGS))
    assert np.array_equal(pixels(image), stock(pipeline, OBJECTS, gligen_scheduled_sampling_beta=0))
    (image,) = ConceptGenerator(backbone, {}, SETTINGS).sample([Request(PROMPT, 0)])
    assert np.array_equal(pixels(image), stock(pipeline, OBJECTS, gligen_scheduled_sampling_beta=0))


def bank(backbone: Backbone, noun: str, seed: int) -> ConceptBank:
    generator = torch.Generator().manual_seed(seed)
    rows = {n: torch.randn(2, one.out_features, generator=generator) for n, one in backbone.text_layers().items()}
    return ConceptBank(rows, {"class_noun": noun, "backbone_hash": backbone.fingerprint, "sha256": str(seed)})


def test_concepts_blend_beside_boxes_and_leave_the_gated_layers_alone(pipeline, backbone):
    banks = {"rex": bank(backbone, "dog", 1), "tom": bank(backbone, "cat", 2)}
    generator = ConceptGenerator(backbone, banks, SETTINGS, rectification={"strength": 0})
    layout = (("rex", LEFT), ("tom", RIGHT))
    asked = "a <rex> next to a <tom> on the grass"
    (image,) = generator.sample([Request(asked, 0, layout=layout)])
    objects = [Grounded("dog", LEFT), Grounded("cat", RIGHT)]
    # "a dog next to a cat on the grass" behind the start token: V* of rex is token 1, of tom token 5.
    with blended(pipeline.unet, [[Placement(banks["rex"], [1, 2]), Placement(banks["tom"], [5, 6])]]):
        expected = stock(pipeline, objects)
    assert np.array_equal(pixels(image), expected)
    assert not np.array_equal(expected, stock(pipeline, objects))
    assert backbone.text_layers() and not any("fuser" in name for name in backbone.text_layers())
    (free,) = generator.sample([Request(asked, 0)])
    with blended(pipeline.unet, [[Placement(banks["rex"], [1, 2]), Placement(banks["tom"], [5, 6])]]):
        assert np.array_equal(pixels(free), stock(pipeline, objects, gligen_scheduled_sampling_beta=0))


def test_an_image_does_not_depend_on_the_boxes_of_others(backbone):
    generator = ConceptGenerator(backbone, {"rex": bank(backbone, "dog", 1)}, SETTINGS)
    requests = [
        Request("a <rex> on the grass", 0, layout=(("rex", LEFT),)),
        Request("a <rex> on the grass", 1),
        Request("a <rex> on the grass", 0, layout=(("rex", RIGHT),)),
        Request("a red cat", 2),
    ]
    together, alone = generator.sample(requests), [generator.sample([one])[0] for one in requests]
    for ours, theirs in zip(together, alone, strict=True):
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1
    assert np.abs(pixels(alone[0]) - pixels(alone[2])).max() > 1


def test_guidance_of_blending_sees_the_boxes_too(pipeline, backbone):
    seen = []
    handle = pipeline.unet.position_net.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    banks = {"rex": bank(backbone, "dog", 1), "tom": bank(backbone, "cat", 2)}
    guided = ConceptGenerator(backbone, banks, SETTINGS, blending_guidance={"num_steps": 1})
    guided.sample([Request("a <rex> next to a <tom>", 0, layout=(("rex", LEFT), ("tom", RIGHT)))])
    handle.remove()
    # Two of eight steps, and the pass of guidance between them.
    assert sorted(seen) == [False, False, True]


def test_a_folder_is_loaded_and_known_by_its_files(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "gligen")
    backbone = UNetBackbone.from_pretrained(str(tmp_path / "gligen"))
    with grounded(backbone, [OBJECTS]):
        (image,) = backbone.draw([PROMPT], [0], backbone.settled(SETTINGS))
    assert np.array_equal(pixels(image), stock(pipeline, OBJECTS))
    assert backbone.overrides["backbone.path"] == str(tmp_path / "gligen")
    assert {"unet", "vae", "text_encoder"} <= set(backbone.parts)


def test_a_mask_is_grounded_by_its_bounding_box(tmp_path):
    mask = np.zeros((40, 80), np.uint8)
    mask[10:30, 20:41] = 255
    mask[20, 60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert bounding_box(str(tmp_path / "mask.png")) == (20 / 80, 10 / 40, 61 / 80, 30 / 40)
    assert bounding_box(LEFT) == LEFT


def test_what_cannot_be_grounded_is_refused(pipeline, backbone, tmp_path):
    with pytest.raises(ValueError, match=f"the layout has {MOST + 1} boxes in one image, but GLIGEN reads {MOST}"):
        grounded(backbone, [OBJECTS[:1] * (MOST + 1)]).__enter__()
    pipeline.register_modules(
        unet=UNet2DConditionModel(**UNET, cross_attention_dim=16, attention_type="gated-text-image")
    )
    with pytest.raises(ValueError, match="gligen is a GLIGEN that also reads pictures of objects"):
        UNetBackbone(pipeline, "gligen")
    plain = UNetBackbone(tiny_sd(tmp_path), "sd")
    with grounded(plain, [OBJECTS]):
        assert not plain.denoiser._forward_pre_hooks
