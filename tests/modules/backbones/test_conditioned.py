"""Image to image, inpainting and ControlNet: the stock pipelines bit for bit, with concepts blended in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from src.data.request import Request
from src.modules.backbones.conditioned import ConditionedPipeline, Pictures
from src.modules.backbones.pixart import PixArtBackbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import ConceptGenerator
from tests.tiny import tiny_pixart, tiny_sd, tiny_sdxl

STEPS = {"num_inference_steps": 4, "guidance_scale": 3.0}
KINDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "image": (("image",), StableDiffusionImg2ImgPipeline),
    "mask": (("image", "mask"), StableDiffusionInpaintPipeline),
    "control": (("control",), StableDiffusionControlNetPipeline),
    "image control": (("image", "control"), StableDiffusionControlNetImg2ImgPipeline),
    "mask control": (("image", "mask", "control"), StableDiffusionControlNetInpaintPipeline),
    "sdxl image": (("image",), StableDiffusionXLImg2ImgPipeline),
    "sdxl mask": (("image", "mask"), StableDiffusionXLInpaintPipeline),
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    made = {"image": Image.fromarray(noise), "mask": mask, "control": Image.linear_gradient("L").resize((64, 64))}
    for name, one in made.items():
        one.save(tmp_path / f"{name}.png")
    return {name: str(tmp_path / f"{name}.png") for name in made}


def saved_controlnet(backbone: UNetBackbone, folder: Path) -> Path:
    torch.manual_seed(0)
    model = ControlNetModel.from_unet(backbone.unet, conditioning_channels=3)
    silent = [*model.controlnet_down_blocks, model.controlnet_mid_block, model.controlnet_cond_embedding.conv_out]
    for layer in silent:
        torch.nn.init.normal_(layer.weight, std=0.1)
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path, kind: str) -> UNetBackbone:
    maker = tiny_sdxl if "sdxl" in kind else tiny_sd
    maker(folder).save_pretrained(folder / "saved")
    plain = UNetBackbone.from_pretrained(str(folder / "saved"))
    if "control" not in kind:
        return plain
    place = saved_controlnet(plain, folder / "controlnet")
    return UNetBackbone.from_pretrained(str(folder / "saved"), controlnet=str(place))


def given(kind: str, files: dict[str, str], strength: float = 0.5) -> Pictures:
    named = {name: files[name] if name in KINDS[kind][0] else None for name in ("image", "mask", "control")}
    read = Pictures.read(named["image"], strength if named["image"] else None, named["mask"], named["control"])
    assert read is not None
    return read


def bank(backbone: UNetBackbone) -> ConceptBank:
    rows = {name: torch.randn(2, layer.out_features) for name, layer in backbone.text_layers().items()}
    return ConceptBank(rows, {"class_noun": "dog", "backbone_hash": backbone.fingerprint, "sha256": "0"})


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


@pytest.mark.parametrize("kind", KINDS)
def test_without_concepts_it_is_the_stock_call_and_concepts_change_it(
    tmp_path: Path, files: dict[str, str], kind: str
) -> None:
    backbone = loaded(tmp_path, kind)
    text_alone = backbone.identity
    backbone.conditioned = ConditionedPipeline(backbone, given(kind, files))
    requests = [Request("a dog", 0), Request("a red cat", 1)]
    generator = ConceptGenerator(backbone, {"rex": bank(backbone)}, STEPS, keep_context=False)
    drawn = pixels(generator.sample(requests))
    names, stock = KINDS[kind]
    components = dict(backbone.pipeline.components)
    more = {} if "sdxl" in kind else {"requires_safety_checker": False}
    if "control" in names:
        more["controlnet"] = ControlNetModel.from_pretrained(tmp_path / "controlnet")
    pipeline = stock(**components, **more)
    photo, mask, control = (Image.open(files[name]).convert("L" if name == "mask" else "RGB") for name in files)
    call: dict[str, Any] = {"image": [photo if "image" in names else control] * 2}
    call |= {"strength": 0.5} if "image" in names else {}
    call |= {"mask_image": [mask] * 2} if "mask" in names else {}
    call |= {"control_image": [control] * 2} if len(names) > 1 and "control" in names else {}
    call |= (
        {}
        if stock in (StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline)
        else {"height": 64, "width": 64}
    )
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = pipeline(["a dog", "a red cat"], generator=seeds, **STEPS, **call).images
    assert np.array_equal(drawn, pixels(expected))
    concept = pixels(generator.sample([Request("a <rex>", 0)]))[0]
    assert not np.array_equal(concept, drawn[0])
    alone = ConceptGenerator(backbone, {"rex": bank(backbone)}, STEPS, batch_size=1).sample(requests)
    assert np.abs(pixels(alone) - drawn).max() <= 1
    assert backbone.identity != text_alone
    other = ConditionedPipeline(
        backbone, given(kind, {**files, names[0]: files["control" if names[0] != "control" else "image"]})
    )
    assert other.identity != backbone.conditioned.identity


def test_strength_is_the_share_that_is_drawn_anew(tmp_path: Path, files: dict[str, str]) -> None:
    backbone, steps = loaded(tmp_path, "image"), []
    backbone.unet.register_forward_hook(lambda *_: steps.append(1))
    settings = backbone.settled({"num_inference_steps": 10, "guidance_scale": 1.0})
    for strength in (0.3, 0.6):
        steps.clear()
        backbone.conditioned = ConditionedPipeline(backbone, given("image", files, strength))
        backbone.draw(["a dog"], [0], settings)
        assert len(steps) == round(10 * strength)
    with pytest.raises(ValueError, match=r"strength=0\.6 leaves none of 1 steps"):
        backbone.draw(["a dog"], [0], {**settings, "num_inference_steps": 1})


def test_pictures_that_do_not_go_together_are_said(tmp_path: Path, files: dict[str, str]) -> None:
    Image.new("L", (80, 64)).save(tmp_path / "wide.png")
    for pictures, told in (
        ((None, None, files["mask"], None), "mask=.* changes a picture, and none is given: add image=PHOTO"),
        ((None, 0.5, None, None), "strength=0.5 changes a picture"),
        ((files["image"], 0.0, None, None), r"strength is 0\.0; give a share of the noise schedule in \(0, 1\]"),
        ((files["image"], None, str(tmp_path / "wide.png"), None), "mask has 80 x 64 pixels, but image has 64 x 64"),
    ):
        with pytest.raises(ValueError, match=told):
            Pictures.read(*pictures)
    assert Pictures.read(None, None, None, None) is None


def test_controlnets_of_other_models_are_said(tmp_path: Path, files: dict[str, str]) -> None:
    backbone = loaded(tmp_path, "control")
    with pytest.raises(ValueError, match="needs a ControlNet: add control=FILE"):
        ConditionedPipeline(backbone, given("image", files))
    place = str(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"add backbone\.controlnet=FOLDER"):
        ConditionedPipeline(UNetBackbone.from_pretrained(place), given("control", files))
    tiny_sdxl(tmp_path / "xl").save_pretrained(tmp_path / "xl" / "saved")
    sdxl = UNetBackbone.from_pretrained(str(tmp_path / "xl" / "saved"), controlnet=str(tmp_path / "controlnet"))
    with pytest.raises(ValueError, match="is of another model: it reads text of width 16, this one of 40"):
        ConditionedPipeline(sdxl, given("control", files))
    wrong = UNetBackbone.from_pretrained(place, controlnet=str(tmp_path / "saved" / "vae"))
    with pytest.raises(ValueError, match="holds AutoencoderKL, but a ControlNetModel is needed"):
        ConditionedPipeline(wrong, given("control", files))
    sdxl.unet.register_to_config(in_channels=24)
    with pytest.raises(ValueError, match="mask is for models whose latents have 4 channels, .* has 24: leave mask out"):
        ConditionedPipeline(sdxl, given("mask", files))
    pixart = PixArtBackbone(tiny_pixart(tmp_path / "pixart"), "pixart")
    with pytest.raises(ValueError, match="are for Stable Diffusion and SDXL, not for pixart"):
        ConditionedPipeline(pixart, given("image", files))
