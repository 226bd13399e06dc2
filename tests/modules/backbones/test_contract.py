"""Every backbone keeps the contract of ``src.modules.backbones.base``; a new one is added to ``BACKBONES``."""

import inspect
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import PixArtAlphaPipeline
from PIL import Image

from src.data.request import Request
from src.data.subject import ConceptData, Zoom
from src.eval.concepts import Concept
from src.eval.encoders.models import OpenClipEncoder, TimmEncoder
from src.eval.profile import Profile
from src.eval.protocols.concept import ConceptProtocol
from src.modules.backbones.base import Backbone
from src.modules.backbones.denoising import denoising_errors
from src.modules.backbones.flux import FluxBackbone
from src.modules.backbones.hunyuan_dit import HunyuanDiTBackbone
from src.modules.backbones.pixart import PixArtBackbone
from src.modules.backbones.qwen_image import QwenImageBackbone
from src.modules.backbones.sana import SanaBackbone
from src.modules.backbones.sd3 import SD3Backbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank, JointBank
from src.modules.latexblend.flows import Subject
from src.modules.latexblend.generator import ConceptGenerator, Placement, blended
from src.modules.latexblend.joint import joint_blended
from src.modules.latexblend.learner import LaTexBlend, class_images
from src.modules.training.learner import LearnerModule
from tests.tiny import tiny_flux, tiny_pixart, tiny_qwen_image, tiny_sd, tiny_sd3, tiny_sdxl
from tests.tiny_transformers import tiny_hunyuan_dit, tiny_sana

BACKBONES = {
    "sd": (UNetBackbone, tiny_sd),
    "lcm": (UNetBackbone, lambda folder: tiny_sd(folder, time_cond_proj_dim=8)),
    "sdxl": (UNetBackbone, tiny_sdxl),
    "sdxl with empty text": (UNetBackbone, lambda folder: tiny_sdxl(folder, force_zeros_for_empty_prompt=False)),
    "pixart": (PixArtBackbone, tiny_pixart),
    "flux": (FluxBackbone, tiny_flux),
    "flux schnell": (FluxBackbone, lambda folder: tiny_flux(folder, guidance_embeds=False)),
    "qwen image": (QwenImageBackbone, lambda folder: tiny_qwen_image()),
    "sd3": (SD3Backbone, tiny_sd3),
    "sd3 without t5": (SD3Backbone, lambda folder: tiny_sd3(folder, t5=False)),
    "pixart alpha": (PixArtBackbone, lambda folder: tiny_pixart(folder, PixArtAlphaPipeline)),
    "sana": (SanaBackbone, tiny_sana),
    "hunyuan dit": (HunyuanDiTBackbone, tiny_hunyuan_dit),
}
PROMPTS = ["a dog on the grass", "a red cat"]
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Backbone:
    cls, maker = BACKBONES[request.param]
    return cls(maker(tmp_path), request.param)


def bank(backbone: Backbone, seed: int = 0) -> ConceptBank:
    generator = torch.Generator().manual_seed(seed)
    told = {"class_noun": "dog", "backbone_hash": backbone.fingerprint, "sha256": str(seed)}
    ((_, positions),) = backbone.place("a <rex>", {"rex": "dog"})[1]
    if backbone.joint:
        width = backbone.encode_text(["a dog"]).prompt_embeds.shape[-1]
        rows = {"text": torch.randn(len(positions), width, generator=generator)}
        for name, one in backbone.text_layers().items():
            rows[f"down.{name}"] = torch.randn(2, one.in_features, generator=generator)
            rows[f"up.{name}"] = torch.randn(one.out_features, 2, generator=generator)
        return JointBank(rows, {**told, "attention": "joint", "reading": "concept"})
    sizes = {name: (len(positions), one.out_features) for name, one in backbone.text_layers().items()}
    return ConceptBank({name: torch.randn(size, generator=generator) for name, size in sizes.items()}, told)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    parts = {"denoiser": backbone.denoiser, "vae": backbone.vae, "text": backbone.text_encoders[0]}
    return {f"{part}.{name}": tensor for part, one in parts.items() for name, tensor in one.state_dict().items()}


