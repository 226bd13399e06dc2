"""Rivals where image and text attend together: DreamBooth-LoRA and Textual Inversion on SD3 without T5."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from src.data.request import Request
from src.data.subject import ConceptData
from src.modules.backbones.base import Backbone
from src.modules.backbones.flux import FluxBackbone
from src.modules.backbones.qwen_image import QwenImageBackbone
from src.modules.backbones.sd3 import SD3Backbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.flows import Subject
from src.modules.rivals.concept import RivalConcept
from src.modules.rivals.cones2 import Cones2
from src.modules.rivals.custom_diffusion import CustomDiffusion, JointCustomDiffusion
from src.modules.rivals.dreambooth_lora import DreamBoothLoRA, DreamBoothLoRAGenerator
from src.modules.rivals.learner import RivalLearner
from src.modules.rivals.mix_of_show import MixOfShow
from src.modules.rivals.mudi import MuDI
from src.modules.rivals.omg import OMGGenerator
from src.modules.rivals.textual_inversion import TextualInversion
from src.modules.training.learner import TrainingRecord
from tests.tiny import LENGTH, tiny_flux, tiny_qwen_image, tiny_sd, tiny_sd3

WORKING: list[type[RivalLearner]] = [DreamBoothLoRA, TextualInversion]
OTHERS: list[type[RivalLearner]] = [CustomDiffusion, JointCustomDiffusion, MixOfShow, Cones2, MuDI]
ELSEWHERE: dict[str, Callable[[Path], Backbone]] = {
    "sd35": lambda folder: SD3Backbone(tiny_sd3(folder), "sd35"),
    "flux": lambda folder: FluxBackbone(tiny_flux(folder), "flux"),
    "qwen": lambda folder: QwenImageBackbone(tiny_qwen_image(), "qwen"),
}
"""Models in which a word stands at several places, or inside a template."""
SUBJECTS = Path(__file__).parents[3] / "world" / "subjects"
SAMPLING = {"num_inference_steps": 3, "guidance_scale": 3.0, "resolution": 64}
NOUNS = {"rex": "dog", "mittens": "cat"}
TWO = "a <rex> left of a <mittens>"


def sd3(folder: Path) -> SD3Backbone:
    """The same model each time: learners wrap theirs."""
    return SD3Backbone(tiny_sd3(folder, t5=False), "sd3")


def learner_of(kind: type[RivalLearner], backbone: Backbone, folder: Path, name: str = "rex") -> RivalLearner:
    subject = Subject(NOUNS[name], name, str(SUBJECTS / name))
    return kind(backbone, subject, str(folder), str(folder / f"{name}.safetensors"))


def stirred(learner: RivalLearner, seed: int = 1) -> RivalLearner:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.averaged_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return learner


def learnt(kind: type[RivalLearner], folder: Path) -> dict[str, RivalConcept]:
    files = {
        name: stirred(learner_of(kind, sd3(folder), folder, name), seed).export(TrainingRecord(1, 0.1, 0.0))
        for seed, name in enumerate(NOUNS)
    }
    return {name: RivalConcept.load(made["concept bank"]) for name, made in files.items()}


def pixels(images: list) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in images])


def drawn_by_hand(folder: Path, concepts: dict[str, RivalConcept], prompt: str, scale: float = 1.0) -> np.ndarray:
    """The stock pipeline's picture: LoRAs merged into its weights, the identifiers written into CLIP's tables."""
    pipeline = tiny_sd3(folder, t5=False)
    for layer in {name for one in concepts.values() for name in one.part("down")}:
        weight = pipeline.transformer.get_submodule(layer.removeprefix("denoiser.")).weight
        for one in concepts.values():
            weight.data += scale * one.part("up")[layer] @ one.part("down")[layer]
    # A word of its own for each identifier, which stands where "a" would.
    rare = dict(zip(concepts, ("grass", "snow"), strict=False))
    for index, encoder in enumerate((pipeline.text_encoder, pipeline.text_encoder_2)):
        table = encoder.get_input_embeddings().weight
        for name, one in concepts.items():
            (at,) = pipeline.tokenizer(rare[name], add_special_tokens=False).input_ids
            table.data[at] = one.part("token")[str(index)][0]
    for name, word in rare.items():
        prompt = prompt.replace(f"a <{name}>", f"{word} {NOUNS[name]}")
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(0)]
    size = {"height": 64, "width": 64}
    return pixels(pipeline([prompt], num_inference_steps=3, guidance_scale=3.0, generator=generator, **size).images)


@pytest.mark.parametrize("kind", WORKING)
def test_without_concepts_every_bit_is_the_stock_pipelines(kind: type[RivalLearner], tmp_path: Path) -> None:
    backbone = sd3(tmp_path)
    tensors = {name: (one.data_ptr(), one.clone()) for name, one in backbone.denoiser.named_parameters()}
    generator = kind.draws(backbone, learnt(kind, tmp_path), SAMPLING)
    asked = ["a dog left of a cat", "a <rex>", TWO]
    images = pixels(generator.sample([Request(prompt, 0) for prompt in asked]))
    assert np.array_equal(images[:1], drawn_by_hand(tmp_path, {}, asked[0]))
    assert (images[1] != drawn_by_hand(tmp_path, {}, "a dog")[0]).any() and (images[2] != images[0]).any()
    for name, one in backbone.denoiser.named_parameters():
        place, before = tensors[name]
        assert one.data_ptr() == place and torch.equal(one, before), name


@pytest.mark.parametrize(("prompt", "scale"), [("a <rex> on the beach", 1.0), (TWO, 1.0), (TWO, 0.5)])
def test_stacked_loras_are_the_stock_pipelines_merged_weights(prompt: str, scale: float, tmp_path: Path) -> None:
    concepts = {name: one for name, one in learnt(DreamBoothLoRA, tmp_path).items() if f"<{name}>" in prompt}
    generator = DreamBoothLoRAGenerator(sd3(tmp_path), concepts, SAMPLING, scale=scale)
    found, expected = pixels(generator.sample([Request(prompt, 0)])), drawn_by_hand(tmp_path, concepts, prompt, scale)
    assert abs(found - expected).max() <= 1
    plain = pixels(generator.sample([Request(prompt.replace("<rex>", "dog").replace("<mittens>", "cat"), 0)]))
    assert abs(plain - expected).max() > 8
    for name in concepts:
        without = {other: one for other, one in concepts.items() if other != name}
        others = prompt.replace(f"<{name}>", NOUNS[name])
        assert abs(drawn_by_hand(tmp_path, without, others, scale) - expected).max() > 8


def test_a_concept_is_read_in_both_clips_and_in_their_pooled_text(tmp_path: Path) -> None:
    generator = TextualInversion.draws(sd3(tmp_path), learnt(TextualInversion, tmp_path), SAMPLING)
    read = generator.read([generator.prepare(Request("a photo of a <rex>", 0))])
    plain = generator.backbone.encode_text(["a photo of a dog"])
    first, second = (encoder.config.hidden_size for encoder in generator.backbone.text_encoders)
    moved = read.prompt_embeds - plain.prompt_embeds
    # Both CLIPs side by side, padded to the width of T5, whose rows are zeros.
    assert moved.shape == (1, LENGTH + 256, 48) and not read.prompt_embeds[:, LENGTH:].any()
    assert moved[0, :LENGTH, :first].any() and moved[0, :LENGTH, first : first + second].any()
    assert not moved[..., first + second :].any()
    assert read.pooled_prompt_embeds is not None and plain.pooled_prompt_embeds is not None
    pooled = read.pooled_prompt_embeds - plain.pooled_prompt_embeds
    assert pooled.shape == (1, first + second) and pooled[0, :first].any() and pooled[0, first:].any()


@pytest.mark.parametrize("kind", WORKING)
def test_the_negative_prompt_stays_plain(
    kind: type[RivalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SAMPLING, "negative_prompt": "a dog", "num_inference_steps": 1}
    generator = kind.draws(sd3(tmp_path), learnt(kind, tmp_path), settings)
    denoiser, seen = generator.backbone.denoiser, []
    stock = denoiser.forward
    monkeypatch.setattr(denoiser, "forward", lambda **given: seen.append(given) or stock(**given))
    generator.sample([Request(TWO, 0)])
    read = generator.read([generator.prepare(Request(TWO, 0))])
    plain = generator.backbone.encode_text(["a dog"])
    for key, negative, positive in (
        ("encoder_hidden_states", plain.prompt_embeds, read.prompt_embeds),
        ("pooled_projections", plain.pooled_prompt_embeds, read.pooled_prompt_embeds),
    ):
        assert torch.equal(seen[0][key][0], negative[0]) and torch.equal(seen[0][key][1], positive[0]), key


@pytest.mark.parametrize("kind", WORKING)
def test_gradients_reach_what_is_trained_and_nothing_else(kind: type[RivalLearner], tmp_path: Path, root: Path) -> None:
    learner = stirred(learner_of(kind, sd3(tmp_path), tmp_path))
    dog, cat = (str(root / "world" / "subjects" / name) for name in NOUNS)
    data = ConceptData(dog, "dog", resolution=64, class_dir=cat, num_class_images=2, num_views=4)
    learner.prepare(data, torch.device("cpu"))
    batch = {"index": torch.tensor([0, 1]), "position": torch.tensor([0, 1]), "step": torch.tensor(0)}
    learner.reduce(learner.losses(batch, learner.generators(batch, 0, 1)))[0].backward()
    trained = {id(one) for one in learner.averaged_parameters()}
    # The last block drops the answers to what its text asks.
    dropped = "transformer_blocks.2.attn.add_q_proj."
    named = [*learner.backbone.denoiser.named_parameters(), *learner.tokens.named_parameters()]
    still = [name for name, one in named if id(one) in trained and (one.grad is None or not one.grad.any())]
    assert all(name.startswith(dropped) for name in still), still
    for module in (learner.backbone.denoiser, learner.backbone.vae, *learner.backbone.text_encoders):
        for name, one in module.named_parameters():
            assert one.grad is None or id(one) in trained, name
    if kind is DreamBoothLoRA:
        of_loras = {id(one) for name, one in learner.backbone.denoiser.named_parameters() if ".lora_" in name}
        assert trained == of_loras and len(still) == 2


def test_a_file_acts_as_what_was_trained(tmp_path: Path) -> None:
    learner, backbone = stirred(learner_of(DreamBoothLoRA, sd3(tmp_path), tmp_path)), sd3(tmp_path)
    generator = DreamBoothLoRAGenerator(backbone, {"rex": learner.concept()}, SAMPLING)
    noised = backbone.corrupt(torch.randn(1, 4, 8, 8), [torch.Generator().manual_seed(0)])
    with torch.no_grad(), learner.acting():
        expected = learner.backbone.denoise(noised, learner.subject_text([3]))
    with torch.no_grad(), generator.acting(("rex",)):
        found = backbone.denoise(noised, generator.read([generator.prepare(Request("a photo of <rex>", 0))]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_lora_changes_what_the_script_of_diffusers_changes(tmp_path: Path) -> None:
    learner = learner_of(DreamBoothLoRA, sd3(tmp_path), tmp_path)
    found = sorted(name.removeprefix("down.denoiser.") for name in learner.learnt() if name.startswith("down."))
    image, text = ["to_q", "to_k", "to_v", "to_out.0"], ["add_q_proj", "add_k_proj", "add_v_proj"]
    # The last block drops its text, so that it has no layer behind its attention to it.
    blocks = [(0, [*image, *text, "to_add_out"]), (1, [*image, *text, "to_add_out"]), (2, [*image, *text])]
    assert found == sorted(f"transformer_blocks.{at}.attn.{layer}" for at, layers in blocks for layer in layers)


def test_a_unet_is_changed_in_the_layers_and_from_the_numbers_that_it_was(tmp_path: Path) -> None:
    """Against peft itself, told the four layers of every attention."""
    from peft import LoraConfig

    learner = learner_of(DreamBoothLoRA, UNetBackbone(tiny_sd(tmp_path), "sd"), tmp_path)
    unet = tiny_sd(tmp_path).unet
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=layers))
    expected: dict[str, Tensor] = {name: one for name, one in unet.named_parameters() if ".lora_" in name}
    found = {name: one for name, one in learner.backbone.denoiser.named_parameters() if ".lora_" in name}
    assert len(found) == 2 * sum(name.endswith(tuple(layers)) for name, _ in tiny_sd(tmp_path).unet.named_modules())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], one) for name, one in expected.items())


@pytest.mark.parametrize("kind", OTHERS)
def test_the_others_need_cross_attention_and_say_so(kind: type[RivalLearner], tmp_path: Path) -> None:
    told = f"^{kind.method} is built for models with cross-attention, and sd3 is none; learn .* method=latexblend, or"
    with pytest.raises(ValueError, match=told):
        learner_of(kind, sd3(tmp_path), tmp_path)


def test_omg_reads_cross_attention_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="OMG reads the attention of every step, which a StableDiffusion3Pipeline"):
        OMGGenerator(sd3(tmp_path), {}, SAMPLING)


@pytest.mark.parametrize("kind", WORKING)
@pytest.mark.parametrize("model", ELSEWHERE)
def test_a_word_that_stands_at_several_places_is_refused(kind: type[RivalLearner], model: str, tmp_path: Path) -> None:
    told = rf"^{kind.method} needs a word to stand at one place .* {model} .* template; learn .* method=latexblend, or"
    with pytest.raises(ValueError, match=told):
        learner_of(kind, ELSEWHERE[model](tmp_path), tmp_path)
