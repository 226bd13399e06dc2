"""What a backbone says of itself, and what it refuses."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from src.data.request import Request
from src.modules.backbones.base import SAMPLING, text_projections
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.latexblend.guidance import BlendingGuidance
from src.modules.latexblend.learner import class_images
from tests.tiny import tiny_sd, tiny_sdxl


@pytest.mark.parametrize("maker", [tiny_sd, tiny_sdxl])
def test_text_is_encoded_as_the_stock_pipeline_does(tmp_path: Path, maker) -> None:
    pipeline = maker(tmp_path)
    ours = UNetBackbone(pipeline, "tiny").encode_text(["a dog", "a red cat on the grass"])
    stock = pipeline.encode_prompt(
        ["a dog", "a red cat on the grass"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(ours.prompt_embeds, stock[0])
    if maker is tiny_sdxl:
        assert torch.equal(ours.pooled_prompt_embeds, stock[2])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_hash_does_not_depend_on_the_working_precision(tmp_path: Path, dtype: str) -> None:
    pipeline = tiny_sd(tmp_path)
    expected = UNetBackbone(pipeline, "tiny").fingerprint
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = UNetBackbone.from_pretrained(str(tmp_path / "saved"), dtype)
    assert loaded.fingerprint == expected
    precision = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]
    # The stock pipeline's own weights, rounded once.
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", dtype=precision)
    for ours, theirs in ((loaded.denoiser, stock.unet), (loaded.vae, stock.vae)):
        weights = theirs.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in ours.state_dict().items())
        assert {tensor.dtype for tensor in weights.values()} == {precision}


def test_another_backbone_has_another_hash(tmp_path: Path) -> None:
    pipeline = tiny_sd(tmp_path)
    first = UNetBackbone(pipeline, "tiny").fingerprint
    next(iter(text_projections(pipeline.unet).values())).weight.data[0, 0] += 1
    assert UNetBackbone(pipeline, "tiny").fingerprint != first


@pytest.mark.parametrize("maker", [tiny_sd, tiny_sdxl])
def test_keys_and_values_of_every_layer_are_called_so(tmp_path: Path, maker) -> None:
    unet = maker(tmp_path).unet
    found = text_projections(unet)
    for name, linear in found.items():
        kind, _, layer = name.partition(".")
        assert linear is getattr(unet.get_submodule(layer), {"k": "to_k", "v": "to_v"}[kind])
    assert len(found) == 2 * sum(name.endswith("attn2") for name, _ in unet.named_modules())


def test_fused_projections_are_refused(tmp_path: Path) -> None:
    pipeline = tiny_sd(tmp_path)
    pipeline.unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"unfuse_qkv_projections\(\) of the UNet2DConditionModel first"):
        text_projections(pipeline.unet)
    pipeline.unet.unfuse_qkv_projections()
    assert text_projections(pipeline.unet).keys() == UNetBackbone(pipeline, "sd").text_layers().keys()


def test_a_folder_that_is_no_pipeline_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model_index.json"):
        UNetBackbone.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="float32, float16, bfloat16"):
        UNetBackbone.from_pretrained(str(tmp_path), "int8")


def test_a_unet_that_takes_a_guidance_scale_always_gets_it(tmp_path: Path) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path, time_cond_proj_dim=8), "lcm", {"guidance_scale": 4.0})
    conditions: list[torch.Tensor] = []

    def keep(unet: torch.nn.Module, args: tuple, given: dict) -> None:
        conditions.append(given["timestep_cond"][:1])

    backbone.unet.register_forward_pre_hook(keep, with_kwargs=True)
    rows = {name: torch.randn(2, one.out_features) for name, one in backbone.text_layers().items()}
    rex = ConceptBank(rows, {"class_noun": "dog", "backbone_hash": backbone.fingerprint})
    guidance = BlendingGuidance(num_steps=1)
    drawing = ConceptGenerator(backbone, {"rex": rex}, {"num_inference_steps": 3}, blending_guidance=guidance)
    drawing.sample([Request("a <rex>", 0)])
    drawing.denoising_errors([Image.new("RGB", (64, 64))], ["a <rex>"], [0])
    latents = torch.zeros(2, 4, 8, 8)
    text = backbone.encode_text(["a dog", "a cat"])
    backbone.denoise(backbone.corrupt(latents, [torch.Generator(), torch.Generator()]), text)
    expected = backbone.pipeline.get_guidance_scale_embedding(torch.tensor([3.0]), embedding_dim=8)
    assert len(conditions) == 4 + 4 + 1 and all(torch.equal(one, expected) for one in conditions)


def test_an_autoencoder_that_overflows_in_half_precision_encodes_in_float32(tmp_path: Path) -> None:
    backbone, seen = UNetBackbone(tiny_sd(tmp_path), "sd"), []
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    exact = backbone.encode_images(picture)
    backbone.vae.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    backbone.vae.half()
    expected = {name: tensor.clone() for name, tensor in backbone.vae.state_dict().items()}
    upcast = backbone.encode_images(picture)
    assert seen == [torch.float32] and backbone.vae.dtype == torch.float16
    assert all(torch.equal(tensor, expected[name]) for name, tensor in backbone.vae.state_dict().items())
    backbone.vae.register_to_config(force_upcast=False)
    assert torch.allclose(upcast, exact, atol=1e-2)
    backbone.encode_images(picture)
    assert seen == [torch.float32, torch.float16]


def test_latents_are_shifted_and_scaled_as_the_autoencoder_says(tmp_path: Path) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    mean = backbone.vae.encode(picture).latent_dist.mode()
    backbone.vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    assert torch.equal(backbone.encode_images(picture), (mean - 0.25) * 0.5)
    channels = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    backbone.vae.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[4.0, 3.0, 2.0, 1.0])
    assert torch.equal(backbone.encode_images(picture), (mean - channels) * 0.5 / channels.flip(1))


def test_a_safety_checker_is_off_unless_it_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = tiny_sd(tmp_path)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**size, "image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=size, vision_config=vision, projection_dim=8))
    checker.special_care_embeds_weights.fill_(-10.0)  # Everything is taken for unsafe.
    checker.concept_embeds_weights.fill_(-10.0)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipeline.register_modules(safety_checker=checker, feature_extractor=processor)
    pipeline.register_to_config(requires_safety_checker=True)
    pipeline.save_pretrained(tmp_path / "saved")
    steps = {"num_inference_steps": 1}
    on = UNetBackbone.from_pretrained(str(tmp_path / "saved"), sampling=steps, safety_checker=True)
    assert ConceptGenerator(on).sample([Request("a dog", 0)])[0].getbbox() is None
    with pytest.raises(ValueError, match="class image 0 of a dog is black"):
        class_images(on, "dog", 1, 64, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.png")) and "safety checker" not in caplog.text
    off = UNetBackbone.from_pretrained(str(tmp_path / "saved"), sampling=steps)
    assert caplog.text.count("the safety checker of saved is off") == 1
    assert class_images(off, "dog", 1, 64, tmp_path / "cache")[0].getbbox()
    assert ConceptGenerator(off).sample([Request("a dog", 0)])[0].getbbox()


def test_what_a_call_leaves_open_the_backbone_says(tmp_path: Path) -> None:
    pipeline, own = tiny_sd(tmp_path), {"num_inference_steps": 7, "guidance_scale": 2.0, "keep_context": True}
    pipeline.save_pretrained(tmp_path / "saved")

    def drawing(backbone: UNetBackbone, **given) -> dict:
        generator = ConceptGenerator(backbone, keep_context=given.pop("keep_context", None), sampling=given)
        return {key: {**generator.sampling, "keep_context": generator.keep_context}[key] for key in SAMPLING}

    backbone = UNetBackbone.from_pretrained(str(tmp_path / "saved"), sampling=own)
    assert drawing(backbone) == own
    given = {"num_inference_steps": 3, "guidance_scale": 0.0, "keep_context": False}
    assert drawing(backbone, **given) == given
    assert drawing(UNetBackbone(pipeline, "tiny")) == SAMPLING
    with pytest.raises(ValueError, match="no 'cfg'; choose among num_inference_steps, guidance_scale, keep_context"):
        UNetBackbone(pipeline, "tiny", {"cfg": 2.0})
    with pytest.raises(ValueError, match="no 'cfg'"):
        UNetBackbone.from_pretrained("no/such-hub-id", sampling={"cfg": 2.0})


def overflowing(pipeline: StableDiffusionPipeline, force_upcast: bool) -> StableDiffusionPipeline:
    """Make the decoder overflow in float16 on the way, to pixels that are small again."""
    decoder = pipeline.vae.decoder
    with torch.no_grad():
        decoder.conv_in.weight.mul_(3e5)
        decoder.conv_in.bias.mul_(3e5)
    pipeline.vae.register_to_config(force_upcast=force_upcast)
    return pipeline


@pytest.mark.parametrize("maker", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("force_upcast", [True, False])
def test_an_autoencoder_that_overflows_in_half_precision_draws_the_same_picture(
    tmp_path: Path, maker, force_upcast: bool
) -> None:
    pipeline = overflowing(maker(tmp_path), force_upcast)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents).sample
        pipeline.to(dtype=torch.float16)
        # It is what they compute that overflows.
        assert torch.isfinite(pipeline.vae.decoder.conv_in.weight).all()
        assert not torch.isfinite(pipeline.vae.decode(latents.half()).sample).all()
        backbone = UNetBackbone(pipeline, "half")
        before = {name: tensor.clone() for name, tensor in backbone.vae.state_dict().items()}
        found = backbone.vae.decode(latents.half()).sample
    assert torch.allclose(found.float(), expected, atol=0.05) and backbone.vae.dtype == torch.float16
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.vae.state_dict().items())
    drawn = backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 1}))[0]
    assert len(set(drawn.getdata())) > 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_no_precision_can_decode_is_said(tmp_path: Path, value: float) -> None:
    pipeline = tiny_sd(tmp_path)
    pipeline.vae.decoder.conv_out.bias.data.fill_(value)
    backbone = UNetBackbone(pipeline, "sd")
    with pytest.raises(ValueError, match=r"the pixels that were drawn are not finite \(.*take backbone\.dtype="):
        backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 1}))