def stock(backbone: Backbone, prompts: list[str], seeds: list[int], **settings) -> list[Image.Image]:
    """What the stock pipeline draws without anything of ours."""
    given = SAMPLING | settings
    given |= backbone.guidance(given.pop("guidance_scale"))
    if isinstance(backbone, QwenImageBackbone):  # Its authors' call has a space; without it there is no guidance.
        given = {"negative_prompt": [" "] * len(prompts)} | given
    return backbone.pipeline(
        prompts,
        **given,
        height=backbone.resolution,
        width=backbone.resolution,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **backbone.call,
    ).images


def test_without_concepts_every_image_is_the_stock_pipelines_bit_for_bit(backbone: Backbone) -> None:
    drawn = ConceptGenerator(backbone, {"rex": bank(backbone)}, SAMPLING).sample(
        [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    )
    assert np.array_equal(pixels(drawn), pixels(stock(backbone, PROMPTS, [0, 1])))


def test_every_kind_of_pipeline_is_here(tmp_path: Path) -> None:
    made = {(cls, type(maker(tmp_path / name))) for name, (cls, maker) in BACKBONES.items()}
    assert made == {(cls, pipeline) for cls, _ in BACKBONES.values() for pipeline in cls.pipelines}


@pytest.mark.parametrize("given", ["", None, "grass, a cat"])
def test_a_negative_prompt_is_the_stock_pipelines_and_an_empty_one_is_none(backbone: Backbone, given) -> None:
    requests = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    drawn = ConceptGenerator(backbone, sampling={**SAMPLING, "negative_prompt": given}).sample(requests)
    expected = stock(backbone, PROMPTS, [0, 1], **({"negative_prompt": [given] * 2} if given else {}))
    assert np.array_equal(pixels(drawn), pixels(expected))


def test_images_with_and_without_negative_prompts_share_a_batch(backbone: Backbone) -> None:
    if not backbone.negatives([""]):  # Where no text is not the empty text, the stock call takes no list with both.
        text, noughts = backbone.negatives(["grass", ""]), backbone.negatives(["", "grass"])
        for name, embeds in text.items():
            assert not embeds[1].any() and not noughts[name][0].any() and torch.equal(embeds[0], noughts[name][1])
    settings = {"height": 64, "width": 64, "num_inference_steps": 2, **backbone.guidance(3.0), **backbone.call}
    alone = [stock(backbone, PROMPTS[:1], [0], negative_prompt=["grass"]), stock(backbone, PROMPTS[1:], [1])]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    mixed = backbone.pipeline(PROMPTS, **backbone.negatives(["grass", ""]), generator=generators, **settings).images
    assert np.abs(pixels(mixed) - pixels([image for one in alone for image in one])).max() <= 1


def test_a_negative_prompt_that_is_too_long_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="but the text encoder takes"):
        ConceptGenerator(backbone, sampling={"negative_prompt": "grass " * 400})


def test_class_images_are_what_drawing_makes_of_their_prompt(backbone: Backbone, tmp_path: Path) -> None:
    backbone.sampling |= SAMPLING
    made = class_images(backbone, "dog", 2, backbone.resolution, tmp_path)
    drawn = ConceptGenerator(backbone).sample([Request("a photo of a dog", seed) for seed in (0, 1)])
    assert np.array_equal(pixels(made), pixels(drawn))
    assert np.array_equal(pixels(made), pixels(stock(backbone, ["a photo of a dog"] * 2, [0, 1])))
    assert np.array_equal(pixels(class_images(backbone, "dog", 2, backbone.resolution, tmp_path)), pixels(drawn))
    backbone.sampling |= {"num_inference_steps": 3}
    other = class_images(backbone, "dog", 2, backbone.resolution, tmp_path)
    assert not np.array_equal(pixels(other), pixels(made))


def test_text_is_encoded_as_the_stock_pipeline_does(backbone: Backbone) -> None:
    known = inspect.signature(backbone.pipeline.encode_prompt).parameters
    if "text_encoder_index" in known:
        pytest.skip("two calls encode its text: test_hunyuan_dit.py compares what the transformer reads")
    extra = {name: value for name, value in backbone.call.items() if name in known}
    extra |= {name: None for name in ("prompt_2", "prompt_3") if name in known}
    extra |= {"do_classifier_free_guidance": False} if "do_classifier_free_guidance" in known else {}
    expected = backbone.pipeline.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, **extra)[0]
    text = backbone.encode_text(PROMPTS)
    assert torch.equal(text.prompt_embeds, expected)
    assert torch.equal(text.rows([1]).joined(text.rows([0])).prompt_embeds, expected[[1, 0]])


