"""Drawing with a language model: long, negative and unequal prompts through stock pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionImg2ImgPipeline
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from PIL import Image
from torch import nn

import src.run.cli  # noqa: F401  (registers the resolvers)
from src.data.request import Request, TextStyle
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.llmdiff.adapter import LLMDiffAdapter
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.generator import LLMDiffGenerator, LLMDiffPipeline, trained_encoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.options import AdapterOptions, EncodingOptions
from tests.llms import tiny_llm_folder
from tests.tiny import tiny_sd, tiny_sdxl

PIPELINES = {"sd": tiny_sd, "sdxl": tiny_sdxl}
LONG = "a red dog on the left of a very small blue cat and " * 9


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm_folder(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def encoder(llm: Path) -> LLMEncoder:
    return LLMEncoder(LanguageModel.from_pretrained(str(llm)))


@pytest.fixture(params=["sd", "sdxl"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> UNetBackbone:
    return UNetBackbone(PIPELINES[request.param](tmp_path), request.param)


@pytest.fixture
def sd(tmp_path: Path) -> UNetBackbone:
    return UNetBackbone(tiny_sd(tmp_path), "sd")


def adapter(backbone: UNetBackbone, encoder: LLMEncoder, **options) -> LLMDiffAdapter:
    """Trained, so that prompts matter."""
    torch.manual_seed(0)
    made = LLMDiffAdapter.for_backbone(backbone, encoder, AdapterOptions(**options))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return made.eval()


def generator(backbone: UNetBackbone, encoder: LLMEncoder, **options: Any) -> LLMDiffGenerator:
    made = options.pop("adapter", None) or adapter(backbone, encoder)
    sampling = {"num_inference_steps": 2, **options.pop("sampling", {})}
    return LLMDiffGenerator(backbone, made, encoder, **{"sampling": sampling, "batch_size": 4, **options})


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def test_an_image_depends_on_its_request_alone(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    requests = [Request("a red dog", 1), Request(LONG, 2), Request("", 3), Request("a red dog", 4)]
    together = pixels(generator(backbone, encoder).sample(requests))
    alone = pixels([generator(backbone, encoder, batch_size=1).sample([request])[0] for request in requests])
    # Other batch sizes take other paths through the matrix products: equal up to rounding to eight bits.
    assert np.abs(together - alone).max() <= 1
    assert np.array_equal(together, pixels(generator(backbone, encoder).sample(requests)))
    assert np.abs(together[0] - together[3]).max() > 1


def test_the_whole_of_a_long_prompt_counts(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    """Far beyond what a CLIP text encoder takes."""
    assert encoder.count_tokens([LONG])[0] > 100
    one, other = generator(sd, encoder).sample([Request(LONG + "dog", 0), Request(LONG + "tree", 0)])
    assert not np.array_equal(pixels([one]), pixels([other]))
    with pytest.raises(ValueError, match="tokens, but .* is to take at most 128"):
        generator(sd, encoder).sample([Request("a dog", 0), Request(2 * LONG, 0)])
    with pytest.raises(ValueError, match="without a style reference"):
        generator(sd, encoder).sample([Request("a dog", 0, style=TextStyle("a sketch"))])


def test_at_the_start_it_is_the_stock_pipeline_on_the_empty_prompt(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    fresh = LLMDiffAdapter.for_backbone(backbone, encoder)
    drawn = generator(backbone, encoder, adapter=fresh).sample([Request("a red dog", 5)])
    stock = backbone.pipeline(
        [""],
        num_inference_steps=2,
        guidance_scale=1.0,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(5)],
    ).images
    # Guidance between two equal predictions changes nothing.
    assert np.abs(pixels(drawn) - pixels(stock)).max() <= 1
    assert fresh.training, "drawing leaves an adapter in training as it was"


def test_negative_prompts_steer(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    request = [Request("a red dog", 0)]
    drawn = [
        pixels(generator(backbone, encoder, sampling=options).sample(request))
        for options in ({}, {"negative_prompt": "a blue cat"}, {"guidance_scale": 1.0})
    ]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_it_is_called_like_the_stock_pipeline(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    pipeline = LLMDiffPipeline(backbone.pipeline, adapter(backbone, encoder), encoder)

    def call(prompt, negative=None, seed: int = 0, **arguments):
        seeded = torch.Generator().manual_seed(seed)
        given = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np", **arguments}
        return pipeline(prompt, negative, generator=seeded, **given).images

    assert call("a dog").shape == (1, 64, 64, 3)
    assert call(["a dog", LONG], num_images_per_prompt=2).shape == (4, 64, 64, 3)
    one_for_all = call(["a dog", "a cat"], "a tree")
    assert np.array_equal(one_for_all, call(["a dog", "a cat"], ["a tree", "a tree"]))
    assert not np.allclose(one_for_all, call(["a dog", "a cat"], ["a tree", ""]))
    latents = torch.randn(1, 4, 8, 8)
    assert np.array_equal(call("a dog", latents=latents, seed=1), call("a dog", latents=latents, seed=2))
    with pytest.raises(ValueError, match="1 negative prompts for 2 prompts"):
        call(["a dog", "a cat"], ["a tree"])


def test_prompts_are_conditional_and_negative_prompts_unconditional(
    backbone: UNetBackbone, encoder: LLMEncoder
) -> None:
    made = adapter(backbone, encoder)
    found = LLMDiffPipeline(backbone.pipeline, made, encoder).embeds(["a red dog", LONG], ["a blue cat", ""])
    text = made(encoder.encode(["a red dog", LONG, "a blue cat", ""]))
    assert torch.equal(found["prompt_embeds"], text.prompt_embeds[:2])
    assert torch.equal(found["negative_prompt_embeds"], text.prompt_embeds[2:])
    if text.pooled_prompt_embeds is not None:
        assert torch.equal(found["pooled_prompt_embeds"], text.pooled_prompt_embeds[:2])


def test_strength_and_generators_reach_the_adapter(
    sd: UNetBackbone, encoder: LLMEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapter(sd, encoder)
    pipeline, asked = LLMDiffPipeline(sd.pipeline, made, encoder, strength=0.25), []
    installed, embeds = made.installed, pipeline.embeds

    def watched(unet: nn.Module, controlnet: nn.Module | None = None, strength: float = 1.0):
        asked.append(strength)
        return installed(unet, controlnet, strength)

    monkeypatch.setattr(made, "installed", watched)
    monkeypatch.setattr(pipeline, "embeds", lambda *given: asked.append(given[2]) or embeds(*given))
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    sizes = {"num_inference_steps": 1, "height": 64, "width": 64}
    pipeline(["a dog", "a cat"], generator=generators, num_images_per_prompt=2, **sizes)
    assert asked[0] == 0.25
    # The text of each prompt draws with the generator of its first image.
    assert [id(one) for one in asked[1]] == [id(generators[0]), id(generators[2])]


def test_errors_are_measured_without_the_noise_of_training(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    made, image = adapter(sd, encoder), Image.new("RGB", (64, 64), "navy")
    with torch.no_grad():
        made.aggregation.rho.fill_(2.0)
    drawing = generator(sd, encoder, adapter=made)
    quiet = drawing.denoising_errors([image], ["a red dog"], [0])
    made.train()
    assert drawing.denoising_errors([image], ["a red dog"], [0]) == quiet
    assert made.training


def test_text_encoders_may_be_gone(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    made = adapter(sd, encoder)
    request = [Request("a red dog", 0)]
    before = pixels(generator(sd, encoder, adapter=made).sample(request))
    sd.pipeline.text_encoder = sd.pipeline.tokenizer = None
    assert np.array_equal(pixels(generator(sd, encoder, adapter=made).sample(request)), before)


def test_any_stock_pipeline_takes_it(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    components = {**sd.pipeline.components, "requires_safety_checker": False}
    made, picture = adapter(sd, encoder), Image.new("RGB", (64, 64), "red")
    image_to_image = StableDiffusionImg2ImgPipeline(**components)
    controlnet = ControlNetModel.from_unet(sd.unet, conditioning_channels=3).eval()
    nn.init.normal_(controlnet.controlnet_mid_block.weight)
    controlled = StableDiffusionControlNetPipeline(**components, controlnet=controlnet)
    for stock, own in ((image_to_image, {"strength": 0.5}), (controlled, {"height": 64, "width": 64})):
        stock.set_progress_bar_config(disable=True)
        pipeline = LLMDiffPipeline(stock, made, encoder)

        def draw(prompts: list[str], pipeline=pipeline, own=own) -> np.ndarray:
            seeded = [torch.Generator().manual_seed(0) for _ in prompts]
            pictures = [picture] * len(prompts)
            return pixels(pipeline(prompts, image=pictures, num_inference_steps=4, generator=seeded, **own).images)

        dog, long = draw(["a red dog", LONG])
        assert np.abs(dog - draw(["a red dog"])[0]).max() <= 1
        assert np.abs(dog - long).max() > 1


def test_noise_in_the_text_is_the_seeds(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    made = adapter(sd, encoder, noise="always", phi_bias="mean")
    with torch.no_grad():
        made.aggregation.rho.fill_(3.0)
    requests = [Request("a red dog", 1), Request("a red dog", 2), Request("a red dog", 1)]
    together = pixels(generator(sd, encoder, adapter=made).sample(requests))
    # Rows of a batch may round differently, as several threads share them out.
    assert np.abs(together[0] - together[2]).max() <= 1
    alone = pixels(generator(sd, encoder, adapter=made).sample(requests[1:2]))
    assert np.abs(together[1] - alone[0]).max() <= 1
    pipeline = LLMDiffPipeline(sd.pipeline, made, encoder)
    with pytest.raises(ValueError, match="pass generators"):
        pipeline("a red dog", num_inference_steps=1, height=64, width=64)


def test_at_the_start_denoising_errors_are_the_base_models_without_a_prompt(
    backbone: UNetBackbone, encoder: LLMEncoder
) -> None:
    fresh = LLMDiffAdapter.for_backbone(backbone, encoder)
    images, seeds = [Image.linear_gradient("L").resize((64, 64)), Image.new("RGB", (64, 64), "red")], [1, 2]
    found = generator(backbone, encoder, adapter=fresh).denoising_errors(images, ["a red dog", "a blue cat"], seeds)
    assert found == pytest.approx(ConceptGenerator(backbone).denoising_errors(images, ["", ""], seeds), rel=1e-3)
    assert fresh.training, "measuring leaves an adapter in training as it was"


def test_a_denoising_error_depends_on_image_caption_and_seed_alone(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    made = adapter(backbone, encoder, noise="always", phi_bias="mean")
    drawing = generator(backbone, encoder, adapter=made)
    images = [Image.linear_gradient("L").resize((64, 64)), Image.new("RGB", (80, 80), "red")] * 2
    captions, seeds = ["a red dog", LONG, "a blue cat", "a red dog"], [1, 2, 1, 4]
    before = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    together = drawing.denoising_errors(images, captions, seeds)
    assert together == drawing.denoising_errors(images, captions, seeds)
    alone = [
        generator(backbone, encoder, adapter=made, batch_size=1).denoising_errors([image], [caption], [seed])[0]
        for image, caption, seed in zip(images, captions, seeds, strict=True)
    ]
    assert together == pytest.approx(alone, rel=1e-3)
    assert abs(together[0] - together[2]) > 1e-6, "the caption matters"
    half = generator(backbone, encoder, adapter=made, strength=0.5).denoising_errors(images[:1], captions[:1], [1])
    assert abs(half[0] - together[0]) > 1e-6
    assert all(torch.equal(value, before[name]) for name, value in backbone.unet.state_dict().items())
    with pytest.raises(ValueError, match="tokens, but .* is to take at most 128"):
        drawing.denoising_errors(images[:1], [2 * LONG], [0])


def test_an_identity_names_what_changes_an_image(sd: UNetBackbone, encoder: LLMEncoder, llm: Path) -> None:
    made = adapter(sd, encoder)
    base = generator(sd, encoder, adapter=made)
    half = LLMEncoder(LanguageModel.from_pretrained(str(llm), "bfloat16"))
    options = LLMEncoder(encoder.language_model, EncodingOptions(context="self+first"))
    others = [
        generator(sd, encoder, adapter=made, strength=0.5),
        generator(sd, encoder, adapter=made, sampling={"negative_prompt": "a cat"}),
        generator(sd, encoder, adapter=made, sampling={"guidance_scale": 2.0}),
        generator(sd, encoder, adapter=adapter(sd, encoder, phi_bias="mean")),
        generator(sd, half, adapter=made),
        generator(sd, options, adapter=made),
    ]
    assert all(other.identity() != base.identity() for other in others)
    assert generator(sd, encoder, adapter=made, batch_size=2).identity("a dog") == base.identity("a cat")


def test_the_file_says_which_language_model(sd: UNetBackbone, encoder: LLMEncoder, tmp_path: Path) -> None:
    options = EncodingOptions(context="self+first", blocks=[0, 2])
    own = LLMEncoder(encoder.language_model, options)
    made = adapter(sd, own)
    path = made.save(tmp_path / "adapter.safetensors", own, sd, 10)
    found = trained_encoder(path, cache_dir=tmp_path / "cache")
    assert found.identity == own.identity and found.options == options
    request = [Request("a red dog", 0)]
    from_file = LLMDiffGenerator(sd, str(path), found, sampling={"num_inference_steps": 2}).sample(request)
    in_memory = LLMDiffGenerator(sd, made, own, sampling={"num_inference_steps": 2}).sample(request)
    assert np.array_equal(pixels(from_file), pixels(in_memory))
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_wrong_files_are_said_before_anything_is_drawn(sd: UNetBackbone, encoder: LLMEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter is given: add adapter=PATH"):
        trained_encoder(None)
    with pytest.raises(ValueError, match="no file at .* give the path of an LLMDiff adapter"):
        trained_encoder(tmp_path / "none.safetensors")
    path = adapter(sd, encoder).save(tmp_path / "adapter.safetensors", encoder, sd, 0)
    with pytest.raises(ValueError, match=r"no language model folder: it has no config\.json"):
        trained_encoder(path, path=str(tmp_path))
    other = tiny_llm_folder(tmp_path / "other", "qwen2", seed=3)
    with pytest.raises(ValueError, match="was trained with .* give the same language model"):
        LLMDiffGenerator(sd, str(path), trained_encoder(path, path=str(other)))
    with pytest.raises(ValueError, match="tokens, but .* is to take at most 128"):
        generator(sd, encoder, adapter=adapter(sd, encoder), sampling={"negative_prompt": 2 * LONG})
    # The same weights in another place are the same language model.
    moved = tiny_llm_folder(tmp_path / "moved")
    LLMDiffGenerator(sd, str(path), trained_encoder(path, path=str(moved)))


def test_the_configuration_draws(sd: UNetBackbone, encoder: LLMEncoder, tmp_path: Path, root: Path) -> None:
    sd.pipeline.save_pretrained(tmp_path / "sd")
    loaded = UNetBackbone.from_pretrained(str(tmp_path / "sd"))
    path = adapter(loaded, encoder).save(tmp_path / "adapter.safetensors", encoder, loaded, 0)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        settings = [f"backbone.path={tmp_path / 'sd'}", f"++adapter={path}", f"paths.cache_dir={tmp_path}"]
        cfg = compose("generate", ["method=llmdiff/draw", "method.sampling.num_inference_steps=2", *settings])
        image = instantiate(cfg.method, _convert_="all").sample([Request("a red dog", 0)])[0]
    assert image.size == (64, 64)