def test_a_concept_changes_its_own_image_alone_and_nothing_stays(backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in weights(backbone).items()}
    generator = ConceptGenerator(backbone, {"rex": bank(backbone)}, SAMPLING, keep_context=False)
    with_concept, plain = pixels(generator.sample([Request("a <rex> on the grass", 0), Request("a red cat", 1)]))
    expected = pixels(stock(backbone, PROMPTS, [0, 1]))
    assert np.array_equal(plain, expected[1]) and not np.array_equal(with_concept, expected[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(backbone).items())
    again = pixels(stock(backbone, PROMPTS, [0, 1]))
    assert np.array_equal(again, expected)


def test_an_image_does_not_depend_on_its_batch(backbone: Backbone) -> None:
    requests = [Request("a <rex> on the grass", 0), Request("a red cat", 1), Request("a <rex>", 2)]
    drawn = [
        pixels(ConceptGenerator(backbone, {"rex": bank(backbone)}, SAMPLING, batch_size=size).sample(requests))
        for size in (1, 3)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


def test_a_bank_that_says_what_the_prompt_says_changes_nothing(backbone: Backbone) -> None:
    """What "a dog" is, put in the place of "a dog": the projections and the positions are the right ones."""
    marked, ((_, positions),) = backbone.place("a photo of a <rex> on the grass", {"rex": "dog"})
    installed = joint_blended if backbone.joint else blended
    text = backbone.encode_text([marked.plain])
    with torch.no_grad():
        if backbone.joint:
            own = replace(bank(backbone), rows={name: 0 * rows for name, rows in bank(backbone).rows.items()})
        else:
            states = backbone.read_text(text.prompt_embeds)[0, positions]
            rows = {name: layer(states) for name, layer in backbone.text_layers().items()}
            own = ConceptBank(rows, {"class_noun": "dog"})
        channels = backbone.encode_images(torch.zeros(1, 3, 64, 64)).shape[1]
        latents = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0))
        noised = backbone.corrupt(latents, [torch.Generator().manual_seed(1)])
        plain = backbone.denoise(noised, text)
        with installed(backbone.denoiser, [[Placement(own, positions)]]):
            assert torch.allclose(backbone.denoise(noised, text), plain, atol=1e-5)
        with installed(backbone.denoiser, [[Placement(bank(backbone), positions)]]):
            assert not torch.allclose(backbone.denoise(noised, text), plain, atol=1e-3)
    assert plain.shape == noised.target.shape == latents.shape


def test_text_behind_the_end_of_a_prompt_is_not_read_where_there_is_a_mask(backbone: Backbone) -> None:
    text = backbone.encode_text(PROMPTS)
    lengths = torch.tensor([sum(len(one(prompt).input_ids) for one in backbone.tokenizers) for prompt in PROMPTS])
    behind = 13 if isinstance(backbone, QwenImageBackbone) else 0  # Of a chat template, whose end follows the prompt.
    assert text.mask is None or torch.equal(text.mask.sum(1), lengths + behind)


def test_a_concept_is_learnt_kept_and_drawn(backbone: Backbone, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(photos / "0.png")
    data = ConceptData(str(photos), "dog", resolution=64, batch_size=2, num_views=2, num_class_images=2, zoom=Zoom(0.6))
    where = (str(tmp_path / "cache"), str(tmp_path / "rex.safetensors"))
    module = LearnerModule(LaTexBlend(backbone, Subject("dog"), *where), partial(torch.optim.AdamW, lr=1e-2))
    before = {name: tensor.clone() for name, tensor in weights(backbone).items()}
    L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
    ).fit(module, data)  # fmt: skip
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(backbone).items())
    path = module.export()["concept bank"]
    kept = {name.removeprefix("up.") for name in ConceptBank.load(path).rows if not name.startswith(("down.", "text"))}
    assert kept == backbone.text_layers().keys()
    drawn = ConceptGenerator(backbone, {"rex": path}, SAMPLING).sample([Request("a <rex> at night", 0)])
    assert not np.array_equal(pixels(drawn), pixels(stock(backbone, ["a dog at night"], [0])))


def test_what_is_not_finite_is_neither_drawn_nor_encoded_nor_measured(backbone: Backbone, tmp_path: Path) -> None:
    picture, text = Image.new("RGB", (64, 64)), backbone.encode_text(["a dog"])
    (backbone.vae.decoder.conv_out.weight.data, backbone.vae.encoder.conv_out.weight.data) = (
        torch.full_like(part.conv_out.weight, math.nan) for part in (backbone.vae.decoder, backbone.vae.encoder)
    )
    for drawing in (
        lambda: ConceptGenerator(backbone, sampling=SAMPLING).sample([Request("a dog", 0)]),
        lambda: class_images(backbone, "dog", 1, backbone.resolution, tmp_path),
    ):
        with pytest.raises(ValueError, match=r"the pixels that were drawn are not finite \(.*take backbone\.dtype="):
            drawing()
    with pytest.raises(ValueError, match=r"the latents of these images are not finite \(.*take backbone\.dtype="):
        denoising_errors(backbone, [picture], text, [0], backbone.resolution)
    table = backbone.text_encoders[0].get_input_embeddings().weight
    table.data.fill_(math.inf)
    with pytest.raises(ValueError, match="the states of the text are not finite"):
        backbone.encode_text(["a dog"])
    assert not list(tmp_path.rglob("*.png"))


def test_errors_belong_to_image_text_and_seed(backbone: Backbone) -> None:
    images = [Image.new("RGB", (64, 64), color) for color in ("navy", "orange")]
    both = denoising_errors(backbone, images, backbone.encode_text(PROMPTS), [0, 1], backbone.resolution)
    one = denoising_errors(backbone, images[1:], backbone.encode_text(PROMPTS[1:]), [1], backbone.resolution)
    assert both[1] == pytest.approx(one[0], rel=1e-3) and both[0] != both[1]


def test_a_bank_of_another_model_is_refused(backbone: Backbone) -> None:
    own = bank(backbone)
    other = replace(own, metadata={**own.metadata, "backbone_hash": "0", "backbone": "another"})
    with pytest.raises(ValueError, match=r"was made for the backbone another \(0\)"):
        ConceptGenerator(backbone, {"rex": other})


def test_a_saved_folder_is_the_same_backbone_and_another_kind_is_said(backbone: Backbone, tmp_path: Path) -> None:
    backbone.pipeline.save_pretrained(tmp_path / "saved")
    loaded = type(backbone).from_pretrained(str(tmp_path / "saved"))
    assert loaded.fingerprint == backbone.fingerprint
    # Qwen-Image's pipeline says its size in its code alone.
    assert loaded.resolution == (1024 if isinstance(backbone, QwenImageBackbone) else backbone.resolution)
    wrong = PixArtBackbone if isinstance(backbone, UNetBackbone) else UNetBackbone
    with pytest.raises(
        ValueError, match=f"saved holds a {type(backbone.pipeline).__name__}, but {wrong.__name__} takes"
    ):
        wrong.from_pretrained(str(tmp_path / "saved"))


def test_a_concept_is_evaluated_and_nothing_is_drawn_twice(backbone: Backbone, root: Path, tmp_path: Path) -> None:
    encoders = (
        OpenClipEncoder(f"local-dir:{root}/world/clip"),
        TimmEncoder(f"local-dir:{root}/world/dino", projected=True),
    )
    protocol = ConceptProtocol(["a {} at night"], 2, Profile("world", *encoders, "class_noun", "all"), str(tmp_path))
    photos = [Image.new("RGB", (64, 64), color) for color in ("navy", "orange")]
    generator = ConceptGenerator(backbone, {"rex": bank(backbone)}, SAMPLING)
    metrics = protocol.run(generator, [Concept("rex", "dog", photos)], tmp_path / "run")
    assert metrics["overall"].keys() >= {"control", "concept", "ceiling"}
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    again = protocol.run(generator, [Concept("rex", "dog", photos)], tmp_path / "again")
    assert again["overall"] == metrics["overall"] and len(files) == 4
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
